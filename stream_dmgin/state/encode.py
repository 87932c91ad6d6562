"""State in memory -> rows on disk (numba): bases, deltas and spill pages of the users that changed. Format: docs/state.md.

The kernel fills a buffer of words and a list of operations; Python puts them into the write batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stream_dmgin.state.fold import LOW32, count_at
from stream_dmgin.state.jit import kernel, st8
from stream_dmgin.state.layout import (
    A_,
    ALL_PAGES,
    B_HASDWELL,
    B_HASVALUE,
    B_RING,
    B_SINGLE,
    B_TYPES,
    CHANGED_BIT,
    D_DWELL,
    D_EID,
    D_ITEM,
    D_PREV,
    D_TSF,
    D_VALUE,
    DELTA_ROWS,
    DELTA_SLACK,
    DIRTY,
    DONE,
    DW,
    F_VALUE,
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
    GW,
    HEAD_WORDS,
    HOT_BIT,
    M_DTOP,
    M_NDIRTY,
    M_NEED,
    M_POS,
    MAX_PAGES,
    NEED_OUT,
    ON_DISK,
    PAGE_GROUPS,
    SPILL_LOADED,
    STATE_FORMAT,
    U_BASEBYTES,
    U_CLICKS,
    U_DELTA,
    U_DELTABYTES,
    U_DELTAROWS,
    U_DELTAWORDS,
    U_EPOCH,
    U_EVENTS,
    U_FLAGS,
    U_ID,
    U_IDLEN,
    U_IMP,
    U_IMPRESSIONS,
    U_IMPRING,
    U_LASTEVENT,
    U_LASTIMP,
    U_NHOT,
    U_NTOTAL,
    U_ORDER,
    U_PAGES,
    U_SHORT,
    U_SHORTRING,
    U_SPILLEDSINGLES,
    U_TABLE,
    U_TABLECAP,
    UW,
)
from stream_dmgin.state.mem import GOLDEN, base_of, copy_bytes, mem_at

OP_WORDS = 5  # letter of the key, key offset, key length, value offset, value length in bytes (-1: delete)
B, D, S_ = ord("b"), ord("d"), ord("s")


@kernel
def page_of(key: Any, pages: Any) -> Any:
    """The spill page of a group key."""
    return np.int64(np.uint64(key * GOLDEN) >> np.uint64(40)) & (pages - 1)


@kernel
def group_words(S: Any, g: Any) -> Any:
    """Words of a group on disk."""
    b = g * GW
    meta = S.G[b + G_META]
    n, cap, types = meta & 0xFF, (meta >> 8) & 0xFF, (meta >> 24) & 0xFFFF
    words = 3 + types + 3 * n
    if S.G[b + G_DWELL]:
        words += 2
    if S.G[b + G_VALUE] or S.G[b + G_VALUEHI]:
        words += 2
    at = S.G[b + G_RING] + cap
    for i in range(n):
        words += 1 if S.A[at + i] & F_VALUE else 0
    return words


@kernel
def put_group(S: Any, g: Any, O: Any, o: Any) -> Any:
    """Write a group to O at o; position after it."""
    b = g * GW
    A, meta = S.A, S.G[b + G_META]
    n, cap, start, types = meta & 0xFF, (meta >> 8) & 0xFF, (meta >> 16) & 0xFF, (meta >> 24) & 0xFFFF
    key = S.G[b + G_KEY]
    dwell = S.G[b + G_DWELL] != 0
    value = S.G[b + G_VALUE] != 0 or S.G[b + G_VALUEHI] != 0
    O[o] = (
        (key if key >= 0 else S.G[b + G_ITEM]) | (n << B_RING) | (types << B_TYPES)
        | ((1 if key < 0 else 0) << B_SINGLE) | ((1 if dwell else 0) << B_HASDWELL) | ((1 if value else 0) << B_HASVALUE)
    )  # fmt: skip
    O[o + 1], O[o + 2] = S.G[b + G_FIRST], S.G[b + G_LAST]
    o += 3
    if dwell:
        O[o], O[o + 1] = S.G[b + G_DWELL], S.G[b + G_MAXDWELL]
        o += 2
    if value:
        O[o], O[o + 1] = S.G[b + G_VALUE], S.G[b + G_VALUEHI]
        o += 2
    for j in range(types):
        O[o + j] = count_at(S, g, j)
    o += types
    at, mask = S.G[b + G_RING], cap - 1
    values = o + 3 * n
    for i in range(n):
        k = (start + i) & mask
        O[o + i] = A[at + k]
        O[o + n + i] = A[at + cap + k]
        O[o + 2 * n + i] = A[at + 2 * cap + k]
        if A[at + cap + k] & F_VALUE:
            O[values] = A[at + 3 * cap + k]
            values += 1
    return values


@kernel
def put_ring(S: Any, at: Any, ring: Any, O: Any, o: Any) -> Any:
    """Write the three planes of a user's ring, oldest first; position after it."""
    n, cap, start = ring & 0xFF, (ring >> 8) & 0xFF, (ring >> 16) & 0xFF
    for p in range(3):
        for i in range(n):
            O[o + p * n + i] = S.A[at + p * cap + ((start + i) & (cap - 1))]
    return o + 3 * n


@kernel
def put_key(S: Any, u: Any, letter: Any, tail: Any, number: Any, K: Any, k: Any) -> Any:
    """Write a row's key to the byte array K at k: letter, user id, then 0 and `number` in `tail` bytes; its length."""
    K[k] = letter
    b = u * UW
    n = S.U[b + U_IDLEN]
    to = np.int64(K.ctypes.data) + k
    copy_bytes(to + 1, base_of(S, A_) + 8 * S.U[b + U_ID], n)
    if tail == 0:
        return n + 1
    st8(to + 1 + n, 0)
    for i in range(tail):
        st8(to + 2 + n + i, number >> (8 * (tail - 1 - i)))
    return n + 2 + tail


@kernel
def encode_dirty(addresses: Any, start: Any, O: Any, K: Any, ops: Any) -> Any:
    """Rows of the dirty users from number `start` on: (code, words written, key bytes, operations). On NEED_OUT the buffers
    are full (or, when nothing was written, too small for M_NEED words); M_POS is where to go on."""
    S = mem_at(addresses)
    o = k = nop = 0
    for d in range(start, S.M[M_NDIRTY]):
        S.M[M_POS] = d
        u = S.L[d]
        b = u * UW
        key_bytes = S.U[b + U_IDLEN] + 8
        fresh = 8 * S.U[b + U_DELTAWORDS]
        rows = S.U[b + U_DELTAROWS]
        delta = S.U[b + U_DELTABYTES] + fresh
        if S.U[b + U_FLAGS] & ON_DISK and rows < DELTA_ROWS and 2 * delta <= S.U[b + U_BASEBYTES] + DELTA_SLACK:
            words = S.U[b + U_DELTAWORDS]
            if o + words > len(O) or k + key_bytes > len(K) or (nop + 1) * OP_WORDS > len(ops):
                S.M[M_NEED] = words
                return NEED_OUT, o, k, nop
            p = nop * OP_WORDS
            ops[p], ops[p + 1], ops[p + 2] = D, k, put_key(S, u, D, 1, rows, K, k)
            ops[p + 3], ops[p + 4] = 8 * o, 8 * words
            k += ops[p + 2]
            nop += 1
            e = S.U[b + U_DELTA]
            while e:
                at = (e - 1) * DW
                O[o], O[o + 1] = S.D[at + D_TSF], S.D[at + D_EID]
                O[o + 2] = S.D[at + D_ITEM] | (S.D[at + D_DWELL] << 32)
                o += 3
                if S.D[at + D_TSF] & F_VALUE:
                    O[o] = S.D[at + D_VALUE]
                    o += 1
                e = S.D[at + D_PREV] & LOW32
            S.U[b + U_DELTAROWS] += 1
            S.U[b + U_DELTABYTES] = delta
        else:
            code, o, k, nop = encode_base(S, u, O, o, K, k, ops, nop)
            if code != DONE:
                return code, o, k, nop
        S.U[b + U_FLAGS] = (S.U[b + U_FLAGS] & ~DIRTY) | ON_DISK
        S.U[b + U_DELTA] = S.U[b + U_DELTAWORDS] = 0
    S.M[M_NDIRTY] = 0
    S.M[M_DTOP] = 0
    return DONE, o, k, nop


@kernel
def encode_base(S: Any, u: Any, O: Any, o: Any, K: Any, k: Any, ops: Any, nop: Any) -> Any:
    """Base row of one user, the spill pages that changed, and the deletion of delta rows."""
    b, A = u * UW, S.A
    hot, order = S.U[b + U_NHOT], S.U[b + U_ORDER]
    short, imp = S.U[b + U_SHORTRING], S.U[b + U_IMPRING]
    rows, pages = S.U[b + U_DELTAROWS], S.U[b + U_PAGES]
    words = HEAD_WORDS + 3 * (short & 0xFF) + 3 * (imp & 0xFF)
    for i in range(hot):
        words += group_words(S, A[order + i])
    spilled = S.U[b + U_NTOTAL] - hot
    write_pages = (spilled > 0 or pages > 0) and S.U[b + U_FLAGS] & SPILL_LOADED != 0
    n_spill = spilled if write_pages else 0
    sorted_groups = np.empty(n_spill, np.int64)
    page_ends = np.zeros(1, np.int64)
    page_dirty = np.zeros(1, np.uint8)
    page_words = 0
    singles = S.U[b + U_SPILLEDSINGLES]
    everything = S.U[b + U_FLAGS] & ALL_PAGES != 0
    if write_pages:
        wanted = max(pages, 1)
        while wanted < MAX_PAGES and wanted * PAGE_GROUPS < spilled:
            wanted *= 2
        everything |= wanted != pages
        pages = wanted
        page_ends = np.zeros(pages + 1, np.int64)
        page_dirty = np.zeros(pages, np.uint8)
        at, cap = S.U[b + U_TABLE], S.U[b + U_TABLECAP]
        singles = 0
        for i in range(cap):
            g = A[at + 2 * i + 1] - 1
            if g >= 0 and S.G[g * GW + G_META] & HOT_BIT == 0:
                p = page_of(S.G[g * GW + G_KEY], pages)
                page_ends[p + 1] += 1
                if everything or S.G[g * GW + G_META] & CHANGED_BIT:
                    page_dirty[p] = 1
                singles += 1 if S.G[g * GW + G_KEY] < 0 else 0
        if everything:
            page_dirty[:] = 1
        for p in range(pages):
            page_ends[p + 1] += page_ends[p]
        fill = page_ends[:-1].copy()
        for i in range(cap):
            g = A[at + 2 * i + 1] - 1
            if g >= 0 and S.G[g * GW + G_META] & HOT_BIT == 0:
                p = page_of(S.G[g * GW + G_KEY], pages)
                sorted_groups[fill[p]] = g
                fill[p] += 1
                if page_dirty[p]:
                    page_words += group_words(S, g)
    key_bytes = S.U[b + U_IDLEN] + 8
    n_ops = 1 + rows + (pages if write_pages else 0)
    if o + words + page_words > len(O) or k + n_ops * key_bytes > len(K) or (nop + n_ops) * OP_WORDS > len(ops):
        S.M[M_NEED] = max(words + page_words, n_ops * key_bytes, n_ops * OP_WORDS)
        return NEED_OUT, o, k, nop
    p = nop * OP_WORDS
    ops[p], ops[p + 1], ops[p + 2] = B, k, put_key(S, u, B, 0, 0, K, k)
    ops[p + 3], ops[p + 4] = 8 * o, 8 * words
    k += ops[p + 2]
    nop += 1
    O[o] = STATE_FORMAT | (hot << 8) | (pages << 24) | ((short & 0xFF) << 40) | ((imp & 0xFF) << 48)
    O[o + 1] = S.U[b + U_NTOTAL] | (singles << 32)
    O[o + 2], O[o + 3] = S.U[b + U_EVENTS], S.U[b + U_IMPRESSIONS]
    O[o + 4], O[o + 5], O[o + 6] = S.U[b + U_LASTEVENT], S.U[b + U_LASTIMP], S.U[b + U_EPOCH]
    O[o + 7] = S.U[b + U_CLICKS]
    o = put_ring(S, S.U[b + U_SHORT], short, O, o + HEAD_WORDS)
    o = put_ring(S, S.U[b + U_IMP], imp, O, o)
    for i in range(hot):
        g = A[order + i]
        o = put_group(S, g, O, o)
        S.G[g * GW + G_META] &= ~CHANGED_BIT
    for r in range(rows):
        p = nop * OP_WORDS
        ops[p], ops[p + 1], ops[p + 2] = D, k, put_key(S, u, D, 1, r, K, k)
        ops[p + 3], ops[p + 4] = 0, -1
        k += ops[p + 2]
        nop += 1
    if write_pages:
        for page in range(pages):
            if page_dirty[page] == 0:
                continue
            begin = o
            for i in range(page_ends[page], page_ends[page + 1]):
                o = put_group(S, sorted_groups[i], O, o)
                S.G[sorted_groups[i] * GW + G_META] &= ~CHANGED_BIT
            p = nop * OP_WORDS
            ops[p], ops[p + 1], ops[p + 2] = S_, k, put_key(S, u, S_, 2, page, K, k)
            ops[p + 3], ops[p + 4] = 8 * begin, 8 * (o - begin)
            k += ops[p + 2]
            nop += 1
        S.U[b + U_PAGES] = pages
        S.U[b + U_SPILLEDSINGLES] = singles
        S.U[b + U_FLAGS] &= ~ALL_PAGES
    S.U[b + U_DELTAROWS] = S.U[b + U_DELTABYTES] = 0
    S.U[b + U_BASEBYTES] = 8 * words
    return DONE, o, k, nop
