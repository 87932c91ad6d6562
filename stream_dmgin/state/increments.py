"""Increments of the counters shared by all users, as the fold accumulates them: item level, before the catalogue."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.state.layout import CW, METRICS


@dataclass(slots=True)
class RawIncrements:
    """Columns [n]: `item` is an index in `items` (ids) and `item_hashes`; `bucket` the number of the quarter of an hour since
    the epoch of the events' `ts`; `metric` an index in `spec.COUNTER_METRICS`; `count` > 0."""

    items: list[str]
    item_hashes: NDArray[np.uint64]
    item: NDArray[np.int32]
    bucket: NDArray[np.int64]
    metric: NDArray[np.uint8]
    count: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.count)

    @property
    def item_hash(self) -> NDArray[np.uint64]:
        """Item hash of each row."""
        return self.item_hashes[self.item]


def columns_of(
    table: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    """(item index, bucket, metric, count) of the entries of the fold's table, sorted by item and bucket."""
    rows = table.reshape(-1, CW)
    rows = rows[rows[:, 0] != 0]
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    at, metric = np.nonzero(rows[:, 1 : 1 + METRICS])
    key = rows[at, 0] - 1
    return key >> 32, key & 0xFFFF_FFFF, metric.astype(np.uint8), rows[at, 1 + metric]
