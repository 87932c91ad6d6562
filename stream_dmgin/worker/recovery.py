"""Stores that aren't here are filled from the newest good snapshot before they are opened; the worker then folds the tail of the
log as after any restart. Control path: called when partitions are assigned, several partitions at once.

A snapshot is good for a partition when its files are whole, it is of the same topics and partitions, and the log still holds
what comes after it. Otherwise an older one is tried, and then the whole log is folded; what was wrong is said. A store of
another group map than the worker's is no trouble: it goes over to that as any store does (worker/regroup.py).
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path

from stream_dmgin import topics
from stream_dmgin.errors import StreamDmginError
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import Log
from stream_dmgin.settings import Settings
from stream_dmgin.state.ops.places import store_path
from stream_dmgin.state.snapshots.manifest import Manifest
from stream_dmgin.state.snapshots.place import Place, SnapshotsUnavailable
from stream_dmgin.state.snapshots.restore import Restored, candidates, fetch_groups, restore_partition, restoring_path
from stream_dmgin.state.store import holds_a_store
from stream_dmgin.worker.health import Health
from stream_dmgin.worker.partitions import Offsets, read_groups, read_meta

log_ = logging.getLogger(__name__)

AT_ONCE = 4  # partitions
REPORT_S = 2.0
RETRIES_S = (1.0, 3.0, 9.0)  # pauses before a location that can't be reached is given up


class Recovery:
    """Fills empty stores from `snapshot.to`."""

    def __init__(self, settings: Settings, health: Health) -> None:
        """Raises ConfigError when the location can't be named so."""
        self._settings, self._health = settings, health
        self._place = Place(settings["snapshot.to"])
        self._directory = settings.data_dir / "state"
        self._lock = threading.Lock()
        self._bytes = [0, 0]  # to fetch, fetched

    def groups(self) -> GroupMap:
        """The group map that the worker shall use: the one it was given, else that of the stores, else of the newest snapshot."""
        path = self._settings["worker.groups"]
        found = None if path or read_meta(self._directory) is not None else self._newest_groups()
        return found or read_groups(path, self._directory)

    def _newest_groups(self) -> GroupMap | None:
        try:
            found = [m for p in self._place.partitions() for m in candidates(self._place, p)[0] if self._is_ours(m)]
            for m in sorted(found, key=lambda m: m.created_ms, reverse=True):
                try:
                    groups = fetch_groups(self._place, m, self._directory)
                except StreamDmginError as e:
                    log_.warning("the group map of snapshot %s can't be used: %s", m.id, e)
                    continue
                log_.info("group map %s, of snapshot %s", groups.id, m.id)
                return groups
        except SnapshotsUnavailable as e:
            log_.warning("no group map from snapshots: %s", e)
        return None

    def _is_ours(self, m: Manifest) -> bool:
        return m.prefix == self._settings.prefix

    def fill(self, numbers: list[int], begins: Offsets, ends: Offsets) -> None:
        """Fill those of these partitions' stores that aren't here. Never raises for a snapshot: the log has everything."""
        missing = [p for p in numbers if not holds_a_store(store_path(self._directory, p))]
        if not missing:
            return
        t0 = time.monotonic()
        log_.info("partitions %s have no store here: looking for snapshots at %s", missing, self._place.url)
        self._bytes = [0, 0]
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="recover") as pool:
            jobs = {pool.submit(self._one, p, begins, ends): p for p in missing}
            self._watch(set(jobs))
        self._health.restore_bytes = 0
        self._health.metrics.restoring_bytes.set(0)
        from_snapshot = 0
        for job, p in jobs.items():
            done = job.result()
            for problem in done.problems:
                log_.warning("%s", problem)
            if done.manifest is None:
                log_.warning("partition %d: no good snapshot, the whole log is folded", p)
                shutil.rmtree(restoring_path(self._directory, p), ignore_errors=True)
            else:
                from_snapshot += 1
                left = sum(max(0, ends[t].get(p, 0) - o) for t, o in done.manifest.offsets.items() if t in ends)
                log_.info(
                    "partition %d: restored from snapshot %s, %d records are to be folded", p, done.manifest.id, left
                )
        log_.info(
            "%d of %d stores restored, %d MB in %.1f s", from_snapshot, len(missing), self._bytes[1] // 1_000_000,
            time.monotonic() - t0,
        )  # fmt: skip

    def fetch(self, log: Log, partition: int, groups: GroupMap, goal: Mapping[int, int], target: Path) -> bool:
        """Fill `target` with the newest snapshot of a partition that is folded with this very map, and not beyond `goal` (next offset by
        event topic number); whether there was one. For a store of another map, built in the background."""
        names = [self._settings.topic(t) for t in topics.EVENTS]
        begins, ends = {t: log.begins(t) for t in names}, {t: log.ends(t) for t in names}

        def wrong(m: Manifest) -> str:
            if m.groups.id != groups.id:
                return f"it is of group map {m.groups.id}"
            if any(m.offsets.get(t, 0) > goal[n] for n, t in enumerate(names)):
                return "it is ahead of the store that serves"
            return self._wrong(m, begins, ends)

        try:
            done = restore_partition(self._place, partition, self._directory, fits=wrong, target=target)
        except StreamDmginError as e:
            log_.warning("partition %d: no snapshot under group map %s: %s", partition, groups.id, e)
            return False
        return done.manifest is not None

    def _watch(self, jobs: set[Future[Restored]]) -> None:
        """Tell of progress, and let the loop's watchdog know while there is some."""
        seen = -1
        reported = time.monotonic()
        while jobs:
            jobs = wait(jobs, timeout=0.2, return_when=FIRST_EXCEPTION).not_done
            total, done = self._bytes
            self._health.restore_bytes = total - done
            self._health.metrics.restoring_bytes.set(total - done)
            now = time.monotonic()
            if done != seen:
                seen, self._health.turned = done, now
                self._health.step()
            if now - reported > REPORT_S:
                reported = now
                log_.info("restoring: %d of %d MB", done // 1_000_000, total // 1_000_000)

    def _one(self, p: int, begins: Offsets, ends: Offsets) -> Restored:
        problems: list[str] = []
        for pause in (*RETRIES_S, None):
            try:
                return restore_partition(
                    self._place, p, self._directory, fits=lambda m: self._wrong(m, begins, ends), told=self._told
                )
            except SnapshotsUnavailable as e:
                problems.append(str(e))
                if pause is not None:
                    time.sleep(pause)
            except Exception as e:  # a full disk, say: the worker will meet it again where it is known how to go on
                return Restored(p, None, [*problems, f"partition {p}: restoring failed: {e!r}"])
        return Restored(p, None, problems)

    def _told(self, total: int) -> Callable[[int], None]:
        with self._lock:
            self._bytes[0] += total

        def tell(n: int) -> None:
            with self._lock:
                self._bytes[1] += n

        return tell

    def _wrong(self, m: Manifest, begins: Offsets, ends: Offsets) -> str:
        """What keeps a snapshot from being the begin of this partition's state; "" nothing."""
        names = [self._settings.topic(t) for t in topics.EVENTS]
        if not self._is_ours(m) or sorted(m.offsets) != sorted(names):
            return f"it is of the topics {', '.join(sorted(m.offsets))}"
        if m.partitions != len(ends[names[0]]):
            return f"it is of topics with {m.partitions} partitions, now there are {len(ends[names[0]])}"
        for t, offset in m.offsets.items():
            if offset < begins[t][m.partition]:
                return f"{t} now begins at offset {begins[t][m.partition]}, the snapshot ends at {offset}: records between are gone"
            if offset > ends[t][m.partition]:
                return f"{t} ends at offset {ends[t][m.partition]}, the snapshot holds records up to {offset}: it is of another log"
        return ""
