"""Memory inside the arrays: blocks of the arena by size class, group rows, hash tables (numba).

Nothing here checks for room: callers have, with `arena_room` and the like, before the first write.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stream_dmgin.state.hash import same_bytes
from stream_dmgin.state.jit import kernel, ld8, st8, words
from stream_dmgin.state.layout import (
    A_,
    G_,
    G_META,
    G_MORE,
    G_RING,
    GW,
    H_,
    I_AT,
    I_LEN,
    IB_,
    IH_,
    IW,
    M_ADDRESSES,
    M_AFREE,
    M_ATOP,
    M_GFREE,
    M_GFREEN,
    M_GROUPS,
    M_GTOP,
    M_HEADS,
    M_LENGTHS,
    U_HASH,
    U_ID,
    U_IDLEN,
    UW,
    Pointers,
)

GOLDEN = np.int64(-0x61C8864680B583EB)  # 2^64 / golden ratio


@kernel
def mem_at(addresses: Any) -> Any:
    """The state whose arrays' addresses are given. Passing arrays costs 0.3 us each in a call from Python, and inside it each
    would carry seven words and a reference count through every call."""
    return Pointers(
        words(addresses[0]), words(addresses[1]), words(addresses[2]), words(addresses[3]), words(addresses[4]),
        words(addresses[5]), words(addresses[6]), words(addresses[7]), words(addresses[8]), words(addresses[9]),
        words(addresses[10]), words(addresses[11]), words(addresses[12]),
    )  # fmt: skip


@kernel
def size_of(S: Any, k: Any) -> Any:
    """Length of the k-th array."""
    return S.M[M_LENGTHS + k]


@kernel
def base_of(S: Any, k: Any) -> Any:
    """Address of the k-th array."""
    return S.M[M_ADDRESSES + k]


@kernel
def zero(p: Any, begin: Any, end: Any) -> None:
    """Clear words begin..end-1."""
    for i in range(begin, end):
        p[i] = 0


@kernel
def words_of(c: Any) -> Any:
    """Words of a block of size class c: 2, 3, 4, 6, 8, 12, 16, ..."""
    return (2 + (c & 1)) << (c >> 1)


@kernel
def class_for(n: Any) -> Any:
    """Smallest size class with n words."""
    c = np.int64(0)
    while words_of(c) < n:
        c += 1
    return c


@kernel
def alloc(S: Any, n: Any) -> Any:
    """Offset of a block with room for n words; its content is whatever was there."""
    c = class_for(n)
    head = S.M[M_HEADS + c]
    if head:
        S.M[M_HEADS + c] = S.A[head]
        S.M[M_AFREE] -= words_of(c)
        return head
    at = S.M[M_ATOP]
    S.M[M_ATOP] = at + words_of(c)
    return at


@kernel
def free(S: Any, at: Any, n: Any) -> None:
    """Give back a block that was allocated for n words; offset 0 is no block."""
    if at:
        c = class_for(n)
        S.A[at] = S.M[M_HEADS + c]
        S.M[M_HEADS + c] = at
        S.M[M_AFREE] += words_of(c)


@kernel
def arena_room(S: Any, words: Any) -> Any:
    """Whether this many words can be taken without using the free lists."""
    return S.M[M_ATOP] + words <= size_of(S, A_)


@kernel
def group_row(S: Any) -> Any:
    """Index of a free group row, all zero."""
    g = S.M[M_GFREE]
    if g:
        g -= 1
        S.M[M_GFREE] = S.G[g * GW]
        S.M[M_GFREEN] -= 1
    else:
        g = S.M[M_GTOP]
        S.M[M_GTOP] = g + 1
    zero(S.G, g * GW, (g + 1) * GW)
    S.M[M_GROUPS] += 1
    return g


@kernel
def group_room(S: Any, n: Any) -> Any:
    """Whether n more group rows are there."""
    return (size_of(S, G_) // GW - S.M[M_GTOP]) + S.M[M_GFREEN] >= n


@kernel
def free_group(S: Any, g: Any) -> None:
    """Give back a group row, its ring and its further counts."""
    b = g * GW
    meta = S.G[b + G_META]
    cap = (meta >> 8) & 0xFF
    if cap:
        free(S, S.G[b + G_RING], 4 * cap)
    more = (meta >> 48) & 0x3FF
    if more:
        free(S, S.G[b + G_MORE], more)
    S.G[b] = S.M[M_GFREE]
    S.M[M_GFREE] = g + 1
    S.M[M_GFREEN] += 1
    S.M[M_GROUPS] -= 1


@kernel
def slot_of(key: Any, mask: Any) -> Any:
    """Where a group key starts probing in a table of mask + 1 slots."""
    h = np.uint64(key * GOLDEN)
    return np.int64(h >> np.uint64(32)) & mask


@kernel
def table_find(S: Any, at: Any, cap: Any, key: Any) -> Any:
    """Group index under `key` in a user's table, or -1. Slots are (key, index + 1)."""
    if cap == 0:
        return np.int64(-1)
    mask = cap - 1
    i = slot_of(key, mask)
    A = S.A
    while True:
        g = A[at + 2 * i + 1]
        if g == 0:
            return np.int64(-1)
        if A[at + 2 * i] == key:
            return g - 1
        i = (i + 1) & mask


@kernel
def table_put(S: Any, at: Any, cap: Any, key: Any, g: Any) -> None:
    """Add a key that isn't there; the table has a free slot."""
    mask = cap - 1
    i = slot_of(key, mask)
    while S.A[at + 2 * i + 1] != 0:
        i = (i + 1) & mask
    S.A[at + 2 * i] = key
    S.A[at + 2 * i + 1] = g + 1


@kernel
def find_user(S: Any, h: Any, address: Any, n: Any) -> Any:
    """Slot of the user with this hash and these id bytes, or -1."""
    mask = size_of(S, H_) // 2 - 1
    i = h & mask
    base = base_of(S, A_)
    while True:
        s = S.H[2 * i + 1]
        if s == 0:
            return np.int64(-1)
        if S.H[2 * i] == h:
            u = (s - 1) * UW
            if S.U[u + U_IDLEN] == n and same_bytes(base + 8 * S.U[u + U_ID], address, n):
                return s - 1
        i = (i + 1) & mask


@kernel
def hash_put(H: Any, mask: Any, h: Any, value: Any) -> None:
    """Add (h, value + 1) to a table of mask + 1 slots that has room; equal hashes may be there."""
    i = h & mask
    while H[2 * i + 1] != 0:
        i = (i + 1) & mask
    H[2 * i] = h
    H[2 * i + 1] = value + 1


@kernel
def hash_remove(H: Any, mask: Any, h: Any, value: Any) -> None:
    """Take (h, value + 1) out and close the gap."""
    i = h & mask
    while H[2 * i + 1] != value + 1:
        i = (i + 1) & mask
    j = i
    while True:
        j = (j + 1) & mask
        if H[2 * j + 1] == 0:
            break
        home = H[2 * j] & mask
        if ((j - home) & mask) >= ((j - i) & mask):
            H[2 * i] = H[2 * j]
            H[2 * i + 1] = H[2 * j + 1]
            i = j
    H[2 * i + 1] = 0


@kernel
def rehash(old: Any, new: Any) -> None:
    """Move all entries of one table into a larger empty one."""
    for i in range(len(old) // 2):
        if old[2 * i + 1]:
            hash_put(new, len(new) // 2 - 1, old[2 * i], old[2 * i + 1] - 1)


@kernel
def find_item(S: Any, h: Any, address: Any, n: Any) -> Any:
    """Index of the item with this hash and these id bytes, or -1."""
    mask = size_of(S, IH_) // 2 - 1
    i = h & mask
    base = base_of(S, IB_)
    while True:
        s = S.IH[2 * i + 1]
        if s == 0:
            return np.int64(-1)
        if S.IH[2 * i] == h:
            b = (s - 1) * IW
            if S.I[b + I_LEN] == n and same_bytes(base + S.I[b + I_AT], address, n):
                return s - 1
        i = (i + 1) & mask


@kernel
def copy_bytes(to: Any, address: Any, n: Any) -> None:
    """n bytes from one address to another."""
    for k in range(n):
        st8(to + k, ld8(address + k))


@kernel
def user_hash_of(S: Any, u: Any) -> Any:
    """Hash of the user in slot u."""
    return S.U[u * UW + U_HASH]
