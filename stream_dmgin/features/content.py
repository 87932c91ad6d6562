"""Kernels of the blocks `content` and `passed`: how like the candidate is to what the user clicked and read, and to what was shown and
left, by the items' embeddings.

Of the user's ring of clicks and post-click events each item counts once, at its newest event, where the catalogue has an embedding of it
and the event is nothing negative. Of the ring of impressions each item counts once, at its newest, where it is none of the former.
Likeness is the cosine of two embeddings: embeddings are whole numbers, so it is the same on every machine. About 1.3 us a candidate and
block, for 64 items and embeddings of 64 numbers.
"""

from __future__ import annotations

import math
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
    US_CLS,
    US_ITEM,
    US_LEN,
    W_CATALOGUE,
    W_LOGS,
)
from stream_dmgin.features.catalogue import K_CAPACITY, K_EMBEDDING, K_INVERSE, K_WIDTH, N_ADDRESSES, find_embedded
from stream_dmgin.features.scales import LOGS, log_count
from stream_dmgin.features.spec import BEHAVIOUR_CLASSES, CANDIDATE_BLOCKS, USER_BLOCKS
from stream_dmgin.native import f32, f64, i8, i32, i64, kernel, u8, u64

N_CONTENT, N_CONTENT_USER = len(CANDIDATE_BLOCKS["content"]), len(USER_BLOCKS["content"])
N_PASSED, N_PASSED_USER = len(CANDIDATE_BLOCKS["passed"]), len(USER_BLOCKS["passed"])
NEGATIVE = BEHAVIOUR_CLASSES.index("negative")
TEMPERATURE = 0.15  # of the attention over the items
# Working memory in bytes, of each of the two sets of items: how many, the length of their mean, the sum of 1, 1/2, 1/3, ...; their rows;
# likeness of each
_N, _LENGTH, _RECENT = range(3)
_S_ROWS = 8 * 3
_S_LIKE = _S_ROWS + 8 * RING
_SET = _S_LIKE + 8 * RING
CONTENT_SCRATCH = 2 * _SET


@kernel
def find_read(w: Any, r: Any, scratch: Any) -> None:
    """Find the items of the ring of events of state row r (-1: nobody known), newest first, in CONTENT_SCRATCH bytes at `scratch`: what
    both blocks begin with."""
    where, n = i64(w, (N_WHERE,)), np.int64(0)
    rows = i64(scratch + _S_ROWS, (RING,))
    if r >= 0:
        UB, US = where[D_UB], where[D_US]
        item, cls = u64(where[US_ITEM], (UB, US)), u8(where[US_CLS], (UB, US))
        for e in range(min(RING, i32(where[US_LEN], (UB,))[r])):
            if cls[r, e] != NEGATIVE:
                row = find_embedded(where[W_CATALOGUE], item[r, e])
                if row >= 0 and not _among(rows, n, row):
                    rows[n] = row
                    n += 1
    f64(scratch, (3,))[_N] = n


@kernel
def put_content_user(w: Any, scratch: Any, to: Any) -> None:
    """The block `content` of the user into N_CONTENT_USER floats at an address. After `find_read`."""
    where, out = i64(w, (N_WHERE,)), f32(to, (N_CONTENT_USER,))
    n = np.int64(f64(scratch, (3,))[_N])
    square = _settle(where[W_CATALOGUE], scratch)
    out[0] = log_count(f32(where[W_LOGS], (LOGS,)), n)
    out[1] = (square - n) / (n * (n - 1.0)) if n > 1 else 0.0


@kernel
def put_passed_user(w: Any, r: Any, scratch: Any, to: Any) -> None:
    """Find the items of the ring of impressions that are none of the read ones, newest first, in the second set at `scratch`; the block
    `passed` of the user into N_PASSED_USER floats at an address. After `find_read`."""
    where, out, n = i64(w, (N_WHERE,)), f32(to, (N_PASSED_USER,)), np.int64(0)
    n_read, read = np.int64(f64(scratch, (3,))[_N]), i64(scratch + _S_ROWS, (RING,))
    rows = i64(scratch + _SET + _S_ROWS, (RING,))
    if r >= 0:
        UB, UM = where[D_UB], where[D_UM]
        item = u64(where[UM_ITEM], (UB, UM))
        for e in range(min(RING, i32(where[UM_LEN], (UB,))[r])):
            row = find_embedded(where[W_CATALOGUE], item[r, e])
            if row >= 0 and not _among(read, n_read, row) and not _among(rows, n, row):
                rows[n] = row
                n += 1
    f64(scratch + _SET, (3,))[_N] = n
    _settle(where[W_CATALOGUE], scratch + _SET)
    out[0] = log_count(f32(where[W_LOGS], (LOGS,)), n)


@kernel
def _among(rows: Any, n: Any, row: Any) -> Any:
    """Whether one of the first n is this one."""
    found = False
    for i in range(n):  # no way out of the loop: it vectorises
        found |= rows[i] == row
    return found


@kernel
def _settle(catalogue: Any, items: Any) -> Any:
    """What all candidates share of a set of items; the squared length of the sum of their embeddings, each of length 1."""
    sums = f64(items, (3,))
    n = np.int64(sums[_N])
    sums[_LENGTH], sums[_RECENT] = 0.0, 0.0
    if n == 0:
        return 0.0
    k, rows = i64(catalogue, (N_ADDRESSES,)), i64(items + _S_ROWS, (RING,))
    width, inverse = k[K_WIDTH], f32(k[K_INVERSE], (k[K_CAPACITY],))
    vectors = i8(k[K_EMBEDDING], (k[K_CAPACITY], width))
    square = 0.0
    for d in range(width):
        total = 0.0
        for i in range(n):
            total += vectors[rows[i], d] * np.float64(inverse[rows[i]])
        square += total * total
    sums[_LENGTH] = math.sqrt(square) / n
    for i in range(n):
        sums[_RECENT] += 1.0 / (i + 1)
    return square


@kernel
def _product(a: Any, b: Any, width: Any) -> Any:
    """Of two embeddings at addresses: a loop over whole numbers, so it vectorises."""
    x, y = i8(a, (width,)), i8(b, (width,))
    total = np.int32(0)
    for d in range(width):
        total += np.int32(x[d]) * np.int32(y[d])
    return total


@kernel
def put_content(w: Any, row: Any, scratch: Any, to: Any) -> None:
    """The block `content` of the candidate in this row of the catalogue (-1: none) into N_CONTENT floats at an address. After
    `put_content_user`."""
    _put_likeness(i64(w, (N_WHERE,))[W_CATALOGUE], row, scratch, to)


@kernel
def put_passed(w: Any, row: Any, scratch: Any, to: Any) -> None:
    """The block `passed`, likewise, after `put_passed_user`."""
    _put_likeness(i64(w, (N_WHERE,))[W_CATALOGUE], row, scratch + _SET, to)


@kernel
def _put_likeness(catalogue: Any, row: Any, items: Any, to: Any) -> None:
    """Mean, cosine to the mean, greatest, mean of three, by newness and by attention: likeness to a set of items, six floats."""
    out, sums = f32(to, (N_CONTENT,)), f64(items, (3,))
    k = i64(catalogue, (N_ADDRESSES,))
    out[:] = 0
    n = np.int64(sums[_N])
    if row < 0 or n == 0:
        return
    inverse, width = f32(k[K_INVERSE], (k[K_CAPACITY],)), k[K_WIDTH]
    mine = np.float64(inverse[row])
    if mine == 0:
        return
    rows, like = i64(items + _S_ROWS, (RING,)), f64(items + _S_LIKE, (RING,))
    total, recent, first, second, third = 0.0, 0.0, -2.0, -2.0, -2.0
    for i in range(n):
        x = _product(k[K_EMBEDDING] + width * row, k[K_EMBEDDING] + width * rows[i], width) * mine * inverse[rows[i]]
        like[i] = x
        total += x
        recent += x / (i + 1.0)
        if x > first:
            first, second, third = x, first, second
        elif x > second:
            second, third = x, second
        elif x > third:
            third = x
    weight, attended = 0.0, 0.0
    for i in range(n):
        share = math.exp((like[i] - first) / TEMPERATURE)
        weight += share
        attended += share * like[i]
    mean = total / n
    out[0] = mean
    out[1] = mean / sums[_LENGTH] if sums[_LENGTH] > 1e-6 else 0.0
    out[2] = first
    out[3] = first if n == 1 else (first + second) / 2.0 if n == 2 else (first + second + third) / 3.0
    out[4] = recent / sums[_RECENT]
    out[5] = attended / weight
