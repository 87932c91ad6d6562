"""Kernel of the flat sequence: the newest events of a user's state, over all groups, into h_* of the inputs, as of the request.

The state's ring has 64 of them, which is what peers with a short reach need (`models/peers/`). Microseconds a request, nothing is
allocated, every position is written.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stream_dmgin.features.bound import (
    D_B,
    D_N,
    D_UB,
    D_US,
    I_H_AGE,
    I_H_CLS,
    I_H_DWELL,
    I_H_HOUR,
    I_H_ITEM,
    I_H_MASK,
    I_H_TIME,
    N_WHERE,
    US_CLS,
    US_DWELL,
    US_ITEM,
    US_LEN,
    US_TS,
    W_SELF,
)
from stream_dmgin.features.scales import age_bucket, dwell_bucket, hour_bucket, log2_minutes
from stream_dmgin.features.spec import BEHAVIOUR_CLASSES
from stream_dmgin.features.user_side import put_item
from stream_dmgin.native import f32, i32, i64, kernel, u8, u64

DWELL = BEHAVIOUR_CLASSES.index("dwell")


@kernel
def _belongs_to_another(item: Any, cls: Any, n: Any, e: Any) -> Any:
    """Event e only tells how long an older one on the same item lasted."""
    if cls[e] != DWELL:
        return False
    for older in range(e + 1, n):  # noqa: SIM110 - numba
        if item[older] == item[e] and cls[older] != DWELL:
            return True
    return False


@kernel
def _dwell(item: Any, cls: Any, dwell: Any, e: Any) -> Any:
    """Milliseconds of event e, by the newest event that tells how long it lasted; -1 unknown."""
    found = dwell[e]
    if cls[e] != DWELL:
        for newer in range(e - 1, -1, -1):
            if item[newer] == item[e]:
                if cls[newer] != DWELL:
                    break
                found = dwell[newer]
    return found


@kernel
def _put_events(w: Any, b: Any, r: Any, n: Any, now: Any) -> Any:
    """The newest of the n events of state row r into user b of the inputs; how many."""
    where = i64(w, (N_WHERE,))
    N, US = where[D_N], where[D_US]
    item, cls = u64(where[US_ITEM] + 8 * r * US, (US,)), u8(where[US_CLS] + r * US, (US,))
    ts, dwell = i64(where[US_TS] + 8 * r * US, (US,)), i64(where[US_DWELL] + 8 * r * US, (US,))
    h_cls, h_dwell = i32(where[I_H_CLS] + 4 * b * N, (N,)), i32(where[I_H_DWELL] + 4 * b * N, (N,))
    h_hour, h_time = i32(where[I_H_HOUR] + 4 * b * N, (N,)), i32(where[I_H_TIME] + 4 * b * N, (N,))
    h_age = f32(where[I_H_AGE] + 4 * b * N, (N,))
    told = False  # some event only tells how long another lasted
    for e in range(n):
        told |= cls[e] == DWELL
    k = np.int64(0)
    for e in range(n):
        if k == N:
            break
        if told and _belongs_to_another(item, cls, n, e):
            continue
        put_item(w, item[e], where[I_H_ITEM] + 12 * (b * N + k))
        h_cls[k], h_hour[k] = cls[e], hour_bucket(ts[e])
        h_dwell[k] = dwell_bucket(_dwell(item, cls, dwell, e) if told else dwell[e])
        h_time[k], h_age[k] = age_bucket(now - ts[e]), log2_minutes(now - ts[e])
        k += 1
    return k


@kernel
def flat_side(where: Any, rows: Any, numbers: Any) -> None:
    """Fill h_* of all D_B users of the inputs from rows of the state arrays, as of the times numbers[:, 0] (ms); a row of -1, and each user
    after the last row, is a user of whom nothing is known."""
    w = where[W_SELF]
    N = where[D_N]
    s_len = i32(where[US_LEN], (where[D_UB],))
    for b in range(where[D_B]):
        k = np.int64(0)
        if b < rows.shape[0] and rows[b] >= 0:
            r = np.int64(rows[b])
            k = _put_events(w, b, r, min(where[D_US], np.int64(s_len[r])), numbers[b, 0])
        u8(where[I_H_MASK] + b * N, (N,))[:k] = 1
        u8(where[I_H_MASK] + b * N, (N,))[k:] = 0
        i32(where[I_H_ITEM] + 12 * b * N, (N, 3))[k:] = 0
        f32(where[I_H_AGE] + 4 * b * N, (N,))[k:] = 0
        for name in (I_H_CLS, I_H_DWELL, I_H_HOUR, I_H_TIME):
            i32(where[name] + 4 * b * N, (N,))[k:] = 0
