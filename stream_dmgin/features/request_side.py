"""Kernel of the request side: candidates, counters, pairs of user and candidate, user features, at the request's time.

Per user about 3 us and 0.15 us a candidate while the counters' cached rates hold; nothing is allocated, every position of
the user's rows is written. "Now" is the request's ts: nothing here looks at a clock.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from stream_dmgin.counters.layout import C_VIEW, FEATURES, N_RATES, N_VIEW, V_LOGIT, V_RATE
from stream_dmgin.counters.layout import N_ADDRESSES as C_ADDRESSES
from stream_dmgin.counters.read import (
    first_seen,
    refresh,
    row_features,
    row_of,
    smoothed_logit,
)
from stream_dmgin.features.bound import (
    D_B,
    D_C,
    D_D,
    D_G,
    D_U,
    D_UB,
    D_UG,
    D_UM,
    D_US,
    I_C_DENSE,
    I_C_GROUP,
    I_C_ID,
    I_C_ITEM,
    I_C_MASK,
    I_G_AGE,
    I_G_SIZE,
    I_U_DENSE,
    I_X_CAT,
    N_WHERE,
    RING,
    U_CLICKS,
    U_EVENTS,
    U_GROUPS,
    U_GROUPS_TOTAL,
    U_IMPRESSIONS,
    UG_COUNTS,
    UG_DWELL_SUM,
    UG_KEY,
    UG_LAST,
    UM_LEN,
    UM_TS,
    US_CLS,
    US_DWELL,
    US_LEN,
    US_TS,
    W_CATALOGUE,
    W_COLUMNS,
    W_COUNTERS,
    W_LOGS,
    W_N_COLUMNS,
    W_SCRATCH,
    W_SELF,
)  # fmt: skip
from stream_dmgin.features.catalogue import (
    K_ADVERTISER,
    K_CAPACITY,
    K_CATEGORY,
    K_COLUMNS,
    K_FLAGS,
    K_NUMBERS,
    K_PLACE,
    K_ROWS,
    KNOWN,
    PLACED,
)
from stream_dmgin.features.catalogue import N_ADDRESSES as K_ADDRESSES
from stream_dmgin.features.fatigue import (
    group_key,
)
from stream_dmgin.features.request_blocks import BLOCKS_SCRATCH, put_candidate_blocks, put_user_blocks
from stream_dmgin.features.rings import RINGS_SCRATCH, forget_rings, index_rings, put_pairs
from stream_dmgin.features.scales import (
    ABSENT_HOURS,
    ABSENT_MINUTES,
    DAY_MS,
    EARTH_KM,
    HOUR_MS,
    LOGS,
    MINUTE_MS,
    log2_minutes,
    log_count,
    log_hours,
    log_minutes,
    short_id,
)  # fmt: skip
from stream_dmgin.features.spec import COUNTER_FEATURES, N_CLS, PAIR_FEATURES, USER_FEATURES
from stream_dmgin.features.user_side import CLICK, IMPRESSION, MAX_GROUPS, put_item
from stream_dmgin.native import f32, f64, i32, i64, kernel, log, u8, u64

N_COUNTER, N_PAIR, N_USER = len(COUNTER_FEATURES), len(PAIR_FEATURES), len(USER_FEATURES)
_UG, _UI, _UC, _UA, _PLACE = (
    PAIR_FEATURES.index(n) for n in ("ug_log1p_impressions", "ui_clicks", "uc_clicks", "ua_clicks", "log1p_price")
)
_N_UG = _UI - _UG
_SEVEN_DAYS = N_RATES - 2  # among the rates by horizon: the longest half-life, before "life"
# Evidence at the prior rate: user at the global rate, ring at the user's, group at the user's
USER_WEIGHT, RING_WEIGHT, GROUP_WEIGHT = 20.0, 10.0, 5.0
TWO_PI = 2.0 * math.pi

# A user's groups by key, and the features of those already worked out for this request
N_GROUP_PLACES = 256
# Columns of a request: ts, surface bucket and number, first candidate, end, hash of the page's item; x, y, z, known
NUMBERS, PLACE = 6, 4

# Scratch memory, in bytes: the rings', group places (i32), group features (f32), done (u8)
_S_GROUP = RINGS_SCRATCH
_S_UG = _S_GROUP + 4 * N_GROUP_PLACES
_S_DONE = _S_UG + 4 * _N_UG * MAX_GROUPS
# then that of the optional blocks
_S_BLOCKS = _S_DONE + MAX_GROUPS
SCRATCH = _S_BLOCKS + BLOCKS_SCRATCH


@kernel
def _group_place(key: Any) -> Any:
    return np.int64((key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(56))


@kernel
def _index_groups(w: Any, r: Any, n: Any) -> None:
    where = i64(w, (N_WHERE,))
    scratch = where[W_SCRATCH]
    places, done = i32(scratch + _S_GROUP, (N_GROUP_PLACES,)), u8(scratch + _S_DONE, (MAX_GROUPS,))
    keys = u64(where[UG_KEY], (where[D_UB], where[D_UG]))
    places[:] = 0
    done[:] = 0
    for g in range(n):
        at = _group_place(keys[r, g])
        while places[at] != 0:
            at = (at + 1) & (N_GROUP_PLACES - 1)
        places[at] = g + 1


@kernel
def _find_user_group(w: Any, r: Any, key: Any) -> Any:
    where = i64(w, (N_WHERE,))
    places = i32(where[W_SCRATCH] + _S_GROUP, (N_GROUP_PLACES,))
    keys = u64(where[UG_KEY], (where[D_UB], where[D_UG]))
    at = _group_place(key)
    while places[at] != 0:
        if keys[r, places[at] - 1] == key:
            return np.int64(places[at] - 1)
        at = (at + 1) & (N_GROUP_PLACES - 1)
    return np.int64(-1)


@kernel
def _put_group(w: Any, r: Any, g: Any, now: Any, user_rate: Any, user_logit: Any, to: Any) -> None:
    """The user x group features into _N_UG floats at an address."""
    where, out = i64(w, (N_WHERE,)), f32(to, (_N_UG,))
    UB, UG = where[D_UB], where[D_UG]
    logs = f32(where[W_LOGS], (LOGS,))
    counts = i64(where[UG_COUNTS], (UB, UG, N_CLS))[r, g]
    clicks, impressions, events = counts[CLICK], counts[IMPRESSION], 0
    for c in range(N_CLS):
        events += counts[c]
    events -= impressions
    dwell = i64(where[UG_DWELL_SUM], (UB, UG))[r, g]
    out[0] = log_count(logs, impressions)
    out[1] = log_count(logs, clicks)
    out[2] = smoothed_logit(float(clicks), float(impressions), user_rate, GROUP_WEIGHT) - user_logit
    out[3] = log_count(logs, events - clicks)
    out[4] = log_hours(now - i64(where[UG_LAST], (UB, UG))[r, g])
    out[5] = log(1.0 + dwell / 1000.0 / max(1, events)) if dwell > 0 else 0.0


@kernel
def _put_user(w: Any, r: Any, now: Any, global_logit: Any, user_logit: Any, ring_logit: Any, to: Any) -> None:
    """USER_FEATURES into N_USER floats at an address."""
    where, out = i64(w, (N_WHERE,)), f32(to, (N_USER,))
    UB, US, UM = where[D_UB], where[D_US], where[D_UM]
    logs = f32(where[W_LOGS], (LOGS,))
    events, impressions, groups, s_len, m_len = 0, 0, 0, 0, 0
    if r >= 0:
        events, impressions = i64(where[U_EVENTS], (UB,))[r], i64(where[U_IMPRESSIONS], (UB,))[r]
        groups = i32(where[U_GROUPS_TOTAL], (UB,))[r]
        s_len, m_len = min(RING, i32(where[US_LEN], (UB,))[r]), min(RING, i32(where[UM_LEN], (UB,))[r])
    s_ts, s_cls, m_ts = i64(where[US_TS], (UB, US)), u8(where[US_CLS], (UB, US)), i64(where[UM_TS], (UB, UM))
    s_dwell = i64(where[US_DWELL], (UB, US))
    clicks_10m, clicks_1h, impressions_10m, impressions_1h, dwell, with_dwell = 0, 0, 0, 0, 0, 0
    for e in range(s_len):
        age = now - s_ts[r, e]
        if s_cls[r, e] == CLICK:
            clicks_10m += age < 10 * MINUTE_MS
            clicks_1h += age < HOUR_MS
        if s_dwell[r, e] >= 0:
            dwell += s_dwell[r, e]
            with_dwell += 1
    for e in range(m_len):
        age = now - m_ts[r, e]
        impressions_10m += age < 10 * MINUTE_MS
        impressions_1h += age < HOUR_MS
    out[0], out[1] = log_count(logs, events), log_count(logs, impressions)
    out[2], out[3] = user_logit - global_logit, ring_logit - user_logit
    out[4] = log_minutes(now - s_ts[r, 0]) if s_len > 0 else ABSENT_MINUTES
    out[5] = log_minutes(now - m_ts[r, 0]) if m_len > 0 else ABSENT_MINUTES
    out[6], out[7], out[8], out[9] = clicks_10m, impressions_10m, clicks_1h, impressions_1h
    out[10] = log_count(logs, groups)
    out[11] = log(1.0 + dwell / 1000.0 / with_dwell) if with_dwell > 0 else 0.0
    day = TWO_PI * (now % DAY_MS) / DAY_MS
    week = TWO_PI * ((now + 3 * DAY_MS) % (7 * DAY_MS)) / (7 * DAY_MS)  # Monday first
    out[12], out[13], out[14], out[15] = math.sin(day), math.cos(day), math.sin(2.0 * day), math.cos(2.0 * day)
    out[16], out[17] = math.sin(week), math.cos(week)
    out[18] = global_logit


@kernel
def _put_place(w: Any, row: Any, item_counters: Any, now: Any, place_at: Any, to: Any) -> None:
    """Price, distance and age of an item into five floats at an address."""
    where, out, place = i64(w, (N_WHERE,)), f32(to, (5,)), f64(place_at, (PLACE,))
    k = i64(where[W_CATALOGUE], (K_ADDRESSES,))
    if row >= 0:
        flags = u8(k[K_FLAGS], (k[K_CAPACITY],))[row]
        out[0] = f32(k[K_NUMBERS], (k[K_CAPACITY], k[K_COLUMNS]))[row, 0]
    else:
        flags = np.uint8(0)
        out[0] = 0.0
    out[1], out[2] = 0.0, 0.0
    if flags & PLACED and place[3] != 0.0:
        at = f64(k[K_PLACE], (k[K_CAPACITY], 3))[row]
        x, y, z = at[0] - place[0], at[1] - place[1], at[2] - place[2]
        out[1] = log(1.0 + 2.0 * EARTH_KM * math.asin(min(1.0, 0.5 * math.sqrt(x * x + y * y + z * z))))
        out[2] = 1.0
    out[3] = log_hours(now - first_seen(where[W_COUNTERS], item_counters)) if item_counters >= 0 else 0.0
    out[4] = 1.0 if flags & KNOWN else 0.0


@kernel
def _put_candidate(
    w: Any,
    r: Any,
    at: Any,
    h: Any,
    now: Any,
    user_rate: Any,
    user_logit: Any,
    ring_rate: Any,
    ring_logit: Any,
    place: Any,
    surface: Any,
) -> None:
    """Everything of one candidate, at position `at` over users and candidates; `place`: address of the request's place, `surface`
    the number of its surface."""
    where = i64(w, (N_WHERE,))
    counters, scratch = where[W_COUNTERS], where[W_SCRATCH]
    k = i64(where[W_CATALOGUE], (K_ADDRESSES,))
    slot = put_item(w, h, where[I_C_ITEM] + 12 * at)
    row, category, advertiser = np.int64(-1), np.uint64(0), np.uint64(0)
    if slot >= 0:
        row = np.int64(i32(k[K_ROWS] + 4 * slot, (1,))[0])
        category, advertiser = u64(k[K_CATEGORY] + 8 * row, (1,))[0], u64(k[K_ADVERTISER] + 8 * row, (1,))[0]
    i32(where[I_C_ID] + 4 * at, (1,))[0] = short_id(h)
    u8(where[I_C_MASK] + at, (1,))[0] = 1
    out = where[I_C_DENSE] + 4 * where[D_D] * at
    item_counters = row_of(counters, 0, h)
    row_features(counters, item_counters, out)
    category_counters, advertiser_counters = row_of(counters, 1, category), row_of(counters, 2, advertiser)
    row_features(counters, category_counters, out + 4 * FEATURES)
    row_features(counters, advertiser_counters, out + 8 * FEATURES)
    out += 4 * N_COUNTER
    group = group_key(w, h)
    g = _find_user_group(w, r, group)
    i32(where[I_C_GROUP] + 4 * at, (1,))[0] = g if g >= 0 else where[D_G]
    pair = f32(out, (_N_UG,))
    if g >= 0:
        ug, done = scratch + _S_UG + 4 * _N_UG * g, u8(scratch + _S_DONE + g, (1,))
        if done[0] == 0:
            _put_group(w, r, g, now, user_rate, user_logit, ug)
            done[0] = 1
        pair[:] = f32(ug, (_N_UG,))
    else:
        pair[0], pair[1], pair[2], pair[3], pair[4], pair[5] = 0.0, 0.0, 0.0, 0.0, ABSENT_HOURS, 0.0
    put_pairs(scratch, 0, h, now, 0.0, 0.0, out + 4 * _UI)
    put_pairs(scratch, 1, category, now, ring_rate, ring_logit, out + 4 * _UC)
    put_pairs(scratch, 2, advertiser, now, ring_rate, ring_logit, out + 4 * _UA)
    _put_place(w, row, item_counters, now, place, out + 4 * _PLACE)
    columns, more = i32(where[W_COLUMNS], (where[W_N_COLUMNS],)), f32(out + 4 * N_PAIR, (where[W_N_COLUMNS],))
    for j in range(columns.shape[0]):
        more[j] = f32(k[K_NUMBERS], (k[K_CAPACITY], k[K_COLUMNS]))[row, columns[j]] if row >= 0 else np.float32(0.0)
    out += 4 * (N_PAIR + columns.shape[0])
    put_candidate_blocks(
        w, r, at, row, h, category, advertiser, group, item_counters, category_counters, advertiser_counters, now, surface,
        scratch + _S_BLOCKS, out,
    )  # fmt: skip


@kernel
def request_side(where: Any, rows: Any, numbers: Any, places: Any, hashes: Any) -> None:
    """Fill the request side of all D_B users of the inputs. Per user: `rows` (-1: nothing known), `numbers` [n,6] (ts, surface
    bucket and number, first and end index into `hashes`, hash of the page's item), `places` [n,4] (unit vector, 1 where known).
    Users after the last are padding."""
    w, counters, scratch = where[W_SELF], where[W_COUNTERS], where[W_SCRATCH]
    B, C, G, D, UB, UG = where[D_B], where[D_C], where[D_G], where[D_D], where[D_UB], where[D_UG]
    logs, n_groups = f32(where[W_LOGS], (LOGS,)), i32(where[U_GROUPS], (UB,))
    counts = i64(where[UG_COUNTS], (UB, UG, N_CLS))
    of_clicks, of_impressions = i64(where[U_CLICKS], (UB,)), i64(where[U_IMPRESSIONS], (UB,))
    c_item, c_id, c_group = i32(where[I_C_ITEM], (B, C, 3)), i32(where[I_C_ID], (B, C)), i32(where[I_C_GROUP], (B, C))
    c_dense, c_mask = f32(where[I_C_DENSE], (B, C, D)), u8(where[I_C_MASK], (B, C))
    g_age, g_size = f32(where[I_G_AGE], (B, G)), f32(where[I_G_SIZE], (B, G))
    U = where[D_U]
    u_dense, x_cat = f32(where[I_U_DENSE], (B, U)), i32(where[I_X_CAT], (B,))
    view = f64(i64(counters, (C_ADDRESSES,))[C_VIEW], (N_VIEW,))
    for b in range(B):
        g_age[b], g_size[b] = 0, 0
        if b >= rows.shape[0]:
            u_dense[b], x_cat[b] = 0, 0
            c_item[b], c_id[b], c_group[b], c_dense[b], c_mask[b] = 0, -2, G, 0, 0
            continue
        r, now = np.int64(rows[b]), numbers[b, 0]
        refresh(counters, now)
        global_rate, global_logit = view[V_RATE + _SEVEN_DAYS], view[V_LOGIT + _SEVEN_DAYS]
        groups = min(G, np.int64(n_groups[r])) if r >= 0 else np.int64(0)
        age, seen = f32(where[I_G_AGE] + 4 * b * G, (groups,)), i64(where[UG_LAST] + 8 * r * UG, (groups,))
        for g in range(groups):  # a loop of its own: it vectorises
            age[g] = log2_minutes(now - seen[g])
        for g in range(groups):
            total = 0
            for cls in range(N_CLS):
                total += counts[r, g, cls]
            g_size[b, g] = log_count(logs, total - counts[r, g, IMPRESSION])
        clicks, impressions = (of_clicks[r], of_impressions[r]) if r >= 0 else (np.int64(0), np.int64(0))
        user_logit = smoothed_logit(float(clicks), float(impressions), global_rate, USER_WEIGHT)
        user_rate = 1.0 / (1.0 + math.exp(-user_logit))
        ring_logit, ring_rate = user_logit, user_rate
        if r >= 0:
            recent, shown = index_rings(w, r, scratch)
            ring_logit = smoothed_logit(float(recent), float(shown), user_rate, RING_WEIGHT)
            ring_rate = 1.0 / (1.0 + math.exp(-ring_logit))
            _index_groups(w, r, groups)
        else:
            forget_rings(scratch)
            i32(scratch + _S_GROUP, (N_GROUP_PLACES,))[:] = 0
        user = where[I_U_DENSE] + 4 * U * b
        _put_user(w, r, now, global_logit, user_logit, ring_logit, user)
        user += 4 * N_USER
        page = np.uint64(numbers[b, 5])
        put_user_blocks(
            w, r, now, numbers[b, 2], page, user_rate, user_logit, ring_rate, ring_logit, scratch + _S_BLOCKS, user
        )  # fmt: skip
        x_cat[b] = numbers[b, 1]
        start, n = numbers[b, 3], min(C, numbers[b, 4] - numbers[b, 3])
        at, place = b * C, places.ctypes.data + 8 * PLACE * b
        for i in range(n):
            h = hashes[start + i]
            _put_candidate(w, r, at + i, h, now, user_rate, user_logit, ring_rate, ring_logit, place, numbers[b, 2])
        c_item[b, n:], c_id[b, n:], c_group[b, n:], c_dense[b, n:], c_mask[b, n:] = 0, -2, G, 0, 0
