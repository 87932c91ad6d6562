"""When a category is clicked: learnt from the counters topic alike by all, saved with the counters."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from rhythm_reference import Rhythms

from stream_dmgin.counters.chains import SharedCounters
from stream_dmgin.counters.increments import Increments
from stream_dmgin.counters.layout import C_ONLINE
from stream_dmgin.counters.learner import OnlineModel
from stream_dmgin.counters.rhythm import rhythm
from stream_dmgin.counters.table import CounterTable
from stream_dmgin.errors import UsageError
from stream_dmgin.features.build import FeatureBuilder
from stream_dmgin.features.catalogue import Catalogue
from stream_dmgin.features.spec import COUNTER_KINDS, InputSpec
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.native import hash_ids
from tests.learnt import folded, learnt

MONDAY = int(datetime(2026, 1, 5, tzinfo=UTC).timestamp()) // 900  # its first quarter hour
CATEGORIES = hash_ids([f"c{k}" for k in range(5)])


def rows(kind: str, category: np.ndarray, bucket: np.ndarray, metric: np.ndarray, count: np.ndarray) -> Increments:
    n = len(category)
    return Increments(np.full(n, COUNTER_KINDS.index(kind), np.uint8), category, bucket, metric.astype(np.uint8), count)


def some(n: int, seed: int, many: int = 60) -> Increments:
    r = np.random.default_rng(seed)
    x = rows(
        "category", r.choice(CATEGORIES, n), MONDAY + r.integers(0, 96 * 30, n), r.integers(0, 4, n) % 3, r.integers(1, many, n)
    )  # fmt: skip
    x.kind[: n // 4] = r.choice([0, 2], n // 4)
    return x


def at(table: CounterTable, category: int, quarter: int) -> tuple[float, float]:
    return rhythm(int(table.addresses[C_ONLINE]), np.uint64(category), quarter)


def test_it_is_what_plain_python_learns() -> None:
    table, want = CounterTable(OnlineModel()), Rhythms()
    for seed in range(10):
        x = some(50, seed)
        table.take(x)
        want.learn(zip(*(c.tolist() for c in x.columns()), strict=True))
    for k, category in enumerate(CATEGORIES.tolist()):
        for quarter in range(MONDAY + k, MONDAY + 96 * 7, 37):
            assert at(table, category, quarter) == pytest.approx(want.at(category, quarter), abs=2e-6)
    assert abs(want.at(int(CATEGORIES[0]), MONDAY)[1] + 2) > 0.1


def test_noodles_are_for_noon_and_bars_for_saturday_night() -> None:
    """Both are clicked as often, and shown at all hours alike."""
    table, r = CounterTable(OnlineModel()), np.random.default_rng(3)
    noodles, bars = CATEGORIES[:2]
    for day in range(60):
        for hour in range(24):
            for category in (noodles, bars):
                good = hour in (11, 12, 13) if category == noodles else (day % 7 == 5 and hour >= 20)
                clicks = int(r.binomial(20, 0.4 if good else 0.05))
                quarter, n = MONDAY + 96 * day + 4 * hour, 1 + (clicks > 0)
                table.take(
                    rows("category", np.repeat(category, n), np.full(n, quarter), np.arange(n), np.array([20, clicks])[:n])
                )  # fmt: skip
    tuesday, saturday = MONDAY + 96 * 64, MONDAY + 96 * 68
    now = {
        (c, h, d): at(table, int(c), d + 4 * h)
        for c in (noodles, bars)
        for h in (4, 12, 22)
        for d in (tuesday, saturday)
    }
    assert (
        now[noodles, 12, tuesday][0] > 0.7 > 0.2 > now[noodles, 4, tuesday][0] and now[noodles, 22, saturday][0] < 0.2
    )
    assert now[bars, 22, saturday][0] > 0.7 > 0.2 > now[bars, 22, tuesday][0] and now[bars, 12, saturday][0] < 0.2
    assert now[noodles, 12, tuesday][1] > now[noodles, 4, tuesday][1] + 1


def test_items_and_orders_teach_nothing() -> None:
    table = CounterTable(OnlineModel())
    n = 40
    full = np.full(n, MONDAY)
    table.take(rows("item", np.repeat(CATEGORIES[0], n), full, np.arange(n) % 2, np.ones(n, np.int64)))
    table.take(rows("category", np.repeat(CATEGORIES[0], n), full, np.full(n, 3), np.ones(n, np.int64)))
    assert at(table, int(CATEGORIES[0]), MONDAY) == (0.0, -2.0)


def ranges(first: int, last: int) -> list[bytes]:
    """Records of the topic."""
    return [
        v for k in range(first, last) for v in some(50, k).encode(0, {0: k, 1: 0, 2: 0}, {0: k + 1, 1: 0, 2: 0}, "a")
    ]


def test_a_checkpoint_keeps_it() -> None:
    want, half = folded(ranges(0, 6)), folded(ranges(0, 3))
    kept = dict(half.checkpoint())
    again = SharedCounters.restore(kept.items(), online=True)
    for v in ranges(3, 6):
        again.fold(v, again.next_offset)
    assert learnt(again) == learnt(want) != learnt(half)
    kept = {k: v for k, v in kept.items() if k not in again.stale} | dict(again.checkpoint())
    assert learnt(SharedCounters.restore(kept.items(), online=True)) == learnt(want)


def test_it_can_be_all_that_is_learnt() -> None:
    """In a fortieth of the memory; from the checkpoint of a worker that learns all, but not the other way round."""
    whole, alone = folded(ranges(0, 6)), SharedCounters(rhythm=True)
    for v in ranges(0, 6):
        alone.fold(v, alone.next_offset)
    assert len(learnt(alone)) == 512 * 1024 and learnt(whole).endswith(learnt(alone)) and any(learnt(alone))
    mine, theirs = dict(alone.checkpoint()), dict(folded(ranges(0, 3)).checkpoint())
    assert learnt(SharedCounters.restore(mine.items(), rhythm=True)) == learnt(alone)
    again = SharedCounters.restore(theirs.items(), rhythm=True)
    assert again.next_offset == 3
    for v in ranges(3, 6):
        again.fold(v, again.next_offset)
    assert learnt(again) == learnt(alone)
    both = theirs | dict(again.checkpoint())  # with the pages of what it didn't learn, of an earlier moment
    for store in (mine, both):
        begun = SharedCounters.restore(store.items(), online=True)
        assert begun.next_offset == 0 and len(begun.table) == 0 and len(begun.stale) > 1


@pytest.mark.parametrize("block", ["online", "audience"])
def test_it_is_not_enough_for_other_blocks(block: str) -> None:
    table = CounterTable(OnlineModel(items=False))
    with pytest.raises(UsageError, match=f"inputs `{block}`, which"):
        FeatureBuilder(InputSpec(blocks=(block,)), Catalogue(embedding=64), table, GroupMap.empty())
    FeatureBuilder(InputSpec(blocks=("rhythm",)), Catalogue(), table, GroupMap.empty())


def test_a_model_that_reads_it_needs_it_learnt() -> None:
    with pytest.raises(UsageError, match=r"inputs `rhythm`, which.*worker\.online = true"):
        FeatureBuilder(InputSpec(blocks=("rhythm",)), Catalogue(), CounterTable(), GroupMap.empty())
