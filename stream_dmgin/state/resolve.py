"""From ids to local numbers (numba): users to slots, items and types to indexes, new ones added.

A pass of its own over the rows, before the fold: the look-ups of different rows are independent, so that the processor
overlaps their cache misses, and users that must be loaded from disk are known before the first event is folded.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stream_dmgin.state.hash import same_bytes
from stream_dmgin.state.jit import kernel, prefetch
from stream_dmgin.state.layout import (
    A_,
    DONE,
    H_,
    I_,
    I_AT,
    I_GROUP,
    I_HASH,
    I_LEN,
    IB_,
    IH_,
    IW,
    LIVE,
    LOADED,
    M_EPOCH,
    M_IBTOP,
    M_ITEMS,
    M_MISS,
    M_NEED,
    M_POS,
    M_TYPES,
    M_UFREE,
    M_USERS,
    M_USERS_CACHED,
    M_UTOP,
    NEED_A,
    NEED_I,
    NEED_IB,
    NEED_U,
    OTHER_TYPE,
    SPILL_LOADED,
    T_,
    T_HASH,
    T_LEN,
    T_NAME,
    TW,
    TYPES,
    U_,
    U_EPOCH,
    U_FLAGS,
    U_HASH,
    U_ID,
    U_IDLEN,
    UW,
)
from stream_dmgin.state.mem import (
    alloc,
    arena_room,
    base_of,
    copy_bytes,
    find_item,
    find_user,
    hash_put,
    mem_at,
    size_of,
    zero,
)

ID_WORDS = 512  # arena words that an id can take at most


@kernel
def new_user(S: Any, h: Any, address: Any, n: Any, loaded: Any) -> Any:
    """A slot for a user that isn't cached; room was checked. `loaded`: its state is known (empty), not to be read."""
    u = S.M[M_UFREE]
    if u:
        u -= 1
        S.M[M_UFREE] = S.U[u * UW + U_HASH]
    else:
        u = S.M[M_UTOP]
        S.M[M_UTOP] = u + 1
    b = u * UW
    zero(S.U, b, b + UW)
    at = alloc(S, (n + 7) // 8)
    copy_bytes(base_of(S, A_) + 8 * at, address, n)
    S.U[b + U_HASH], S.U[b + U_ID], S.U[b + U_IDLEN] = h, at, n
    S.U[b + U_FLAGS] = LIVE | (LOADED | SPILL_LOADED if loaded else 0)
    hash_put(S.H, size_of(S, H_) // 2 - 1, h, u)
    S.M[M_USERS_CACHED] += 1
    S.U[b + U_EPOCH] = S.M[M_EPOCH]
    if loaded:
        S.M[M_USERS] += 1
    return u


@kernel
def user_room(S: Any) -> Any:
    """DONE if one more user fits, or what is needed."""
    if 4 * (S.M[M_USERS_CACHED] + 1) > size_of(S, H_) or (
        S.M[M_UFREE] == 0 and (S.M[M_UTOP] + 1) * UW > size_of(S, U_)
    ):
        return NEED_U
    if not arena_room(S, ID_WORDS):
        S.M[M_NEED] = ID_WORDS
        return NEED_A
    return DONE


@kernel
def group_in_map(keys: Any, values: Any, h: Any) -> Any:
    """Group number of an item hash in a group map's table, or -1."""
    mask = len(keys) - 1
    i = h & mask
    while keys[i] != 0:
        if keys[i] == h:
            return np.int64(values[i])
        i = (i + 1) & mask
    return np.int64(-1)


@kernel
def new_item(S: Any, h: Any, address: Any, n: Any, group: Any) -> Any:
    """Index of an item that isn't known; room was checked."""
    k = S.M[M_ITEMS]
    at = S.M[M_IBTOP]
    copy_bytes(base_of(S, IB_) + at, address, n)
    b = k * IW
    S.I[b + I_HASH], S.I[b + I_GROUP], S.I[b + I_AT], S.I[b + I_LEN] = h, group, at, n
    S.M[M_ITEMS] = k + 1
    S.M[M_IBTOP] = at + n
    hash_put(S.IH, size_of(S, IH_) // 2 - 1, h, k)
    return k


@kernel
def item_room(S: Any, n: Any) -> Any:
    """DONE if one more item with n bytes of id fits, or what is needed."""
    if (S.M[M_ITEMS] + 1) * IW > size_of(S, I_) or 4 * (S.M[M_ITEMS] + 1) > size_of(S, IH_):
        return NEED_I
    if S.M[M_IBTOP] + n > size_of(S, IB_):
        S.M[M_NEED] = n
        return NEED_IB
    return DONE


@kernel
def type_number(S: Any, h: Any, address: Any, n: Any) -> Any:
    """Number of a type name; a new one is added (metrics and class are filled in by Python), OTHER_TYPE once all are used."""
    base = base_of(S, T_)
    for t in range(S.M[M_TYPES]):
        b = t * TW
        if S.T[b + T_HASH] == h and S.T[b + T_LEN] == n and same_bytes(base + 8 * (b + T_NAME), address, n):
            return np.int64(t)
    b = OTHER_TYPE * TW
    if S.T[b + T_HASH] == h and S.T[b + T_LEN] == n and same_bytes(base + 8 * (b + T_NAME), address, n):
        return np.int64(OTHER_TYPE)
    t = S.M[M_TYPES]
    if t == TYPES:
        return np.int64(OTHER_TYPE)
    b = t * TW
    S.T[b + T_HASH], S.T[b + T_LEN] = h, n
    copy_bytes(base + 8 * (b + T_NAME), address, n)
    S.M[M_TYPES] = t + 1
    return t


@kernel
def ahead_slots(S: Any, user_hash: Any, item_hash: Any) -> None:
    """Fetch where the look-ups of a row to come begin."""
    prefetch(base_of(S, H_) + 16 * (user_hash & (size_of(S, H_) // 2 - 1)))
    prefetch(base_of(S, IH_) + 16 * (item_hash & (size_of(S, IH_) // 2 - 1)))


@kernel
def ahead_rows(S: Any, user_hash: Any, item_hash: Any) -> None:
    """Fetch the rows that the first slots of a row to come point at."""
    s = S.H[2 * (user_hash & (size_of(S, H_) // 2 - 1)) + 1]
    if s:
        prefetch(base_of(S, U_) + 8 * (UW * (s - 1) + U_HASH))
    s = S.IH[2 * (item_hash & (size_of(S, IH_) // 2 - 1)) + 1]
    if s:
        prefetch(base_of(S, I_) + 8 * IW * (s - 1))


@kernel
def ahead_ids(S: Any, user_hash: Any, item_hash: Any) -> None:
    """Fetch the ids that will be compared."""
    s = S.H[2 * (user_hash & (size_of(S, H_) // 2 - 1)) + 1]
    if s:
        prefetch(base_of(S, A_) + 8 * S.U[(s - 1) * UW + U_ID])
    s = S.IH[2 * (item_hash & (size_of(S, IH_) // 2 - 1)) + 1]
    if s:
        prefetch(base_of(S, IB_) + S.I[(s - 1) * IW + I_AT])


@kernel
def resolve(
    addresses: Any, rows: Any, status: Any, topic: Any, offset: Any, user_hash: Any, user_addr: Any, user_len: Any, item_hash: Any,
    item_addr: Any, item_len: Any, type_hash: Any, type_addr: Any, type_len: Any, keys: Any, values: Any, in_memory: Any,
    slots: Any, items: Any, types: Any, missing: Any, start: Any,
) -> Any:  # fmt: skip
    """Fill slots, items and types for rows[start:]. Users not cached get a slot that isn't LOADED and are listed in `missing`
    (M_MISS of them). On a NEED_* code M_POS is the row to go on from."""
    S = mem_at(addresses)
    n_rows = len(rows)
    for j in range(start, n_rows):
        if j + 24 < n_rows:
            r = rows[j + 24]
            ahead_slots(S, user_hash[r], item_hash[r])
        if j + 12 < n_rows:
            r = rows[j + 12]
            ahead_rows(S, user_hash[r], item_hash[r])
        if j + 5 < n_rows:
            r = rows[j + 5]
            ahead_ids(S, user_hash[r], item_hash[r])
        r = rows[j]
        if status[r] or offset[r] < S.P[topic[r]]:
            continue
        n = np.int64(user_len[r])
        u = find_user(S, user_hash[r], user_addr[r], n)
        if u < 0:
            code = user_room(S)
            if code != DONE:
                S.M[M_POS] = j
                return code
            u = new_user(S, user_hash[r], user_addr[r], n, in_memory)
            if not in_memory:
                missing[S.M[M_MISS]] = u
                S.M[M_MISS] += 1
        n = np.int64(item_len[r])
        k = find_item(S, item_hash[r], item_addr[r], n)
        if k < 0:
            code = item_room(S, n)
            if code != DONE:
                S.M[M_POS] = j
                return code
            k = new_item(S, item_hash[r], item_addr[r], n, group_in_map(keys, values, item_hash[r]))
        slots[j], items[j] = u, k
        types[j] = type_number(S, type_hash[r], type_addr[r], np.int64(type_len[r]))
    S.M[M_POS] = len(rows)
    return DONE


@kernel
def add_type(addresses: Any, h: Any, address: Any, n: Any) -> Any:
    """Number of a type name of the store."""
    return type_number(mem_at(addresses), h, address, n)
