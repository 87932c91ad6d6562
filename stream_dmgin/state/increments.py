"""What the fold has for the counters shared by all users: increments, at item level, before the catalogue; and who saw and clicked what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.state.layout import (
    CW,
    D_ITEM,
    D_PREV,
    D_TSF,
    DW,
    F_IMPRESSION,
    I_HASH,
    INC_BUCKET,
    INC_ITEM,
    INC_SURFACE,
    IW,
    M_DTOP,
    METRICS,
    T_METRICS,
    TW,
    Mem,
)

CLICK_BIT = 1  # of T_METRICS: an event of this type is a click


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


@dataclass(slots=True)
class Encounters:
    """Impressions and clicks that count in the increments, in the order of the log: the slot of the user, the item's hash, whether it is
    a click. Slots are good until the next commit."""

    slot: NDArray[np.int64]
    item_hash: NDArray[np.uint64]
    clicked: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.slot)


def encounters_of(mem: Mem, since: int) -> Encounters:
    """Those among the uncommitted events from number `since` on."""
    rows = mem.D.reshape(-1, DW)[since : mem.M[M_DTOP]]
    shown = rows[:, D_TSF] & F_IMPRESSION != 0
    adds = mem.T.reshape(-1, TW)[rows[:, D_TSF] >> 8 & 255, T_METRICS]
    user = rows[:, D_PREV] >> 32
    take = (user > 0) & (shown | (adds & CLICK_BIT != 0))
    rows, clicked = rows[take], ~shown[take]
    return Encounters(user[take] - 1, mem.I.reshape(-1, IW)[rows[:, D_ITEM], I_HASH].view(np.uint64), clicked)
