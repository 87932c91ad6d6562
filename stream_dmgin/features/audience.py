"""Kernels of the blocks `audience` and `readers`: how like the user's profile is to those of the users who clicked a candidate so far, and
of those it was shown to who left it; and how like the candidate's audience is to those of what the user read last, and of the page's item.
Most candidates of a news site are hours old and say nothing themselves; who reads them does.

About 0.1 us a candidate (`readers`: 0.4), and 20 ns an event that the user's profile is made of.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from stream_dmgin.counters.audience import WIDTH, put_mean, put_met
from stream_dmgin.counters.layout import C_ONLINE, N_ADDRESSES
from stream_dmgin.features.bound import D_UB, D_US, N_WHERE, RING, US_CLS, US_ITEM, US_LEN, W_COUNTERS, W_LOGS
from stream_dmgin.features.profile import put_profile
from stream_dmgin.features.scales import LOGS, log_count
from stream_dmgin.features.spec import BEHAVIOUR_CLASSES, CANDIDATE_BLOCKS, USER_BLOCKS
from stream_dmgin.native import f32, f64, i32, i64, kernel, u8, u64

N_AUDIENCE, N_AUDIENCE_USER = len(CANDIDATE_BLOCKS["audience"]), len(USER_BLOCKS["audience"])
N_READERS = len(CANDIDATE_BLOCKS["readers"])
READ = 20  # items read last that a candidate is compared with
LENGTH_PRIOR = 0.05  # of an audience: few or unlike readers say little
# Working memory in bytes: events the profile is made of; the profile, less everybody's mean; that mean; the candidate's audience: of those
# who clicked, of those who left
_S_PROFILE = 8
_S_MEAN = _S_PROFILE + 8 * WIDTH
_S_MET = _S_MEAN + 8 * WIDTH
# how many items the user read last, their hashes; their audiences as long as 1 at most, newest first; means of the newest 5 and of all; the
# page's item's audience
_S_COUNT = _S_MET + 8 * 2 * WIDTH
_S_ITEMS = _S_COUNT + 8
_S_READ = _S_ITEMS + 8 * READ
_S_LAST5 = _S_READ + 8 * WIDTH * READ
_S_LAST20 = _S_LAST5 + 8 * WIDTH
_S_PAGE = _S_LAST20 + 8 * WIDTH
AUDIENCE_SCRATCH = _S_PAGE + 8 * WIDTH
_TAKEN = tuple(BEHAVIOUR_CLASSES.index(c) for c in ("click", "weak", "strong", "payment"))


@kernel
def put_audience_user(w: Any, r: Any, scratch: Any) -> None:
    """The profile of state row r (-1: nobody known) into AUDIENCE_SCRATCH bytes at `scratch`."""
    where = i64(w, (N_WHERE,))
    f64(scratch, (1,))[0] = put_profile(w, r, scratch + _S_PROFILE)
    put_mean(i64(where[W_COUNTERS], (N_ADDRESSES,))[C_ONLINE], scratch + _S_MEAN)
    mine, mean = f64(scratch + _S_PROFILE, (WIDTH,)), f64(scratch + _S_MEAN, (WIDTH,))
    for d in range(WIDTH):
        mine[d] -= mean[d]


@kernel
def put_audience_size(w: Any, scratch: Any, to: Any) -> None:
    """The block `audience` of the user into N_AUDIENCE_USER floats at an address. After `put_audience_user`."""
    logs = f32(i64(w, (N_WHERE,))[W_LOGS], (LOGS,))
    f32(to, (N_AUDIENCE_USER,))[0] = log_count(logs, np.int64(f64(scratch, (1,))[0]))


@kernel
def _put_direction(model: Any, h: Any, scratch: Any, to: Any) -> None:
    """The audience that clicked an item, over its length and a little, into WIDTH doubles at an address. Overwrites the candidate's."""
    put_met(model, h, scratch + _S_MEAN, scratch + _S_MET)
    met, out = f64(scratch + _S_MET, (WIDTH,)), f64(to, (WIDTH,))
    short = 1.0 / (_length(met) + LENGTH_PRIOR)
    for d in range(WIDTH):
        out[d] = short * met[d]


@kernel
def _length(x: Any) -> Any:
    square = 0.0
    for d in range(x.shape[0]):
        square += x[d] * x[d]
    return math.sqrt(square)


@kernel
def put_readers_user(w: Any, r: Any, page: Any, scratch: Any) -> None:
    """What the user of state row r read last, and the item of the page with this hash (0: none), as directions of their audiences. After
    `put_audience_user`."""
    where = i64(w, (N_WHERE,))
    model = i64(where[W_COUNTERS], (N_ADDRESSES,))[C_ONLINE]
    items, n = u64(scratch + _S_ITEMS, (READ,)), np.int64(0)
    if r >= 0:
        UB, US = where[D_UB], where[D_US]
        item, cls = u64(where[US_ITEM], (UB, US)), u8(where[US_CLS], (UB, US))
        for e in range(min(RING, i32(where[US_LEN], (UB,))[r])):
            if n < READ and cls[r, e] in _TAKEN and item[r, e] not in items[:n]:
                items[n] = item[r, e]
                n += 1
    i64(scratch + _S_COUNT, (1,))[0] = n
    five, twenty, each = (
        f64(scratch + _S_LAST5, (WIDTH,)),
        f64(scratch + _S_LAST20, (WIDTH,)),
        f64(scratch + _S_READ, (READ, WIDTH)),
    )
    five[:], twenty[:] = 0, 0
    for k in range(n):
        _put_direction(model, items[k], scratch, scratch + _S_READ + 8 * WIDTH * k)
        for d in range(WIDTH):
            twenty[d] += each[k, d] / n
            if k < 5:
                five[d] += each[k, d] / min(n, 5)
    f64(scratch + _S_PAGE, (WIDTH,))[:] = 0
    if page != 0:
        _put_direction(model, page, scratch, scratch + _S_PAGE)


@kernel
def find_met(w: Any, h: Any, scratch: Any) -> None:
    """Find the audience of the candidate with hash h. After `put_audience_user`."""
    model = i64(i64(w, (N_WHERE,))[W_COUNTERS], (N_ADDRESSES,))[C_ONLINE]
    put_met(model, h, scratch + _S_MEAN, scratch + _S_MET)


@kernel
def put_audience(scratch: Any, to: Any) -> None:
    """The block `audience` of a candidate into N_AUDIENCE floats at an address. After `find_met`."""
    out = f32(to, (N_AUDIENCE,))
    out[:] = 0
    if f64(scratch, (1,))[0] > 0:
        mine = f64(scratch + _S_PROFILE, (WIDTH,))
        out[0], out[1] = (
            _dot(mine, f64(scratch + _S_MET, (WIDTH,))),
            _dot(mine, f64(scratch + _S_MET + 8 * WIDTH, (WIDTH,))),
        )


@kernel
def _dot(x: Any, y: Any) -> Any:
    total = 0.0
    for d in range(WIDTH):
        total += x[d] * y[d]
    return total


@kernel
def put_readers(scratch: Any, to: Any) -> None:
    """The block `readers` of a candidate into N_READERS floats at an address. After `find_met` and `put_readers_user`."""
    out = f32(to, (N_READERS,))
    mine, met = f64(scratch + _S_PROFILE, (WIDTH,)), f64(scratch + _S_MET, (2 * WIDTH,))
    out[:] = 0
    if f64(scratch, (1,))[0] > 0:
        for d in range(WIDTH):
            out[d], out[WIDTH + d] = mine[d] * met[d], mine[d] * met[WIDTH + d]
    clicked, left = met[:WIDTH], met[WIDTH:]
    of_clicked, of_left = 1.0 / (_length(clicked) + LENGTH_PRIOR), 1.0 / (_length(left) + LENGTH_PRIOR)
    n, each = i64(scratch + _S_COUNT, (1,))[0], f64(scratch + _S_READ, (READ, WIDTH))
    rest, page = out[2 * WIDTH :], f64(scratch + _S_PAGE, (WIDTH,))
    if n > 0:
        last20, nearest = f64(scratch + _S_LAST20, (WIDTH,)), -1.0
        for k in range(n):
            nearest = max(nearest, of_clicked * _dot(each[k], clicked))
        rest[0] = of_clicked * _dot(each[0], clicked)
        rest[1] = of_clicked * _dot(f64(scratch + _S_LAST5, (WIDTH,)), clicked)
        rest[2], rest[3], rest[4] = of_clicked * _dot(last20, clicked), nearest, of_left * _dot(last20, left)
    rest[5], rest[6] = of_clicked * _dot(page, clicked), of_left * _dot(page, left)
