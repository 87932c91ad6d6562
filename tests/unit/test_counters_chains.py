"""Increments, their records, and each published range exactly once."""

from __future__ import annotations

from types import SimpleNamespace

import msgpack
import numpy as np
import pytest

from stream_dmgin.counters.chains import SharedCounters
from stream_dmgin.counters.increments import Increments, decode
from stream_dmgin.errors import FormatError, RecordError
from stream_dmgin.features.catalogue import Catalogue
from stream_dmgin.records import Item
from stream_dmgin.state.hash import item_hash

B = 1_900_000


def some(n: int = 5, seed: int = 0) -> Increments:
    r = np.random.default_rng(seed)
    return Increments(
        r.integers(0, 3, n).astype(np.uint8), r.integers(1, 1 << 63, n).astype(np.uint64), r.integers(B, B + 50, n),
        r.integers(0, 5, n).astype(np.uint8), r.integers(1, 100, n),
    )  # fmt: skip


def records(
    since: int, to: int, partition: int = 0, attempt: str = "a", n: int = 5, limit: int = 512 * 1024
) -> list[bytes]:
    return some(n, to).encode(partition, {0: since, 1: 0, 2: 0}, {0: to, 1: 0, 2: 0}, attempt, limit)


def counted(s: SharedCounters) -> tuple[int, int, int, int]:
    c = s.chains
    return c.ranges, c.duplicates, c.gaps, c.overlaps


def fold(s: SharedCounters, *values: bytes) -> None:
    for v in values:
        s.fold(v, s.next_offset)


def total(s: SharedCounters) -> int:
    return sum(s.table.global_totals().values())


def test_category_and_advertiser_are_worked_out_by_the_publisher() -> None:
    catalogue = Catalogue()
    catalogue.upsert(Item("a", category="food", advertiser="x"))
    catalogue.upsert(Item("b", category="food"))
    hashes = np.array([item_hash(i) for i in "ab?"], np.uint64)
    raw = SimpleNamespace(
        item_hash=hashes, bucket=np.array([B, B, B]), metric=np.zeros(3, np.uint8), count=np.array([2, 3, 4]),
        surface=np.zeros(3, np.uint8),
    )  # fmt: skip
    got = Increments.from_raw(raw, catalogue)
    rows = {(int(k), int(h)): int(c) for k, h, c in zip(got.kind, got.hash, got.count, strict=True)}
    assert got.surface is None
    food, x = item_hash("food"), item_hash("x")
    assert rows == {(0, int(hashes[0])): 2, (0, int(hashes[1])): 3, (0, int(hashes[2])): 4, (1, food): 5, (2, x): 2}


def test_an_item_has_a_row_a_surface_and_its_owners_one() -> None:
    catalogue = Catalogue()
    catalogue.upsert(Item("a", category="food"))
    raw = SimpleNamespace(
        item_hash=np.repeat(np.array([item_hash("a")], np.uint64), 3), bucket=np.full(3, B), metric=np.zeros(3, np.uint8),
        count=np.array([2, 3, 4]), surface=np.array([0, 7, 31], np.uint8),
    )  # fmt: skip
    x = Increments.from_raw(raw, catalogue)
    assert x.surface is not None
    rows = sorted(zip(x.kind.tolist(), x.surface.tolist(), x.count.tolist(), strict=True))
    assert rows == [(0, 0, 2), (0, 7, 3), (0, 31, 4), (1, 0, 9)]


def test_no_increments_from_nothing() -> None:
    raw = SimpleNamespace(
        item_hash=np.zeros(0, np.uint64),
        bucket=np.zeros(0, np.int64),
        metric=np.zeros(0, np.uint8),
        count=np.zeros(0, np.int64),
        surface=np.zeros(0, np.uint8),
    )
    x = Increments.from_raw(raw, Catalogue())
    assert len(x) == 0 and len(decode(x.encode(1, {}, {0: 3}, "a")[0]).increments) == 0


def test_records_keep_to_the_limit_and_come_back_whole() -> None:
    x = some(10_000)
    values = x.encode(3, {0: 1}, {0: 9, 2: 4}, "try-1", 60_000)
    assert len(values) > 3 and max(map(len, values)) <= 60_000
    back = [decode(v) for v in values]
    assert [(r.partition, r.since, r.to, r.attempt, r.chunk, r.chunks) for r in back] == [
        (3, (1, 0, 0), (9, 0, 4), "try-1", i, len(values)) for i in range(len(values))
    ]
    for name in ("kind", "hash", "bucket", "metric", "count"):
        assert np.array_equal(np.concatenate([getattr(r.increments, name) for r in back]), getattr(x, name))


def test_a_record_is_plain_messagepack() -> None:
    m = msgpack.unpackb(records(0, 4)[0])
    assert (
        m["v"] == 1 and m["from"] == {"impressions": 0, "clicks": 0, "post-clicks": 0} and m["to"]["impressions"] == 4
    )
    assert len(m["hash"]) == 8 * len(m["kind"])


def changed(**fields) -> bytes:  # type: ignore[no-untyped-def]
    m = msgpack.unpackb(records(0, 4)[0]) | fields
    return msgpack.packb({k: v for k, v in m.items() if v is not None})


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "decode"), (b"", "decode"), (b"\xc1", "decode"), (b"\x93\x01\x02\x03", "schema"), (changed(kind=None), "schema"),
        (changed(kind=b"\0"), "schema"), (changed(partition="0"), "schema"), (changed(partition=-1), "range"), (changed(v=2), "format"),
        (changed(chunk=1), "range"), (changed(chunks=1 << 20), "range"), (changed(to={"impressions": 1}), "range"),
        (changed(to={"impressions": -1, "clicks": 0, "post-clicks": 0}), "range"), (changed(kind=b"\3" * 5), "range"),
        (changed(**{"from": {"impressions": 9, "clicks": 0, "post-clicks": 0}}), "range"), (changed(metric=b"\5" * 5), "range"),
        (changed(hash=b"\0" * 40), "range"), (changed(count=b"\0" * 40), "range"), (changed(bucket=b"\xff" * 20), "range"),
        (changed(surface=b"\0" * 4), "schema"), (changed(surface=7), "schema"),
    ],
)  # fmt: skip
def test_malformed_records_are_refused_and_left_behind(value: bytes | None, reason: str) -> None:
    s = SharedCounters()
    with pytest.raises(RecordError) as e:
        s.fold(value, 0)
    assert e.value.reason == reason and s.next_offset == 1 and total(s) == 0


def test_each_range_counts_once() -> None:
    s = SharedCounters()
    fold(s, *records(0, 4))
    once = s.table.canonical()
    fold(s, *records(0, 4), *records(0, 4, attempt="again"), *records(0, 3))
    assert s.table.canonical() == once and counted(s) == (1, 3, 0, 0)
    fold(s, *records(4, 9))
    assert s.table.canonical() != once and counted(s) == (2, 3, 0, 0) and s.published(0) == {0: 9, 1: 0, 2: 0}
    assert s.published(5) == {0: 0, 1: 0, 2: 0}


def test_partitions_have_chains_of_their_own() -> None:
    s = SharedCounters()
    fold(s, *records(0, 4), *records(0, 4, partition=1))
    assert counted(s) == (2, 0, 0, 0)


def test_overlaps_are_left_out_and_gaps_are_applied() -> None:
    s = SharedCounters()
    fold(s, *records(0, 10))
    at = s.table.canonical()
    fold(s, *records(5, 15))
    assert s.table.canonical() == at and counted(s) == (1, 0, 0, 1)
    fold(s, *records(12, 20))
    assert s.table.canonical() != at and counted(s) == (2, 0, 1, 1) and s.published(0)[0] == 20
    late = SharedCounters()  # a topic of which the beginning is gone
    fold(late, *records(30, 40))
    assert counted(late) == (1, 0, 1, 0)


def test_mixed_vectors_are_overlaps() -> None:
    s = SharedCounters()
    fold(s, *some().encode(0, {}, {0: 5, 1: 5}, "a"), *some().encode(0, {0: 6, 1: 3}, {0: 8, 1: 8}, "b"))
    assert counted(s) == (1, 0, 0, 1)


def test_chunks_are_applied_together() -> None:
    values = records(0, 4, n=500, limit=4000)
    s = SharedCounters()
    fold(s, *values[:-1])
    assert len(values) > 2 and total(s) == 0 and s.chains.safe(s.next_offset) == 0
    fold(s, *records(0, 4, partition=1))
    fold(s, values[-1])
    whole = SharedCounters()
    fold(whole, *records(0, 4, partition=1), *records(0, 4, n=500))
    assert s.table.canonical() == whole.table.canonical() and s.chains.safe(s.next_offset) == s.next_offset


def test_another_attempt_discards_an_unfinished_one() -> None:
    first, second = records(0, 4, n=500, limit=4000), records(0, 6, n=500, limit=4000, attempt="b")
    s, want = SharedCounters(), SharedCounters()
    fold(s, *first[:2], *second, *first)
    fold(want, *second)
    assert s.table.canonical() == want.table.canonical() and counted(s) == (1, 1, 0, 0)
    again = SharedCounters()
    fold(again, *first[:2], *first)  # a crash between chunks: the same bytes again
    once = SharedCounters()
    fold(once, *first)
    assert again.table.canonical() == once.table.canonical()


def test_a_checkpoint_between_chunks_loses_nothing() -> None:
    topic = [
        *records(0, 4),
        *records(0, 4, n=500, limit=4000, partition=1),
        *records(4, 7),
        *records(4, 6, partition=1),
    ]
    want = SharedCounters()
    fold(want, *topic)
    for cut in range(len(topic) + 1):
        s = SharedCounters()
        store = dict(s.checkpoint())
        for offset, v in enumerate(topic[:cut]):
            s.fold(v, offset)
            if offset % 2:
                store |= dict(s.checkpoint())
        store |= dict(s.checkpoint())
        back = SharedCounters.restore(store.items())
        assert back.next_offset <= cut
        for offset in range(back.next_offset, len(topic)):
            back.fold(topic[offset], offset)
        assert back.table.canonical() == want.table.canonical() and back.chains.applied == want.chains.applied


def test_records_below_the_next_offset_are_left_out() -> None:
    s = SharedCounters()
    v = records(0, 4)[0]
    assert s.fold(v, 7) and not s.fold(v, 7) and not s.fold(records(4, 5)[0], 3) and counted(s) == (1, 0, 0, 0)


def test_a_foreign_checkpoint_is_refused() -> None:
    with pytest.raises(FormatError, match="remove its directory"):
        SharedCounters.restore([(b"m", b"\x93\x00\x80\x63")])
