"""Reading the counters with decay: features of one entity, for numba callers. Allocates nothing after compilation.

The features of an entity are kept in the table until its next increment, the next quarter hour, or a change of the global
rates by 1/64 of a logit; kept or computed anew, they are the same numbers. About 20 ns from the cache, 250 ns without.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from stream_dmgin.counters.layout import (
    A_CLICKS,
    A_DWELL,
    A_ENGAGEMENTS,
    A_IMPRESSIONS,
    A_ORDERS,
    C_CACHE,
    C_COUNTS,
    C_FIRST,
    C_KEYS,
    C_MASK,
    C_ROWS,
    C_STAMPS,
    C_STATE,
    C_VALID,
    C_VIEW,
    C_WEIGHTS,
    CACHED,
    CLOCK_MS,
    FEATURES,
    GLOBAL_HITS,
    GLOBAL_TRIES,
    KEPT,
    LEVEL_AT,
    LIFE_AT,
    LOGIT_STEP,
    N_ADDRESSES,
    N_AGGREGATES,
    N_COUNTS,
    N_LEVELS,
    N_RATE_KINDS,
    N_RATES,
    N_SLOTS,
    N_STATE,
    N_VIEW,
    N_WEIGHTS,
    P_ENGAGEMENT,
    P_ENGAGEMENT_SHOWN,
    P_ORDER,
    PRIOR_WEIGHT,
    RATIO,
    S_CLOCK,
    S_EPOCH,
    S_NOW,
    S_PRIOR_VERSION,
    S_STAMP,
    S_VERSION,
    SLOT_AT,
    V_LOGIT,
    V_RATE,
    V_WEIGHT,
    V_WORK,
)  # fmt: skip
from stream_dmgin.native import f32, f64, i32, i64, kernel, log, u64

_LONGEST = N_LEVELS - 1
_SALT = np.uint64(0x9E3779B97F4A7C15)


@kernel
def mixed(kind: int, h: Any) -> Any:
    """Key of an entity in the index: its hash, set apart by kind, never 0."""
    key = h ^ (np.uint64(kind) * _SALT)
    return key if key != 0 else np.uint64(1)


@kernel
def find(keys: Any, rows: Any, kind: int, h: Any) -> int:
    """Row of an entity, -1 where it is unknown."""
    mask = np.uint64(keys.shape[0] - 1)
    key = mixed(kind, h)
    at = key & mask
    while keys[at] != 0:
        if keys[at] == key:
            return int(rows[at])
        at = (at + np.uint64(1)) & mask
    return -1


@kernel
def row_of(table: Any, kind: Any, h: Any) -> Any:
    """`find` by the address of CounterTable.addresses; -1 for hash 0 as well."""
    if h == 0:
        return np.int64(-1)
    c = i64(table, (N_ADDRESSES,))
    keys, mask = u64(c[C_KEYS], (c[C_MASK] + 1,)), np.uint64(c[C_MASK])
    key = mixed(kind, h)
    at = key & mask
    while keys[at] != 0:
        if keys[at] == key:
            return np.int64(i32(c[C_ROWS], (c[C_MASK] + 1,))[at])
        at = (at + np.uint64(1)) & mask
    return np.int64(-1)


@kernel
def _set_clock(table: Any, now: Any) -> None:
    """Work out for each slot which bucket would count there at `now`, and how much."""
    c = i64(table, (N_ADDRESSES,))
    state, view = i64(c[C_STATE], (N_STATE,)), f64(c[C_VIEW], (N_VIEW,))
    weight = f64(c[C_WEIGHTS], (N_LEVELS, N_WEIGHTS))
    for level in range(N_LEVELS):
        clock = now // (CLOCK_MS * RATIO[level])
        state[S_NOW + level] = clock
        for age in range(KEPT[level]):
            slot = SLOT_AT[level] + (clock - age) % KEPT[level]
            state[S_STAMP + slot] = clock - age
            view[V_WEIGHT + slot] = weight[level, age]


@kernel
def aggregate(table: Any, row: Any, to: Any) -> None:
    """Decayed sums of a row into N_AGGREGATES doubles at an address. Older buckets than those kept count nothing, later ones as
    age 0."""
    c = i64(table, (N_ADDRESSES,))
    out = f64(to, (N_AGGREGATES,))
    counts = i64(c[C_COUNTS] + row * N_COUNTS * 8, (N_COUNTS,))
    stamps = i32(c[C_STAMPS] + row * N_SLOTS * 4, (N_SLOTS,))
    state, view = i64(c[C_STATE], (N_STATE,)), f64(c[C_VIEW], (N_VIEW,))
    for level in range(N_LEVELS):
        kept = KEPT[level]
        clock = state[S_NOW + level]
        impressions, clicks, dwell, orders, engagements = 0.0, 0.0, 0.0, 0.0, 0.0
        at = LEVEL_AT[level]
        for slot in range(kept):
            stamp = stamps[SLOT_AT[level] + slot]
            if stamp == state[S_STAMP + SLOT_AT[level] + slot]:
                w = view[V_WEIGHT + SLOT_AT[level] + slot]
            elif stamp > clock:
                w = 1.0
            else:
                continue
            impressions += w * counts[at + slot]
            clicks += w * counts[at + kept + slot]
            if level == _LONGEST:
                dwell += w * counts[at + 2 * kept + slot]
                orders += w * counts[at + 3 * kept + slot]
                engagements += w * counts[at + 4 * kept + slot]
        out[A_IMPRESSIONS + level] = impressions
        out[A_CLICKS + level] = clicks
        if level == _LONGEST:
            out[A_DWELL] = dwell
            out[A_ORDERS] = orders
            out[A_ENGAGEMENTS] = engagements
    out[A_IMPRESSIONS + N_RATES - 1] = counts[LIFE_AT]
    out[A_CLICKS + N_RATES - 1] = counts[LIFE_AT + 1]


@kernel
def global_logit(hits: float, tries: float) -> Any:
    """Logit of a rate over all items, rounded so that small movements don't show."""
    tries = max(hits, tries)
    x = log((hits + GLOBAL_HITS) / (tries - hits + GLOBAL_TRIES - GLOBAL_HITS))
    return math.floor(x * LOGIT_STEP + 0.5) / LOGIT_STEP


@kernel
def smoothed_logit(hits: float, tries: float, p: float, weight: float) -> Any:
    """Logit of (hits + weight p) / (tries + weight), where tries is at least hits."""
    tries = max(hits, tries)
    return log((hits + weight * p) / (tries - hits + weight * (1.0 - p)))


@kernel
def refresh(table: Any, now: Any) -> None:
    """Bring the view up to `now` (ms); to be called once before reading entities."""
    c = i64(table, (N_ADDRESSES,))
    state = i64(c[C_STATE], (N_STATE,))
    clock = now // CLOCK_MS
    if state[S_PRIOR_VERSION] == state[S_VERSION] and state[S_CLOCK] == clock and state[S_EPOCH] > 0:
        return
    view = f64(c[C_VIEW], (N_VIEW,))
    changed = state[S_CLOCK] != clock or state[S_EPOCH] == 0
    if changed:
        _set_clock(table, now)
    a = view[V_WORK:]
    aggregate(table, 0, c[C_VIEW] + 8 * V_WORK)
    for k in range(N_RATE_KINDS):
        if k < N_RATES:
            x = global_logit(a[A_CLICKS + k], a[A_IMPRESSIONS + k])
        elif k == P_ORDER:
            x = global_logit(a[A_ORDERS], a[A_CLICKS + _LONGEST])
        elif k == P_ENGAGEMENT:
            x = global_logit(a[A_ENGAGEMENTS], a[A_CLICKS + _LONGEST])
        else:
            x = global_logit(a[A_ENGAGEMENTS], a[A_IMPRESSIONS + _LONGEST])
        if x != view[V_LOGIT + k] or state[S_EPOCH] == 0:
            view[V_LOGIT + k] = x
            view[V_RATE + k] = 1.0 / (1.0 + math.exp(-x))
            changed = True
    state[S_PRIOR_VERSION] = state[S_VERSION]
    state[S_CLOCK] = clock
    if changed:
        state[S_EPOCH] += 1


@kernel
def _compute(table: Any, row: Any, to: Any) -> None:
    c = i64(table, (N_ADDRESSES,))
    view, out = f64(c[C_VIEW], (N_VIEW,)), f32(to, (CACHED,))
    a = view[V_WORK:]
    aggregate(table, row, c[C_VIEW] + 8 * V_WORK)
    for k in range(N_RATES):
        out[k] = log(1.0 + a[A_IMPRESSIONS + k])
        x = smoothed_logit(a[A_CLICKS + k], a[A_IMPRESSIONS + k], view[V_RATE + k], PRIOR_WEIGHT)
        out[N_RATES + k] = x - view[V_LOGIT + k]
    clicks = a[A_CLICKS + _LONGEST]
    out[2 * N_RATES] = log(1.0 + a[A_DWELL] / 1000.0 / (clicks + 1.0))
    x = smoothed_logit(a[A_ORDERS], clicks, view[V_RATE + P_ORDER], PRIOR_WEIGHT)
    out[2 * N_RATES + 1] = x - view[V_LOGIT + P_ORDER]
    x = smoothed_logit(a[A_ENGAGEMENTS], clicks, view[V_RATE + P_ENGAGEMENT], PRIOR_WEIGHT)
    out[2 * N_RATES + 2] = x - view[V_LOGIT + P_ENGAGEMENT]
    x = smoothed_logit(a[A_ENGAGEMENTS], a[A_IMPRESSIONS + _LONGEST], view[V_RATE + P_ENGAGEMENT_SHOWN], PRIOR_WEIGHT)
    out[FEATURES] = x - view[V_LOGIT + P_ENGAGEMENT_SHOWN]


@kernel
def row_features(table: Any, row: Any, to: Any) -> None:
    """Features of a row (-1: unknown, all zero) into FEATURES floats at an address, at the time of the last `refresh`."""
    out = f32(to, (FEATURES,))
    if row < 0:
        out[:] = 0
        return
    c = i64(table, (N_ADDRESSES,))
    kept = c[C_CACHE] + 4 * CACHED * row
    valid = i64(c[C_VALID] + 8 * row, (1,))
    epoch = i64(c[C_STATE], (N_STATE,))[S_EPOCH]
    if valid[0] != epoch:
        _compute(table, row, kept)
        valid[0] = epoch
    out[:] = f32(kept, (FEATURES,))


@kernel
def engagement_shown(table: Any, row: Any) -> Any:
    """The rate of engagements in impressions of a row whose features were just read; 0 for -1."""
    if row < 0:
        return np.float32(0.0)
    c = i64(table, (N_ADDRESSES,))
    return f32(c[C_CACHE] + 4 * (CACHED * row + FEATURES), (1,))[0]


@kernel
def first_seen(table: Any, row: Any) -> Any:
    """Start of the bucket (ms) in which a row was first counted."""
    c = i64(table, (N_ADDRESSES,))
    return np.int64(i32(c[C_FIRST] + 4 * row, (1,))[0]) * CLOCK_MS
