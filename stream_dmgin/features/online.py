"""Kernels of the block `online`: what the model that learns from the stream says of a candidate, and how the clicks that came
compare with those it expected, of the item over all users and of this user over the impressions in the ring.

A user's residual is ln((clicked + 0.5) / (expected + 0.5)): expected are the clicks that the model, as it is now, gives those
impressions, each on its surface, at its hour and the item's age then. Clicks without an impression in the ring say nothing here.
About 10 us a request and 0.4 us a candidate.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stream_dmgin.counters.layout import C_ONLINE, CLOCK_MS, N_ADDRESSES
from stream_dmgin.counters.online import (
    AGES,
    age_class,
    factored,
    fields,
    find_cell,
    linear,
    places,
    predict,
    residual,
    sigmoid,
)
from stream_dmgin.counters.read import first_seen, row_of
from stream_dmgin.features.bound import (
    D_UB,
    D_UM,
    D_US,
    N_WHERE,
    RING,
    UM_ITEM,
    UM_LEN,
    UM_SURFACE,
    UM_TS,
    US_CLS,
    US_ITEM,
    US_LEN,
    US_TS,
    W_CATALOGUE,
    W_COUNTERS,
)
from stream_dmgin.features.catalogue import K_ADVERTISER, K_CAPACITY, K_CATEGORY, find_item
from stream_dmgin.features.catalogue import N_ADDRESSES as K_ADDRESSES
from stream_dmgin.features.scales import DAY_MS, HOUR_MS
from stream_dmgin.features.spec import CANDIDATE_BLOCKS, USER_BLOCKS
from stream_dmgin.features.user_side import CLICK
from stream_dmgin.native import f32, f64, i32, i64, kernel, log, u8, u64

N_ONLINE, N_ONLINE_USER = len(CANDIDATE_BLOCKS["online"]), len(USER_BLOCKS["online"])
PRIOR, ITEM_PRIOR = 0.5, 1.0  # clicks, expected and not
_NAMES = 3  # item, category, advertiser
# Working memory: how many impressions; of each: names, expected clicks, clicks; then both summed up by class of age
_S_NAMES = 8
_S_VALUES = _S_NAMES + 8 * _NAMES * RING
_S_AGES = _S_VALUES + 8 * 2 * RING
ONLINE_SCRATCH = _S_AGES + 8 * 2 * AGES


@kernel
def _ratio(clicks: Any, expected: Any) -> Any:
    return log((clicks + PRIOR) / (expected + PRIOR))


@kernel
def _match_clicks(w: Any, r: Any, values: Any) -> None:
    """Mark with 1 in the second column the impressions of state row r that were clicked: a click is of the newest impression of its
    item that is no later than it, or of none."""
    where = i64(w, (N_WHERE,))
    UB, US, UM = where[D_UB], where[D_US], where[D_UM]
    s_len, m_len = min(RING, i32(where[US_LEN], (UB,))[r]), min(RING, i32(where[UM_LEN], (UB,))[r])
    s_item, s_cls, s_ts = u64(where[US_ITEM], (UB, US)), u8(where[US_CLS], (UB, US)), i64(where[US_TS], (UB, US))
    m_item, m_ts = u64(where[UM_ITEM], (UB, UM)), i64(where[UM_TS], (UB, UM))
    values[:m_len, 1] = 0.0
    for i in range(s_len):
        if s_cls[r, i] != CLICK:
            continue
        for e in range(m_len):
            if m_item[r, e] == s_item[r, i] and m_ts[r, e] <= s_ts[r, i]:
                values[e, 1] = 1.0
                break


@kernel
def put_online_user(w: Any, r: Any, now: Any, surface: Any, scratch: Any, to: Any) -> None:
    """Go through the impressions of state row r (-1: nobody known), keeping in ONLINE_SCRATCH bytes at `scratch` what candidates
    need; the block's inputs of the user into N_ONLINE_USER floats at an address. `surface`: number of the request's."""
    where, out = i64(w, (N_WHERE,)), f32(to, (N_ONLINE_USER,))
    ages = f64(scratch + _S_AGES, (AGES, 2))
    i64(scratch, (1,))[0] = 0
    ages[:] = 0
    out[:] = 0
    if r < 0:
        return
    counters, catalogue, UB, UM = where[W_COUNTERS], where[W_CATALOGUE], where[D_UB], where[D_UM]
    k = i64(catalogue, (K_ADDRESSES,))
    model = i64(counters, (N_ADDRESSES,))[C_ONLINE]
    m_len = min(RING, i32(where[UM_LEN], (UB,))[r])
    m_item, m_ts = u64(where[UM_ITEM], (UB, UM)), i64(where[UM_TS], (UB, UM))
    m_surface = u8(where[UM_SURFACE], (UB, UM))
    names, values = u64(scratch + _S_NAMES, (RING, _NAMES)), f64(scratch + _S_VALUES, (RING, 2))
    _match_clicks(w, r, values)
    clicks_1h, clicks_24h, clicks, clicks_here = 0.0, 0.0, 0.0, 0.0
    expected_1h, expected_24h, expected, expected_here = 0.0, 0.0, 0.0, 0.0
    for e in range(m_len):
        h, ts, place = m_item[r, e], m_ts[r, e], np.int64(m_surface[r, e])
        row = row_of(counters, 0, h)
        first = first_seen(counters, row) if row >= 0 else np.int64(-1)
        p, c = sigmoid(predict(model, h, place, ts, first)), values[e, 1]
        values[e, 0] = p
        item = find_item(catalogue, h)
        names[e, 0], names[e, 1], names[e, 2] = h, 0, 0
        if item >= 0:
            names[e, 1] = u64(k[K_CATEGORY], (k[K_CAPACITY],))[item]
            names[e, 2] = u64(k[K_ADVERTISER], (k[K_CAPACITY],))[item]
        age = age_class(ts - first) if row >= 0 else 0
        ages[age, 0] += p
        ages[age, 1] += c
        expected += p
        clicks += c
        if now - ts < HOUR_MS:
            expected_1h += p
            clicks_1h += c
        if now - ts < DAY_MS:
            expected_24h += p
            clicks_24h += c
        if place == surface:
            expected_here += p
            clicks_here += c
    i64(scratch, (1,))[0] = m_len
    out[0], out[1] = _ratio(clicks_1h, expected_1h), _ratio(clicks_24h, expected_24h)
    out[2], out[3] = _ratio(clicks, expected), _ratio(clicks_here, expected_here)


@kernel
def put_online(
    counters: Any, h: Any, category: Any, advertiser: Any, row: Any, now: Any, surface: Any, scratch: Any, to: Any
) -> None:
    """The block of a candidate by its names (0: none) into N_ONLINE floats at an address. `row`: of its counters, -1 unknown. After
    `put_online_user`."""
    out = f32(to, (N_ONLINE,))
    model = i64(counters, (N_ADDRESSES,))[C_ONLINE]
    age = age_class(now - first_seen(counters, row)) if row >= 0 else 0
    hour, bucket = now // HOUR_MS % 24, now // CLOCK_MS
    a, b = linear(model, places(h, surface, hour, age)), factored(model, fields(h, surface, hour, age))
    out[0], out[1], out[2] = a, b, a + b
    cell = find_cell(model, h, np.int64(-1))
    for k in range(3):
        out[3 + k] = log(residual(model, cell, k, bucket, ITEM_PRIOR))
    out[6] = log(residual(model, find_cell(model, h, surface), 1, bucket, ITEM_PRIOR))
    sums = f64(scratch + _S_AGES, (AGES, 2))
    out[7] = _ratio(sums[age, 1], sums[age, 0])
    n = i64(scratch, (1,))[0]
    names, values = u64(scratch + _S_NAMES, (RING, _NAMES)), f64(scratch + _S_VALUES, (RING, 2))
    for k in range(_NAMES):
        name = h if k == 0 else category if k == 1 else advertiser
        expected, clicks = 0.0, 0.0
        if name != 0:
            for e in range(n):
                same = 1.0 if names[e, k] == name else 0.0
                expected += same * values[e, 0]
                clicks += same * values[e, 1]
        out[8 + k] = _ratio(clicks, expected)
