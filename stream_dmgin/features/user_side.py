"""Kernel of the user side: a user's state into g_*, e_*, s_* of the inputs. A function of the state alone.

Per user about 5 ns an event and 40 ns a group; nothing is allocated, every position of the user's rows is written. Events are
converted column by column over whole rows, also beyond their number: such loops vectorise, and the mask zeroes the rest.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stream_dmgin.features.bound import (
    D_ADVERTISERS,
    D_B,
    D_CATEGORIES,
    D_G,
    D_ITEMS,
    D_L,
    D_S,
    D_UB,
    D_UG,
    D_UL,
    D_US,
    I_E_CLS,
    I_E_DWELL,
    I_E_HOUR,
    I_E_ID,
    I_E_ITEM,
    I_E_MASK,
    I_E_TIME,
    I_G_MASK,
    I_G_STAT,
    I_G_TIME,
    I_S_CLS,
    I_S_DWELL,
    I_S_ITEM,
    I_S_MASK,
    I_S_TIME,
    N_WHERE,
    U_GROUPS,
    UE_CLS,
    UE_DWELL,
    UE_ITEM,
    UE_TS,
    UG_COUNTS,
    UG_DWELL_MAX,
    UG_DWELL_SUM,
    UG_FIRST,
    UG_LAST,
    UG_LEN,
    UG_VALUE_SUM,
    US_CLS,
    US_DWELL,
    US_ITEM,
    US_LEN,
    US_TS,
    W_CATALOGUE,
    W_LOGS,
    W_SCRATCH,
    W_SELF,
)  # fmt: skip
from stream_dmgin.features.catalogue import K_SLOTS, find_slot
from stream_dmgin.features.scales import (
    DAY_MS,
    HOUR_MS,
    LOGS,
    age_bucket,
    bucket,
    dwell_bucket,
    half_bucket,
    hour_bucket,
    log2_minutes,
    log_count,
    short_id,
)  # fmt: skip
from stream_dmgin.features.spec import BEHAVIOUR_CLASSES, N_CLS, N_STAT
from stream_dmgin.native import f32, f64, i32, i64, kernel, log, u8, u64

IMPRESSION, CLICK, PAYMENT = (BEHAVIOUR_CLASSES.index(c) for c in ("impression", "click", "payment"))
_RATE, _RATE_WEIGHT = 0.05, 20.0  # a group's rate starts from 1 in 20: the counters' rates are no part of the state
_LOW = np.uint64(0xFFFFFFFF)
MAX_GROUPS = 128


@kernel
def put_item(w: Any, h: Any, to: Any) -> Any:
    """Buckets of item, category and advertiser into three int32 at an address; returns the item's slot in the catalogue, -1
    for none."""
    where, out = i64(w, (N_WHERE,)), i32(to, (3,))
    slot = find_slot(where[W_CATALOGUE], h)
    slots = i64(where[W_CATALOGUE], (K_SLOTS + 1,))[K_SLOTS]
    owners = u64(slots + 16 * slot, (2,))[1] if slot >= 0 else np.uint64(0)
    category, advertiser = owners >> np.uint64(32), owners & _LOW
    out[0] = bucket(h, where[D_ITEMS])
    out[1] = half_bucket(category, where[D_CATEGORIES]) if category != 0 else np.int32(0)
    out[2] = half_bucket(advertiser, where[D_ADVERTISERS]) if advertiser != 0 else np.int32(0)
    return slot


@kernel
def _put_stats(w: Any, r: Any, b: Any, n: Any) -> None:
    """Statistics and times of the n groups of state row r: a column at a time, since such loops vectorise."""
    where = i64(w, (N_WHERE,))
    first_at, size = r * where[D_UG], (n,)
    logs, counts = f32(where[W_LOGS], (LOGS,)), i64(where[UG_COUNTS] + 8 * N_CLS * first_at, (n, N_CLS))
    dwell_sum, dwell_max = i64(where[UG_DWELL_SUM] + 8 * first_at, size), i64(where[UG_DWELL_MAX] + 8 * first_at, size)
    value_sum, first = i64(where[UG_VALUE_SUM] + 8 * first_at, size), i64(where[UG_FIRST] + 8 * first_at, size)
    last = i64(where[UG_LAST] + 8 * first_at, size)
    time = f32(where[I_G_TIME] + 4 * b * where[D_G], size)
    out = f32(where[I_G_STAT] + 4 * N_STAT * b * where[D_G], (n, N_STAT))
    events, paid = f64(where[W_SCRATCH], size), f64(where[W_SCRATCH] + 8 * MAX_GROUPS, size)
    column = f64(where[W_SCRATCH] + 16 * MAX_GROUPS, (5, MAX_GROUPS))
    newest = last[0]
    for g in range(n):
        time[g] = log2_minutes(newest - last[g])
    for g in range(n):
        total = 0
        for c in range(N_CLS):
            out[g, c] = log_count(logs, counts[g, c])
            total += counts[g, c]
        clicks, impressions = counts[g, CLICK], counts[g, IMPRESSION]
        events[g], paid[g] = total - impressions, max(1, counts[g, PAYMENT])
        out[g, N_CLS + 3] = (clicks + _RATE_WEIGHT * _RATE) / (max(clicks, impressions) + _RATE_WEIGHT)
    for g in range(n):
        column[0, g] = log(1.0 + max(0, dwell_sum[g]) * 0.001 / max(1.0, events[g]))
    for g in range(n):
        column[1, g] = log(1.0 + max(0, dwell_max[g]) * 0.001)
    for g in range(n):
        column[2, g] = log(1.0 + max(0, value_sum[g]) * 1e-6 / paid[g])
    for g in range(n):
        column[3, g] = log(1.0 + max(0, last[g] - first[g]) / HOUR_MS)
    for g in range(n):
        column[4, g] = log(1.0 + events[g] / (1.0 + max(0, last[g] - first[g]) / DAY_MS))
    for g in range(n):
        for c in range(3):
            out[g, N_CLS + c] = column[c, g]
        out[g, N_CLS + 4], out[g, N_CLS + 5] = column[3, g], column[4, g]


@kernel
def _put_columns(w: Any, start: Any, to: Any, n: Any) -> None:
    """Id, class, dwell bucket and hour of the n events from position `start` of the state on, into the inputs from `to`."""
    where = i64(w, (N_WHERE,))
    item, cls = u64(where[UE_ITEM] + 8 * start, (n,)), u8(where[UE_CLS] + start, (n,))
    ts, dwell = i64(where[UE_TS] + 8 * start, (n,)), i64(where[UE_DWELL] + 8 * start, (n,))
    mask = u8(where[I_E_MASK] + to, (n,))
    ids, classes = i32(where[I_E_ID] + 4 * to, (n,)), i32(where[I_E_CLS] + 4 * to, (n,))
    dwells, hours = i32(where[I_E_DWELL] + 4 * to, (n,)), i32(where[I_E_HOUR] + 4 * to, (n,))
    for i in range(n):
        ids[i] = short_id(item[i]) if mask[i] else np.int32(-1)
    for i in range(n):
        classes[i] = np.int32(cls[i]) if mask[i] else np.int32(0)
    for i in range(n):
        dwells[i] = dwell_bucket(dwell[i]) if mask[i] else np.int32(0)
    for i in range(n):
        hours[i] = hour_bucket(ts[i]) if mask[i] else np.int32(0)


@kernel
def _put_group(w: Any, start: Any, to: Any, length: Any, last: Any) -> None:
    """Mask, items and ages of one group's events, L positions."""
    where = i64(w, (N_WHERE,))
    L = where[D_L]
    item, ts = u64(where[UE_ITEM] + 8 * start, (L,)), i64(where[UE_TS] + 8 * start, (L,))
    mask, times = u8(where[I_E_MASK] + to, (L,)), i32(where[I_E_TIME] + 4 * to, (L,))
    for e in range(L):
        mask[e] = e < length
    for e in range(L):
        times[e] = age_bucket(last - ts[e]) if e < length else np.int32(0)
    for e in range(length):
        put_item(w, item[e], where[I_E_ITEM] + 12 * (to + e))


@kernel
def _put_groups(w: Any, b: Any, r: Any, n: Any) -> None:
    """The n groups of state row r, with their events, into user b of the inputs."""
    where = i64(w, (N_WHERE,))
    G, L, UB, UG, UL = where[D_G], where[D_L], where[D_UB], where[D_UG], where[D_UL]
    g_len, last = i32(where[UG_LEN], (UB, UG)), i64(where[UG_LAST], (UB, UG))
    start, to, m = r * UG * UL, b * G * L, n * L
    rest = G * L - m  # positions of no group
    i32(where[I_E_ITEM] + 12 * to, (3 * G * L,))[:] = 0
    g_mask, g_time = u8(where[I_G_MASK] + b * G, (G,)), f32(where[I_G_TIME] + 4 * b * G, (G,))
    g_stat = where[I_G_STAT] + 4 * N_STAT * b * G
    if n > 0:
        _put_stats(w, r, b, n)
    for g in range(n):
        g_mask[g] = 1
        _put_group(w, start + g * UL, to + g * L, min(L, np.int64(g_len[r, g])), last[r, g])
        if UL != L:
            _put_columns(w, start + g * UL, to + g * L, L)
    if UL == L:
        _put_columns(w, start, to, m)
    g_mask[n:], g_time[n:] = 0, 0
    f32(g_stat + 4 * N_STAT * n, ((G - n) * N_STAT,))[:] = 0
    u8(where[I_E_MASK] + to + m, (rest,))[:] = 0
    i32(where[I_E_ID] + 4 * (to + m), (rest,))[:] = -1
    for name in (I_E_TIME, I_E_CLS, I_E_DWELL, I_E_HOUR):
        i32(where[name] + 4 * (to + m), (rest,))[:] = 0


@kernel
def _put_short(w: Any, b: Any, r: Any, n: Any, newest: Any) -> None:
    """The newest n events over all groups."""
    where = i64(w, (N_WHERE,))
    S, UB, US = where[D_S], where[D_UB], where[D_US]
    item, cls = u64(where[US_ITEM], (UB, US)), u8(where[US_CLS], (UB, US))
    ts, dwell = i64(where[US_TS], (UB, US)), i64(where[US_DWELL], (UB, US))
    s_item, s_mask = i32(where[I_S_ITEM] + 12 * b * S, (S, 3)), u8(where[I_S_MASK] + b * S, (S,))
    s_cls, s_time = i32(where[I_S_CLS] + 4 * b * S, (S,)), i32(where[I_S_TIME] + 4 * b * S, (S,))
    s_dwell = i32(where[I_S_DWELL] + 4 * b * S, (S,))
    for e in range(n):
        put_item(w, item[r, e], where[I_S_ITEM] + 12 * (b * S + e))
        s_cls[e], s_mask[e] = cls[r, e], 1
        s_time[e] = age_bucket(newest - ts[r, e])
        s_dwell[e] = dwell_bucket(dwell[r, e])
    s_item[n:], s_cls[n:], s_time[n:], s_dwell[n:], s_mask[n:] = 0, 0, 0, 0, 0


@kernel
def user_side(where: Any, rows: Any) -> None:
    """Fill the user side of all D_B users of the inputs from rows of the state arrays; a row of -1, and each user after the
    last row, is a user of whom nothing is known."""
    w = where[W_SELF]
    n_groups, s_len = i32(where[U_GROUPS], (where[D_UB],)), i32(where[US_LEN], (where[D_UB],))
    last = i64(where[UG_LAST], (where[D_UB], where[D_UG]))
    for b in range(where[D_B]):
        r, n, s, newest = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
        if b < rows.shape[0] and rows[b] >= 0:
            r = np.int64(rows[b])
            n, s = min(where[D_G], np.int64(n_groups[r])), min(where[D_S], np.int64(s_len[r]))
            newest = last[r, 0] if n > 0 else np.int64(0)
        _put_groups(w, b, r, n)
        _put_short(w, b, r, s, newest)
