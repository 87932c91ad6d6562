"""Short horizons and trends of an item, read from the same buckets as its other counters: for models that name the block `trend`.

Nothing is kept between requests: about 0.3 us an item, and as much once a request for the whole.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from stream_dmgin.counters.layout import (
    A_CLICKS,
    A_IMPRESSIONS,
    C_COUNTS,
    C_STAMPS,
    C_STATE,
    CLOCK_MS,
    KEPT,
    LEVEL_AT,
    LIFE_AT,
    N_ADDRESSES,
    N_AGGREGATES,
    N_COUNTS,
    N_LEVELS,
    N_SLOTS,
    N_STATE,
    PRIOR_WEIGHT,
    RATIO,
    S_NOW,
    SLOT_AT,
)
from stream_dmgin.counters.read import aggregate, first_seen, global_logit, smoothed_logit
from stream_dmgin.features.spec import CANDIDATE_BLOCKS, COUNTER_LEVELS, USER_BLOCKS
from stream_dmgin.native import f32, f64, i32, i64, kernel, log

N_TREND, N_TREND_USER = len(CANDIDATE_BLOCKS["trend"]), len(USER_BLOCKS["trend"])
HOUR_MS, MINUTE_MS, NEVER = 3_600_000.0, 60_000.0, 16.0  # ln(1 + minutes) since what never happened
_HORIZONS = 4  # 15m, and those of the levels
_HOURS = (CLOCK_MS / HOUR_MS, *(half / HOUR_MS for _, _, half in COUNTER_LEVELS))
# Of an entity: impressions, clicks by horizon; of the whole also logit and rate by horizon. As float64
T_IMPRESSIONS, T_CLICKS, T_LOGIT, T_RATE = (k * _HORIZONS for k in range(4))
N_SUMS = 2 * _HORIZONS
N_WHOLE = 4 * _HORIZONS
TREND_SCRATCH = 8 * (N_WHOLE + N_SUMS + N_AGGREGATES)  # bytes of working memory: the whole, one item, aggregates
_EPS, _GLOBAL_EPS = 0.1, 10.0  # of shares


@kernel
def _sums(table: Any, row: Any, work: Any, to: Any) -> None:
    """Decayed impressions and clicks by horizon into N_SUMS doubles at an address; `work`: N_AGGREGATES doubles."""
    c, out, a = i64(table, (N_ADDRESSES,)), f64(to, (N_SUMS,)), f64(work, (N_AGGREGATES,))
    aggregate(table, row, work)
    counts = i64(c[C_COUNTS] + row * N_COUNTS * 8, (N_COUNTS,))
    stamps = i32(c[C_STAMPS] + row * N_SLOTS * 4, (N_SLOTS,))
    clock = i64(c[C_STATE], (N_STATE,))[S_NOW]
    impressions, clicks = 0.0, 0.0
    for slot in range(KEPT[0]):
        age = max(0, clock - stamps[slot])
        if stamps[slot] >= 0 and age < KEPT[0]:
            w = 1.0 / (1 << age)  # a half-life of one bucket
            impressions += w * counts[slot]
            clicks += w * counts[KEPT[0] + slot]
    out[T_IMPRESSIONS], out[T_CLICKS] = impressions, clicks
    for level in range(N_LEVELS):
        out[T_IMPRESSIONS + 1 + level] = a[A_IMPRESSIONS + level]
        out[T_CLICKS + 1 + level] = a[A_CLICKS + level]


@kernel
def read_whole(table: Any, scratch: Any, to: Any) -> None:
    """The sums over all items into TREND_SCRATCH bytes at `scratch`, and the block's inputs of the user into floats at `to`. After
    `refresh`, before `put_trend`."""
    whole, out = f64(scratch, (N_WHOLE,)), f32(to, (N_TREND_USER,))
    _sums(table, 0, scratch + 8 * (N_WHOLE + N_SUMS), scratch)
    for k in range(_HORIZONS):
        x = global_logit(whole[T_CLICKS + k], whole[T_IMPRESSIONS + k])
        whole[T_LOGIT + k] = x
        whole[T_RATE + k] = 1.0 / (1.0 + math.exp(-x))
        if k < 3:
            out[k] = x
    out[3] = log(1.0 + whole[T_IMPRESSIONS + 1])


@kernel
def _newest(table: Any, row: Any, metric: Any) -> Any:
    """Start (ms) of the newest bucket kept in which something was counted, -1 for none; metric: 0 impressions, 1 clicks."""
    c = i64(table, (N_ADDRESSES,))
    counts = i64(c[C_COUNTS] + row * N_COUNTS * 8, (N_COUNTS,))
    stamps = i32(c[C_STAMPS] + row * N_SLOTS * 4, (N_SLOTS,))
    found = np.int64(-1)
    for level in range(N_LEVELS):
        for slot in range(KEPT[level]):
            if counts[LEVEL_AT[level] + metric * KEPT[level] + slot] > 0:
                found = max(found, np.int64(stamps[SLOT_AT[level] + slot]) * RATIO[level] * CLOCK_MS)
    return found


@kernel
def put_trend(table: Any, row: Any, now: Any, scratch: Any, to: Any) -> None:
    """The block `trend` of an item's row (-1: unknown) into N_TREND floats at an address."""
    out = f32(to, (N_TREND,))
    if row < 0:
        out[:] = 0
        out[N_TREND - 2], out[N_TREND - 1] = NEVER, NEVER
        return
    whole, mine = f64(scratch, (N_WHOLE,)), f64(scratch + 8 * N_WHOLE, (N_SUMS,))
    _sums(table, row, scratch + 8 * (N_WHOLE + N_SUMS), scratch + 8 * N_WHOLE)
    shorter = 0.0
    for k in range(_HORIZONS):
        shown, clicks = mine[T_IMPRESSIONS + k], mine[T_CLICKS + k]
        rate = smoothed_logit(clicks, shown, whole[T_RATE + k], PRIOR_WEIGHT) - whole[T_LOGIT + k]
        if k == 0:
            out[0], out[1] = log(1.0 + shown), rate
        else:
            out[9 + k] = shorter - rate
        shorter = rate
        out[2 + k] = log((shown + _EPS) / (whole[T_IMPRESSIONS + k] + _GLOBAL_EPS))
        out[6 + k] = log((clicks + _EPS) / (whole[T_CLICKS + k] + _GLOBAL_EPS))
    now_pace, pace, long_pace = (
        log(1.0 + mine[T_IMPRESSIONS] / _HOURS[0]),
        log(1.0 + mine[T_IMPRESSIONS + 1] / _HOURS[1]),
        log(1.0 + mine[T_IMPRESSIONS + 2] / _HOURS[2]),
    )
    out[13] = pace - long_pace
    out[14] = now_pace - 2.0 * pace + long_pace
    c = i64(table, (N_ADDRESSES,))
    life = i64(c[C_COUNTS] + row * N_COUNTS * 8, (N_COUNTS,))[LIFE_AT]
    out[15] = log(1.0 + life / (1.0 + max(0, now - first_seen(table, row)) / HOUR_MS))
    for metric in range(2):
        newest = _newest(table, row, 1 - metric)
        out[16 + metric] = log(1.0 + max(0, now - newest) / MINUTE_MS) if newest >= 0 else NEVER
