"""The fold: one event into one user's state (numba). This is the hot path.

Per event: find the group in the user's own table, look whether the event's id is in the ring, add. Everything is a sum, a
minimum, a maximum or "the greatest n", so the order of arrival doesn't matter. Blocks nothing, allocates only inside `Mem`.
`apply_event` is also how events of delta rows are folded on loading (`dedup` off: they were counted once already).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stream_dmgin.state.jit import kernel, prefetch
from stream_dmgin.state.layout import (
    A_,
    BUCKET_MS,
    C_,
    CHANGED_BIT,
    CLICK,
    CW,
    D_,
    D_DWELL,
    D_EID,
    D_ITEM,
    D_PREV,
    D_TSF,
    D_VALUE,
    DIRTY,
    DONE,
    DW,
    DWELL_CAP,
    F_DWELL,
    F_IMPRESSION,
    F_VALUE,
    G_,
    G_COUNT0,
    G_DIGEST,
    G_DWELL,
    G_FIRST,
    G_INLINE,
    G_ITEM,
    G_KEY,
    G_LAST,
    G_MAXDWELL,
    G_META,
    G_MORE,
    G_RING,
    G_VALUE,
    G_VALUEHI,
    GROUP_RING,
    GW,
    HOT,
    HOT_BIT,
    I_GROUP,
    I_HASH,
    INC_BUCKET,
    INC_ITEM,
    IW,
    M_CLOCK,
    M_DTOP,
    M_DUPLICATES,
    M_INCS,
    M_NDIRTY,
    M_NEED,
    M_POS,
    METRICS,
    NEED_A,
    NEED_C,
    NEED_D,
    NEED_G,
    NEED_SPILL,
    RING_MASK,
    SINGLETON,
    SPILL_LOADED,
    SURFACE_AT,
    T_CLASS,
    T_HASH,
    T_METRICS,
    TW,
    U_,
    U_CLICKS,
    U_CLOCK,
    U_DELTA,
    U_DELTAWORDS,
    U_EVENTS,
    U_FLAGS,
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
    U_SHORT,
    U_SHORTRING,
    U_TABLE,
    U_TABLECAP,
    USER_RING,
    UW,
)
from stream_dmgin.state.mem import (
    alloc,
    arena_room,
    base_of,
    free,
    group_room,
    group_row,
    mem_at,
    size_of,
    slot_of,
    table_find,
    table_put,
    zero,
)

COUNTED, DUPLICATE, SPILLED = 1, 0, -1
LOW32 = (1 << 32) - 1
COUNT_MASK = (1 << 56) - 1
EVENT_WORDS = 1200  # arena words that one event can take at most, besides growing the table of groups
C_FACTOR = 2  # slots a entry of the table of increments


@kernel
def group_key(S: Any, item: Any) -> Any:
    """The key of an item's group: its number, or that of the item's own group."""
    g = S.I[item * IW + I_GROUP]
    if g >= 0:
        return g
    return SINGLETON | np.int64(np.uint64(S.I[item * IW + I_HASH]) >> np.uint64(1))


@kernel
def event_before(
    S: Any, tsf: Any, eid: Any, item: Any, value: Any, tsf2: Any, eid2: Any, item2: Any, value2: Any
) -> Any:
    """Whether the first event comes before the second in the order of rings: (ts, event-id hash), then by content."""
    if (tsf >> 16) != (tsf2 >> 16):
        return (tsf >> 16) < (tsf2 >> 16)
    if eid != eid2:
        return np.uint64(eid) < np.uint64(eid2)
    a, b = S.I[(item & LOW32) * IW + I_HASH], S.I[(item2 & LOW32) * IW + I_HASH]
    if a == b:
        a, b = S.T[((tsf >> 8) & 255) * TW + T_HASH], S.T[((tsf2 >> 8) & 255) * TW + T_HASH]
    if a == b:
        a, b = (item >> 32) & LOW32, (item2 >> 32) & LOW32
    if a == b:
        a, b = tsf & 7, tsf2 & 7
    if a == b:
        a, b = value, value2
    return np.uint64(a) < np.uint64(b)


@kernel
def ring_insert(S: Any, at: Any, ring: Any, most: Any, planes: Any, tsf: Any, eid: Any, item: Any, value: Any) -> Any:
    """Put an event into a ring that keeps the greatest `most`; returns (block, ring word).

    A ring is sorted ascending from its start; it starts at 0 until it is full, so its entries always are the first `length`
    of each plane: event-id hash, ts/type/flags, item | dwell << 32, and value where there are four planes.
    """
    A = S.A
    n, cap, start = ring & 0xFF, (ring >> 8) & 0xFF, (ring >> 16) & 0xFF
    if n == most:
        old_value = A[at + 3 * cap + start] if planes == 4 else np.int64(0)
        new_value = value if planes == 4 else np.int64(0)
        if not event_before(
            S, A[at + cap + start], A[at + start], A[at + 2 * cap + start], old_value, tsf, eid, item, new_value
        ):
            return at, ring
        start = (start + 1) & (cap - 1)
        n -= 1
    elif n == cap:
        new_cap = 2 * cap if cap else np.int64(most // 8)
        new = alloc(S, planes * new_cap)
        for p in range(planes):
            for i in range(n):
                A[new + p * new_cap + i] = A[at + p * cap + i]
        free(S, at, planes * cap)
        at, cap = new, new_cap
    mask = cap - 1
    i = n
    while i > 0:
        j = (start + i - 1) & mask
        v = A[at + 3 * cap + j] if planes == 4 else np.int64(0)
        w = value if planes == 4 else np.int64(0)
        if not event_before(S, tsf, eid, item, w, A[at + cap + j], A[at + j], A[at + 2 * cap + j], v):
            break
        k = (start + i) & mask
        for p in range(planes):
            A[at + p * cap + k] = A[at + p * cap + j]
        i -= 1
    k = (start + i) & mask
    A[at + k] = eid
    A[at + cap + k] = tsf
    A[at + 2 * cap + k] = item
    if planes == 4:
        A[at + 3 * cap + k] = value
    return at, (n + 1) | (cap << 8) | (start << 16)


@kernel
def ring_has(S: Any, at: Any, ring: Any, eid: Any) -> Any:
    """Whether an event-id hash is in a ring."""
    hit = False
    for i in range(at, at + (ring & 0xFF)):
        hit |= S.A[i] == eid
    return hit


@kernel
def group_older(S: Any, a: Any, b: Any) -> Any:
    """Whether group row a comes before b by (last ts, key)."""
    x, y = S.G[a * GW + G_LAST], S.G[b * GW + G_LAST]
    if x != y:
        return x < y
    return np.uint64(S.G[a * GW + G_KEY]) < np.uint64(S.G[b * GW + G_KEY])


@kernel
def touch_order(S: Any, u: Any, g: Any) -> None:
    """Bring group g to its place among the hot groups of user u (ascending), after it is new or its last ts grew."""
    A, b = S.A, u * UW
    n, at = S.U[b + U_NHOT], S.U[b + U_ORDER]
    meta = g * GW + G_META
    if S.G[meta] & HOT_BIT:
        p = n - 1
        while A[at + p] != g:
            p -= 1
    elif n < HOT:
        cap = S.U[b + U_ORDERCAP]
        if n == cap:
            new_cap = max(2 * cap, 4)
            new = alloc(S, new_cap)
            for i in range(n):
                A[new + i] = A[at + i]
            free(S, at, cap)
            at = new
            S.U[b + U_ORDER], S.U[b + U_ORDERCAP] = at, new_cap
        p = n
        n += 1
        S.U[b + U_NHOT] = n
        S.G[meta] |= HOT_BIT
        A[at + p] = g
        i = p
        while i > 0 and group_older(S, g, A[at + i - 1]):
            A[at + i] = A[at + i - 1]
            i -= 1
        A[at + i] = g
        return
    else:
        out = A[at]
        if not group_older(S, out, g):
            return
        S.G[out * GW + G_META] = (S.G[out * GW + G_META] & ~HOT_BIT) | CHANGED_BIT
        S.G[meta] |= HOT_BIT
        p = 0
    i = n - 1
    while i > p and group_older(S, g, A[at + i]):
        i -= 1
    for k in range(p, i):
        A[at + k] = A[at + k + 1]
    A[at + i] = g


@kernel
def grow_table(S: Any, u: Any) -> None:
    """Make the table of groups of user u twice as large when it is three quarters full."""
    b = u * UW
    cap, at = S.U[b + U_TABLECAP], S.U[b + U_TABLE]
    if 4 * (S.U[b + U_NMEM] + 1) <= 3 * cap:
        return
    new_cap = max(2 * cap, 4)
    new = alloc(S, 2 * new_cap)
    zero(S.A, new, new + 2 * new_cap)
    for i in range(cap):
        if S.A[at + 2 * i + 1]:
            table_put(S, new, new_cap, S.A[at + 2 * i], S.A[at + 2 * i + 1] - 1)
    free(S, at, 2 * cap)
    S.U[b + U_TABLE], S.U[b + U_TABLECAP] = new, new_cap


@kernel
def new_group(S: Any, u: Any, key: Any, item: Any) -> Any:
    """An empty group of user u in memory; the caller sets first and last and calls `touch_order`."""
    grow_table(S, u)
    g = group_row(S)
    b = u * UW
    S.G[g * GW + G_KEY] = key
    S.G[g * GW + G_ITEM] = item
    table_put(S, S.U[b + U_TABLE], S.U[b + U_TABLECAP], key, g)
    S.U[b + U_NMEM] += 1
    return g


@kernel
def count_at(S: Any, g: Any, j: Any) -> Any:
    """The j-th count word of a group: type << 56 | count."""
    if j < G_INLINE:
        return S.G[g * GW + G_COUNT0 + j]
    return S.A[S.G[g * GW + G_MORE] + j - G_INLINE]


@kernel
def add_count(S: Any, g: Any, t: Any, by: Any) -> None:
    """Add to the count of one type in a group."""
    b = g * GW
    meta = S.G[b + G_META]
    n = (meta >> 24) & 0xFFFF
    for j in range(min(n, G_INLINE)):
        if (S.G[b + G_COUNT0 + j] >> 56) & 255 == t:
            S.G[b + G_COUNT0 + j] += by
            return
    at = S.G[b + G_MORE]
    for j in range(n - G_INLINE):
        if (S.A[at + j] >> 56) & 255 == t:
            S.A[at + j] += by
            return
    word = (t << 56) | by
    if n < G_INLINE:
        S.G[b + G_COUNT0 + n] = word
    else:
        cap = (meta >> 48) & 0x3FF
        if n - G_INLINE == cap:
            new_cap = max(2 * cap, 4)
            new = alloc(S, new_cap)
            for j in range(cap):
                S.A[new + j] = S.A[at + j]
            free(S, at, cap)
            S.G[b + G_MORE] = new
            at = new
            meta = (meta & ((1 << 48) - 1)) | (new_cap << 48)
        S.A[at + n - G_INLINE] = word
    S.G[b + G_META] = meta + (1 << 24)


@kernel
def add_value(S: Any, g: Any, low: Any, high: Any) -> None:
    """Add to the 128 bit sum of values."""
    b = g * GW
    before = S.G[b + G_VALUE]
    S.G[b + G_VALUE] = before + low
    S.G[b + G_VALUEHI] += high + (1 if np.uint64(before + low) < np.uint64(before) else 0)


@kernel
def apply_event(S: Any, u: Any, item: Any, tsf: Any, eid: Any, dwell: Any, value: Any, dedup: Any) -> Any:
    """Count one event of user u: COUNTED, DUPLICATE, or SPILLED when its group may be on disk (nothing was changed).

    `dwell` and `value` are 0 where the flags in `tsf` say there is none. Room was checked (`event_room`).
    """
    b = u * UW
    key = group_key(S, item)
    impression = tsf & F_IMPRESSION
    if impression and dedup and ring_has(S, S.U[b + U_IMP], S.U[b + U_IMPRING], eid):
        return DUPLICATE
    g = table_find(S, S.U[b + U_TABLE], S.U[b + U_TABLECAP], key)
    if g >= 0:
        if dedup and not impression and ring_has(S, S.G[g * GW + G_RING], S.G[g * GW + G_META], eid):
            return DUPLICATE
    elif S.U[b + U_FLAGS] & SPILL_LOADED == 0:
        return SPILLED
    ts = tsf >> 16
    word = item | (dwell << 32)
    if g < 0:
        g = new_group(S, u, key, item)
        S.U[b + U_NTOTAL] += 1
        S.G[g * GW + G_FIRST] = ts
        S.G[g * GW + G_LAST] = ts
        touch_order(S, u, g)
    c = g * GW
    if impression:
        S.U[b + U_IMPRESSIONS] += 1
        S.U[b + U_LASTIMP] = max(S.U[b + U_LASTIMP], ts)
        at, ring = ring_insert(S, S.U[b + U_IMP], S.U[b + U_IMPRING], USER_RING, 3, tsf, eid, word, value)
        S.U[b + U_IMP], S.U[b + U_IMPRING] = at, ring
    else:
        S.U[b + U_EVENTS] += 1
        S.U[b + U_LASTEVENT] = max(S.U[b + U_LASTEVENT], ts)
        at, ring = ring_insert(S, S.U[b + U_SHORT], S.U[b + U_SHORTRING], USER_RING, 3, tsf, eid, word, value)
        S.U[b + U_SHORT], S.U[b + U_SHORTRING] = at, ring
        meta = S.G[c + G_META]
        at, ring = ring_insert(S, S.G[c + G_RING], meta & RING_MASK, GROUP_RING, 4, tsf, eid, word, value)
        S.G[c + G_RING] = at
        S.G[c + G_META] = (meta & ~RING_MASK) | ring
    add_count(S, g, (tsf >> 8) & 255, np.int64(1))
    S.U[b + U_CLICKS] += S.T[((tsf >> 8) & 255) * TW + T_CLASS] == CLICK
    if tsf & F_DWELL:
        S.G[c + G_DWELL] += dwell
        S.G[c + G_MAXDWELL] = max(S.G[c + G_MAXDWELL], dwell)
    if tsf & F_VALUE:
        add_value(S, g, value, np.int64(0))
    S.G[c + G_FIRST] = min(S.G[c + G_FIRST], ts)
    S.G[c + G_META] |= CHANGED_BIT
    S.G[c + G_DIGEST] = 0
    if ts > S.G[c + G_LAST]:
        S.G[c + G_LAST] = ts
        touch_order(S, u, g)
    return COUNTED


@kernel
def event_room(S: Any, u: Any) -> Any:
    """DONE if one event of user u fits, or what is needed."""
    words = EVENT_WORDS + 4 * S.U[u * UW + U_TABLECAP]
    if not arena_room(S, words):
        S.M[M_NEED] = words
        return NEED_A
    if not group_room(S, 1):
        return NEED_G
    return DONE


@kernel
def count_increment(S: Any, item: Any, t: Any, impression: Any, ts: Any, dwell: Any, surface: Any) -> None:
    """Add one counted event to the increments of the shared counters; room for one entry was checked. Impressions and clicks are
    kept apart by surface."""
    bits = S.T[t * TW + T_METRICS]  # what an event of this type adds: 1 click, 2 order, 4 engagement
    if not impression and bits & 1 == 0:
        surface = np.int64(0)
    key = ((item << INC_ITEM) | (ts // BUCKET_MS << INC_BUCKET) | surface) + 1
    mask = size_of(S, C_) // CW - 1
    i = np.int64(np.uint64(key * np.int64(-0x61C8864680B583EB)) >> np.uint64(32)) & mask
    while S.C[i * CW] != key:
        if S.C[i * CW] == 0:
            S.C[i * CW] = key
            S.M[M_INCS] += 1
            break
        i = (i + 1) & mask
    at = i * CW + 1
    if impression:
        S.C[at] += 1
        return
    S.C[at + 1] += bits & 1
    S.C[at + 2] += min(dwell, DWELL_CAP)
    S.C[at + 3] += (bits >> 1) & 1
    S.C[at + 4] += (bits >> 2) & 1


@kernel
def grow_increments(old: Any, new: Any) -> None:
    """Move the increments into a larger empty table."""
    mask = len(new) // CW - 1
    for k in range(len(old) // CW):
        key = old[k * CW]
        if key:
            i = np.int64(np.uint64(key * np.int64(-0x61C8864680B583EB)) >> np.uint64(32)) & mask
            while new[i * CW] != 0:
                i = (i + 1) & mask
            new[i * CW : i * CW + 1 + METRICS] = old[k * CW : k * CW + 1 + METRICS]


@kernel
def ahead_table(S: Any, u: Any, item: Any) -> None:
    """Fetch the slot of the user's table where the group of an event to come is looked for. (Rows that will be skipped have
    some old slot and item here, which does no harm.)"""
    cap = S.U[u * UW + U_TABLECAP]
    if cap:
        key = group_key(S, item)
        prefetch(base_of(S, A_) + 8 * (S.U[u * UW + U_TABLE] + 2 * slot_of(key, cap - 1)))


@kernel
def ahead_group(S: Any, u: Any, item: Any, topic: Any) -> None:
    """Fetch the group row and the user's ring of an event to come."""
    b = u * UW
    if S.U[b + U_TABLECAP]:
        g = table_find(S, S.U[b + U_TABLE], S.U[b + U_TABLECAP], group_key(S, item))
        if g >= 0:
            at = base_of(S, G_) + 8 * GW * g
            prefetch(at)
            prefetch(at + 64)
    if topic == 0:
        ahead_planes(S, S.U[b + U_IMP], S.U[b + U_IMPRING], True)
    else:
        ahead_planes(S, S.U[b + U_SHORT], S.U[b + U_SHORTRING], False)
    prefetch(base_of(S, A_) + 8 * (S.U[b + U_ORDER] + S.U[b + U_NHOT] - 1))


@kernel
def ahead_ring(S: Any, u: Any, item: Any, topic: Any) -> None:
    """Fetch the group's ring of an event to come."""
    if topic and S.U[u * UW + U_TABLECAP]:
        g = table_find(S, S.U[u * UW + U_TABLE], S.U[u * UW + U_TABLECAP], group_key(S, item))
        if g >= 0:
            ahead_planes(S, S.G[g * GW + G_RING], S.G[g * GW + G_META] & RING_MASK, True)


@kernel
def ahead_planes(S: Any, at: Any, ring: Any, all_ids: Any) -> None:
    """Fetch the newest entry of each plane of a ring, and the event ids that will be searched."""
    n, cap, start = ring & 0xFF, (ring >> 8) & 0xFF, (ring >> 16) & 0xFF
    if cap == 0:
        return
    p = base_of(S, A_) + 8 * at
    k = 8 * ((start + n - 1) & (cap - 1))
    prefetch(p + 8 * cap + k)
    prefetch(p + 16 * cap + k)
    if all_ids:
        for line in range((n + 7) // 8):
            prefetch(p + 64 * line)
    else:
        prefetch(p + k)


@kernel
def fold_rows(
    addresses: Any, rows: Any, status: Any, topic: Any, offset: Any, ts: Any, eid: Any, dwell: Any, value: Any, surface: Any,
    slots: Any, items: Any, types: Any, start: Any,
) -> Any:  # fmt: skip
    """Fold rows[start:]; returns (code, events counted). On a NEED_* code M_POS is the row to go on from.

    `slots`, `items`, `types`: user slot, item index and type number of each of `rows`, as `resolve` found them.
    """
    S = mem_at(addresses)
    counted = 0
    clock = S.M[M_CLOCK]
    n = len(rows)
    for j in range(start, n):
        if j + 24 < n:
            at = base_of(S, U_) + 8 * UW * slots[j + 24]
            prefetch(at)
            prefetch(at + 64)
        if j + 16 < n:
            ahead_table(S, slots[j + 16], items[j + 16])
        if j + 10 < n:
            ahead_group(S, slots[j + 10], items[j + 10], topic[rows[j + 10]])
        if j + 4 < n:
            ahead_ring(S, slots[j + 4], items[j + 4], topic[rows[j + 4]])
        r = rows[j]
        t = np.int64(topic[r])
        o = offset[r]
        if o < S.P[t]:
            continue
        if status[r]:
            S.P[t] = o + 1
            continue
        u = slots[j]
        code = event_room(S, u)
        if code == DONE and (S.M[M_DTOP] + 1) * DW > size_of(S, D_):
            code = NEED_D
        if code == DONE and C_FACTOR * (S.M[M_INCS] + 1) * CW > size_of(S, C_):
            code = NEED_C
        if code != DONE:
            S.M[M_POS] = j
            return code, counted
        item, kind = items[j], types[j]
        d, v = dwell[r], value[r]
        flags = (F_IMPRESSION if t == 0 else 0) | (F_DWELL if d >= 0 else 0) | (F_VALUE if v >= 0 else 0)
        tsf = (ts[r] << 16) | (kind << 8) | (np.int64(surface[r]) << SURFACE_AT) | flags
        d, v = max(d, 0), max(v, 0)
        done = apply_event(S, u, item, tsf, eid[r], d, v, True)
        if done == SPILLED:
            S.M[M_POS] = j
            S.M[M_NEED] = u
            return NEED_SPILL, counted
        S.P[t] = o + 1
        b = u * UW
        S.U[b + U_CLOCK] = clock
        if done == DUPLICATE:
            S.M[M_DUPLICATES] += 1
            continue
        counted += 1
        if S.U[b + U_FLAGS] & DIRTY == 0:
            S.U[b + U_FLAGS] |= DIRTY
            S.L[S.M[M_NDIRTY]] = u
            S.M[M_NDIRTY] += 1
        at = S.M[M_DTOP] * DW
        S.D[at + D_TSF], S.D[at + D_EID], S.D[at + D_ITEM] = tsf, eid[r], item
        S.D[at + D_DWELL], S.D[at + D_VALUE], S.D[at + D_PREV] = d, v, S.U[b + U_DELTA]
        S.M[M_DTOP] += 1
        S.U[b + U_DELTA] = S.M[M_DTOP]
        S.U[b + U_DELTAWORDS] += 4 if flags & F_VALUE else 3
        if o >= S.P[3 + t]:
            S.D[at + D_PREV] |= (u + 1) << 32
            count_increment(S, item, kind, t == 0, ts[r], d, np.int64(surface[r]))
    S.M[M_POS] = len(rows)
    return DONE, counted
