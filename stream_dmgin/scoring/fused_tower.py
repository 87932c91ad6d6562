"""Kernels of the fused engine's user side. Rows are those that exist: all events of all groups of all users, one after another.

Letters as in `models/dmgin.py`; E events and N groups of all users together. What a kernel writes is an argument named
`out_*`. Matrix products between kernels are torch's (`fused.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stream_dmgin.scoring.fused_math import fast_kernel, normalise, silu, softmax, tent

_ONE, _ZERO = np.float32(1.0), np.float32(0.0)
MOST = 128  # groups of a user, and events of a group, at most


@fast_kernel
def count(g_mask: Any, e_mask: Any, s_mask: Any, out_users: Any, out_groups: Any) -> Any:
    """First group and short event of each user [B+1,2], first event of each group [..]; returns E. Groups, events and short
    events fill their rows from the front."""
    groups = events = short = 0
    for b in range(g_mask.shape[0]):
        out_users[b, 0], out_users[b, 1] = groups, short
        for g in range(g_mask.shape[1]):
            if not g_mask[b, g]:
                break
            out_groups[groups] = events
            groups += 1
            for e in range(e_mask.shape[2]):
                if not e_mask[b, g, e]:
                    break
                events += 1
        for s in range(s_mask.shape[1]):
            if not s_mask[b, s]:
                break
            short += 1
    out_users[g_mask.shape[0], 0], out_users[g_mask.shape[0], 1] = groups, short
    out_groups[groups] = events
    return events


@fast_kernel
def embed(
    users: Any, starts: Any, e_item: Any, e_id: Any, e_cls: Any, e_time: Any, e_dwell: Any, e_hour: Any,
    item: Any, category: Any, advertiser: Any, behaviour: Any, age: Any, dwell: Any, hour: Any, shift: Any,
    out_rows: Any, out_normal: Any, out_id: Any,
) -> None:  # fmt: skip
    """Events [E,d] as sums of rows of tables; out_rows has `shift` (the bias of the layer that is added to it) beside."""
    d = item.shape[1]
    row = np.empty(d, np.float32)
    for b in range(users.shape[0] - 1):
        for n in range(users[b, 0], users[b + 1, 0]):
            g = n - users[b, 0]
            for i in range(starts[n], starts[n + 1]):
                e = i - starts[n]
                a0, a1, a2 = item[e_item[b, g, e, 0]], category[e_item[b, g, e, 1]], advertiser[e_item[b, g, e, 2]]
                a3, a4 = behaviour[e_cls[b, g, e]], age[e_time[b, g, e]]
                a5, a6 = dwell[e_dwell[b, g, e]], hour[e_hour[b, g, e]]
                for k in range(d):
                    row[k] = a0[k] + a1[k] + a2[k] + a3[k] + a4[k] + a5[k] + a6[k]
                normalise(row, out_normal[i])
                for k in range(d):
                    out_rows[i, k] = row[k] + shift[k]
                out_id[i] = e_id[b, g, e]


@fast_kernel
def embed_short(
    users: Any, s_item: Any, s_cls: Any, s_time: Any, s_dwell: Any,
    item: Any, category: Any, advertiser: Any, behaviour: Any, age: Any, dwell: Any, out: Any,
) -> None:  # fmt: skip
    """Short events [..,d]."""
    d = item.shape[1]
    for b in range(users.shape[0] - 1):
        for i in range(users[b, 1], users[b + 1, 1]):
            s = i - users[b, 1]
            a0, a1, a2 = item[s_item[b, s, 0]], category[s_item[b, s, 1]], advertiser[s_item[b, s, 2]]
            a3, a4, a5 = behaviour[s_cls[b, s]], age[s_time[b, s]], dwell[s_dwell[b, s]]
            for k in range(d):
                out[i, k] = a0[k] + a1[k] + a2[k] + a3[k] + a4[k] + a5[k]


@fast_kernel
def inside(starts: Any, groups: Any, heads: Any, qkv: Any, out: Any) -> None:
    """Attention inside each group: qkv [E,3d] -> mixed events [E,d]."""
    d = out.shape[1]
    w = d // heads
    scale = np.float32(w) ** np.float32(-0.5)
    weights = np.empty(MOST, np.float32)
    for n in range(groups):
        first, length = starts[n], starts[n + 1] - starts[n]
        for i in range(first, first + length):
            for h in range(heads):
                q, o = qkv[i, h * w : (h + 1) * w], out[i, h * w : (h + 1) * w]
                for j in range(length):
                    k = qkv[first + j, d + h * w : d + (h + 1) * w]
                    dot = _ZERO
                    for x in range(w):
                        dot += q[x] * k[x]
                    weights[j] = dot * scale
                softmax(weights, length)
                for x in range(w):
                    o[x] = _ZERO
                for j in range(length):
                    v, weight = qkv[first + j, 2 * d + h * w : 2 * d + (h + 1) * w], weights[j]
                    for x in range(w):
                        o[x] += weight * v[x]


@fast_kernel
def summarise(
    users: Any, starts: Any, tokens: Any, g_stat: Any, mean: Any, scale: Any, stat_weight: Any, stat_bias: Any, out: Any
) -> None:
    """Means of the groups' events beside their statistics [N,2d]; stat_weight [N_STAT,d]."""
    d, size = tokens.shape[1], mean.shape[0]
    row = np.empty(d, np.float32)
    for b in range(users.shape[0] - 1):
        for n in range(users[b, 0], users[b + 1, 0]):
            left = out[n, :d]
            left[:] = _ZERO
            for i in range(starts[n], starts[n + 1]):
                for k in range(d):
                    left[k] += tokens[i, k]
            share = _ONE / np.float32(max(1, starts[n + 1] - starts[n]))
            for k in range(d):
                left[k] *= share
                row[k] = stat_bias[k]
            stat = g_stat[b, n - users[b, 0]]
            for s in range(size):
                z = min(max((stat[s] - mean[s]) * scale[s], np.float32(-6.0)), np.float32(6.0))
                for k in range(d):
                    row[k] += z * stat_weight[s, k]
            for k in range(d):
                out[n, d + k] = silu(row[k])


@fast_kernel
def between(users: Any, minutes: Any, out_at: Any, out_apart: Any) -> Any:
    """1 + minutes between any two groups of a user, rows of its own in a flat array from out_at[b]; returns how many."""
    at = 0
    for b in range(users.shape[0] - 1):
        n = users[b + 1, 0] - users[b, 0]
        out_at[b] = at
        for i in range(n):
            for j in range(n):
                out_apart[at + i * n + j] = _ONE + abs(minutes[b, i] - minutes[b, j])
        at += n * n
    return at


@fast_kernel
def place(users: Any, g_time: Any, table: Any, groups: Any) -> None:
    """Add to each group what the time since its last event says: two neighbouring rows of table [TENTS,d]."""
    d = groups.shape[1]
    for b in range(users.shape[0] - 1):
        for n in range(users[b, 0], users[b + 1, 0]):
            low, part = tent(g_time[b, n - users[b, 0]])
            for k in range(d):
                groups[n, k] += (_ONE - part) * table[low, k] + part * table[low + 1, k]


@fast_kernel
def normalise_rows(x: Any, n: Any, out: Any) -> None:
    """Layer norm, without scale and shift, of the first n rows."""
    for i in range(n):
        normalise(x[i], out[i])


@fast_kernel
def across(
    users: Any, at: Any, gaps: Any, table: Any, first_head: Any, heads: Any, uvqk: Any, gamma: Any, beta: Any, out: Any
) -> None:
    """HSTU attention of a layer: uvqk [N,4d] before its SiLU, gaps [.. int32] into table [GAPS, layers*H] -> gated [N,d]."""
    d = out.shape[1]
    w = d // heads
    scale = np.float32(w) ** np.float32(-0.5)
    weights = np.empty(MOST, np.float32)
    row = np.empty(d, np.float32)
    for b in range(users.shape[0] - 1):
        first, n = users[b, 0], users[b + 1, 0] - users[b, 0]
        share = _ONE / np.float32(max(1, n))
        for i in range(first, first + n):
            for k in range(4 * d):
                uvqk[i, k] = silu(uvqk[i, k])
        for i in range(n):
            row[:] = _ZERO
            for h in range(heads):
                q = uvqk[first + i, 2 * d + h * w : 2 * d + (h + 1) * w]
                for j in range(n):
                    k = uvqk[first + j, 3 * d + h * w : 3 * d + (h + 1) * w]
                    dot = _ZERO
                    for x in range(w):
                        dot += q[x] * k[x]
                    weights[j] = dot * scale
                line = gaps[at[b] + i * n : at[b] + (i + 1) * n]
                for j in range(n):
                    weights[j] += table[line[j], first_head + h]
                for j in range(n):
                    weights[j] = silu(weights[j]) * share
                o = row[h * w : (h + 1) * w]
                for j in range(n):
                    v, weight = uvqk[first + j, d + h * w : d + (h + 1) * w], weights[j]
                    for x in range(w):
                        o[x] += weight * v[x]
            normalise(row, row)
            u = uvqk[first + i, :d]
            for k in range(d):
                out[first + i, k] = (row[k] * gamma[k] + beta[k]) * u[k]
