"""Increments of the counters shared by all users, as the fold accumulates them: item level, before the catalogue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.state.layout import CW, I_HASH, INC_BUCKET, INC_ITEM, INC_SURFACE, IW, METRICS, Mem


@dataclass(slots=True)
class RawIncrements:
    """Columns [n], each (item, bucket, surface, metric) once: `bucket` is the number of the quarter of an hour since the epoch of the
    events' `ts`; `metric` an index in `spec.COUNTER_METRICS`; `count` > 0. `name_of(item[i])` gives an item's id. `surface` is the
    number of the events' surface (`state.hash.surface_of`), 0 for none, and for events that are neither impressions nor clicks."""

    item_hash: NDArray[np.uint64]
    bucket: NDArray[np.int64]
    metric: NDArray[np.uint8]
    count: NDArray[np.int64]
    item: NDArray[np.int64]
    surface: NDArray[np.uint8]
    name_of: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.count)


def increments_of(mem: Mem, name_of: Callable[[int], str]) -> RawIncrements:
    """The entries of the fold's table, sorted by item, bucket and surface."""
    rows = mem.C.reshape(-1, CW)
    rows = rows[np.flatnonzero(rows[:, 0])]
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    at, metric = np.nonzero(rows[:, 1 : 1 + METRICS])
    key = rows[at, 0] - 1
    item = key >> INC_ITEM
    hashes = mem.I.reshape(-1, IW)[item, I_HASH].view(np.uint64)
    bucket, surface = (key >> INC_BUCKET) & ((1 << INC_ITEM - INC_BUCKET) - 1), (key & INC_SURFACE).astype(np.uint8)
    return RawIncrements(hashes, bucket, metric.astype(np.uint8), rows[at, 1 + metric], item, surface, name_of)
