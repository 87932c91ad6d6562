"""Kernels of the fused engine's request side. Rows are the candidates of all requests, padding included: R = B*C.

What a kernel writes is an argument named `out*`. Matrix products between kernels are torch's (`fused.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stream_dmgin.scoring.fused_math import exp, fast_kernel, normalise, silu, softmax, tent

_ONE, _ZERO = np.float32(1.0), np.float32(0.0)
MOST = 128


@fast_kernel
def dense(x: Any, mean: Any, scale: Any, slope: Any, shift: Any, out: Any) -> None:
    """`models.dmgin.Dense` of rows [R,size] -> the first size*(1+bins) columns of out."""
    size, bins = slope.shape
    for r in range(x.shape[0]):
        row, to = x[r], out[r]
        for i in range(size):
            to[i] = min(max((row[i] - mean[i]) * scale[i], np.float32(-6.0)), np.float32(6.0))
        for i in range(size):
            v, steps = row[i], to[size + i * bins : size + (i + 1) * bins]
            for k in range(bins):
                steps[k] = min(max(shift[i, k] + v * slope[i, k], _ZERO), _ONE)


@fast_kernel
def put_surface(x_cat: Any, surface: Any, first: Any, out: Any) -> None:
    """Rows of the table of surfaces into out, from column `first` on."""
    for b in range(x_cat.shape[0]):
        for k in range(surface.shape[1]):
            out[b, first + k] = surface[x_cat[b], k]


@fast_kernel
def targets(c_item: Any, item: Any, category: Any, advertiser: Any, out: Any) -> None:
    """Candidates [R,d] as sums of rows of tables."""
    for r in range(c_item.shape[0]):
        a0, a1, a2 = item[c_item[r, 0]], category[c_item[r, 1]], advertiser[c_item[r, 2]]
        for k in range(out.shape[1]):
            out[r, k] = a0[k] + a1[k] + a2[k]


@fast_kernel
def _scores(ask: Any, keys: Any, out: Any) -> None:
    """Dot products of one row with each of some rows."""
    for j in range(keys.shape[0]):
        dot = _ZERO
        for k in range(ask.shape[0]):
            dot += ask[k] * keys[j, k]
        out[j] = dot


@fast_kernel
def _mix(weights: Any, rows: Any, out: Any) -> None:
    """Sum of rows by their weights."""
    out[:] = _ZERO
    for j in range(rows.shape[0]):
        weight = weights[j]
        for k in range(out.shape[0]):
            out[k] += weight * rows[j, k]


@fast_kernel
def attend(
    target: Any, asks: Any, c_id: Any, c_group: Any, g_age: Any, g_size: Any, size_bias: Any, age_bias: Any, own_bias: Any,
    groups: Any, group_keys: Any, tokens: Any, starts: Any, e_id: Any, short: Any, short_keys: Any, out: Any,
) -> None:  # fmt: skip
    """The interests [C,8d] of one request's candidates: target, asks [C,3d] (of groups, own events, short events) against the
    user's tower. Keys hold the scale of the dot product, as do the asks of own events."""
    d, n, s = target.shape[1], groups.shape[0], short.shape[0]
    bias, weights, asked = np.empty(MOST, np.float32), np.empty(MOST, np.float32), np.empty(MOST, np.float32)
    for g in range(n):
        low, part = tent(g_age[g])
        bias[g] = size_bias * g_size[g] + (_ONE - part) * age_bias[low] + part * age_bias[low + 1]
    for c in range(target.shape[0]):
        t, o = target[c], out[c]
        long, near = o[d : 2 * d], o[6 * d : 7 * d]
        own = np.int64(c_group[c])
        has = 0 <= own < n
        o[:d] = t
        if n:
            _scores(asks[c, :d], group_keys, weights)
            for g in range(n):
                weights[g] += bias[g]
            if has:
                weights[own] += own_bias
            softmax(weights, n)
            _mix(weights, groups, long)
        else:
            long[:] = _ZERO
        if has:
            o[3 * d : 4 * d] = groups[own]
        else:
            o[3 * d : 4 * d] = _ZERO
        o[4 * d : 6 * d] = _ZERO
        if has and starts[own + 1] > starts[own]:
            rows, ids = tokens[starts[own] : starts[own + 1]], e_id[starts[own] : starts[own + 1]]
            length = rows.shape[0]
            _scores(asks[c, d : 2 * d], rows, asked)
            same = 0
            for j in range(length):
                same += ids[j] == c_id[c]
            if same:
                item = o[5 * d : 6 * d]
                most = np.float32(-1e30)
                for j in range(length):
                    if ids[j] == c_id[c]:
                        most = max(most, asked[j])
                total = _ZERO
                for j in range(length):
                    if ids[j] == c_id[c]:
                        weight = exp(asked[j] - most)
                        total += weight
                        for k in range(d):
                            item[k] += weight * rows[j, k]
                total = _ONE / total
                for k in range(d):
                    item[k] *= total
            softmax(asked, length)
            _mix(asked, rows, o[4 * d : 5 * d])
        if s:
            _scores(asks[c, 2 * d : 3 * d], short_keys, weights)
            softmax(weights, s)
            _mix(weights, short, near)
        else:
            near[:] = _ZERO
        for k in range(d):
            o[2 * d + k] = t[k] * long[k]
            o[7 * d + k] = t[k] * near[k]


@fast_kernel
def join(
    candidates: Any, wide: Any, user: Any, deep: Any, gamma1: Any, beta1: Any, gamma2: Any, beta2: Any, out: Any
) -> None:
    """Dense [R,h1] (left part of `wide`) with its user's share, and deep [R,h1]: normed, SiLU, side by side [R,2*h1]."""
    h = deep.shape[1]
    row = np.empty(h, np.float32)
    for r in range(deep.shape[0]):
        of, to = user[r // candidates], out[r]
        for k in range(h):
            row[k] = wide[r, k] + of[k]
        normalise(row, row)
        for k in range(h):
            to[k] = silu(row[k] * gamma1[k] + beta1[k])
        normalise(deep[r], row)
        for k in range(h):
            to[h + k] = silu(row[k] * gamma2[k] + beta2[k])


@fast_kernel
def logits(candidates: Any, hidden: Any, weight: Any, bias: Any, wide: Any, first: Any, user: Any, out: Any) -> None:
    """Hidden [R,h2] before its SiLU -> logits [R,O]: weight [O,h2], with the wide parts of candidate (columns of `wide` from
    `first` on) and user (of `user`, likewise)."""
    h, n = weight.shape[1], weight.shape[0]
    row = np.empty(h, np.float32)
    for r in range(hidden.shape[0]):
        for k in range(h):
            row[k] = silu(hidden[r, k])
        of = user[r // candidates]
        for i in range(n):
            dot = bias[i] + wide[r, first + i] + of[first + i]
            for k in range(h):
                dot += row[k] * weight[i, k]
            out[r, i] = dot
