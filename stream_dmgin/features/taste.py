"""Kernels of the block `taste`: what a user clicks by age and by popularity of the items, over the rings.

A residual is ln((clicks + 0.5) / (expected + 0.5)): expected are as many clicks as the same impressions bring among all users,
each at its item's rate of 12 h as it is now. About 3 us a request and 10 ns a candidate.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from stream_dmgin.counters.layout import C_VIEW, FEATURES, N_ADDRESSES, N_RATES, N_VIEW, V_LOGIT
from stream_dmgin.counters.online import AGES, age_class
from stream_dmgin.counters.read import first_seen, row_features, row_of
from stream_dmgin.features.bound import (
    D_UB,
    D_UM,
    D_US,
    N_WHERE,
    RING,
    UM_ITEM,
    UM_LEN,
    UM_TS,
    US_CLS,
    US_ITEM,
    US_LEN,
    US_TS,
    W_COUNTERS,
)
from stream_dmgin.features.scales import HOUR_MS, log_hours
from stream_dmgin.features.spec import CANDIDATE_BLOCKS, USER_BLOCKS
from stream_dmgin.features.user_side import CLICK
from stream_dmgin.native import f32, f64, i32, i64, kernel, log, u8, u64

N_TASTE, N_TASTE_USER = len(CANDIDATE_BLOCKS["taste"]), len(USER_BLOCKS["taste"])
POPULARITIES = 17  # classes
_MIDDLE = POPULARITIES // 2
_RATE = N_RATES + 1  # ctr_logit_12h among an entity's features
_QUARTER_DAY = 6 * HOUR_MS
_PRIOR = 0.5
# Working memory, as float64: clicks, expected clicks and impressions by class of age, by class of popularity; means over the
# clicked items of their age and popularity, and over how many; then the features of one entity
_BY_AGE, _BY_POPULARITY = 0, 3 * AGES
_MEANS = _BY_POPULARITY + 3 * POPULARITIES
_FEATURES = _MEANS + 3
TASTE_SCRATCH = 8 * (_FEATURES + (FEATURES + 1) // 2)  # bytes


@kernel
def popularity_class(logit: Any) -> Any:
    """Steps of 0.5 of a click rate's logit less that of all items, the middle class around 0."""
    return min(POPULARITIES - 1, max(0, np.int64(math.floor(2.0 * logit + 0.5)) + _MIDDLE))


@kernel
def _residual(clicks: Any, expected: Any) -> Any:
    return log((clicks + _PRIOR) / (expected + _PRIOR))


@kernel
def put_taste_user(w: Any, r: Any, now: Any, scratch: Any, to: Any) -> None:
    """Sum up the rings of state row r (-1: nobody known) in TASTE_SCRATCH bytes at `scratch`; the block's inputs of the user into
    N_TASTE_USER floats at an address."""
    where, out = i64(w, (N_WHERE,)), f32(to, (N_TASTE_USER,))
    sums = f64(scratch, (_FEATURES,))
    sums[:] = 0
    out[:] = 0
    if r < 0:
        return
    counters, UB, US, UM = where[W_COUNTERS], where[D_UB], where[D_US], where[D_UM]
    view = f64(i64(counters, (N_ADDRESSES,))[C_VIEW], (N_VIEW,))
    entity, entity_at = f32(scratch + 8 * _FEATURES, (FEATURES,)), scratch + 8 * _FEATURES
    s_len, m_len = min(RING, i32(where[US_LEN], (UB,))[r]), min(RING, i32(where[UM_LEN], (UB,))[r])
    s_item, s_cls, s_ts = u64(where[US_ITEM], (UB, US)), u8(where[US_CLS], (UB, US)), i64(where[US_TS], (UB, US))
    m_item, m_ts = u64(where[UM_ITEM], (UB, UM)), i64(where[UM_TS], (UB, UM))
    since = m_ts[r, m_len - 1] if m_len == RING else np.int64(0)
    part = now // _QUARTER_DAY % 4
    clicks, expected, clicks_now, expected_now = 0.0, 0.0, 0.0, 0.0
    for e in range(s_len + m_len):
        clicked = e < s_len
        i = e if clicked else e - s_len
        if clicked and s_cls[r, i] != CLICK:
            continue
        ts = s_ts[r, i] if clicked else m_ts[r, i]
        row = row_of(counters, 0, s_item[r, i] if clicked else m_item[r, i])
        row_features(counters, row, entity_at)
        popularity = np.float64(entity[_RATE])
        age = max(0, ts - first_seen(counters, row)) if row >= 0 else np.int64(0)
        if clicked and row >= 0:
            sums[_MEANS] += log_hours(age)
            sums[_MEANS + 1] += popularity
            sums[_MEANS + 2] += 1.0
        if clicked and ts < since:
            continue
        x = 1.0 if clicked else 1.0 / (1.0 + math.exp(-view[V_LOGIT + 1] - popularity))
        here = ts // _QUARTER_DAY % 4 == part
        if clicked:
            clicks += x
            clicks_now += x if here else 0.0
        else:
            expected += x
            expected_now += x if here else 0.0
        if row >= 0:
            a, p = _BY_AGE + 3 * age_class(age), _BY_POPULARITY + 3 * popularity_class(popularity)
            for at in (a, p):
                if clicked:
                    sums[at] += x
                else:
                    sums[at + 1] += x
                    sums[at + 2] += 1.0
    if sums[_MEANS + 2] > 0:
        sums[_MEANS] /= sums[_MEANS + 2]
        sums[_MEANS + 1] /= sums[_MEANS + 2]
    out[0], out[3] = _residual(clicks, expected), _residual(clicks_now, expected_now)
    out[1], out[2] = sums[_MEANS], sums[_MEANS + 1]


@kernel
def put_taste(counters: Any, row: Any, popularity: Any, now: Any, scratch: Any, to: Any) -> None:
    """The block `taste` of a candidate into N_TASTE floats at an address. `row`: of its counters, -1 unknown; `popularity`: its
    ctr_logit_12h. After `put_taste_user`."""
    out, sums = f32(to, (N_TASTE,)), f64(scratch, (_FEATURES,))
    out[:] = 0
    if row < 0:
        return
    age = max(0, now - first_seen(counters, row))
    a, p = _BY_AGE + 3 * age_class(age), _BY_POPULARITY + 3 * popularity_class(np.float64(popularity))
    out[0], out[1] = _residual(sums[a], sums[a + 1]), sums[a + 2]
    out[2], out[3] = _residual(sums[p], sums[p + 1]), sums[p + 2]
    if sums[_MEANS + 2] > 0:
        out[4], out[5] = log_hours(age) - sums[_MEANS], popularity - sums[_MEANS + 1]
