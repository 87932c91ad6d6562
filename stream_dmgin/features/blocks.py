"""Kernels of the optional inputs (`spec.USER_BLOCKS`): session, and user x surface, from the user's rings at the request's time.

A model that names a block pays for it, about 0.3 us a user; no other does. Clicks "since" an impression are those that happened
no earlier than it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stream_dmgin.counters.read import smoothed_logit
from stream_dmgin.features.bound import (
    D_UB,
    D_UM,
    D_US,
    N_WHERE,
    RING,
    UM_LEN,
    UM_SURFACE,
    UM_TS,
    US_CLS,
    US_DWELL,
    US_LEN,
    US_SURFACE,
    US_TS,
    W_LOGS,
)
from stream_dmgin.features.scales import ABSENT_MINUTES, LOGS, MINUTE_MS, log_count, log_minutes
from stream_dmgin.features.spec import BLOCKS, USER_BLOCKS
from stream_dmgin.features.user_side import CLICK
from stream_dmgin.native import f32, i32, i64, kernel, log, u8

SESSION, SURFACE, ENGAGEMENT, TREND, TASTE, FATIGUE, ONLINE, CONTENT, PASSED, AUDIENCE, RHYTHM, READERS, PAGE = (
    1 << BLOCKS.index(b)
    for b in (
        "session",
        "surface",
        "engagement",
        "trend",
        "taste",
        "fatigue",
        "online",
        "content",
        "passed",
        "audience",
        "rhythm",
        "readers",
        "page",
    )
)
N_SESSION, N_SURFACE = len(USER_BLOCKS["session"]), len(USER_BLOCKS["surface"])
SESSION_GAP_MS = 30 * MINUTE_MS  # a longer pause between two impressions ends a session
LAST_WEIGHT, SURFACE_WEIGHT = 3.0, 5.0  # evidence at the user's rate, at the rate of the rings


def bits(blocks: Sequence[str]) -> int:
    """The blocks as one number for the kernels."""
    return sum(1 << BLOCKS.index(b) for b in blocks)


@kernel
def put_session(w: Any, r: Any, now: Any, user_rate: Any, user_logit: Any, to: Any) -> None:
    """The block `session` of state row r (-1: nobody known) into N_SESSION floats at an address."""
    where, out = i64(w, (N_WHERE,)), f32(to, (N_SESSION,))
    out[:] = 0
    out[8] = ABSENT_MINUTES
    if r < 0:
        return
    UB, US, UM = where[D_UB], where[D_US], where[D_UM]
    logs = f32(where[W_LOGS], (LOGS,))
    s_len, m_len = min(RING, i32(where[US_LEN], (UB,))[r]), min(RING, i32(where[UM_LEN], (UB,))[r])
    s_cls, s_ts = u8(where[US_CLS], (UB, US)), i64(where[US_TS], (UB, US))
    s_dwell, m_ts = i64(where[US_DWELL], (UB, US)), i64(where[UM_TS], (UB, UM))
    if m_len == 0:
        return
    for k in range(3):
        shown = min(m_len, 5 if k == 0 else 20 if k == 1 else 50)
        since = m_ts[r, shown - 1]
        clicks, dwell = 0, 0
        for e in range(s_len):
            if s_ts[r, e] >= since:
                clicks += s_cls[r, e] == CLICK
                dwell += max(0, s_dwell[r, e])
        out[k] = smoothed_logit(float(clicks), float(shown), user_rate, LAST_WEIGHT) - user_logit
        out[3 + k] = log(1.0 + dwell / 1000.0 / shown)
    session = 0
    if now - m_ts[r, 0] < SESSION_GAP_MS:
        session = 1
        while session < m_len and m_ts[r, session - 1] - m_ts[r, session] < SESSION_GAP_MS:
            session += 1
        since = m_ts[r, session - 1]
        clicks = 0
        for e in range(s_len):
            clicks += s_ts[r, e] >= since and s_cls[r, e] == CLICK
        out[6], out[7] = log_count(logs, session), log_count(logs, clicks)
        out[8] = log_minutes(now - since)
    newest = np.int64(-1)
    for e in range(s_len):
        if s_cls[r, e] == CLICK:
            newest = max(newest, s_ts[r, e])
    unclicked = 0
    while unclicked < m_len and m_ts[r, unclicked] > newest:
        unclicked += 1
    out[9] = log_count(logs, unclicked)


@kernel
def put_surface(w: Any, r: Any, now: Any, surface: Any, ring_rate: Any, ring_logit: Any, to: Any) -> None:
    """The block `surface` of state row r on the surface of this number (0: none) into N_SURFACE floats at an address."""
    where, out = i64(w, (N_WHERE,)), f32(to, (N_SURFACE,))
    out[:] = 0
    out[4] = ABSENT_MINUTES
    if r < 0 or surface == 0:
        return
    UB, US, UM = where[D_UB], where[D_US], where[D_UM]
    logs = f32(where[W_LOGS], (LOGS,))
    s_len, m_len = min(RING, i32(where[US_LEN], (UB,))[r]), min(RING, i32(where[UM_LEN], (UB,))[r])
    s_cls, s_ts, m_ts = u8(where[US_CLS], (UB, US)), i64(where[US_TS], (UB, US)), i64(where[UM_TS], (UB, UM))
    s_surface, m_surface = u8(where[US_SURFACE], (UB, US)), u8(where[UM_SURFACE], (UB, UM))
    shown, tenth, newest = 0, np.int64(0), np.int64(-1)
    for e in range(m_len):
        if m_surface[r, e] == surface:
            shown += 1
            if shown == 1:
                newest = m_ts[r, e]
            if shown <= 10:
                tenth = m_ts[r, e]
    since = m_ts[r, m_len - 1] if m_len == RING else np.int64(0)
    clicks, recent, last = 0, 0, 0
    for e in range(s_len):
        if s_surface[r, e] == surface and s_cls[r, e] == CLICK:
            clicks += 1
            recent += s_ts[r, e] >= since
            last += shown > 0 and s_ts[r, e] >= tenth
    out[0], out[1] = log_count(logs, shown), log_count(logs, clicks)
    out[2] = smoothed_logit(float(recent), float(shown), ring_rate, SURFACE_WEIGHT) - ring_logit
    out[3] = smoothed_logit(float(last), float(min(shown, 10)), ring_rate, SURFACE_WEIGHT) - ring_logit
    if newest >= 0:
        out[4] = log_minutes(now - newest)
