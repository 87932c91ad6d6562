"""A replay: every request in time order, its inputs built from exactly what was visible strictly before it.

    for block in Replay(source, groups, [spec]).blocks(): ...

Requests are gathered into blocks (a block's user side is built at once), but states are read and counters looked up
request by request, as time passes. A block's arrays are used again for the next one: copy what must stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.features.build import FeatureBuilder, Request
from stream_dmgin.features.inputs import REQUEST_SIDE, Inputs
from stream_dmgin.features.spec import InputSpec, Reads
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.native import hash_ids
from stream_dmgin.records import CANDIDATES_MAX
from stream_dmgin.replay.source import Source
from stream_dmgin.replay.world import Clock, World
from stream_dmgin.state.arrays import UserArrays

MAX_REQUESTS = 64
MAX_CELLS = 8192  # (request, candidate) pairs of a block
WIDEST = 1 << (CANDIDATES_MAX - 1).bit_length()
_WIDE = tuple(name for name, (_, dims) in REQUEST_SIDE.items() if dims[:1] == ("C",))


@dataclass(slots=True)
class Block:
    """Requests [first, last) of the source, and their inputs for each spec in turn."""

    first: int
    last: int
    inputs: Sequence[Inputs]

    @property
    def width(self) -> int:
        """Candidates of the widest request."""
        return self.inputs[0].candidates if self.inputs else 0


class _View:
    """The buffers of one spec: a block, and one request at a time, whose side is built at its own moment."""

    def __init__(self, spec: InputSpec, world: World) -> None:
        self.builder = FeatureBuilder(spec, world.catalogue, world.counters, world.groups)
        self.arrays = UserArrays.of(spec, MAX_REQUESTS)
        self.inputs = Inputs.allocate(spec, MAX_REQUESTS, max(1, MAX_CELLS // MAX_REQUESTS))
        self._one = Inputs.allocate(spec, 1, WIDEST)

    def put(self, row: NDArray[np.int32], request: Request, block: Inputs) -> None:
        """Build the request side of one row of the block."""
        one = self._one.fit(1, min(WIDEST, 1 << (block.candidates - 1).bit_length()))  # few sizes, so few bindings
        self.builder.request_side(self.arrays, row, [request], one)
        k, width = row[0], block.candidates
        for name in REQUEST_SIDE:
            block[name][k] = one[name][0, :width] if name in _WIDE else one[name][0]


class Replay:
    """One pass over a source for models of these specs (none: only events and counters)."""

    def __init__(self, source: Source, groups: GroupMap, specs: Sequence[InputSpec]) -> None:
        self.source, self.world = source, World(source, groups, Reads.of(specs))
        self._views = [_View(s, self.world) for s in dict.fromkeys(specs)]
        self._view_of = [list(dict.fromkeys(specs)).index(s) for s in specs]
        self.clock = Clock(self.world, source)

    def blocks(
        self, first: int = 0, last: int | None = None, each: Callable[[int], None] | None = None
    ) -> Iterator[Block]:
        """Blocks of the requests [first, last). Raises Leak (`replay/guard.py`) rather than let a request see what wasn't visible
        yet. `each(i)` is called for every request at its time, before its block is whole."""
        r = self.source.requests
        users = [u.encode() for u in r.user]
        at, ts, partition = r.at.tolist(), r.ts.tolist(), r.partition.tolist()
        lat = [None if x != x else x for x in r.lat.tolist()]
        lon = [None if x != x else x for x in r.lon.tolist()]
        hashes, start = hash_ids(r.item), r.first.tolist()
        rows = [np.array([k], np.int32) for k in range(MAX_REQUESTS)]
        for lo, hi, width in plan(r.first, first, len(r) if last is None else last):
            inputs = [v.inputs.fit(hi - lo, width) for v in self._views]
            for i in range(lo, hi):
                self.clock.to(at[i])
                self.clock.guard.request(at[i], r.id[i])
                engine = self.world.engines[partition[i]]
                asked = (ts[i], hashes[start[i] : start[i + 1]], lat[i], lon[i], r.surface[i], r.page[i])
                for v, x in zip(self._views, inputs, strict=True):
                    engine.read([users[i]], v.arrays, i - lo)
                    v.put(rows[i - lo], asked, x)
                if each is not None:
                    each(i)
            for v, x in zip(self._views, inputs, strict=True):
                v.builder.user_side(v.arrays, hi - lo, x)
            yield Block(lo, hi, [inputs[k] for k in self._view_of])

    def close(self) -> None:
        """Release the states."""
        self.world.close()


def plan(first_row: NDArray[np.int64], first: int, last: int) -> Iterator[tuple[int, int, int]]:
    """Cut requests into blocks of at most MAX_REQUESTS and MAX_CELLS: (from, to, candidates of the widest)."""
    widths = np.diff(first_row).tolist()
    lo, widest = first, 0
    for i in range(first, last):
        wider = max(widest, widths[i])
        if i > lo and (i - lo >= MAX_REQUESTS or (i + 1 - lo) * wider > MAX_CELLS):
            yield lo, i, widest
            lo, wider = i, widths[i]
        widest = wider
    if lo < last:
        yield lo, last, widest
