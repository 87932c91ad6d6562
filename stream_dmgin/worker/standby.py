"""Copies of the partitions that other workers own, kept fresh from the log, so that a take-over finds a warm store.

A copy is folded exactly as far as its owner has published increments of the shared counters, which every worker follows
anyway: up to there they are counted, beyond they are not, so whoever takes over goes on from the copy as from any store. It is
a commit interval behind the owner. Between two turns of the loop, a slice a turn; nothing is answered, diverted or published.

A copy that isn't here yet begins with the newest good snapshot, if there are any, else with the log (worker/fetching.py).

A round reads the partitions that have moved, from the copies' offsets to the published ones, with a reader in no group.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from stream_dmgin import topics
from stream_dmgin.control import Control, mask_skipped
from stream_dmgin.errors import LogUnavailable, StoreBusy, StreamDmginError
from stream_dmgin.log.base import TP, Batch, Log, Reader
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.parse import parse_events
from stream_dmgin.state.store import REQUESTS_ROW
from stream_dmgin.worker.fetching import Fetching
from stream_dmgin.worker.health import Health
from stream_dmgin.worker.partitions import Answered, Owned

log_ = logging.getLogger(__name__)

ROUND_S = 0.3  # between two rounds
COMMIT_S = 5.0
BEGINS_S = 60.0  # the log is asked so often whether it still holds what the copies are to fold
RECORDS = 5_000  # a slice: some milliseconds
COUNTED = 1 << 62  # nothing that a copy folds is counted again


class Standby:
    """`turn` between two turns of the loop. `copies` are the stores that are open here for others' partitions."""

    def __init__(
        self, log: Log, prefix: str, total: int, control: Control, health: Health, *, open_store: Callable[[int], StateEngine],
        path: Callable[[int], Path], published: Callable[[int], Mapping[int, int]], mine: Callable[[], Collection[int] | None],
        on_open: Callable[[Owned], None], fetching: Fetching | None = None,
        wanted: Callable[[], Collection[int] | None] | None = None,
    ) -> None:  # fmt: skip
        """`published(partition)`: event topic number -> next offset whose events aren't counted yet; `mine()`: partitions that
        are no others', None while nobody knows; `on_open(copy)` ties in erasures; `path(partition)`: of its store; `wanted()`: the
        partitions to keep copies of, None while that isn't known (what there is stays); without it all."""
        self._path, self._fetching = path, fetching
        self._wanted = wanted or (lambda: range(total))
        self._log, self._prefix, self._total, self._control, self._health = log, prefix, total, control, health
        self._open_store, self._published, self._mine, self._on_open = open_store, published, mine, on_open
        self._names = {prefix + t: n for n, t in enumerate(topics.EVENTS)}
        self._reader: Reader = log.reader(list(self._names))
        self._numbers = np.arange(len(topics.EVENTS), dtype=np.uint8)
        self._goals: dict[TP, int] = {}  # of this round
        self._ended_at = self._asked_at = -1e9
        self._committed: dict[int, float] = {}
        self._not_before: dict[int, float] = {}  # a store that could not be opened, or a copy that failed
        self.copies: dict[int, Owned] = {}

    def has(self, partition: int) -> bool:
        """Whether there is a copy."""
        return partition in self.copies

    def take(self, partition: int) -> StateEngine | None:
        """The store of a partition that this worker is to own from now on."""
        copy = self.copies.pop(partition, None)
        return copy.engine if copy is not None else None

    def give(self, partition: int, engine: StateEngine) -> None:
        """A committed store of a partition that has gone to another worker."""
        self._add(partition, engine)

    def turn(self) -> None:
        """A slice of a round, or the beginning of one. Raises LogUnavailable."""
        now = time.monotonic()
        if self._goals:
            batch = self._reader.poll(RECORDS, 0)
            if batch is not None:
                try:
                    self._fold(batch)
                finally:
                    batch.release()
            ended = self._reader.ended()
            self._goals = {
                tp: goal for tp, goal in self._goals.items() if max(self._at(tp, goal), ended.get(tp, 0)) < goal
            }
            if not self._goals:
                self._ended_at = now
                self._reader.assign({})
        elif now - self._ended_at >= ROUND_S:
            self._ended_at = now
            self._begin(now)
        self._commit_one(now)

    def close(self) -> None:
        """Commit and release the copies."""
        for copy in self.copies.values():
            self._commit(copy)
            copy.engine.close()
        self.copies.clear()
        self._reader.close()

    def commit(self, copy: Owned, rows: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Write what changed in a copy, and these rows."""
        asked = copy.engine.get(REQUESTS_ROW)  # how far its last owner here had answered; every store has the row
        copy.engine.commit([(REQUESTS_ROW, asked if asked is not None else bytes(8)), *rows])
        copy.dirty = False

    def _begin(self, now: float) -> None:
        mine = self._mine()
        if mine is None:
            return
        wanted = self._wanted()
        self._drop_unwanted(mine, wanted)
        for p in sorted(set(wanted or ()) - set(mine) - self.copies.keys()):
            if now >= self._not_before.get(p, 0.0) and self._is_here(p):
                self._not_before[p] = now + BEGINS_S
                try:
                    self._add(p, self._open_store(p))
                    del self._not_before[p]
                except StoreBusy:
                    log_.warning("partition %d: no standby copy, another process has its store here", p)
                return  # one a round: opening takes milliseconds
        starts: dict[TP, int] = {}
        for p, copy in self.copies.items():
            have, to = copy.engine.offsets, self._published(p)
            starts |= {(t, p): have[n] for t, n in self._names.items() if have[n] < to[n]}
            self._goals |= {(t, p): to[n] for t, n in self._names.items() if have[n] < to[n]}
        self._health.metrics.standby.set(len(self.copies))
        self._health.metrics.standby_remaining.set(sum(self._goals[tp] - start for tp, start in starts.items()))
        if starts and now - self._asked_at > BEGINS_S:
            try:
                begins = {t: self._log.begins(t) for t in self._names}
            except LogUnavailable as e:
                log_.warning("the standby copies wait for the log: %s", e)
                self._goals.clear()
                return
            self._asked_at = now
            for p in {p for (t, p), start in starts.items() if start < begins[t][p]}:
                log_.warning(
                    "partition %d: no standby copy, the log no longer holds what it is to fold. `state restore --partition %d --yes` "
                    "takes a newer snapshot", p, p,
                )  # fmt: skip
                self._not_before[p] = now + BEGINS_S
                self._drop(p)
            starts = {tp: start for tp, start in starts.items() if tp[1] in self.copies}
            self._goals = {tp: goal for tp, goal in self._goals.items() if tp in starts}
        if starts:
            self._reader.assign(starts)

    def _add(self, p: int, engine: StateEngine) -> None:
        copy = Owned(p, engine, Answered(0), {}, lambda n: 0, {})
        copy.hold = 0
        engine.published = dict.fromkeys(range(len(topics.EVENTS)), COUNTED)
        self.copies[p] = copy
        self._committed[p] = time.monotonic()
        self._asked_at = -1e9
        self._on_open(copy)

    def _drop_unwanted(self, mine: Collection[int], wanted: Collection[int] | None) -> None:
        for p in [p for p in self.copies if p in mine]:
            self._drop(p)
        if wanted is None:
            return
        for p in [p for p in self.copies if p not in wanted]:
            log_.info("partition %d: other workers keep the standby copies now, the store stays behind", p)
            self._commit(self.copies[p])
            self._drop(p)
        if self._fetching is not None:
            for p in set(self._fetching.partitions) - set(mine) - set(wanted):
                self._fetching.cancel(p)

    def _is_here(self, p: int) -> bool:
        """Whether the store of a partition can be opened: it was here, or its snapshot is by now, or none is good."""
        f = self._fetching
        if f is None or f.ready(p) or not (p in f.partitions or f.missing(p)):
            return True
        if not f.partitions:  # one at a time
            f.begin(p)
        return False

    def _drop(self, p: int) -> None:
        engine = self.copies.pop(p).engine
        begun = engine.get(REQUESTS_ROW) is None  # never committed: it must not pass for a store that was left behind
        engine.close()
        if begun:
            shutil.rmtree(self._path(p), ignore_errors=True)
        self._goals = {tp: goal for tp, goal in self._goals.items() if tp[1] != p}

    def _at(self, tp: TP, goal: int) -> int:
        copy = self.copies.get(tp[1])
        return copy.engine.offsets[self._names[tp[0]]] if copy is not None else goal

    def _fold(self, batch: Batch) -> None:
        if self._control.skips:
            mask_skipped(batch, self._prefix, self._control.skips)
        columns, _ = parse_events(batch, self._numbers)  # malformed ones are their owner's to divert
        goals = np.zeros((len(batch.topics), self._total), np.int64)
        for (t, p), goal in self._goals.items():
            goals[self._names[t], p] = goal
        rows = np.flatnonzero(batch.offset < goals[batch.topic, batch.partition]).astype(np.int32)
        of = batch.partition[rows]
        for p in np.unique(of).tolist():
            if (copy := self.copies.get(p)) is None:
                continue
            try:
                copy.engine.fold(columns, rows[of == p])
                copy.dirty = True
            except Exception as e:  # its owner says what is wrong; the copy must not take this worker down
                log_.error("partition %d: its standby copy failed and is given up for a while: %s", p, e)
                self._not_before[p] = time.monotonic() + BEGINS_S
                self._drop(p)

    def _commit_one(self, now: float) -> None:
        for p, copy in self.copies.items():
            if copy.dirty and (now - self._committed[p] > COMMIT_S or copy.engine.pressure > 1):
                self._committed[p] = now
                self._commit(copy)
                return

    def _commit(self, copy: Owned) -> None:
        if copy.dirty:
            try:
                self.commit(copy)
            except StreamDmginError as e:
                log_.error("partition %d: its standby copy can't be written: %s", copy.partition, e)
