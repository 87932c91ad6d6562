"""Snapshots are free of an erased user `snapshot.erase_within_days` after the order at the latest. In the thread that takes the
snapshots: at half of that time the store is compacted, so that the next snapshot is free of the user; at three quarters those that are
not are deleted, as soon as one is. What was late because no worker ran is done at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from pathlib import Path

from stream_dmgin import audit
from stream_dmgin.control import Control, Erasure
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.erased import FREE, MARK, free_of, free_row, is_free, is_marked
from stream_dmgin.state.snapshots.forget import forget
from stream_dmgin.state.snapshots.place import Place
from stream_dmgin.worker.between import Between
from stream_dmgin.worker.partitions import Owned, Partitions

log_ = logging.getLogger(__name__)

COMPACT_AT, DELETE_AT = 0.5, 0.75  # of the time there is
DAY_MS = 86_400_000
Commit = Callable[..., None]  # (owned, side rows)


def compact(
    between: Between, partitions: Partitions, commit: Commit, owned: Owned, tell: Callable[[int, int], None] = lambda done, of: None
) -> None:  # fmt: skip
    """Compact a running store from another thread, and note in it of which erasures its files are free from then on."""
    row = between.call(lambda: free_row(owned.engine.scan(MARK)))
    for done, of in owned.engine.compact():
        tell(done, of)

    def note() -> None:
        if row is not None and partitions.owned.get(owned.partition) is owned:
            commit(owned, [row])

    between.call(note)


class Forgetting:
    """Called by the thread that takes snapshots: `prepare` before one, `finish` after it."""

    def __init__(
        self, data_dir: Path, prefix: str, between: Between, partitions: Partitions, control: Control, commit: Commit, within_days: float
    ) -> None:  # fmt: skip
        self._data_dir, self._prefix = data_dir, prefix
        self._between, self._partitions, self._control, self._commit = between, partitions, control, commit
        self._within_ms = within_days * DAY_MS

    def prepare(self) -> None:
        """Compact the stores that hold what is to be gone soon."""
        for owned in self._between.call(lambda: [o for o in self._partitions.owned.values() if self._due(o)]):
            log_.info("partition %d: its store is compacted, to be free of erased users", owned.partition)
            compact(self._between, self._partitions, self._commit, owned)

    def finish(self, place: Place, partitions: Collection[int]) -> None:
        """Delete the snapshots of these partitions that hold what is to be gone by now."""
        for p in partitions:
            late = self._between.call(lambda p=p: self._ordered(p, DELETE_AT))  # type: ignore[misc]
            done = forget(place, p, self._prefix, late)
            if done.deleted:
                audit.record(
                    self._data_dir, "snapshots of erased users deleted", to=place.url, partition=p, ids=done.deleted
                )
                log_.info("partition %d: %d snapshots that held erased users were deleted", p, len(done.deleted))
            if done.held:
                log_.warning(
                    "partition %d: snapshots %s may hold erased users, and none is free of them yet", p, done.held
                )

    def _ordered(self, partition: int, share: float) -> list[Erasure]:
        """Erasures of a partition of which this share of the time is over. On the loop's thread."""
        since = time.time() * 1000 - share * self._within_ms
        return [e for e in self._control.erasures.get(partition, {}).values() if e.at <= since]

    def _due(self, owned: Owned) -> bool:
        orders = self._ordered(owned.partition, COMPACT_AT)
        return bool(orders) and unfree(owned.engine, orders)


def unfree(engine: StateEngine, orders: Collection[Erasure]) -> bool:
    """Whether the files of a store may hold something of one of these erasures that it has carried out."""
    free = free_of(engine.get(FREE))
    return any(not is_free(free, e) and is_marked(engine.get(MARK + bytes.fromhex(e.digest)), e) for e in orders)
