"""Rows on disk -> state in memory, eviction, and the merging of singleton groups (numba)."""

from __future__ import annotations

from typing import Any

import numpy as np

from stream_dmgin.state.fold import (
    COUNT_MASK,
    SPILLED,
    add_count,
    add_value,
    apply_event,
    count_at,
    event_room,
    new_group,
    ring_insert,
    touch_order,
)
from stream_dmgin.state.jit import kernel
from stream_dmgin.state.layout import (
    ALL_PAGES,
    B_HASDWELL,
    B_HASVALUE,
    B_RING,
    B_SINGLE,
    B_TYPES,
    CHANGED_BIT,
    CLICK,
    DONE,
    F_VALUE,
    G_DIGEST,
    G_DWELL,
    G_FIRST,
    G_ITEM,
    G_KEY,
    G_LAST,
    G_MAXDWELL,
    G_META,
    G_RING,
    G_VALUE,
    G_VALUEHI,
    GROUP_RING,
    GW,
    H_,
    HEAD_WORDS,
    HEAD_WORDS_1,
    HOT_BIT,
    I_GROUP,
    I_HASH,
    IW,
    LIVE,
    LOADED,
    M_CLOCK,
    M_EPOCH,
    M_NEED,
    M_UFREE,
    M_USERS_CACHED,
    NEED_A,
    NEED_G,
    NEED_SPILL,
    OLDEST_FORMAT,
    ON_DISK,
    RING_MASK,
    SINGLETON,
    SPILL_LOADED,
    T_CLASS,
    TW,
    U_BASEBYTES,
    U_CLICKS,
    U_CLOCK,
    U_DELTABYTES,
    U_DELTAROWS,
    U_EPOCH,
    U_EVENTS,
    U_FLAGS,
    U_HASH,
    U_ID,
    U_IDLEN,
    U_IMP,
    U_IMPRESSIONS,
    U_IMPRING,
    U_LASTEVENT,
    U_LASTIMP,
    U_NHOT,
    U_NMEM,
    U_NTOTAL,
    U_ORDER,
    U_ORDERCAP,
    U_PAGES,
    U_SHORT,
    U_SHORTRING,
    U_SPILLEDSINGLES,
    U_TABLE,
    U_TABLECAP,
    UW,
)
from stream_dmgin.state.mem import (
    alloc,
    arena_room,
    free,
    free_group,
    group_room,
    hash_remove,
    size_of,
    table_find,
    table_put,
    zero,
)

LOW32 = (1 << 32) - 1


@kernel
def cap_for(n: Any, least: Any) -> Any:
    """Smallest power of two >= n and >= least."""
    c = np.int64(least)
    while c < n:
        c *= 2
    return c


@kernel
def get_ring(S: Any, R: Any, at: Any, n: Any) -> Any:
    """A user's ring from words R[at:]: (block, ring word)."""
    if n == 0:
        return np.int64(0), np.int64(0)
    cap = cap_for(n, 8)
    block = alloc(S, 3 * cap)
    for p in range(3):
        for i in range(n):
            S.A[block + p * cap + i] = R[at + p * n + i]
    return block, n | (cap << 8)


@kernel
def get_group(S: Any, u: Any, R: Any, at: Any, replace: Any) -> Any:
    """Read a group at R[at:] into memory; (group index or -1, position after it). One that is in memory already is skipped."""
    w = R[at]
    n, types = (w >> B_RING) & 0xFF, (w >> B_TYPES) & 0x1FF
    single = (w >> B_SINGLE) & 1
    key, item = w & LOW32, np.int64(0)
    if single:
        item = key
        key = SINGLETON | np.int64(np.uint64(S.I[item * IW + I_HASH]) >> np.uint64(1))
    b = u * UW
    skip = not replace and table_find(S, S.U[b + U_TABLE], S.U[b + U_TABLECAP], key) >= 0
    g = np.int64(-1) if skip else new_group(S, u, key, item)
    c = g * GW
    p = at + 3
    if not skip:
        S.G[c + G_FIRST], S.G[c + G_LAST] = R[at + 1], R[at + 2]
    if (w >> B_HASDWELL) & 1:
        if not skip:
            S.G[c + G_DWELL], S.G[c + G_MAXDWELL] = R[p], R[p + 1]
        p += 2
    if (w >> B_HASVALUE) & 1:
        if not skip:
            S.G[c + G_VALUE], S.G[c + G_VALUEHI] = R[p], R[p + 1]
        p += 2
    if not skip:
        for j in range(types):
            add_count(S, g, (R[p + j] >> 56) & 255, R[p + j] & ((1 << 56) - 1))
    p += types
    values = p + 3 * n
    cap = cap_for(n, 4)
    block = np.int64(0)
    if not skip and n:
        block = alloc(S, 4 * cap)
        S.G[c + G_RING] = block
        S.G[c + G_META] |= n | (cap << 8)
    for i in range(n):
        flagged = R[p + n + i] & F_VALUE
        if not skip:
            S.A[block + i], S.A[block + cap + i], S.A[block + 2 * cap + i] = R[p + i], R[p + n + i], R[p + 2 * n + i]
            S.A[block + 3 * cap + i] = R[values] if flagged else 0
        if flagged:
            values += 1
    return g, values


@kernel
def _clicks(S: Any, u: Any) -> Any:
    """Events of the class click in all groups of user u that are in memory."""
    at, cap, clicks = S.U[u * UW + U_TABLE], S.U[u * UW + U_TABLECAP], 0
    for i in range(cap):
        g = S.A[at + 2 * i + 1] - 1
        if g < 0:
            continue
        for j in range((S.G[g * GW + G_META] >> 24) & 0xFFFF):
            count = count_at(S, g, j)
            if S.T[((count >> 56) & 255) * TW + T_CLASS] == CLICK:
                clicks += count & COUNT_MASK
    return clicks


@kernel
def load_user(S: Any, u: Any, R: Any, at: Any, words: Any, spill: Any, spill_words: Any, delta: Any, delta_words: Any,
              delta_rows: Any) -> Any:  # fmt: skip
    """Fill user u (a fresh slot) from rows in R: the base, the spill pages (spill_words < 0: not read), the deltas joined.

    Returns DONE, NEED_SPILL (read the pages and call again), NEED_A or NEED_G; anything but DONE leaves the slot empty. A base of
    format 1 has no number of clicks: they are counted in all of its groups.
    """
    b = u * UW
    head, hot = R[at], (R[at] >> 8) & 0xFFFF
    pages = (head >> 24) & 0xFFFF
    total = R[at + 1] & LOW32
    have_spill = pages == 0 or spill_words >= 0
    old = head & 0xFF == OLDEST_FORMAT
    if old and not have_spill:
        return NEED_SPILL
    if not arena_room(S, 3 * (words + max(spill_words, 0)) + 400 * (delta_words // 3) + 4096 + 8 * total + 24 * hot):
        S.M[M_NEED] = 3 * (words + max(spill_words, 0)) + 400 * (delta_words // 3) + 4096 + 8 * total + 24 * hot
        return NEED_A
    if not group_room(S, (total if have_spill else hot) + delta_words // 3 + 1):
        S.M[M_NEED] = (total if have_spill else hot) + delta_words // 3 + 1
        return NEED_G
    S.U[b + U_NTOTAL] = total
    S.U[b + U_SPILLEDSINGLES] = (R[at + 1] >> 32) & LOW32
    S.U[b + U_EVENTS], S.U[b + U_IMPRESSIONS] = R[at + 2], R[at + 3]
    S.U[b + U_LASTEVENT], S.U[b + U_LASTIMP], S.U[b + U_EPOCH] = R[at + 4], R[at + 5], R[at + 6]
    S.U[b + U_PAGES] = pages
    S.U[b + U_BASEBYTES], S.U[b + U_DELTABYTES], S.U[b + U_DELTAROWS] = 8 * words, 8 * delta_words, delta_rows
    S.U[b + U_FLAGS] = LIVE | LOADED | ON_DISK | (SPILL_LOADED if have_spill else 0)
    n = (head >> 40) & 0xFF
    S.U[b + U_CLICKS] = 0 if old else R[at + HEAD_WORDS - 1]
    p = at + (HEAD_WORDS_1 if old else HEAD_WORDS)
    S.U[b + U_SHORT], S.U[b + U_SHORTRING] = get_ring(S, R, p, n)
    p += 3 * n
    n = (head >> 48) & 0xFF
    S.U[b + U_IMP], S.U[b + U_IMPRING] = get_ring(S, R, p, n)
    p += 3 * n
    cap = cap_for(hot, 4)
    S.U[b + U_ORDER], S.U[b + U_ORDERCAP] = alloc(S, cap), cap
    for i in range(hot):
        g, p = get_group(S, u, R, p, True)
        S.G[g * GW + G_META] |= HOT_BIT
        S.A[S.U[b + U_ORDER] + i] = g
    S.U[b + U_NHOT] = hot
    if spill_words > 0:
        p = spill
        while p < spill + spill_words:
            _, p = get_group(S, u, R, p, False)
    if old:
        S.U[b + U_CLICKS] = _clicks(S, u)
    if S.U[b + U_EPOCH] != S.M[M_EPOCH]:
        code = merge_user(S, u)
        if code != DONE:
            clear_user(S, u)
            return code
    p = delta
    while p < delta + delta_words:
        tsf, word = R[p], R[p + 2]
        code = event_room(S, u)
        if code == DONE:
            value = R[p + 3] if tsf & F_VALUE else np.int64(0)
            if apply_event(S, u, word & LOW32, tsf, R[p + 1], (word >> 32) & LOW32, value, False) == SPILLED:
                code = NEED_SPILL
        if code != DONE:
            clear_user(S, u)
            return code
        p += 4 if tsf & F_VALUE else 3
    S.U[b + U_CLOCK] = S.M[M_CLOCK]
    return DONE


@kernel
def load_spill(S: Any, u: Any, R: Any, at: Any, words: Any) -> Any:
    """Add the groups of a loaded user's spill pages."""
    b = u * UW
    n = S.U[b + U_NTOTAL]
    if not arena_room(S, 3 * words + 8 * n + 4096):
        S.M[M_NEED] = 3 * words + 8 * n + 4096
        return NEED_A
    if not group_room(S, n):
        S.M[M_NEED] = n
        return NEED_G
    p = at
    while p < at + words:
        _, p = get_group(S, u, R, p, False)
    S.U[b + U_FLAGS] |= SPILL_LOADED
    return DONE


@kernel
def clear_user(S: Any, u: Any) -> None:
    """Free everything of a user but its slot and id; it isn't LOADED afterwards."""
    b = u * UW
    at, cap = S.U[b + U_TABLE], S.U[b + U_TABLECAP]
    for i in range(cap):
        if S.A[at + 2 * i + 1]:
            free_group(S, S.A[at + 2 * i + 1] - 1)
    if cap:
        free(S, at, 2 * cap)
    if S.U[b + U_ORDERCAP]:
        free(S, S.U[b + U_ORDER], S.U[b + U_ORDERCAP])
    for at, ring in ((S.U[b + U_SHORT], S.U[b + U_SHORTRING]), (S.U[b + U_IMP], S.U[b + U_IMPRING])):
        cap = (ring >> 8) & 0xFF
        if cap:
            free(S, at, 3 * cap)
    h, name, n = S.U[b + U_HASH], S.U[b + U_ID], S.U[b + U_IDLEN]
    zero(S.U, b, b + UW)
    S.U[b + U_HASH], S.U[b + U_ID], S.U[b + U_IDLEN] = h, name, n
    S.U[b + U_FLAGS] = LIVE


@kernel
def drop_user(S: Any, u: Any) -> None:
    """Take a user out of the cache."""
    clear_user(S, u)
    b = u * UW
    hash_remove(S.H, size_of(S, H_) // 2 - 1, S.U[b + U_HASH], u)
    free(S, S.U[b + U_ID], (S.U[b + U_IDLEN] + 7) // 8)
    S.U[b + U_FLAGS] = 0
    S.U[b + U_HASH] = S.M[M_UFREE]
    S.M[M_UFREE] = u + 1
    S.M[M_USERS_CACHED] -= 1


@kernel
def merge_user(S: Any, u: Any) -> Any:
    """Merge the singleton groups of user u whose items have a group now. NEED_SPILL: its pages must be loaded first."""
    b, A = u * UW, S.A
    at, cap = S.U[b + U_TABLE], S.U[b + U_TABLECAP]
    m = 0
    for i in range(cap):
        g = A[at + 2 * i + 1] - 1
        if g >= 0 and A[at + 2 * i] < 0 and S.I[S.G[g * GW + G_ITEM] * IW + I_GROUP] >= 0:
            m += 1
    if S.U[b + U_FLAGS] & SPILL_LOADED == 0 and (m > 0 or S.U[b + U_SPILLEDSINGLES] > 0):
        return NEED_SPILL
    if m == 0:
        S.U[b + U_EPOCH] = S.M[M_EPOCH]
        return DONE
    need = 1000 * m + 2048
    if not arena_room(S, need):
        S.M[M_NEED] = need
        return NEED_A
    old = np.empty(2 * cap, np.int64)
    for i in range(2 * cap):
        old[i] = A[at + i]
        A[at + i] = 0
    n = 0
    for i in range(cap):  # those that stay, and so can be targets
        g = old[2 * i + 1] - 1
        if g >= 0 and not (old[2 * i] < 0 and S.I[S.G[g * GW + G_ITEM] * IW + I_GROUP] >= 0):
            table_put(S, at, cap, old[2 * i], g)
            n += 1
    for i in range(cap):
        g = old[2 * i + 1] - 1
        if g < 0 or old[2 * i] >= 0:
            continue
        key = S.I[S.G[g * GW + G_ITEM] * IW + I_GROUP]
        if key < 0:
            continue
        into = table_find(S, at, cap, key)
        if into < 0:
            S.G[g * GW + G_KEY] = key
            S.G[g * GW + G_DIGEST] = 0
            S.G[g * GW + G_META] |= CHANGED_BIT
            table_put(S, at, cap, key, g)
            n += 1
        else:
            merge_groups(S, into, g)
            free_group(S, g)
    S.U[b + U_NMEM] = S.U[b + U_NTOTAL] = n
    S.U[b + U_NHOT] = 0
    for i in range(cap):
        g = A[at + 2 * i + 1] - 1
        if g >= 0:
            S.G[g * GW + G_META] &= ~HOT_BIT
    for i in range(cap):
        g = A[at + 2 * i + 1] - 1
        if g >= 0:
            touch_order(S, u, g)
    S.U[b + U_FLAGS] |= ALL_PAGES
    S.U[b + U_EPOCH] = S.M[M_EPOCH]
    return DONE


@kernel
def merge_groups(S: Any, into: Any, g: Any) -> None:
    """Add group row g to group row `into`."""
    a, c = into * GW, g * GW
    for j in range((S.G[c + G_META] >> 24) & 0xFFFF):
        w = count_at(S, g, j)
        add_count(S, into, (w >> 56) & 255, w & ((1 << 56) - 1))
    S.G[a + G_DWELL] += S.G[c + G_DWELL]
    S.G[a + G_MAXDWELL] = max(S.G[a + G_MAXDWELL], S.G[c + G_MAXDWELL])
    add_value(S, into, S.G[c + G_VALUE], S.G[c + G_VALUEHI])
    S.G[a + G_FIRST] = min(S.G[a + G_FIRST], S.G[c + G_FIRST])
    S.G[a + G_LAST] = max(S.G[a + G_LAST], S.G[c + G_LAST])
    meta = S.G[c + G_META]
    n, cap, at = meta & 0xFF, (meta >> 8) & 0xFF, S.G[c + G_RING]
    for i in range(n):
        block, ring = ring_insert(
            S, S.G[a + G_RING], S.G[a + G_META] & RING_MASK, GROUP_RING, 4,
            S.A[at + cap + i], S.A[at + i], S.A[at + 2 * cap + i], S.A[at + 3 * cap + i],
        )  # fmt: skip
        S.G[a + G_RING] = block
        S.G[a + G_META] = (S.G[a + G_META] & ~RING_MASK) | ring
    S.G[a + G_META] |= CHANGED_BIT
    S.G[a + G_DIGEST] = 0


@kernel
def merge_all(S: Any, start: Any, users: Any) -> Any:
    """Merge every loaded user from slot `start` on (`users` slots in use): (code, slot where it stopped)."""
    for u in range(start, users):
        if S.U[u * UW + U_FLAGS] & LOADED and S.U[u * UW + U_EPOCH] != S.M[M_EPOCH]:
            code = merge_user(S, u)
            if code != DONE:
                return code, u
    return DONE, users
