"""The counters are a function of the set of increments, and of the set of published ranges, whatever order they come in."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_dmgin.counters.chains import SharedCounters
from stream_dmgin.counters.increments import Increments
from stream_dmgin.counters.table import CounterTable

row = st.tuples(
    st.integers(0, 2), st.integers(1, 4), st.one_of(st.integers(1_900_000, 1_900_100), st.integers(0, 2**31 - 1)),
    st.integers(0, 4), st.integers(1, 10**12),
)  # fmt: skip


def columns(rows):  # type: ignore[no-untyped-def]
    kind, h, bucket, metric, count = zip(*rows, strict=True)
    return (
        np.array(kind, np.uint8), np.array(h, np.uint64), np.array(bucket, np.int64), np.array(metric, np.uint8),
        np.array(count, np.int64),
    )  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(row, min_size=1, max_size=60), st.randoms(use_true_random=False), st.integers(1, 20), st.booleans())
def test_order_batches_and_restarts_do_not_matter(rows, random, size, restart) -> None:  # type: ignore[no-untyped-def]
    whole = CounterTable()
    whole.apply(*columns(rows))
    shuffled = random.sample(rows, len(rows))
    parts, store = CounterTable(), {}
    for i in range(0, len(rows), size):
        parts.apply(*columns(shuffled[i : i + size]))
        if restart:
            store |= dict(parts.to_rows())
            parts = CounterTable()
            parts.from_rows(store.items())
    assert parts.canonical() == whole.canonical()
    now = 1_900_050 * 900_000
    for h in range(1, 5):
        assert parts.read("item", h, now).tobytes() == whole.read("item", h, now).tobytes()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.lists(row, max_size=8)), min_size=1, max_size=12),
    st.randoms(use_true_random=False), st.integers(0, 3),
)  # fmt: skip
def test_repetitions_and_interleaved_partitions_do_not_matter(ranges, random, crash_every) -> None:  # type: ignore[no-untyped-def]
    chains: dict[int, list[bytes]] = {0: [], 1: [], 2: []}
    at = dict.fromkeys(chains, 0)
    want = CounterTable()
    for i, (length, rows) in enumerate(ranges):
        p = i % 3
        x = Increments(*columns(rows)) if rows else Increments(*(c[:0] for c in columns([(0, 1, 0, 0, 1)])))
        chains[p] += x.encode(p, {0: at[p]}, {0: at[p] + length}, f"{i}", limit=1024 + 44)
        at[p] += length
        want.apply(*x.columns())
    s, offset = SharedCounters(), 0
    left = {p: list(v) for p, v in chains.items() if v}
    sent: dict[int, list[bytes]] = {p: [] for p in chains}
    while left:
        p = random.choice(sorted(left))
        value = left[p].pop(0)
        sent[p].append(value)
        s.fold(value, offset)
        offset += 1
        if crash_every and offset % (crash_every + 1) == 0:  # the publisher comes back and repeats its latest records
            for again in sent[p][-2:]:
                s.fold(again, offset)
                offset += 1
        if not left[p]:
            del left[p]
    assert s.table.canonical() == want.canonical()
    assert {p: v[0] for p, v in s.chains.applied.items()} == {p: n for p, n in at.items() if n}
