"""One partition's store under another group map, built in the background from the log, by the fold that serves.

A thread at low priority reads the partition's events from the store's own offsets up to where the serving store is,
never beyond. It commits as it goes: killed and started again, it goes on from there. Near the end it stands still
(`ready`), so that the loop, between two turns, may fold the last few records itself (`finish`) and take the engine over.

Memory: one partition's cache. A store of the same map that lies there already (kept from before, or half built) is
brought up to date instead of building from the first event; those of other maps are removed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from stream_dmgin import topics
from stream_dmgin.control import Erasure, Place, digest_of, mask_skipped
from stream_dmgin.errors import StoreBusy, StreamDmginError
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import TP, Log, Reader
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.erased import Erased, mark_of
from stream_dmgin.state.ops.erase import carry_out, pending
from stream_dmgin.state.ops.places import Maps, new_store, open_store_under_its_map, other_stores
from stream_dmgin.state.parse import parse_events

log_ = logging.getLogger(__name__)

MAX_BATCH = 10_000
COMMIT_S = 1.0
NEAR = 5_000  # records: so few the loop folds itself, in some milliseconds
POLL_S = 0.05
BUSY_S = 15.0
NICE = 5  # not the lowest: a thread that has to wait for a processor while it holds the interpreter holds up the loop
NO_INCREMENTS = 1 << 62  # what is folded here is in the shared counters already: the serving store published it
Fetch = Callable[[Log, int, GroupMap, Mapping[int, int], Path], bool]


class Build(threading.Thread):
    """Builds the store of one partition under `groups`. The loop sets `goal`, the offsets that the serving store has folded,
    and `orders`, the erasures in this partition."""

    def __init__(
        self, open_log: Callable[[], Log], prefix: str, directory: Path, partition: int, groups: GroupMap, maps: Maps,
        unmarked: str, cache_bytes: int, goal: Mapping[int, int], orders: tuple[Erasure, ...], skips: Mapping[Place, str],
        fetch: Fetch | None = None,
    ) -> None:  # fmt: skip
        """`fetch`: fills a path with a snapshot of the partition under this map, if there is one."""
        super().__init__(name=f"regroup-{partition}", daemon=True)
        self._open_log, self._directory, self._maps, self._unmarked = open_log, directory, maps, unmarked
        self._cache_bytes, self._fetch = cache_bytes, fetch
        self.partition, self.groups = partition, groups
        self._prefix, self.goal, self.orders, self._skips = prefix, goal, orders, skips
        self.obeyed: tuple[Erasure, ...] | None = None  # the orders that the store has in it
        self._names = tuple(prefix + t for t in topics.EVENTS)
        self._numbers = np.arange(len(topics.EVENTS), dtype=np.uint8)
        self._engine: StateEngine | None = None
        self._reader: Reader | None = None
        self._position: dict[TP, int] = {}
        self._end, self._again = threading.Event(), threading.Event()
        self._taken = False
        self.path = Path()
        self.ready = threading.Event()  # the loop may `finish`, and then `take` or `give_back`
        self.failure: BaseException | None = None

    # The loop's side

    @property
    def remaining(self) -> int:
        """Records still to fold."""
        have = self._engine.offsets if self._engine is not None else {}
        return sum(max(0, end - have.get(t, 0)) for t, end in self.goal.items())

    @property
    def engine(self) -> StateEngine:
        """The engine being built. For the loop while `ready`."""
        assert self._engine is not None
        return self._engine

    def finish(self, goal: Mapping[int, int], budget_s: float) -> bool:
        """Fold the records that are missing to be exactly at `goal`; False when that isn't done in time. Loop, while `ready`."""
        self.goal = goal
        if any(at > goal[t] for t, at in self.engine.offsets.items()):
            return False  # after a crash the serving store may be the older one: it will come to this point
        return self._advance(time.monotonic() + budget_s)

    def take(self) -> StateEngine:
        """The engine is the loop's from now on; the thread ends. While `ready`."""
        self._taken = True
        self.stop()
        return self.engine

    def give_back(self) -> None:
        """The thread goes on. While `ready`."""
        self.ready.clear()
        self._again.set()

    def stop(self) -> None:
        """End soon; what is committed stays for the next time."""
        self._end.set()
        self._again.set()

    # The thread's side

    def run(self) -> None:
        """See the module."""
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        try:
            with self._open_log() as log:
                self._engine = self._open(log)
                self._engine.published = dict.fromkeys(range(len(topics.EVENTS)), NO_INCREMENTS)
                first = self._engine.offsets
                self._check_kept(log, first)
                self._reader = log.reader(self._names)
                try:
                    while not self._end.is_set():
                        self._obey(log)
                        if self._follow() and self.obeyed == self.orders:
                            self._check_whole(log, first)
                            self._stand()
                finally:
                    self._reader.close()
        except Exception as e:
            self.failure = e
        finally:
            if self._engine is not None and not self._taken:
                self._engine.close()

    def _obey(self, log: Log) -> None:
        """Have no user in the store who is erased."""
        orders, engine = self.orders, self.engine
        if orders == self.obeyed:
            return
        engine.commit()
        engine.ignore(Erased(orders))
        wanted = pending(engine, orders)
        after: bytes | None = b""
        while wanted and any(engine.offsets.values()) and after is not None:
            found, after = engine.find(lambda user: digest_of(user) in wanted, after)
            for user in found:
                order = wanted[digest_of(user)]
                carry_out(engine, log, self._prefix, order, user.decode(), lambda: None, self._skips)
        engine.commit([mark_of(e) for e in wanted.values()])
        self.obeyed = orders

    def _follow(self) -> bool:
        """Come near to the goal; whether it is near."""
        committed = time.monotonic()
        while self.remaining > NEAR:
            if self._end.is_set() or self.obeyed != self.orders:
                return False
            self._advance(time.monotonic() + COMMIT_S, NEAR)
            if self.engine.pressure > 1 or time.monotonic() - committed > COMMIT_S:
                self.engine.commit()
                committed = time.monotonic()
        self.engine.commit()
        return True

    def _stand(self) -> None:
        self._seek()  # what comes next is fetched already when the loop asks for it
        self._again.clear()
        if not self._end.is_set():
            self.ready.set()
            self._again.wait()

    def _advance(self, until: float, near: int = 0) -> bool:
        """Read and fold up to the goal, or `near` it; False when `until` comes first."""
        engine, reader = self.engine, self._reader
        assert reader is not None
        while self.remaining > near:
            if time.monotonic() > until or self._end.is_set():
                return False
            self._seek()
            batch = reader.poll(MAX_BATCH, POLL_S)
            if batch is None:
                continue
            try:
                limit = np.array([self.goal[t] for t in range(len(self._names))], np.int64)
                mask_skipped(batch, self._prefix, dict(self._skips))
                columns, _ = parse_events(batch, self._numbers)  # malformed: the serving side has diverted them
                engine.fold(columns, np.flatnonzero(batch.offset < limit[batch.topic]).astype(np.int32))
                for t, name in enumerate(self._names):
                    mine = batch.offset[batch.topic == t]
                    if len(mine):
                        self._position[name, self.partition] = int(mine[-1]) + 1
            finally:
                batch.release()
            if engine.pressure > 1:
                engine.commit()
        return True

    def _seek(self) -> None:
        """Let the reader stand where the engine does: it may have read past the goal."""
        want = {(self._names[t], self.partition): at for t, at in self.engine.offsets.items()}
        if self._position != want and self._reader is not None:
            self._reader.assign(want)
            self._position = want

    def _check_whole(self, log: Log, first: Mapping[int, int]) -> None:
        """That nothing went while it was read: the store would lack it, and is removed."""
        try:
            self._check_kept(log, first)
        except StreamDmginError:
            self.engine.close()
            shutil.rmtree(self.path)
            raise

    def _check_kept(self, log: Log, first: Mapping[int, int]) -> None:
        for t, name in enumerate(self._names):
            begin = log.begins(name)[self.partition]
            if begin > first[t]:
                raise StreamDmginError(
                    f"{name}/{self.partition} now begins at offset {begin}, but map {self.groups.id} needs the events from "
                    f"{first[t]} on: retention has removed them. Keep the old map, or give one that extends it, or accept the "
                    "loss by starting with an empty --data-dir"
                )

    # Stores

    def _open(self, log: Log) -> StateEngine:
        """The furthest of the stores there that serve this map, or one from a snapshot, or a new one; others are removed."""
        found = [
            (path, engine) for path in other_stores(self._directory, self.partition) if (engine := self._usable(path))
        ]
        found.sort(key=lambda x: sum(x[1].offsets.values()))
        for path, engine in found[:-1]:
            engine.close()
            shutil.rmtree(path)
        if found:
            self.path, engine = found[-1]
            engine.regroup(self.groups)
            log_.info("partition %d: map %s goes on in %s", self.partition, self.groups.id, self.path)
            return engine
        self.path = new_store(self._directory, self.partition, self.groups.id)
        if self._fetch is not None and self._fetch(log, self.partition, self.groups, self.goal, self.path):
            engine = self._open_waiting(self.path)
            log_.info("partition %d: map %s goes on from a snapshot in %s", self.partition, self.groups.id, self.path)
            return engine
        log_.info("partition %d: map %s is built from the log in %s", self.partition, self.groups.id, self.path)
        return StateEngine.open(self.path, self.partition, self.groups, cache_bytes=self._cache_bytes)

    def _usable(self, path: Path) -> StateEngine | None:
        """Its engine when `groups` is its map, or extends it. A store of no use is removed."""
        try:
            engine = self._open_waiting(path)
        except StoreBusy:
            raise  # another worker's: later
        except Exception as e:
            log_.warning("%s can't be opened and is removed: %s", path, e)
        else:
            if engine.moves(self.groups) == 0:
                return engine
            engine.close()
        shutil.rmtree(path)
        return None

    def _open_waiting(self, path: Path) -> StateEngine:
        """A store from which the partition has just gone over is still being closed."""
        until = time.monotonic() + BUSY_S
        while True:
            try:
                return open_store_under_its_map(
                    path, self.partition, self._maps, self._unmarked, self.groups, cache_bytes=self._cache_bytes
                )
            except StoreBusy:
                if self._end.wait(0.05) or time.monotonic() > until:
                    raise
