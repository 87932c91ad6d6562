"""Going over to another group map while the worker serves. Control path: runs between two turns of the loop.

The map to go by is the one that the control topic's record `groups` names (`groups publish`), else that of the settings.
A partition whose state only has to merge singleton groups does so at once. One whose items move gets a new store, built in
the background (`rebuild.py`), and goes over to it when that has folded exactly what the serving store has. One partition
at a time; each score names the map of its partition's state. Why so: docs/adr/0009-regroup.md.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from stream_dmgin import topics
from stream_dmgin.control import Control, Erasure
from stream_dmgin.errors import StreamDmginError
from stream_dmgin.groups import wire
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import open_log
from stream_dmgin.settings import Settings
from stream_dmgin.state.erased import MARK
from stream_dmgin.state.ops.places import point
from stream_dmgin.worker.health import Health
from stream_dmgin.worker.partitions import Owned, Partitions
from stream_dmgin.worker.rebuild import Build, Fetch

log_ = logging.getLogger(__name__)

LOOK_S = 0.5
AGAIN_S = 30.0  # after a failure
CUT_S = 0.2  # so long may the loop fold the last records of a new store
END_S = 10.0


class Regroup:
    """Brings the owned partitions to the map to go by. `turn` is called between two turns, and doesn't block but to go over."""

    def __init__(
        self, settings: Settings, partitions: Partitions, control: Control, health: Health,
        commit: Callable[[Owned], None], done: Callable[[GroupMap], None], fetch: Fetch | None = None,
    ) -> None:  # fmt: skip
        """`done(map)`: every owned partition has it now. `fetch`: see Build."""
        self._settings, self._partitions, self._control, self._health = settings, partitions, control, health
        self._commit, self._done, self._fetch = commit, done, fetch
        self._topic = settings.topic(topics.CONTROL)
        self._asked: str | None = None  # id of the map that the control topic named when it was last looked at
        self._loader: threading.Thread | None = None
        self._loaded: GroupMap | None = None
        self._build: Build | None = None
        self._owned: Owned | None = None  # whose store is built
        self._since = 0.0
        self._looked = self._retry = 0.0
        self._not_before: dict[int, float] = {}  # partition that failed -> when it is tried again
        self._why: dict[int, str] = {}  # and why it did
        self._settled: tuple[str, int] | None = None
        self._unloadable: str | None = None  # why the published map can't be had

    # What the worker calls

    def begin(self) -> None:
        """Before partitions come: go by the published map from the start, if it can be had. Blocks."""
        if (record := self._published()) is not None:
            self._asked = str(record.get("id"))
            self._load(record)
            self._take_loaded()
            self._retry = time.monotonic() + AGAIN_S

    @property
    def busy(self) -> bool:
        """Whether partitions are still to go over, and none of them has failed to."""
        left = {o.partition for o in self._left()}
        return self._loader is not None or bool(left - self._not_before.keys())

    def turn(self) -> None:
        """Between two turns of the loop."""
        now = time.monotonic()
        if self._build is not None:
            self._tend(self._build, now)
        if now - self._looked >= LOOK_S:
            self._looked = now
            self._look(now)
            self._report()

    def close(self) -> None:
        """Stop building; it goes on when a worker next has the partition."""
        if self._build is not None:
            self._build.stop()
            if self._build.ident is not None:
                self._build.join(END_S)

    # The map to go by

    def _published(self) -> Mapping[str, Any] | None:
        record = self._control.others.get(wire.KEY)
        return record if isinstance(record, Mapping) and isinstance(record.get("id"), str) else None

    def _load(self, record: Mapping[str, Any]) -> None:
        """Own thread, but for the start."""
        map_id = str(record["id"])
        maps = self._partitions.maps
        try:
            if maps.file(map_id).is_file():
                groups = maps.load(map_id)
            else:
                with open_log(self._settings.log, self._settings.kafka) as log:
                    held = wire.control_records(log, self._topic)
                groups = wire.fetch(held, record, maps.file(map_id))
                maps.keep(groups)
        except Exception as e:
            self._unloadable = f"the published group map {map_id} can't be loaded, the old one stays: {e}"
            log_.error("%s", self._unloadable)
        else:
            self._loaded = groups

    def _take_loaded(self) -> None:
        groups, self._loaded = self._loaded, None
        if groups is None:
            return
        if groups.id != self._partitions.groups.id:
            log_.info("group map %s is to go by, in place of %s", groups.id, self._partitions.groups.id)
            self._partitions.adopt(groups)
        self._not_before, self._why = {}, {}

    # Partitions

    def _left(self) -> list[Owned]:
        wanted = self._partitions.groups.id
        return [o for _, o in sorted(self._partitions.owned.items()) if o.engine.groups.id != wanted]

    def _look(self, now: float) -> None:
        if self._loader is not None:
            if self._loader.is_alive():
                return
            self._loader = None
            self._take_loaded()
            self._retry = now + AGAIN_S if self._unloadable else 0.0
        record = self._published()
        if record is not None and (record["id"] != self._asked or (self._unloadable and now >= self._retry)):
            self._asked = str(record["id"])
            self._unloadable = None
            if self._asked != self._partitions.groups.id:
                self._loader = threading.Thread(target=self._load, args=(record,), name="load-groups", daemon=True)
                self._loader.start()
                return
        left = self._left()
        if self._build is None and left and not self._health.waiting:
            self._step(left, now)
        elif not left and (here := (self._partitions.groups.id, len(self._partitions.owned))) != self._settled:
            self._settled = here
            self._done(self._partitions.groups)

    def _step(self, left: list[Owned], now: float) -> None:
        """One partition: at once where groups only merge, else begin to build."""
        groups, p = self._partitions.groups, self._partitions
        for o in left:
            if o.engine.moves(groups) == 0:
                t0, before = time.monotonic(), o.engine.groups.id
                o.engine.regroup(groups)
                o.dirty = True
                self._went_over("grown", o, before, (time.monotonic() - t0) * 1000)
                return
        for o in sorted(left, key=lambda o: o.partition in self._not_before):  # those that failed come last
            if not o.restoring and now >= self._not_before.get(o.partition, 0.0):
                self._owned, self._since = o, now
                self._build = Build(
                    lambda: open_log(self._settings.log, self._settings.kafka), self._settings.prefix, p.directory, o.partition,
                    groups, p.maps, p.unmarked, p.cache_bytes, o.engine.offsets, self._orders(o.partition),
                    self._control.skips, self._fetch,
                )  # fmt: skip
                self._build.start()
                return

    def _tend(self, build: Build, now: float) -> None:
        o = self._owned
        if not build.is_alive() and build.ident is not None:
            self._build = self._owned = None
            if build.failure is not None:
                self._not_before[build.partition] = now + AGAIN_S
                self._why[build.partition] = (
                    f"partition {build.partition} can't go over to group map {build.groups.id}: {build.failure}"
                )
                log_.error(
                    "%s; it is tried again in %.0f s, scores go on with the old map",
                    self._why[build.partition],
                    AGAIN_S,
                )
        elif (
            o is None
            or self._partitions.owned.get(build.partition) is not o
            or build.groups is not self._partitions.groups
            or self._health.waiting  # the disk is nearly full
        ):
            build.stop()
        elif build.ready.is_set():
            self._go_over(o, build)
        else:
            build.goal, build.orders = o.engine.offsets, self._orders(o.partition)

    def _go_over(self, o: Owned, build: Build) -> None:
        """The new store takes over, when it is exactly where the serving one is: offsets, and all that callers keep in it."""
        t0 = time.monotonic()
        try:
            there = build.obeyed == self._orders(o.partition) and build.finish(o.engine.offsets, CUT_S)
        except StreamDmginError as e:
            build.failure = e
            build.stop()
            return
        if not there:
            build.give_back()
            return
        self._commit(o)
        new = build.engine
        # Outbox of the counters, answered requests: they go on where they are. Which erasures are in it each store knows itself
        rows = {k: v for k, v in o.engine.scan(b"") if not k.startswith(MARK)}
        new.commit(rows.items(), [k for k, _ in new.scan(b"") if k not in rows and not k.startswith(MARK)])
        new.published = dict(o.engine.published)
        point(self._partitions.directory, o.partition, build.path)  # from here on a restart opens the new store
        old, o.engine = o.engine, build.take()
        self._build = self._owned = None
        threading.Thread(target=old.close, name="close-store", daemon=True).start()
        log_.info("partition %d: the new store was built in %.1f s", o.partition, t0 - self._since)
        self._went_over("rebuilt", o, old.groups.id, (time.monotonic() - t0) * 1000)

    def _orders(self, partition: int) -> tuple[Erasure, ...]:
        return tuple(self._control.erasures.get(partition, {}).values())

    def _went_over(self, how: str, o: Owned, before: str, ms: float) -> None:
        self._not_before.pop(o.partition, None)
        self._why.pop(o.partition, None)
        self._health.metrics.regroups.labels(how).inc()
        log_.info("partition %d went over from group map %s to %s (%s), the loop stood for %.0f ms",
                  o.partition, before, o.engine.groups.id, how, ms)  # fmt: skip

    def _report(self) -> None:
        h, left = self._health, self._left()
        maps = {o.engine.groups.id for o in self._partitions.owned.values()}
        if len(maps) == 1:
            (h.groups,) = maps
        remaining = self._build.remaining if self._build is not None else 0
        h.metrics.regroup_partitions.set(len(left))
        h.metrics.regroup_remaining.set(remaining)
        failure = self._unloadable or next((self._why[o.partition] for o in left if o.partition in self._why), None)
        h.regroup = None
        if left or failure or self._loader is not None:
            h.regroup = {
                "to": self._asked or self._partitions.groups.id,
                "partitions_left": [o.partition for o in left],
                "building": self._build.partition if self._build is not None else None,
                "remaining": remaining,
                "failure": failure,
            }
