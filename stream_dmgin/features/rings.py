"""A user's last clicks and last impressions by item, category and advertiser: a table built once a request, asked once a candidate and
kind. Scratch memory in bytes: places (i32), keys (u64), values (i64)."""

from __future__ import annotations

from typing import Any

import numpy as np

from stream_dmgin.counters.layout import N_KINDS
from stream_dmgin.counters.read import mixed, smoothed_logit
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
    W_CATALOGUE,
)
from stream_dmgin.features.catalogue import K_ADVERTISER, K_CAPACITY, K_CATEGORY, find_item
from stream_dmgin.features.catalogue import N_ADDRESSES as K_ADDRESSES
from stream_dmgin.features.scales import ABSENT_HOURS, log_hours
from stream_dmgin.features.user_side import CLICK
from stream_dmgin.native import f32, i32, i64, kernel, u8, u64

PAIR_WEIGHT = 5.0  # evidence at the prior rate: category and advertiser at the ring's
# An open-addressing table over at most 3 x 128 entries
N_ENTRIES = N_KINDS * 2 * RING
N_PLACES = 1024
(R_CLICKS, R_IMPRESSIONS, R_RECENT, R_LAST_EVENT, R_LAST_IMPRESSION) = range(5)
_S_KEYS = 4 * N_PLACES
_S_VALUES = _S_KEYS + 8 * N_ENTRIES
RINGS_SCRATCH = _S_VALUES + 8 * 5 * N_ENTRIES


@kernel
def _place(scratch: Any, key: Any) -> Any:
    """Where in the table a key stands, or would stand: an empty place."""
    places, keys = i32(scratch, (N_PLACES,)), u64(scratch + _S_KEYS, (N_ENTRIES,))
    at = np.int64(key & np.uint64(N_PLACES - 1))
    while places[at] != 0 and keys[places[at] - 1] != key:
        at = (at + 1) & (N_PLACES - 1)
    return at


@kernel
def _entry(scratch: Any, kind: Any, h: Any, used: Any) -> Any:
    """Number of the ring entry (kind, h), a new and empty one (`used`) where there was none."""
    places, key = i32(scratch, (N_PLACES,)), mixed(kind, h)
    at = _place(scratch, key)
    if places[at] != 0:
        return np.int64(places[at] - 1)
    places[at] = used + 1
    u64(scratch + _S_KEYS, (N_ENTRIES,))[used] = key
    values = i64(scratch + _S_VALUES, (N_ENTRIES, 5))
    values[used, R_CLICKS], values[used, R_IMPRESSIONS], values[used, R_RECENT] = 0, 0, 0
    values[used, R_LAST_EVENT], values[used, R_LAST_IMPRESSION] = -1, -1
    return np.int64(used)


@kernel
def _find_entry(scratch: Any, kind: Any, h: Any) -> Any:
    """Number of the ring entry (kind, h), -1 where there is none or the hash is 0."""
    if h == 0:
        return np.int64(-1)
    return np.int64(i32(scratch, (N_PLACES,))[_place(scratch, mixed(kind, h))]) - 1


@kernel
def index_rings(w: Any, r: Any, scratch: Any) -> Any:
    """Build the table of the rings of user row r. Returns (clicks since the oldest impression of a full ring, impressions)."""
    where = i64(w, (N_WHERE,))
    UB, US, UM = where[D_UB], where[D_US], where[D_UM]
    k = i64(where[W_CATALOGUE], (K_ADDRESSES,))
    category, advertiser = u64(k[K_CATEGORY], (k[K_CAPACITY],)), u64(k[K_ADVERTISER], (k[K_CAPACITY],))
    s_len, m_len = min(RING, i32(where[US_LEN], (UB,))[r]), min(RING, i32(where[UM_LEN], (UB,))[r])
    s_item, s_cls, s_ts = u64(where[US_ITEM], (UB, US)), u8(where[US_CLS], (UB, US)), i64(where[US_TS], (UB, US))
    m_item, m_ts = u64(where[UM_ITEM], (UB, UM)), i64(where[UM_TS], (UB, UM))
    values = i64(scratch + _S_VALUES, (N_ENTRIES, 5))
    i32(scratch, (N_PLACES,))[:] = 0
    since = m_ts[r, m_len - 1] if m_len == RING else 0
    used, recent = 0, 0
    for e in range(s_len + m_len):
        clicked = e < s_len
        i = e if clicked else e - s_len
        h = s_item[r, i] if clicked else m_item[r, i]
        ts = s_ts[r, i] if clicked else m_ts[r, i]
        is_click = clicked and s_cls[r, i] == CLICK
        if is_click and ts >= since:
            recent += 1
        row = find_item(where[W_CATALOGUE], h)
        for kind in range(N_KINDS):
            name = h
            if kind > 0:
                name = np.uint64(0)
                if row >= 0:
                    name = category[row] if kind == 1 else advertiser[row]
            if name == 0:
                continue
            n = _entry(scratch, kind, name, used)
            used = max(used, n + 1)
            if clicked:
                values[n, R_LAST_EVENT] = max(values[n, R_LAST_EVENT], ts)
                values[n, R_CLICKS] += is_click
                values[n, R_RECENT] += is_click and ts >= since
            else:
                values[n, R_LAST_IMPRESSION] = max(values[n, R_LAST_IMPRESSION], ts)
                values[n, R_IMPRESSIONS] += 1
    return recent, m_len


@kernel
def forget_rings(scratch: Any) -> None:
    """The table of a user of whom nothing is known."""
    i32(scratch, (N_PLACES,))[:] = 0


@kernel
def put_pairs(scratch: Any, kind: Any, h: Any, now: Any, rate: Any, logit: Any, to: Any) -> None:
    """User x item (kind 0: clicks, impressions, two ages), or user x category and advertiser (clicks, impressions, rate), as
    floats at an address."""
    out = f32(to, (4,))
    n = _find_entry(scratch, kind, h)
    if n < 0:
        out[0], out[1] = 0, 0
        out[2] = ABSENT_HOURS if kind == 0 else 0.0
        if kind == 0:
            out[3] = ABSENT_HOURS
        return
    v = i64(scratch + _S_VALUES, (N_ENTRIES, 5))[n]
    out[0], out[1] = v[R_CLICKS], v[R_IMPRESSIONS]
    if kind == 0:
        out[2] = log_hours(now - v[R_LAST_EVENT]) if v[R_LAST_EVENT] >= 0 else ABSENT_HOURS
        out[3] = log_hours(now - v[R_LAST_IMPRESSION]) if v[R_LAST_IMPRESSION] >= 0 else ABSENT_HOURS
    else:
        out[2] = smoothed_logit(float(v[R_RECENT]), float(v[R_IMPRESSIONS]), rate, PAIR_WEIGHT) - logit
