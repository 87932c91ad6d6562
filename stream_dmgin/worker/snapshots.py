"""Snapshots of a running worker's partitions. The loop only makes checkpoints (hard links, a few milliseconds a partition,
between two turns, after RocksDB has written its buffer in its own thread); hashing and uploading is done elsewhere: by the
command that asked, or by `Snapshots`, a thread of the worker.

A checkpoint holds what was last committed, at most `worker.commit_interval_s` old.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from stream_dmgin.errors import StoreBusy, StreamDmginError
from stream_dmgin.settings import Settings
from stream_dmgin.state.ops.places import store_path
from stream_dmgin.state.ops.stores import Stores
from stream_dmgin.state.snapshots.checkpoint import directory_of, of_stopped, workshop
from stream_dmgin.state.snapshots.manifest import new_id
from stream_dmgin.state.snapshots.place import Place
from stream_dmgin.state.snapshots.run import ToldPartition, plan, silent, upload_all
from stream_dmgin.state.snapshots.upload import Stopped
from stream_dmgin.state.store import REQUESTS_ROW
from stream_dmgin.worker import admin
from stream_dmgin.worker.between import Between
from stream_dmgin.worker.forgetting import Forgetting
from stream_dmgin.worker.health import Health
from stream_dmgin.worker.partitions import Owned, Partitions

log_ = logging.getLogger(__name__)

FLUSH_S = 10.0  # for RocksDB to write its buffer before the checkpoint
STOP_S = 5.0


class Checkpoints:
    """Makes checkpoints of the partitions that the worker owns. Called from other threads than the loop's."""

    def __init__(
        self, between: Between, partitions: Partitions, commit: Callable[[Owned], None], data_dir: Path, health: Health
    ) -> None:
        self._between, self._partitions, self._commit = between, partitions, commit
        self._data_dir, self._health = data_dir, health

    def verb(self, arguments: dict[str, Any], tell: admin.Tell) -> dict[str, Any]:
        """`checkpoint`: {"id": ..., "without": [partitions]} -> {"partitions": [...], "pause_ms": longest stop of the fold}."""
        directory = directory_of(self._data_dir, str(arguments.get("id", "")))
        pauses = self.take(directory, set(arguments.get("without", ())))
        return {"partitions": sorted(pauses), "pause_ms": round(max(pauses.values(), default=0.0) * 1000, 3)}

    def owned(self, partition: int) -> bool:
        """Whether the worker owns a partition, as far as another thread can tell."""
        return partition in self._partitions.owned

    def take(self, directory: Path, without: Collection[int] = ()) -> dict[int, float]:
        """Checkpoints of all owned partitions under `directory`; partition -> seconds that the fold stood still for it."""
        pauses: dict[int, float] = {}
        for p in self._between.call(lambda: sorted(self._partitions.owned.keys() - set(without))):
            pause = self._one(p, store_path(directory, p))
            if pause is not None:
                pauses[p] = pause
        self._health.metrics.checkpoint_time.set(max(pauses.values(), default=0.0))
        return pauses

    def _one(self, p: int, path: Path) -> float | None:
        """None: the partition has left."""
        longest = 0.0

        def on_loop(what: str) -> Any:
            nonlocal longest
            owned = self._partitions.owned.get(p)
            if owned is None:
                return None
            t0 = time.perf_counter()
            if what == "checkpoint":
                owned.engine.checkpoint(path)
            elif what == "begin":
                if owned.dirty and owned.engine.get(REQUESTS_ROW) is None:  # never committed yet
                    self._commit(owned)
                owned.engine.begin_flush()
            done = owned.engine.flushed() if what == "flushed" else True
            longest = max(longest, time.perf_counter() - t0)
            return done

        if self._between.call(lambda: on_loop("begin")) is None:
            return None
        until = time.monotonic() + FLUSH_S
        while self._between.call(lambda: on_loop("flushed")) is False and time.monotonic() < until:
            time.sleep(0.005)
        return longest if self._between.call(lambda: on_loop("checkpoint")) else None


class Snapshots:
    """The thread that takes a snapshot of the worker's own partitions every `snapshot.every_s` seconds."""

    def __init__(self, settings: Settings, checkpoints: Checkpoints, forgetting: Forgetting, health: Health) -> None:
        self._data_dir, self._every = settings.data_dir, settings["snapshot.every_s"]
        self._place, self._keep = Place(settings["snapshot.to"]), settings["snapshot.keep"]
        self._checkpoints, self._forgetting, self._health = checkpoints, forgetting, health
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(STOP_S)  # an upload at work ends with the process: without its manifest it is nothing

    def _run(self) -> None:
        m = self._health.metrics
        while not self._stop.wait(self._every):
            if not self._health.assigned:
                continue
            try:
                done = self._take()
            except Stopped:
                log_.info("a snapshot was given up: its partitions have left, or the worker stops")
            except Exception as e:  # never the fold's affair
                if self._stop.is_set():
                    return
                m.snapshots.labels("failed").inc()
                log_.warning(
                    "the snapshot failed, older ones stay good: %s", e, exc_info=not isinstance(e, StreamDmginError)
                )
            else:
                m.snapshots.labels("ok").inc()
                m.snapshot_bytes.inc(done["bytes_uploaded"])
                m.snapshot_time.set(time.time())
                log_.info(
                    "snapshot %s of partitions %s: %d bytes, %d uploaded, %d older ones deleted, %.1f s", done["id"],
                    done["partitions"], done["bytes"], done["bytes_uploaded"], len(done["deleted"]), done["seconds"],
                )  # fmt: skip

    def _take(self) -> dict[str, Any]:
        self._forgetting.prepare()
        id_ = new_id()
        with workshop(self._data_dir, id_, patience_s=self._every) as directory:
            self._checkpoints.take(directory)
            done = upload_all(
                self._place, Stores.of(self._data_dir), directory, id_, self._keep,
                wanted=lambda p: not self._stop.is_set() and self._checkpoints.owned(p),
            )  # fmt: skip
            self._forgetting.finish(self._place, done["partitions"])
        return done


def snapshot(
    data_dir: Path, url: str, keep: int | None, dry_run: bool = False, told: ToldPartition = silent
) -> dict[str, Any]:
    """A snapshot of all partitions that have a store in the data directory, whether workers run on it or not; what `state snapshot
    -o json` prints. Raises InputError, SnapshotsUnavailable, StoreBusy."""
    stores = Stores.of(data_dir)
    place = Place(url, "--to")
    if dry_run:
        return plan(place, stores, keep)
    id_ = new_id()
    with workshop(data_dir, id_) as directory:
        taken: set[int] = set()
        pause = _ask_workers(data_dir, id_, taken)
        for p in stores.present():
            if p in taken:
                continue
            try:
                of_stopped(stores.path(p), p, store_path(directory, p))
            except StoreBusy:  # given to a worker in this moment, or it isn't one that answers
                pause = max(pause, _ask_workers(data_dir, id_, taken))
                if p not in taken:
                    raise
        return {**upload_all(place, Stores.of(data_dir), directory, id_, keep, told), "pause_ms": pause}


def _ask_workers(data_dir: Path, id_: str, taken: set[int]) -> float:
    pause = 0.0
    for socket in admin.workers(data_dir):
        got = admin.ask(socket, "checkpoint", id=id_, without=sorted(taken))
        taken.update(got["partitions"])
        pause = max(pause, got["pause_ms"])
    return pause
