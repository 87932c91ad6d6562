"""Kernels that Python calls: small loops around those of fold, load and encode (numba).

They take the addresses of the arrays (`mem_at`) where a call is frequent, because passing them costs less than the arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stream_dmgin.state.hash import xxh64
from stream_dmgin.state.jit import kernel
from stream_dmgin.state.layout import (
    DIRTY,
    DONE,
    GW,
    LOADED,
    M_AFREE,
    M_ATOP,
    M_DTOP,
    M_GROUPS,
    M_LOADED,
    M_NDIRTY,
    M_USERS_CACHED,
    U_DELTA,
    U_DELTAWORDS,
    U_FLAGS,
    UW,
)
from stream_dmgin.state.load import drop_user, load_spill, load_user, merge_all
from stream_dmgin.state.mem import find_user, mem_at
from stream_dmgin.state.resolve import item_room, new_item, new_user, user_room


@kernel
def cached_slot(addresses: Any, id_address: Any, n: Any) -> Any:
    """Slot of a user that is in memory, or -1."""
    S = mem_at(addresses)
    u = find_user(S, xxh64(id_address, n), id_address, n)
    return u if u >= 0 and S.U[u * UW + U_FLAGS] & LOADED else np.int64(-1)


@kernel
def add_user(addresses: Any, id_address: Any, n: Any) -> Any:
    """(code, slot) of a slot for a user whose rows are about to be loaded."""
    S = mem_at(addresses)
    code = user_room(S)
    if code != DONE:
        return code, np.int64(-1)
    return DONE, new_user(S, xxh64(id_address, n), id_address, n, False)


@kernel
def load_users(
    addresses: Any, slots: Any, R: Any, at: Any, words: Any, spill: Any, spill_words: Any, delta: Any, delta_words: Any,
    delta_rows: Any, start: Any,
) -> Any:  # fmt: skip
    """Load slots[start:] from rows in R; (code, number where it stopped)."""
    S = mem_at(addresses)
    for i in range(start, len(slots)):
        code = load_user(
            S, slots[i], R, at[i], words[i], spill[i], spill_words[i], delta[i], delta_words[i], delta_rows[i]
        )
        if code != DONE:
            return code, i
        S.M[M_LOADED] += 1
    return DONE, len(slots)


@kernel
def load_pages(addresses: Any, u: Any, R: Any, words: Any) -> Any:
    """Add the groups of a user's spill pages, all in R."""
    return load_spill(mem_at(addresses), u, R, 0, words)


@kernel
def merge_users(addresses: Any, start: Any, users: Any) -> Any:
    """Merge singleton groups that were assigned in all loaded users; (code, slot where it stopped)."""
    return merge_all(mem_at(addresses), start, users)


@kernel
def drop(addresses: Any, slots: Any) -> None:
    """Take users out of the cache, whatever they hold."""
    S = mem_at(addresses)
    for u in slots:
        drop_user(S, u)


@kernel
def used(S: Any) -> Any:
    """Bytes of the cached users' state."""
    return 8 * (S.M[M_ATOP] - S.M[M_AFREE] + GW * S.M[M_GROUPS] + UW * S.M[M_USERS_CACHED])


@kernel
def used_bytes(addresses: Any) -> Any:
    """Bytes of the cached users' state."""
    return used(mem_at(addresses))


@kernel
def evict(addresses: Any, order: Any, target: Any) -> Any:
    """Drop clean users in this order until the cache holds `target` bytes; how many went."""
    S = mem_at(addresses)
    gone = 0
    for u in order:
        if used(S) <= target:
            break
        if S.U[u * UW + U_FLAGS] & DIRTY == 0:
            drop_user(S, u)
            gone += 1
    return gone


@kernel
def forget_deltas(addresses: Any) -> None:
    """In memory only: what was folded needs no rows."""
    S = mem_at(addresses)
    for i in range(S.M[M_NDIRTY]):
        b = S.L[i] * UW
        S.U[b + U_FLAGS] &= ~DIRTY
        S.U[b + U_DELTA] = S.U[b + U_DELTAWORDS] = 0
    S.M[M_NDIRTY] = 0
    S.M[M_DTOP] = 0


@kernel
def add_items(addresses: Any, id_address: Any, lengths: Any, groups: Any, start: Any) -> Any:
    """Add the items of a row of the store, from number `start` on; (code, where it stopped, address there)."""
    S = mem_at(addresses)
    p = id_address
    for i in range(start, len(lengths)):
        n = np.int64(lengths[i])
        code = item_room(S, n)
        if code != DONE:
            return code, i, p
        h = xxh64(p, n)
        new_item(S, h if h != 0 else np.int64(1), p, n, np.int64(groups[i]))
        p += n
    return DONE, len(lengths), p
