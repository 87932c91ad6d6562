"""From a user's state, the shared counters, the catalogue and the group map to the model's inputs (`spec.py`).

The same code serves, replays and trains. Hot path: two numba calls a batch; Python's part is to hash the candidates and to
fill in six numbers a request. Costs and their command: docs/features.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.counters.table import CounterTable
from stream_dmgin.errors import UsageError
from stream_dmgin.features import bound
from stream_dmgin.features.blocks import bits
from stream_dmgin.features.catalogue import Catalogue, unit_vector
from stream_dmgin.features.flat_side import flat_side
from stream_dmgin.features.inputs import Inputs
from stream_dmgin.features.request_side import NUMBERS, PLACE, SCRATCH, request_side
from stream_dmgin.features.scales import bucket, log_table
from stream_dmgin.features.spec import MEETING, RING, InputSpec, Reads
from stream_dmgin.features.user_side import MAX_GROUPS, user_side
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.native import hash_ids
from stream_dmgin.state.hash import item_hash, surface_of

if TYPE_CHECKING:
    from stream_dmgin.state.arrays import UserArrays

Rows = int | NDArray[np.int32]
# ts (ms), candidates (item ids, or their hashes as uint64), latitude and longitude in degrees or None, surface or None, id of the item on
# whose page they would stand or None
Request = tuple[int, "Sequence[str] | NDArray[np.uint64]", float | None, float | None, str | None, str | None]
_KEPT = 64  # bindings and surfaces remembered


class FeatureBuilder:
    """Builds inputs for one InputSpec over given counters, catalogue and groups. One thread at a time."""

    def __init__(self, spec: InputSpec, catalogue: Catalogue, counters: CounterTable, groups: GroupMap) -> None:
        if not (1 <= spec.groups <= MAX_GROUPS and spec.events >= 1 and 1 <= spec.short <= RING and spec.flat <= RING):
            raise ValueError(
                f"{spec}: 1 to {MAX_GROUPS} groups, 1 to {RING} short and at most {RING} flat events can be built"
            )
        needs, learns = Reads.of([spec]), counters.online
        if (needs.online and (learns is None or not learns.items)) or (needs.rhythm and learns is None):
            name = next(b for b in ("audience", "readers", "online", "rhythm") if b in spec.blocks)
            setting = "audience" if name in MEETING else "online"
            raise UsageError(
                f"the model reads the inputs `{name}`, which the counters of this process don't learn: start the worker again, or "
                f"with worker.{setting} = true before such a model is published"
            )
        catalogue.require(spec)
        self.spec, self.catalogue, self.counters = spec, catalogue, counters
        self._groups = groups
        self._logs = log_table()
        self._columns = np.array([1 + catalogue.numbers.index(n) for n in spec.item_numbers], np.int32)
        self._scratch = np.zeros(SCRATCH // 8 + 1, np.int64)
        self._bound: dict[tuple[int, int], tuple[Any, Inputs, NDArray[np.int64]]] = {}
        self._surfaces: dict[str, tuple[int, int]] = {}
        self._first_rows = np.arange(1, dtype=np.int32)
        self._numbers: NDArray[np.int64] = np.zeros((1, NUMBERS), np.int64)
        self._places: NDArray[np.float64] = np.zeros((1, PLACE), np.float64)

    @property
    def groups(self) -> GroupMap:
        """The group map; it must be the one that the states were folded with."""
        return self._groups

    @groups.setter
    def groups(self, groups: GroupMap) -> None:
        self._groups = groups
        self._bound.clear()

    def user_side(self, arrays: UserArrays, rows: Rows, out: Inputs) -> None:
        """Fill the user side of `out`: its user i is row rows[i] of `arrays` (-1: nobody known); `rows` may be a number, for
        the first rows. Users of `out` beyond are padding. ValueError where `out` is too small."""
        user_side(self._where(arrays, out), self._rows(rows, out))

    def request_side(self, arrays: UserArrays, rows: Rows, requests: Sequence[Request], out: Inputs) -> None:
        """Fill the request side of `out`, one request a user. ValueError where `out` is too small."""
        which = self._rows(rows, out)
        if len(requests) != len(which):
            raise ValueError(f"{len(requests)} requests for {len(which)} users")
        hashes = self._requests(requests, out)
        where = self._where(arrays, out)
        request_side(where, which, self._numbers[: len(which)], self._places[: len(which)], hashes)
        if self.spec.flat:
            flat_side(where, which, self._numbers[: len(which)])

    def _rows(self, rows: Rows, out: Inputs) -> NDArray[np.int32]:
        if isinstance(rows, int):
            if rows > len(self._first_rows):
                self._first_rows = np.arange(rows, dtype=np.int32)
            which = self._first_rows[:rows]
        else:
            which = rows
        if len(which) > out.users:
            raise ValueError(f"{len(which)} users don't fit into inputs for {out.users}")
        return which

    def _requests(self, requests: Sequence[Request], out: Inputs) -> NDArray[np.uint64]:
        if len(requests) > len(self._numbers):
            self._numbers = np.zeros((len(requests), NUMBERS), np.int64)
            self._places = np.zeros((len(requests), PLACE), np.float64)
        parts, at = [], 0
        for i, (ts, candidates, lat, lon, surface, page) in enumerate(requests):
            n = len(candidates)
            if n > out.candidates:
                raise ValueError(f"{n} candidates don't fit into inputs for {out.candidates}")
            parts.append(candidates if isinstance(candidates, np.ndarray) else hash_ids(candidates))
            self._numbers[i] = (
                ts,
                *self._surface(surface),
                at,
                at + n,
                np.uint64(item_hash(page)).astype(np.int64) if page else 0,
            )
            at += n
            if lat is None or lon is None or not (math.isfinite(lat) and math.isfinite(lon)):
                self._places[i, 3] = 0.0
            else:
                self._places[i] = *unit_vector(lat, lon), 1.0
        return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.zeros(0, np.uint64)

    def _surface(self, surface: str | None) -> tuple[int, int]:
        """Bucket of the model's table, and number in the state's rings."""
        if not surface:
            return 0, 0
        known = self._surfaces.get(surface)
        if known is None:
            if len(self._surfaces) >= _KEPT:  # ids could come in as surfaces: don't keep them all
                self._surfaces.clear()
            of_model = int(bucket(np.uint64(item_hash(surface)), self.spec.surface_buckets))
            known = self._surfaces[surface] = of_model, surface_of(surface)
        return known

    def _where(self, arrays: UserArrays, out: Inputs) -> NDArray[np.int64]:
        known = self._bound.get((id(arrays), id(out)))
        if known is not None:
            return known[2]
        if out.spec != self.spec:
            raise ValueError("the inputs were allocated for another InputSpec than this builder's")
        state, sizes = bound.state_addresses(arrays, self.spec)
        where = np.zeros(bound.N_WHERE, np.int64)
        where[: len(state)] = state
        where[len(state) : len(state) + len(out.addresses)] = out.addresses
        g, s = self._groups, self.spec
        where[bound.W_COUNTERS : bound.W_SELF + 1] = (
            self.counters.addresses.ctypes.data, self.catalogue.addresses.ctypes.data, g.keys.ctypes.data, g.values.ctypes.data,
            len(g.keys), self._logs.ctypes.data, self._columns.ctypes.data, len(self._columns),
            self._scratch.ctypes.data, where.ctypes.data,
        )  # fmt: skip
        where[bound.D_B : bound.D_UB] = (
            out.users, out.candidates, s.groups, s.events, s.short, len(s.candidate_features), s.item_buckets, s.category_buckets,
            s.advertiser_buckets, len(s.user_features), bits(s.blocks), s.flat,
        )  # fmt: skip
        where[bound.D_UB : bound.D_UB + len(sizes)] = sizes
        if len(self._bound) >= _KEPT:
            self._bound.clear()
        self._bound[id(arrays), id(out)] = (arrays, out, where)  # holds both, so that the addresses stay good
        return where
