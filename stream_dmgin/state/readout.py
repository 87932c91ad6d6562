"""State in memory -> `UserArrays` (numba), and the digest of a user's state.

A hot user costs a few us and what its groups and events take to copy: the order of groups is kept by the fold, the digest of
a group is computed when it is read first after a change.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from stream_dmgin.features.spec import BEHAVIOUR_CLASSES, INTEREST_EVENTS, N_CLS
from stream_dmgin.state.fold import count_at
from stream_dmgin.state.hash import P1, P2, P3, P5, finish, mix, rotl, xxh64
from stream_dmgin.state.jit import kernel, pointer
from stream_dmgin.state.layout import (
    F_DWELL,
    G_DIGEST,
    G_DWELL,
    G_FIRST,
    G_KEY,
    G_LAST,
    G_MAXDWELL,
    G_META,
    G_RING,
    G_VALUE,
    G_VALUEHI,
    GW,
    I_HASH,
    IW,
    LOADED,
    M_CLOCK,
    M_EPOCH,
    SURFACE_AT,
    SURFACE_MASK,
    T_CLASS,
    T_HASH,
    TW,
    U_CLICKS,
    U_CLOCK,
    U_EVENTS,
    U_FLAGS,
    U_IMP,
    U_IMPRESSIONS,
    U_IMPRING,
    U_LASTEVENT,
    U_LASTIMP,
    U_NHOT,
    U_NTOTAL,
    U_ORDER,
    U_SHORT,
    U_SHORTRING,
    U_TABLE,
    U_TABLECAP,
    USER_RING,
    UW,
)
from stream_dmgin.state.mem import find_user, mem_at

LOW32 = (1 << 32) - 1
INTERESTED = tuple(BEHAVIOUR_CLASSES.index(c) for c in ("click", "weak", "strong", "payment"))
I64_MAX = (1 << 63) - 1
U = np.uint64


@kernel
def group_digest(S: Any, g: Any) -> Any:
    """Hash of a group's content (names, not local numbers); never 0. Kept in the row until the group changes."""
    b = g * GW
    if S.G[b + G_DIGEST]:
        return S.G[b + G_DIGEST]
    A, meta = S.A, S.G[b + G_META]
    n, cap, start = meta & 0xFF, (meta >> 8) & 0xFF, (meta >> 16) & 0xFF
    counts = U(0)
    for j in range((meta >> 24) & 0xFFFF):
        w = count_at(S, g, j)
        counts += finish(mix(mix(P5, S.T[((w >> 56) & 255) * TW + T_HASH]), w & ((1 << 56) - 1)))
    h = mix(mix(P3, S.G[b + G_KEY]), np.int64(counts))
    h = mix(mix(h, S.G[b + G_DWELL]), S.G[b + G_MAXDWELL])
    h = mix(mix(h, S.G[b + G_VALUE]), S.G[b + G_VALUEHI])
    h = mix(mix(h, S.G[b + G_FIRST]), S.G[b + G_LAST])
    h = mix(h, n)
    x, y, z = P1, P2, P3
    at, mask = S.G[b + G_RING], cap - 1
    for i in range(n):
        k = at + ((start + i) & mask)
        tsf, item = A[k + cap], A[k + 2 * cap]
        h = mix(h, A[k])
        x = mix(x, (tsf & ~np.int64(0xFF00)) ^ S.T[((tsf >> 8) & 255) * TW + T_HASH])
        y = mix(y, S.I[(item & LOW32) * IW + I_HASH])
        z = mix(z, ((item >> 32) & LOW32) ^ (A[k + 3 * cap] << 17))
    h = finish(h ^ rotl(x, 7) ^ rotl(y, 19) ^ rotl(z, 37))
    out = np.int64(h) if h else np.int64(1)
    S.G[b + G_DIGEST] = out
    return out


@kernel
def ring_digest(S: Any, at: Any, ring: Any) -> Any:
    """Hash of a user's ring."""
    n, cap, start = ring & 0xFF, (ring >> 8) & 0xFF, (ring >> 16) & 0xFF
    h, x, y = mix(P5, n), P1, P2
    for i in range(n):
        k = at + ((start + i) & (cap - 1))
        tsf, item = S.A[k + cap], S.A[k + 2 * cap]
        h = mix(h, S.A[k])
        x = mix(x, (tsf & ~np.int64(0xFF00)) ^ S.T[((tsf >> 8) & 255) * TW + T_HASH])
        y = mix(y, S.I[(item & LOW32) * IW + I_HASH] ^ (item >> 32) * np.int64(P3))
    return np.int64(finish(h ^ rotl(x, 7) ^ rotl(y, 19)))


@kernel
def user_digest(S: Any, u: Any) -> Any:
    """Hash of the hot state of a user."""
    b = u * UW
    h = mix(mix(mix(P1, S.U[b + U_EVENTS]), S.U[b + U_IMPRESSIONS]), S.U[b + U_NTOTAL])
    h = mix(mix(h, S.U[b + U_LASTEVENT]), S.U[b + U_LASTIMP])
    h = mix(h, ring_digest(S, S.U[b + U_SHORT], S.U[b + U_SHORTRING]))
    h = mix(h, ring_digest(S, S.U[b + U_IMP], S.U[b + U_IMPRING]))
    at = S.U[b + U_ORDER]
    for i in range(S.U[b + U_NHOT] - 1, -1, -1):
        h = mix(h, group_digest(S, S.A[at + i]))
    return np.int64(finish(h))


@kernel
def one(addresses: Any, k: Any, n: Any) -> Any:
    """The k-th array of a UserArrays as n words."""
    return carray(pointer(addresses[3 + k]), (n,), np.int64)


@kernel
def small(addresses: Any, k: Any, n: Any) -> Any:
    """The k-th array of a UserArrays as n 32-bit numbers."""
    return carray(pointer(addresses[3 + k]), (n,), np.int32)


@kernel
def byte(addresses: Any, k: Any, n: Any) -> Any:
    """The k-th array of a UserArrays as n bytes."""
    return carray(pointer(addresses[3 + k]), (n,), np.uint8)


@kernel
def read_user(S: Any, u: Any, out: Any, r: Any) -> None:
    """Fill row r of a UserArrays (its addresses) with user u; u < 0: the empty state."""
    most_groups, most_events = out[1], out[2]
    n1, n2, n3, n4 = r + 1, (r + 1) * most_groups, (r + 1) * most_groups * most_events, (r + 1) * USER_RING
    n_events, n_imps, last, last_event, last_imp = (
        one(out, 0, n1),
        one(out, 1, n1),
        one(out, 2, n1),
        one(out, 3, n1),
        one(out, 4, n1),
    )
    total, version, digest, n_groups = small(out, 5, n1), one(out, 6, n1), one(out, 7, n1), small(out, 8, n1)
    s_len, m_len, n_clicks = small(out, 21, n1), small(out, 26, n1), one(out, 31, n1)
    if u < 0:
        n_events[r] = n_imps[r] = n_clicks[r] = last[r] = last_event[r] = last_imp[r] = version[r] = digest[r] = 0
        total[r] = n_groups[r] = s_len[r] = m_len[r] = 0
        return
    A, G, b = S.A, S.G, u * UW
    S.U[b + U_CLOCK] = S.M[M_CLOCK]
    n_events[r], n_imps[r], n_clicks[r] = S.U[b + U_EVENTS], S.U[b + U_IMPRESSIONS], S.U[b + U_CLICKS]
    last_event[r], last_imp[r] = S.U[b + U_LASTEVENT], S.U[b + U_LASTIMP]
    last[r] = max(last_event[r], last_imp[r])
    total[r] = S.U[b + U_NTOTAL]
    version[r] = n_events[r] + n_imps[r] + (S.M[M_EPOCH] << 44)
    digest[r] = user_digest(S, u)

    g_key, g_counts, g_len = one(out, 9, n2), one(out, 10, n2 * N_CLS), small(out, 16, n2)
    g_dwell, g_max, g_value, g_first, g_last = (
        one(out, 11, n2),
        one(out, 12, n2),
        one(out, 13, n2),
        one(out, 14, n2),
        one(out, 15, n2),
    )
    e_item, e_cls, e_ts, e_dwell = (
        one(out, 17, n3),
        byte(out, 18, n3),
        one(out, 19, n3),
        one(out, 20, n3),
    )
    hot, order = S.U[b + U_NHOT], S.U[b + U_ORDER]
    n = min(hot, most_groups)
    n_groups[r] = n
    for i in range(n):
        c = A[order + hot - 1 - i] * GW
        w = r * most_groups + i
        g_key[w] = G[c + G_KEY]
        meta = G[c + G_META]
        g_counts[w * N_CLS : (w + 1) * N_CLS] = 0
        for j in range((meta >> 24) & 0xFFFF):
            count = count_at(S, A[order + hot - 1 - i], j)
            g_counts[w * N_CLS + S.T[((count >> 56) & 255) * TW + T_CLASS]] += count & ((1 << 56) - 1)
        g_dwell[w], g_max[w] = G[c + G_DWELL], G[c + G_MAXDWELL]
        g_value[w] = I64_MAX if G[c + G_VALUEHI] or G[c + G_VALUE] < 0 else G[c + G_VALUE]
        g_first[w], g_last[w] = G[c + G_FIRST], G[c + G_LAST]
        length, cap, start = meta & 0xFF, (meta >> 8) & 0xFF, (meta >> 16) & 0xFF
        kept = min(length, most_events)
        g_len[w] = kept
        at = G[c + G_RING]
        for j in range(kept):
            k = at + ((start + length - 1 - j) & (cap - 1))
            o = w * most_events + j
            tsf, item = A[k + cap], A[k + 2 * cap]
            e_item[o] = S.I[(item & LOW32) * IW + I_HASH]
            e_cls[o] = S.T[((tsf >> 8) & 255) * TW + T_CLASS]
            e_ts[o] = tsf >> 16
            e_dwell[o] = (item >> 32) & LOW32 if tsf & F_DWELL else -1

    s_item, s_cls, s_ts, s_dwell, s_surface = (
        one(out, 22, n4),
        byte(out, 23, n4),
        one(out, 24, n4),
        one(out, 25, n4),
        byte(out, 29, n4),
    )
    ring, at = S.U[b + U_SHORTRING], S.U[b + U_SHORT]
    length, cap, start = ring & 0xFF, (ring >> 8) & 0xFF, (ring >> 16) & 0xFF
    s_len[r] = length
    for j in range(length):
        k = at + ((start + length - 1 - j) & (cap - 1))
        o = r * USER_RING + j
        tsf, item = A[k + cap], A[k + 2 * cap]
        s_item[o] = S.I[(item & LOW32) * IW + I_HASH]
        s_cls[o] = S.T[((tsf >> 8) & 255) * TW + T_CLASS]
        s_ts[o] = tsf >> 16
        s_surface[o] = (tsf >> SURFACE_AT) & SURFACE_MASK
        s_dwell[o] = (item >> 32) & LOW32 if tsf & F_DWELL else -1
    m_item, m_ts, m_surface = one(out, 27, n4), one(out, 28, n4), byte(out, 30, n4)
    ring, at = S.U[b + U_IMPRING], S.U[b + U_IMP]
    length, cap, start = ring & 0xFF, (ring >> 8) & 0xFF, (ring >> 16) & 0xFF
    m_len[r] = length
    for j in range(length):
        k = at + ((start + length - 1 - j) & (cap - 1))
        m_item[r * USER_RING + j] = S.I[(A[k + 2 * cap] & LOW32) * IW + I_HASH]
        m_ts[r * USER_RING + j] = A[k + cap] >> 16
        m_surface[r * USER_RING + j] = (A[k + cap] >> SURFACE_AT) & SURFACE_MASK


@kernel
def read_users(addresses: Any, ids: Any, lengths: Any, out: Any, at: Any, rows: Any, missing: Any) -> Any:
    """Fill rows at + i for i in `rows`; those of users that aren't cached are put into `missing`. Returns how many those are."""
    S = mem_at(addresses)
    m = 0
    for i in rows:
        u = find_user(S, xxh64(ids[i], lengths[i]), ids[i], lengths[i])
        if u < 0 or S.U[u * UW + U_FLAGS] & LOADED == 0:
            missing[m] = i
            m += 1
        else:
            read_user(S, u, out, at + i)
    return m


@kernel
def says_yes(S: Any, t: Any) -> Any:
    """Whether an event of this type is one of interest: its class is one of INTERESTED."""
    c = S.T[t * TW + T_CLASS]
    return c == INTERESTED[0] or c == INTERESTED[1] or c == INTERESTED[2] or c == INTERESTED[3]


@kernel
def read_interests(addresses: Any, slots: Any, out: Any, at: Any) -> None:
    """Fill the interests of rows at.. with the users in these slots, all of whose groups are in memory; slot -1: nobody."""
    S = mem_at(addresses)
    A, G, room = S.A, S.G, out[3 + 35]
    n = at + len(slots)
    lengths, items, weights = (
        small(out, 32, n),
        one(out, 33, n * room),
        carray(pointer(out[3 + 34]), (n * room,), np.float64),
    )
    for i in range(len(slots)):
        u, to, used = slots[i], (at + i) * room, 0
        b = u * UW
        cap = S.U[b + U_TABLECAP] if u >= 0 else np.int64(0)
        table = S.U[b + U_TABLE] if cap else np.int64(0)
        keys = np.empty(cap, np.int64)
        named = 0
        for k in range(cap):
            if A[table + 2 * k + 1] and A[table + 2 * k] >= 0:
                keys[named] = A[table + 2 * k] << 32 | (A[table + 2 * k + 1] - 1)
                named += 1
        keys[:named].sort()  # the table's order is that of their coming
        for key in keys[:named]:
            g = key & LOW32
            c, life, first = g * GW, np.int64(0), used
            meta = G[c + G_META]
            for j in range((meta >> 24) & 0xFFFF):
                count = count_at(S, g, j)
                if says_yes(S, (count >> 56) & 255):
                    life += count & ((1 << 56) - 1)
            length, cap_, start, ring = meta & 0xFF, (meta >> 8) & 0xFF, (meta >> 16) & 0xFF, G[c + G_RING]
            for j in range(length):
                e = ring + ((start + length - 1 - j) & (cap_ - 1))
                if used < min(room, first + INTEREST_EVENTS) and says_yes(S, (A[e + cap_] >> 8) & 255):
                    items[to + used] = S.I[(A[e + 2 * cap_] & LOW32) * IW + I_HASH]
                    used += 1
            for j in range(first, used):
                weights[to + j] = np.float64(life) / (used - first)
        lengths[at + i] = used


@kernel
def read_unknown(addresses: Any, out: Any, rows: Any) -> None:
    """Fill rows with the empty state."""
    S = mem_at(addresses)
    for r in rows:
        read_user(S, np.int64(-1), out, r)
