"""Kernels of the block `fatigue`: impressions in vain and the lists that the user last saw, from the rings.

A list is a run of impressions no more than a second apart. About 2 us a request and 0.2 us a candidate.
"""

from __future__ import annotations

from typing import Any

import numpy as np

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
    US_DWELL,
    US_ITEM,
    US_LEN,
    US_TS,
    W_CATALOGUE,
    W_MAP_KEYS,
    W_MAP_SIZE,
    W_MAP_VALUES,
)
from stream_dmgin.features.catalogue import K_ADVERTISER, K_CAPACITY, K_CATEGORY, find_item
from stream_dmgin.features.catalogue import N_ADDRESSES as K_ADDRESSES
from stream_dmgin.features.scales import ABSENT_MINUTES, DAY_MS, HOUR_MS, MINUTE_MS, log_minutes
from stream_dmgin.features.spec import CANDIDATE_BLOCKS, USER_BLOCKS
from stream_dmgin.features.user_side import CLICK
from stream_dmgin.groups.map import find_group
from stream_dmgin.native import f32, i32, i64, kernel, log, u8, u64

N_FATIGUE, N_FATIGUE_USER = len(CANDIDATE_BLOCKS["fatigue"]), len(USER_BLOCKS["fatigue"])
LIST_GAP_MS = 1000
NAMES = 4  # item, category, advertiser, group
_TOP = np.uint64(1 << 63)
# Working memory in bytes: names of the ring of events, of the impressions; number of each impression's list, newest first
_S_SHOWN = 8 * NAMES * RING
_S_LIST = 2 * _S_SHOWN
FATIGUE_SCRATCH = _S_LIST + 8 * RING


@kernel
def group_key(w: Any, h: Any) -> Any:
    """Key of an item's group in the state: its number, or a key of its own for an item without one."""
    where = i64(w, (N_WHERE,))
    keys, values = u64(where[W_MAP_KEYS], (where[W_MAP_SIZE],)), i32(where[W_MAP_VALUES], (where[W_MAP_SIZE],))
    group = find_group(keys, values, h)
    return np.uint64(group) if group >= 0 else _TOP | (h >> np.uint64(1))


@kernel
def _put_names(w: Any, h: Any, to: Any) -> None:
    k = i64(i64(w, (N_WHERE,))[W_CATALOGUE], (K_ADDRESSES,))
    out = u64(to, (NAMES,))
    row = find_item(i64(w, (N_WHERE,))[W_CATALOGUE], h)
    out[0], out[1], out[2] = h, 0, 0
    if row >= 0:
        out[1], out[2] = u64(k[K_CATEGORY], (k[K_CAPACITY],))[row], u64(k[K_ADVERTISER], (k[K_CAPACITY],))[row]
    out[3] = group_key(w, h)


@kernel
def put_fatigue_user(w: Any, r: Any, now: Any, scratch: Any, to: Any) -> None:
    """Name the rings of state row r (-1: nobody known) in FATIGUE_SCRATCH bytes at `scratch`; the block's inputs of the user into
    N_FATIGUE_USER floats at an address."""
    where, out = i64(w, (N_WHERE,)), f32(to, (N_FATIGUE_USER,))
    out[:] = 0
    out[7], out[8] = ABSENT_MINUTES, ABSENT_MINUTES
    if r < 0:
        return
    UB, US, UM = where[D_UB], where[D_US], where[D_UM]
    s_len, m_len = min(RING, i32(where[US_LEN], (UB,))[r]), min(RING, i32(where[UM_LEN], (UB,))[r])
    s_item, s_cls, s_ts = u64(where[US_ITEM], (UB, US)), u8(where[US_CLS], (UB, US)), i64(where[US_TS], (UB, US))
    m_item, m_ts = u64(where[UM_ITEM], (UB, UM)), i64(where[UM_TS], (UB, UM))
    for e in range(s_len):
        _put_names(w, s_item[r, e], scratch + 8 * NAMES * e)
    number = i64(scratch + _S_LIST, (RING,))
    start, second, lists, first_shown, second_shown = np.int64(-1), np.int64(-1), 0, 0, 0
    for e in range(m_len):
        _put_names(w, m_item[r, e], scratch + _S_SHOWN + 8 * NAMES * e)
        if e == 0 or m_ts[r, e - 1] - m_ts[r, e] > LIST_GAP_MS:
            lists += 1
        number[e] = lists
        if lists == 1:
            first_shown += 1
            start = m_ts[r, e]
        elif lists == 2:
            second_shown += 1
            second = m_ts[r, e]
    newest, first_clicks, second_clicks = np.int64(-1), 0, 0
    for e in range(s_len):
        if s_cls[r, e] == CLICK:
            newest = max(newest, s_ts[r, e])
            if lists > 0 and s_ts[r, e] >= start:
                first_clicks += 1
            elif lists > 1 and s_ts[r, e] >= second:
                second_clicks += 1
    since = 0
    for e in range(m_len):  # a list counts where its oldest impression, its last in the ring, came after the click
        last = e == m_len - 1 or number[e + 1] > number[e]
        since += last and m_ts[r, e] > newest
    out[0], out[1], out[3] = first_shown, second_shown, lists
    out[2] = m_len / max(1, lists)
    out[4], out[5], out[6] = first_clicks, second_clicks, since
    if lists > 0:
        out[7] = log_minutes(now - start)
    if lists > 1:
        out[8] = log_minutes(now - second)


@kernel
def put_fatigue(
    w: Any, r: Any, h: Any, category: Any, advertiser: Any, group: Any, now: Any, scratch: Any, to: Any
) -> None:
    """The block `fatigue` of a candidate by its names (0: none; `group` its key) into N_FATIGUE floats at an address. After
    `put_fatigue_user`."""
    where, out = i64(w, (N_WHERE,)), f32(to, (N_FATIGUE,))
    out[:] = 0
    out[12] = ABSENT_MINUTES
    if r < 0:
        return
    UB, US, UM = where[D_UB], where[D_US], where[D_UM]
    s_len, m_len = min(RING, i32(where[US_LEN], (UB,))[r]), min(RING, i32(where[UM_LEN], (UB,))[r])
    s_cls, s_ts, s_dwell = u8(where[US_CLS], (UB, US)), i64(where[US_TS], (UB, US)), i64(where[US_DWELL], (UB, US))
    m_ts = i64(where[UM_TS], (UB, UM))
    events, shown = u64(scratch, (RING, NAMES)), u64(scratch + _S_SHOWN, (RING, NAMES))
    number = i64(scratch + _S_LIST, (RING,))
    none = np.int64(-1)
    item_click, category_click, advertiser_click, group_click = none, none, none, none
    dwell, group_dwell = np.int64(0), np.int64(0)
    for e in range(s_len):
        ts = s_ts[r, e] if s_cls[r, e] == CLICK else none
        if events[e, 0] == h:
            item_click = max(item_click, ts)
            dwell += max(0, s_dwell[r, e])
        if events[e, 1] == category:
            category_click = max(category_click, ts)
        if events[e, 2] == advertiser:
            advertiser_click = max(advertiser_click, ts)
        if events[e, 3] == group:
            group_click = max(group_click, ts)
            group_dwell += max(0, s_dwell[r, e])
    lists, group_shown, last = np.int64(0), 0, none
    for e in range(m_len):
        ts = m_ts[r, e]
        hour = now - ts < HOUR_MS
        if shown[e, 0] == h:
            out[0] += now - ts < 10 * MINUTE_MS
            out[1] += hour
            out[2] += now - ts < DAY_MS
            out[6] += ts > item_click
            if number[e] == 1:
                out[10] = 1.0
            if number[e] != lists:
                lists = number[e]
                out[11] += 1.0
        if category != 0 and shown[e, 1] == category:
            out[3] += hour
            out[7] += ts > category_click
        if advertiser != 0 and shown[e, 2] == advertiser:
            out[4] += hour
            out[8] += ts > advertiser_click
        if shown[e, 3] == group:
            out[5] += hour
            out[9] += ts > group_click
            group_shown += 1
            last = max(last, ts)
    if last >= 0:
        out[12] = log_minutes(now - last)
    out[13] = log(1.0 + dwell / 1000.0)
    out[14] = log(1.0 + group_dwell / 1000.0 / (1 + group_shown))
