"""The online model: learnt from the counters topic alike by all, saved with the counters, read again where it is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import msgpack
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from online_reference import Online

from stream_dmgin.counters.chains import SharedCounters
from stream_dmgin.counters.increments import Increments, decode
from stream_dmgin.counters.learner import OnlineModel
from stream_dmgin.counters.table import CounterTable
from stream_dmgin.errors import FormatError, UsageError
from stream_dmgin.features.build import FeatureBuilder
from stream_dmgin.features.catalogue import Catalogue
from stream_dmgin.features.spec import InputSpec
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.native import hash_ids
from tests.learnt import folded, learnt

B = 1_900_000
ITEMS = hash_ids([f"i{k}" for k in range(60)])


def some(n: int, seed: int, many: int = 4) -> Increments:
    """Rows as a publisher would make them: of items, categories, advertisers, all metrics, with surfaces."""
    r = np.random.default_rng(seed)
    kind = np.where(r.random(n) < 0.7, 0, r.integers(1, 3, n)).astype(np.uint8)
    metric = np.where(r.random(n) < 0.8, r.random(n) < 0.3, r.integers(2, 5, n)).astype(np.uint8)
    return Increments(
        kind, r.choice(ITEMS, n), r.integers(B, B + 400, n), metric, r.integers(1, many, n),
        r.integers(0, 4, n).astype(np.uint8) * (kind == 0),
    )  # fmt: skip


def topic(limit: int = 512 * 1024, rows: int = 60) -> list[bytes]:
    """Ranges of two partitions, in turn."""
    out = []
    for k in range(8):
        x, p = some(rows, k), k % 2
        out += x.encode(p, {0: k // 2, 1: 0, 2: 0}, {0: k // 2 + 1, 1: 0, 2: 0}, "a", limit)
    return out


def test_it_is_what_plain_python_learns() -> None:
    table, want = CounterTable(OnlineModel()), Online()
    for k in range(12):
        x = some(40, k, 60)
        table.take(x)
        assert x.surface is not None
        want.learn(zip(*(c.tolist() for c in (*x.columns(), x.surface)), strict=True))
    assert table.online is not None
    for h in ITEMS[:20].tolist():
        ts, surface = (B + 410) * 900_000 + 5, h % 4
        first = want.first.get(h)
        got = table.online.logit(h, surface, ts, -1 if first is None else first * 900_000)
        assert got == pytest.approx(sum(want.logits(h, surface, ts)), abs=2e-6)


def test_chunks_of_records_do_not_matter() -> None:
    whole, cut = topic(), topic(1024 + 200)
    assert len(cut) > 2 * len(whole)
    assert learnt(folded(whole)) == learnt(folded(cut))


def test_a_range_is_the_unit() -> None:
    """Repetitions teach nothing; without the learner the counters are the same."""
    values = topic()
    s = folded([v for v in values for _ in range(2)])
    assert learnt(s) == learnt(folded(values))
    plain = SharedCounters()
    for v in values:
        plain.fold(v, plain.next_offset)
    assert plain.table.online is None and plain.table.canonical() == s.table.canonical()


def test_a_checkpoint_anywhere_loses_nothing() -> None:
    values = topic(1024 + 400)
    want = folded(values)
    for cut in range(0, len(values) + 1, 3):
        s, store = SharedCounters(online=True), {}
        store |= dict(s.checkpoint())
        for offset, v in enumerate(values[:cut]):
            s.fold(v, offset)
            if offset % 2:
                store |= dict(s.checkpoint())
        store |= dict(s.checkpoint())
        back = SharedCounters.restore(store.items(), online=True)
        assert back.next_offset <= cut and not back.stale
        for offset in range(back.next_offset, len(values)):
            back.fold(values[offset], offset)
        assert learnt(back) == learnt(want) and back.table.canonical() == want.table.canonical()


def test_a_checkpoint_without_the_weights_of_its_moment_is_read_again() -> None:
    values = topic()
    want = folded(values)
    plain = SharedCounters()
    for v in values[:4]:
        plain.fold(v, plain.next_offset)
    older = dict(plain.checkpoint())  # as every version before wrote it
    begun = folded(values[:2])
    store = dict(begun.checkpoint())
    behind = SharedCounters.restore(store.items())  # goes on without the learner: its weights stay where they were
    assert behind.table.online is None and len(behind.stale) > 1
    behind.fold(values[2], 2)
    store |= dict(behind.checkpoint())
    other = dict(begun.checkpoint()) | {b"w": msgpack.packb([older[b"m"], [1, 2, 3, 4], 1])}
    for rows in (older, store, other):
        s = SharedCounters.restore(rows.items(), online=True)
        assert s.next_offset == 0 and set(s.stale) == rows.keys() - {b"m"} and len(s.table) == 0
        for v in values:
            s.fold(v, s.next_offset)
        assert learnt(s) == learnt(want) and s.table.canonical() == want.table.canonical()
        kept = {k: v for k, v in rows.items() if k not in s.stale} | dict(s.checkpoint())
        assert learnt(SharedCounters.restore(kept.items(), online=True)) == learnt(want)
    assert SharedCounters.restore(older.items()).next_offset == 4


def test_a_damaged_page_is_refused() -> None:
    rows = dict(folded(topic()).checkpoint())
    page = next(k for k in rows if k[:1] == b"w" and len(k) == 5)
    for bad in ({page: rows[page][:-1]}, {b"w\xff\xff\xff\xff": rows[page]}, {b"w123": rows[page]}):
        with pytest.raises(FormatError, match="remove the counters' directory"):
            SharedCounters.restore((rows | bad).items(), online=True)


def test_records_without_surfaces_are_read_as_before() -> None:
    x = some(50, 1)
    (value,) = x.encode(0, {0: 0}, {0: 1}, "a")
    older = msgpack.packb({k: v for k, v in msgpack.unpackb(value).items() if k != "surface"})
    assert decode(older).increments.surface is None and decode(value).increments.surface is not None
    a, b = folded([value]), folded([older])
    assert a.table.canonical() == b.table.canonical() and learnt(a) != learnt(b)
    none = Increments(*x.columns(), np.zeros(len(x), np.uint8))
    assert learnt(folded(none.encode(0, {0: 0}, {0: 1}, "a"))) == learnt(b)
    joined = Increments.joined([Increments(*x.columns()), x])
    assert joined.surface is not None and joined.surface.tolist() == [0] * len(x) + x.surface.tolist()  # type: ignore[union-attr]


def test_what_is_clicked_is_said_to_be_clicked() -> None:
    """A tenth of the impressions of one item is clicked, half of another's, and of it almost all on one surface."""
    table, r = CounterTable(OnlineModel()), np.random.default_rng(3)
    for k in range(1500):
        item, surface = int(r.integers(2)), int(r.integers(1, 3))
        clicked = r.random() < (0.1 if item == 0 else 0.9 if surface == 1 else 0.1)
        n = 1 + clicked
        table.take(
            Increments(
                np.zeros(n, np.uint8), np.repeat(ITEMS[item], n), np.full(n, B + k // 50), np.arange(n, dtype=np.uint8),
                np.ones(n, np.int64), np.full(n, surface, np.uint8),
            )
        )  # fmt: skip
    assert table.online is not None
    now = (B + 30) * 900_000
    says = {(i, s): table.online.logit(int(ITEMS[i]), s, now, B * 900_000) for i in range(2) for s in (1, 2)}
    assert says[1, 1] > 1 and max(v for k, v in says.items() if k != (1, 1)) < -1


def test_enormous_counts_stay_finite() -> None:
    s = SharedCounters(online=True)
    rows = Increments(
        np.zeros(4, np.uint8), np.repeat(ITEMS[:2], 2), np.array([B, B, B + 10**6, 5]), np.array([0, 1, 0, 1], np.uint8),
        np.array([10**18, 3, 1, 10**18]), np.array([0, 31, 255, 0], np.uint8),
    )  # fmt: skip
    for k in range(3):
        for v in rows.encode(0, {0: k}, {0: k + 1}, "a"):
            s.fold(v, s.next_offset)
    assert s.table.online is not None
    assert all(np.isfinite(s.table.online.logit(int(h), 31, B * 900_000, -1)) for h in ITEMS[:2])


def test_a_model_that_reads_it_needs_it_learnt() -> None:
    with pytest.raises(UsageError, match="start the worker again"):
        FeatureBuilder(InputSpec(blocks=("online",)), Catalogue(), CounterTable(), GroupMap.empty())
