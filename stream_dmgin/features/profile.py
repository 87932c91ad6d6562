"""A user's profile: WIDTH numbers that say what somebody's whole life of behaviour is about, and from it the audiences of items.

Per interest group that the map names the mean of the first WIDTH numbers of the embeddings of what was clicked and read last in it,
times how often anything in it was, for life; added up over all these groups, cold ones too, and made as long as 1. So the profile is a
function of the user's state and of the items' embeddings, and nothing more is kept of anybody. Clicks and what says yes count, also
those from before the log; impressions, dwelling alone and what says no don't. About 20 ns an event, of which INTEREST_EVENTS of a
group are read.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.counters.audience import SCALE, WIDTH, Audience
from stream_dmgin.features import bound
from stream_dmgin.features.bound import D_UB, D_UI, N_WHERE, UI_ITEM, UI_LEN, UI_WEIGHT, W_CATALOGUE, W_SELF
from stream_dmgin.features.catalogue import K_CAPACITY, K_EMBEDDING, K_INVERSE, K_WIDTH, Catalogue, find_embedded
from stream_dmgin.features.catalogue import N_ADDRESSES as K_ADDRESSES
from stream_dmgin.features.spec import INTERESTS, InputSpec
from stream_dmgin.native import f32, f64, i8, i32, i64, kernel, u64
from stream_dmgin.state.arrays import UserArrays

if TYPE_CHECKING:
    from stream_dmgin.state.engine import StateEngine

USERS = 64  # profiles made at once


@kernel
def put_profile(w: Any, r: Any, to: Any) -> Any:
    """The profile of state row r (-1: nobody known) into WIDTH doubles at an address, zeros where nothing is known; how many events it
    stands for."""
    where, out = i64(w, (N_WHERE,)), f64(to, (WIDTH,))
    out[:] = 0
    if r < 0:
        return 0.0
    k = i64(where[W_CATALOGUE], (K_ADDRESSES,))
    width, inverse = k[K_WIDTH], f32(k[K_INVERSE], (k[K_CAPACITY],))
    UB, UI, used = where[D_UB], where[D_UI], min(WIDTH, width)
    item, weight = u64(where[UI_ITEM], (UB, UI)), f64(where[UI_WEIGHT], (UB, UI))
    events = 0.0
    for e in range(i32(where[UI_LEN], (UB,))[r]):
        row = find_embedded(where[W_CATALOGUE], item[r, e])
        if row >= 0:
            events += weight[r, e]
            x, scale = i8(k[K_EMBEDDING] + width * row, (width,)), weight[r, e] * inverse[row]
            for d in range(used):
                out[d] += scale * x[d]
    square = 0.0
    for d in range(WIDTH):
        square += out[d] * out[d]
    if square > 0:
        length = math.sqrt(square)
        for d in range(WIDTH):
            out[d] /= length
    return events


@kernel
def _put_profiles(where: Any, n: Any, one: Any, out: Any) -> None:
    """The profiles of the first n rows of the state arrays, times SCALE and rounded."""
    for r in range(n):
        put_profile(where[W_SELF], r, one.ctypes.data)
        for d in range(WIDTH):
            x = one[d] * SCALE
            out[r, d] = np.int32(math.floor(x + 0.5))


@kernel
def _sum_up(
    item: Any, clicked: Any, user: Any, profiles: Any, slots: Any, hashes: Any, metrics: Any, counts: Any, sums: Any
) -> Any:
    """Add up by (item, clicked), in the order of first appearance, found by the table `slots` (zeros, a power of two, with room).
    Returns the rows used. Users without a profile teach nothing."""
    used, mask = 0, np.uint64(slots.shape[0] - 1)
    for i in range(item.shape[0]):
        some = False
        for d in range(WIDTH):
            some |= profiles[user[i], d] != 0
        if not some:
            continue
        metric = np.uint8(1) if clicked[i] else np.uint8(0)
        at = (((item[i] ^ np.uint64(metric)) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)) & mask
        while True:
            row = slots[at] - 1
            if row < 0:
                row = used
                slots[at] = used + 1
                hashes[row], metrics[row], counts[row] = item[i], metric, 0
                sums[row] = 0
                used += 1
            if hashes[row] == item[i] and metrics[row] == metric:
                counts[row] += 1
                for d in range(WIDTH):
                    sums[row, d] += profiles[user[i], d]
                break
            at = (at + np.uint64(1)) & mask
    return used


class Profiles:
    """Turns what engines fold into what the counters learn of audiences. One thread."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue  # whose addresses are kept below
        self._arrays: UserArrays = UserArrays.allocate(USERS, 1, 1, INTERESTS)
        state, sizes = bound.state_addresses(self._arrays, InputSpec(groups=1, events=1))
        self._where: NDArray[np.int64] = np.zeros(N_WHERE, np.int64)
        self._where[: len(state)] = state
        self._where[W_CATALOGUE], self._where[W_SELF] = catalogue.addresses.ctypes.data, self._where.ctypes.data
        self._where[D_UB : D_UB + len(sizes)] = sizes
        self._one: NDArray[np.float64] = np.zeros(WIDTH, np.float64)

    def audience(self, engine: StateEngine) -> Audience:
        """Of the impressions and clicks folded since the last call: the profiles, as they are now, of the users, by item."""
        met = engine.take_encounters()
        slots, user = np.unique(met.slot, return_inverse=True)
        profiles: NDArray[np.int32] = np.zeros((len(slots), WIDTH), np.int32)
        for start in range(0, len(slots), USERS):
            some = slots[start : start + USERS]
            engine.read_interests(some, self._arrays)
            _put_profiles(self._where, len(some), self._one, profiles[start:])
        n = len(met)
        out = Audience(
            np.zeros(n, np.uint64), np.zeros(n, np.uint8), np.zeros(n, np.int32), np.zeros((n, WIDTH), np.int32)
        )
        table = np.zeros(1 << (2 * n + 1).bit_length(), np.int32)
        used = _sum_up(met.item_hash, met.clicked, user, profiles, table, out.hash, out.metric, out.count, out.sum)
        return out.part(slice(0, used))
