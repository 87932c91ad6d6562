"""Stores that aren't here are filled from the newest good snapshot before they are opened; the worker then folds the tail of the
log as after any restart. Control path: runs in threads (worker/fetching.py), several partitions at once.

A snapshot is good for a partition when its files are whole, it is of the same topics and partitions, and the log still holds
what comes after it. Otherwise an older one is tried, and then the whole log is folded; what was wrong is said. A store of
another group map than the worker's is no trouble: it goes over to that as any store does (worker/regroup.py).
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from stream_dmgin import topics
from stream_dmgin.errors import LogUnavailable, StreamDmginError
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import Log, open_log
from stream_dmgin.settings import Settings
from stream_dmgin.state.ops.places import store_path
from stream_dmgin.state.snapshots.manifest import Manifest
from stream_dmgin.state.snapshots.place import Place, SnapshotsUnavailable
from stream_dmgin.state.snapshots.restore import Restored, candidates, fetch_groups, restore_partition, restoring_path
from stream_dmgin.state.store import holds_a_store
from stream_dmgin.worker.fetching import Cancelled, Progress
from stream_dmgin.worker.partitions import Offsets, read_groups, read_meta

log_ = logging.getLogger(__name__)

AGAIN_S = 2.0  # a log that is away is asked so often
RETRIES_S = (1.0, 3.0, 9.0)  # pauses before a location that can't be reached is given up


class Recovery:
    """Fills empty stores from `snapshot.to`."""

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigError when the location can't be named so."""
        self._settings = settings
        self._place = Place(settings["snapshot.to"])
        self._directory = settings.data_dir / "state"

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

    def missing(self, partition: int) -> bool:
        """Whether there is no store of this partition here."""
        return not holds_a_store(store_path(self._directory, partition))

    def fill(self, partition: int, progress: Progress) -> None:
        """Fill the store of a partition, if a snapshot is good. In a thread; never raises: the log has everything."""
        t0 = time.monotonic()
        log_.info("partition %d has no store here: looking for snapshots at %s", partition, self._place.url)
        try:
            begins, ends = self._bounds(progress)
            done = self._one(partition, begins, ends, progress)
        except Cancelled:
            log_.info("partition %d: no longer to be restored here", partition)
            return
        for problem in done.problems:
            log_.warning("%s", problem)
        if done.manifest is not None:
            left = sum(max(0, ends[t].get(partition, 0) - o) for t, o in done.manifest.offsets.items() if t in ends)
            log_.info(
                "partition %d: restored from snapshot %s, %d MB in %.1f s, %d records are to be folded", partition,
                done.manifest.id, done.manifest.size // 1_000_000, time.monotonic() - t0, left,
            )  # fmt: skip
        elif self.missing(partition):
            log_.warning("partition %d: no good snapshot, the whole log is folded", partition)
            shutil.rmtree(restoring_path(self._directory, partition), ignore_errors=True)

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

    def _bounds(self, progress: Progress) -> tuple[Offsets, Offsets]:
        """(begins, ends) of the event topics. Waits for a log that is away. Raises Cancelled."""
        names = [self._settings.topic(t) for t in topics.EVENTS]
        while True:
            try:
                with open_log(self._settings.log, self._settings.kafka) as log:
                    return {t: log.begins(t) for t in names}, {t: log.ends(t) for t in names}
            except LogUnavailable as e:
                log_.warning("restoring waits for the log: %s", e)
            progress.pause(AGAIN_S)

    def _one(self, p: int, begins: Offsets, ends: Offsets, progress: Progress) -> Restored:
        problems: list[str] = []
        for pause in (*RETRIES_S, None):
            try:
                return restore_partition(
                    self._place, p, self._directory, fits=lambda m: self._wrong(m, begins, ends), told=progress.begin
                )
            except SnapshotsUnavailable as e:
                problems.append(str(e))
                if pause is not None:
                    progress.pause(pause)
            except Cancelled:
                raise
            except Exception as e:  # a full disk, say: the worker will meet it again where it is known how to go on
                return Restored(p, None, [*problems, f"partition {p}: restoring failed: {e!r}"])
        return Restored(p, None, problems)

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
