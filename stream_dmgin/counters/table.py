"""What is known of items, categories and advertisers over all users: counts in integer time buckets, read with decay.

Hot path: nothing here blocks; `apply` allocates only when the table grows. One thread at a time.

An entity is (kind, hash of its name). Per entity: totals for life, the first bucket it was seen in, and per level of
COUNTER_LEVELS a ring of buckets. A bucket b lives in slot b % kept, with b as the slot's stamp: a newer bucket evicts the one
in its slot, an increment for a bucket already evicted is left out of that level (never of the totals). So each slot ends
with the sums of the greatest bucket it ever met, whatever the order of arrival: the table is a function of the set of
increments. A ring with a single newest stamp would be smaller, but then one event dated a day ahead would empty it.

Decay happens on reading, in whole buckets of age. What is read depends on the table and on the quarter hour of `now`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.counters import rows as _rows
from stream_dmgin.counters.increments import Increments
from stream_dmgin.counters.layout import (
    C_CACHE,
    C_CAPACITY,
    C_COUNTS,
    C_FIRST,
    C_KEYS,
    C_MASK,
    C_ONLINE,
    C_ROWS,
    C_STAMPS,
    C_STATE,
    C_VALID,
    C_VIEW,
    C_WEIGHTS,
    CACHED,
    EMPTY,
    FEATURES,
    GLOBAL_KIND,
    KEPT,
    LEVEL_AT,
    LIFE_AT,
    METRICS_OF,
    N_ADDRESSES,
    N_COUNTS,
    N_LEVELS,
    N_METRICS,
    N_SLOTS,
    N_STATE,
    N_VIEW,
    RATIO,
    S_CLOCK,
    S_VERSION,
    SLOT_AT,
    weights,
)  # fmt: skip
from stream_dmgin.counters.learner import OnlineModel
from stream_dmgin.counters.read import find, mixed, refresh, row_features, row_of
from stream_dmgin.counters.rows import decode
from stream_dmgin.features.spec import COUNTER_KINDS, COUNTER_METRICS
from stream_dmgin.native import kernel

_MIN_ROWS = 1024


@kernel
def _clear(counts: Any, row: int, level: int, slot: Any) -> None:
    for metric in range(METRICS_OF[level]):
        counts[row, LEVEL_AT[level] + metric * KEPT[level] + slot] = 0


@kernel
def _add(counts: Any, stamps: Any, first: Any, valid: Any, row: int, bucket: Any, metric: int, count: int) -> None:
    counts[row, LIFE_AT + metric] += count
    first[row] = min(first[row], np.int32(bucket))
    valid[row] = -1
    for level in range(N_LEVELS):
        if metric >= METRICS_OF[level]:
            continue
        b = np.int32(bucket // RATIO[level])
        slot = b % KEPT[level]
        stamp = stamps[row, SLOT_AT[level] + slot]
        if stamp > b:
            continue
        if stamp < b:
            _clear(counts, row, level, slot)
            stamps[row, SLOT_AT[level] + slot] = b
        counts[row, LEVEL_AT[level] + metric * KEPT[level] + slot] += count


@kernel
def _new_row(keys: Any, rows: Any, hashes: Any, kinds: Any, used: int, kind: int, h: Any) -> None:
    mask = np.uint64(keys.shape[0] - 1)
    key = mixed(kind, h)
    at = key & mask
    while keys[at] != 0:
        at = (at + np.uint64(1)) & mask
    keys[at] = key
    rows[at] = used
    hashes[used] = h
    kinds[used] = kind


@kernel
def _apply(
    keys: Any, rows: Any, hashes: Any, kinds: Any, counts: Any, stamps: Any, first: Any, valid: Any, dirty: Any, state: Any,
    used: int, kind: Any, h: Any, bucket: Any, metric: Any, count: Any, start: int,
) -> tuple[int, int]:  # fmt: skip
    """Apply increments from `start` on; stops where the table is full. Returns (rows used, next increment)."""
    room = min(counts.shape[0], keys.shape[0] // 2)
    for i in range(start, kind.shape[0]):
        row = find(keys, rows, kind[i], h[i])
        if row < 0:
            if used >= room:
                return used, i
            _new_row(keys, rows, hashes, kinds, used, kind[i], h[i])
            row = used
            used += 1
        _add(counts, stamps, first, valid, row, bucket[i], metric[i], count[i])
        dirty[row] = 1
        if kind[i] == 0:  # every event has exactly one item: the items add up to the whole
            _add(counts, stamps, first, valid, 0, bucket[i], metric[i], count[i])
            dirty[0] = 1
    state[S_VERSION] += 1
    return used, kind.shape[0]


@kernel
def _load(
    keys: Any, rows: Any, hashes: Any, kinds: Any, counts: Any, stamps: Any, first: Any, valid: Any, used: int,
    kind: Any, h: Any, data: Any, ends: Any,
) -> tuple[int, int]:  # fmt: skip
    """Take encoded rows in; there must be room for all. Returns (rows used, encoded rows taken); stops at a bad one."""
    start = 0
    for i in range(kind.shape[0]):
        row = 0 if kind[i] == GLOBAL_KIND else find(keys, rows, kind[i], h[i])
        if row < 0:
            _new_row(keys, rows, hashes, kinds, used, kind[i], h[i])
            row = used
            used += 1
        bucket = decode(data[start : ends[i]], counts[row], stamps[row])
        if bucket < 0:
            return used, i
        first[row] = bucket
        valid[row] = -1
        start = ends[i]
    return used, kind.shape[0]


@kernel
def _reindex(keys: Any, rows: Any, hashes: Any, kinds: Any, used: int) -> None:
    for row in range(1, used):
        _new_row(keys, rows, hashes, kinds, row, kinds[row], hashes[row])


@kernel
def _read(table: Any, kind: Any, h: Any, now: Any, to: Any) -> None:
    refresh(table, now)
    row_features(table, row_of(table, kind, h), to)


class CounterTable:
    """The counters of all entities this process knows. `addresses` is how `features/build.py` reads them. `online`: what learns
    from the same increments, where somebody asked for it."""

    def __init__(self, online: OnlineModel | None = None) -> None:
        self.used = 0
        self.online = online
        self._state: NDArray[np.int64] = np.zeros(N_STATE, np.int64)
        self._view: NDArray[np.float64] = np.zeros(N_VIEW, np.float64)
        self._weights: NDArray[np.float64] = weights()
        self.addresses: NDArray[np.int64] = np.zeros(N_ADDRESSES, np.int64)
        self.addresses[C_ONLINE] = 0 if online is None else online.addresses.ctypes.data
        self._state[S_CLOCK] = -1
        self._arrays: dict[str, NDArray[Any]] = {}
        self._resize(_MIN_ROWS)
        self._arrays["kinds"][0] = GLOBAL_KIND
        self.used = 1

    def __len__(self) -> int:
        """Entities known."""
        return self.used - 1

    def _resize(self, capacity: int) -> None:
        fresh: dict[str, NDArray[Any]] = {
            "hashes": np.zeros(capacity, np.uint64),
            "kinds": np.zeros(capacity, np.uint8),
            "counts": np.zeros((capacity, N_COUNTS), np.int64),
            "stamps": np.full((capacity, N_SLOTS), EMPTY, np.int32),
            "first": np.full(capacity, np.iinfo(np.int32).max, np.int32),
            "valid": np.full(capacity, -1, np.int64),
            "cache": np.zeros((capacity, CACHED), np.float32),
            "dirty": np.zeros(capacity, np.uint8),
        }
        for name, new in fresh.items():
            if self.used:
                new[: self.used] = self._arrays[name][: self.used]
        fresh["keys"] = np.zeros(2 * capacity, np.uint64)
        fresh["rows"] = np.zeros(2 * capacity, np.int32)
        self._arrays = fresh
        _reindex(fresh["keys"], fresh["rows"], fresh["hashes"], fresh["kinds"], self.used)
        a = self.addresses
        for at, name in (
            (C_KEYS, "keys"), (C_ROWS, "rows"), (C_COUNTS, "counts"), (C_STAMPS, "stamps"), (C_FIRST, "first"),
            (C_VALID, "valid"), (C_CACHE, "cache"),
        ):  # fmt: skip
            a[at] = fresh[name].ctypes.data
        a[C_MASK] = 2 * capacity - 1
        a[C_STATE], a[C_VIEW], a[C_WEIGHTS] = (
            self._state.ctypes.data,
            self._view.ctypes.data,
            self._weights.ctypes.data,
        )
        a[C_CAPACITY] = capacity

    def take(self, x: Increments) -> None:
        """Add a range of increments, and learn from it."""
        self.apply(*x.columns())
        if self.online is not None:
            self.online.learn(self.addresses, x)

    def apply(
        self, kind: NDArray[np.uint8], h: NDArray[np.uint64], bucket: NDArray[np.int64], metric: NDArray[np.uint8],
        count: NDArray[np.int64],
    ) -> None:  # fmt: skip
        """Add increments: parallel columns of kind (index of COUNTER_KINDS), hash of the name (never 0), absolute number of
        the 15-minute bucket (0..2^31-1), metric (index of COUNTER_METRICS) and count. They commute. ValueError on what is
        out of range."""
        if len(kind) == 0:
            return
        if int(kind.max()) >= len(COUNTER_KINDS) or int(metric.max()) >= N_METRICS:
            raise ValueError("counter increments: kind or metric out of range")
        if int(bucket.min()) < 0 or int(bucket.max()) >= 1 << 31:
            raise ValueError("counter increments: bucket out of range")
        at = 0
        while True:
            a = self._arrays
            self.used, at = _apply(
                a["keys"], a["rows"], a["hashes"], a["kinds"], a["counts"], a["stamps"], a["first"], a["valid"], a["dirty"],
                self._state, self.used, kind, h, bucket, metric, count, at,
            )  # fmt: skip
            if at == len(kind):
                return
            self._resize(2 * len(a["kinds"]))

    def read(self, kind: str, h: int, now: int) -> NDArray[np.float32]:
        """Features of one entity at `now` (ms), in the order of the entity's part of COUNTER_FEATURES."""
        out = np.zeros(FEATURES, np.float32)
        _read(self.addresses.ctypes.data, COUNTER_KINDS.index(kind), np.uint64(h), now, out.ctypes.data)
        return out

    def totals(self, kind: str, h: int) -> dict[str, int]:
        """Counts for life of one entity by metric; zeros where it is unknown."""
        row = find(self._arrays["keys"], self._arrays["rows"], COUNTER_KINDS.index(kind), np.uint64(h))
        return self._totals(row)

    def global_totals(self) -> dict[str, int]:
        """Counts for life over all items."""
        return self._totals(0)

    def _totals(self, row: int) -> dict[str, int]:
        values = self._arrays["counts"][row, LIFE_AT:] if row >= 0 else np.zeros(N_METRICS, np.int64)
        return dict(zip(COUNTER_METRICS, values.tolist(), strict=True))

    def canonical(self) -> bytes:
        """Bytes of the whole table, equal if and only if two tables hold the same counters."""
        return b"".join(k + v for k, v in sorted(self._encode(np.arange(self.used))))

    def to_rows(self) -> Iterator[tuple[bytes, bytes]]:
        """Rows of the entities changed since the last call (all, the first time), to be kept in a store. Consume it whole
        before the next `apply`."""
        changed = np.flatnonzero(self._arrays["dirty"][: self.used])
        self._arrays["dirty"][: self.used] = 0
        return self._encode(changed)

    def _encode(self, which: NDArray[np.int64]) -> Iterator[tuple[bytes, bytes]]:
        a = self._arrays
        return _rows.encode(a["kinds"], a["hashes"], a["counts"], a["stamps"], a["first"], which)

    def from_rows(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Take rows of `to_rows` into this table, replacing the entities they name. Raises FormatError."""
        kinds, hashes, data, ends = _rows.split(rows)
        capacity = len(self._arrays["kinds"])
        while self.used + len(kinds) > capacity:
            capacity *= 2
        if capacity > len(self._arrays["kinds"]):
            self._resize(capacity)
        a = self._arrays
        self.used, done = _load(
            a["keys"], a["rows"], a["hashes"], a["kinds"], a["counts"], a["stamps"], a["first"], a["valid"], self.used,
            kinds, hashes, data, ends,
        )  # fmt: skip
        self._state[S_VERSION] += 1
        if done < len(kinds):
            raise _rows.unreadable("a counter row has another format")
