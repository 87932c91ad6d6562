"""The table of counters: reading with decay, commuting, eviction, rows."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from features_reference import Counters

from stream_dmgin.counters.table import CounterTable
from stream_dmgin.errors import FormatError
from stream_dmgin.features.spec import COUNTER_KINDS, COUNTER_METRICS

NOW_BUCKET = 1_944_444
NOW = NOW_BUCKET * 900_000 + 123_456


def columns(n: int, seed: int = 0, entities: int = 30, spread: float = 3.8):  # type: ignore[no-untyped-def]
    r = np.random.default_rng(seed)
    return (
        r.integers(0, 3, n).astype(np.uint8), r.integers(1, entities, n).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15),
        NOW_BUCKET - (10 ** r.uniform(0, spread, n)).astype(np.int64) + 5, r.integers(0, 5, n).astype(np.uint8),
        r.integers(1, 10_000, n),
    )  # fmt: skip


def filled(*parts) -> CounterTable:  # type: ignore[no-untyped-def]
    t = CounterTable()
    for p in parts:
        t.apply(*p)
    return t


def reference(cols) -> Counters:  # type: ignore[no-untyped-def]
    out = Counters()
    for k, h, b, m, c in zip(*(x.tolist() for x in cols), strict=True):
        out.add(COUNTER_KINDS[k], h, b, COUNTER_METRICS[m], c)
    return out


@pytest.mark.parametrize("seed", range(4))
def test_reading_equals_the_reference(seed: int) -> None:
    cols = columns(2000, seed)
    t, want = filled(cols), reference(cols)
    for now in (NOW, NOW + 900_000, NOW - 86_400_000, NOW + 40 * 86_400_000):
        for kind, h in sorted({(int(k), int(h)) for k, h in zip(cols[0], cols[1], strict=True)})[:20]:
            got = t.read(COUNTER_KINDS[kind], h, now)
            np.testing.assert_allclose(got, want.features(COUNTER_KINDS[kind], h, now)[:11], rtol=2e-6, atol=2e-6)
            assert t.totals(COUNTER_KINDS[kind], h) == {
                m: want.life(COUNTER_KINDS[kind], h, m) for m in COUNTER_METRICS
            }
    assert t.global_totals() == {m: want.life("all", 0, m) for m in COUNTER_METRICS}


def test_nothing_known_reads_as_zero() -> None:
    t = filled(columns(100))
    assert not t.read("item", 12345, NOW).any() and not any(t.totals("item", 12345).values())
    assert not CounterTable().read("category", 1, NOW).any()


def test_cached_and_computed_anew_are_the_same_numbers() -> None:
    t = filled(columns(3000, 1))
    entities = sorted({(int(k), int(h)) for k, h, *_ in zip(*columns(3000, 1), strict=True)})
    for step in range(12):
        t.apply(*columns(3, 100 + step))
        now = NOW + step * 300_000
        cached = [t.read(COUNTER_KINDS[k], h, now).tobytes() for k, h in entities]
        fresh = CounterTable()
        fresh.from_rows(t.to_rows() if step == 0 else ((k, v) for k, v in rows_of(t)))
        assert [fresh.read(COUNTER_KINDS[k], h, now).tobytes() for k, h in reversed(entities)] == cached[::-1]


def rows_of(t: CounterTable):  # type: ignore[no-untyped-def]
    return t._encode(np.arange(t.used))


def test_an_event_a_day_ahead_does_not_empty_the_counters() -> None:
    one = np.ones(16, np.int64)
    past = (np.zeros(16, np.uint8), np.full(16, 7, np.uint64), NOW_BUCKET - np.arange(16), np.zeros(16, np.uint8), one)
    t = filled(past)
    before = float(t.read("item", 7, NOW)[0])
    t.apply(*(x[:1] for x in (past[0], past[1], past[2] + 96, past[3], past[4])))
    assert float(t.read("item", 7, NOW)[0]) == pytest.approx(before, rel=0.2)  # one slot of sixteen changed hands


def test_growth_keeps_everything() -> None:
    cols = columns(20_000, 3, entities=6000)
    whole, parts = filled(cols), CounterTable()
    for i in range(0, 20_000, 777):
        parts.apply(*(x[i : i + 777] for x in cols))
    assert len(whole) == len(parts) > 6000 and whole.canonical() == parts.canonical()
    h = int(cols[1][0])
    assert (
        whole.read(COUNTER_KINDS[cols[0][0]], h, NOW).tobytes()
        == parts.read(COUNTER_KINDS[cols[0][0]], h, NOW).tobytes()
    )


def test_only_what_changed_is_written_and_rows_restore_the_table() -> None:
    t = filled(columns(500))
    store = dict(t.to_rows())
    assert len(store) == len(t) + 1 and not dict(t.to_rows())
    more = tuple(x[:2] for x in columns(10, 9))
    t.apply(*more)
    changed = dict(t.to_rows())
    assert 1 <= len(changed) <= 3
    back = CounterTable()
    back.from_rows((store | changed).items())
    assert back.canonical() == t.canonical()
    back.apply(*columns(50, 5))
    t.apply(*columns(50, 5))
    assert back.canonical() == t.canonical()


@pytest.mark.parametrize("value", [b"", b"\x02", b"\x01\x05", b"\x01" + b"\xff" * 40])
def test_rows_of_another_format_are_refused(value: bytes) -> None:
    with pytest.raises(FormatError, match="remove the counters' directory"):
        CounterTable().from_rows([(b"e\x00" + b"\0" * 7 + b"\x01", value)])


def test_bad_keys_and_truncated_rows_are_refused() -> None:
    key, value = next(iter(filled(columns(50)).to_rows()))
    for k, v in ((b"x" + key[1:], value), (key[:-1], value), (key, value[:-1]), (key, value + b"\0")):
        with pytest.raises(FormatError):
            CounterTable().from_rows([(k, v)])


@pytest.mark.parametrize(("at", "bad"), [(0, 3), (2, -1), (2, 1 << 31), (3, 5)])
def test_increments_out_of_range_are_refused_whole(at: int, bad: int) -> None:
    cols = list(columns(4))
    cols[at] = cols[at].copy()
    cols[at][3] = bad
    t = CounterTable()
    with pytest.raises(ValueError, match="out of range"):
        t.apply(*cols)
    assert len(t) == 0


def test_more_clicks_than_impressions_is_no_error() -> None:
    one = np.ones(1, np.int64)
    t = filled((np.zeros(1, np.uint8), np.full(1, 9, np.uint64), one * NOW_BUCKET, np.ones(1, np.uint8), one * 1000))
    assert np.isfinite(t.read("item", 9, NOW)).all()
