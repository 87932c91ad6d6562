"""Kernels of the block `audience`: how like the user's profile is to those of the users who clicked a candidate so far, and of those it
was shown to who left it. Most candidates of a news site are hours old and say nothing themselves; who reads them does.

About 0.1 us a candidate, and 20 ns an event that the user's profile is made of.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stream_dmgin.counters.audience import WIDTH, likeness, put_mean
from stream_dmgin.counters.layout import C_ONLINE, N_ADDRESSES
from stream_dmgin.features.bound import N_WHERE, W_COUNTERS, W_LOGS
from stream_dmgin.features.profile import put_profile
from stream_dmgin.features.scales import LOGS, log_count
from stream_dmgin.features.spec import CANDIDATE_BLOCKS, USER_BLOCKS
from stream_dmgin.native import f32, f64, i64, kernel

N_AUDIENCE, N_AUDIENCE_USER = len(CANDIDATE_BLOCKS["audience"]), len(USER_BLOCKS["audience"])
# Working memory in bytes: events the profile is made of; the profile, less everybody's mean; that mean
_S_PROFILE = 8
_S_MEAN = _S_PROFILE + 8 * WIDTH
AUDIENCE_SCRATCH = _S_MEAN + 8 * WIDTH


@kernel
def put_audience_user(w: Any, r: Any, scratch: Any, to: Any) -> None:
    """The profile of state row r (-1: nobody known) into AUDIENCE_SCRATCH bytes at `scratch`; the block of the user into N_AUDIENCE_USER
    floats at an address."""
    where, out = i64(w, (N_WHERE,)), f32(to, (N_AUDIENCE_USER,))
    events = put_profile(w, r, scratch + _S_PROFILE)
    put_mean(i64(where[W_COUNTERS], (N_ADDRESSES,))[C_ONLINE], scratch + _S_MEAN)
    mine, mean = f64(scratch + _S_PROFILE, (WIDTH,)), f64(scratch + _S_MEAN, (WIDTH,))
    for d in range(WIDTH):
        mine[d] -= mean[d]
    f64(scratch, (1,))[0] = events
    out[0] = log_count(f32(where[W_LOGS], (LOGS,)), np.int64(events))


@kernel
def put_audience(counters: Any, h: Any, scratch: Any, to: Any) -> None:
    """The block of the candidate with hash h into N_AUDIENCE floats at an address. After `put_audience_user`."""
    out = f32(to, (N_AUDIENCE,))
    out[:] = 0
    if f64(scratch, (1,))[0] > 0:
        out[0], out[1] = likeness(i64(counters, (N_ADDRESSES,))[C_ONLINE], h, scratch + _S_PROFILE, scratch + _S_MEAN)
