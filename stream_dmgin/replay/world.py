"""What scoring reads, in memory: states by partition, the shared counters, the catalogue, the group map; and the clock that
brings it forward over a source's events. The fold, the counters and the features are those of the live path.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stream_dmgin import topics
from stream_dmgin.counters.increments import Increments
from stream_dmgin.counters.learner import STRETCH, OnlineModel
from stream_dmgin.counters.table import CounterTable
from stream_dmgin.features.catalogue import Catalogue
from stream_dmgin.features.profile import Profiles
from stream_dmgin.features.spec import NOTHING, Reads
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.replay.guard import Guard
from stream_dmgin.replay.source import EventChunk, Source
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.parse import EventColumns, parse_events

_NUMBERS = np.arange(len(topics.EVENTS), dtype=np.uint8)


class World:
    """Everything a request is answered from, for models that need what `reads` says."""

    def __init__(self, source: Source, groups: GroupMap, reads: Reads = NOTHING) -> None:
        self.groups = groups
        self.engines = {p: StateEngine.open(None, p, groups) for p in source.partitions}
        self.counters = CounterTable(OnlineModel.of(reads.online, reads.rhythm))
        self.catalogue = Catalogue(embedding=reads.embedding)
        for item in source.items():
            self.catalogue.upsert(item)
        self._profiles = Profiles(self.catalogue) if reads.audience else None

    def count(self, shared: bool) -> None:
        """Bring what the engines folded since the last call into the counters, or drop it where it is not `shared`."""
        for engine in self.engines.values():
            raw = engine.take_increments()
            audience = None if self._profiles is None else self._profiles.audience(engine)
            if shared and len(raw.count):
                self.counters.take(Increments.from_raw(raw, self.catalogue, audience))

    def settle(self) -> None:
        """Let the engines forget which events are new: nothing is written from here."""
        for engine in self.engines.values():
            engine.commit()

    def close(self) -> None:
        """Release the engines."""
        for engine in self.engines.values():
            engine.close()


class Clock:
    """Folds a source's events in the order in which they became visible. One pass."""

    def __init__(self, world: World, source: Source) -> None:
        self._world = world
        self._chunks: Iterator[EventChunk] = source.events()
        self._at: list[int] = []
        self._next = 0
        self._columns: EventColumns | None = None
        self.folded = self.malformed = 0
        self.guard = Guard()
        self._load()

    def to(self, time: int) -> None:
        """Fold every event visible strictly before `time` that has not been folded yet."""
        while self._columns is not None:
            start, n = self._next, len(self._at)
            if start < n and self._at[start] >= time:
                return
            end = n if self._at[-1] < time else int(np.searchsorted(self._times, time, side="left"))
            if end > start:
                self._fold(start, end)
                self._next = end
            if end < n:
                return
            self._load()

    def finish(self) -> None:
        """Fold what is left."""
        self.to(np.iinfo(np.int64).max)

    def _load(self) -> None:
        self._world.settle()
        chunk = next(self._chunks, None)
        self._next = 0
        if chunk is not None:
            self.guard.chunk(chunk.at)
        if chunk is None or not len(chunk):
            self._columns, self._at = None, []
            return
        self._chunk = chunk
        self._columns, bad = parse_events(chunk.batch, _NUMBERS)
        self.malformed += len(bad)
        self._times, self._at = chunk.at, chunk.at.tolist()
        self._good = self._columns.status == 0
        self._clean = bool(self._good.all())
        self._one = self._world.engines[int(chunk.batch.partition[0])] if len(self._world.engines) == 1 else None
        self._private = np.flatnonzero(~chunk.shared)
        self._rows = np.arange(len(chunk), dtype=np.int32)

    def _fold(self, start: int, end: int) -> None:
        """Events [start, end) of the chunk, in runs that are shared or are not."""
        self.guard.folded(self._times[start:end])
        self.folded += end - start
        if not len(self._private):
            self._stretch(start, end, True)
            return
        shared = self._chunk.shared[start:end]
        cuts = [start, *(start + 1 + np.flatnonzero(shared[1:] != shared[:-1])).tolist(), end]
        for a, b in zip(cuts, cuts[1:], strict=False):
            self._stretch(a, b, bool(self._chunk.shared[a]))

    def _stretch(self, start: int, end: int, shared: bool) -> None:
        for at in range(start, end, STRETCH):
            self._run(at, min(at + STRETCH, end), shared)

    def _run(self, start: int, end: int, shared: bool) -> None:
        assert self._columns is not None
        rows = self._rows[start:end]
        if not self._clean:
            rows = rows[self._good[start:end]]
        if self._one is not None:
            self._one.fold(self._columns, rows)
        else:
            of: NDArray[np.int32] = self._columns.partition[rows]
            for p in np.unique(of).tolist():
                self._world.engines[p].fold(self._columns, np.ascontiguousarray(rows[of == p]))
        self._world.count(shared)
