"""Stores on their way here from snapshots, in threads, while the loop goes on: polls (a member that doesn't is thrown out of its
group), answers for its other partitions, stops when it is told to.

The loop asks `ready` between two turns, and opens what is. Partitions and standby copies share the threads: a fetch that was
begun for a copy is the owner's if the partition comes meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from stream_dmgin.errors import StreamDmginError
from stream_dmgin.worker.health import Health

log_ = logging.getLogger(__name__)

AT_ONCE = 4  # partitions
REPORT_S = 2.0


class Cancelled(StreamDmginError):
    """The store is not wanted any more. What was fetched stays for the next time."""


class Progress:
    """How much of one partition's snapshot is here, and whether it is still wanted. Written in the threads."""

    def __init__(self, health: Health) -> None:
        self.cancelled = threading.Event()
        self.total = self.done = 0
        self._health = health
        self._lock = threading.Lock()

    def begin(self, total: int) -> Callable[[int], None]:
        """So many bytes are to come; what to call with those that have."""
        with self._lock:
            self.total, self.done = total, 0

        def came(n: int) -> None:
            self.check()
            with self._lock:
                self.done += n
            self._health.progress()

        return came

    def check(self) -> None:
        """Raises Cancelled."""
        if self.cancelled.is_set():
            raise Cancelled("not wanted any more")

    def pause(self, seconds: float) -> None:
        """Raises Cancelled, at once when it comes."""
        self.cancelled.wait(seconds)
        self.check()


class Fetching:
    """`missing(partition)`: there is no store; `fetch(partition, progress)` fills it, or doesn't, and never raises."""

    def __init__(self, missing: Callable[[int], bool], fetch: Callable[[int, Progress], None], health: Health) -> None:
        self.missing, self._fetch, self._health = missing, fetch, health
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fetch")
        self._jobs: dict[int, tuple[Future[None], Progress]] = {}
        self._reported = 0.0

    @property
    def partitions(self) -> list[int]:
        """Those that were begun and not taken."""
        return list(self._jobs)

    def begin(self, partition: int) -> None:
        """Begin to fetch, unless it is under way."""
        if partition not in self._jobs:
            progress = Progress(self._health)
            self._jobs[partition] = self._pool.submit(self._fetch, partition, progress), progress

    def ready(self, partition: int) -> bool:
        """Whether a fetch was begun and has ended, well or not; it is forgotten then."""
        job = self._jobs.get(partition)
        if job is None or not job[0].done():
            return False
        del self._jobs[partition]
        job[0].result()
        return True

    def wait(self) -> None:
        """Until all have ended."""
        while wait([f for f, _ in self._jobs.values()], timeout=0.2).not_done:
            self.tell(True)

    def cancel(self, partition: int) -> None:
        """It isn't wanted any more."""
        job = self._jobs.pop(partition, None)
        if job is not None:
            job[1].cancelled.set()
            job[0].cancel()

    def tell(self, owner: bool) -> None:
        """Say how far it is; `owner`: owned partitions wait for it."""
        left = sum(p.total - p.done for _, p in self._jobs.values())
        self._health.restore_bytes = max(1, left) if owner else 0  # before a manifest is read nothing is known
        self._health.metrics.restoring_bytes.set(left)
        now = time.monotonic()
        if owner and now - self._reported > REPORT_S:
            self._reported = now
            total = sum(p.total for _, p in self._jobs.values())
            log_.info(
                "restoring partitions %s: %d of %d MB", self.partitions, (total - left) // 1_000_000, total // 1_000_000
            )

    def close(self) -> None:
        """Cancel all, and wait for the files under way."""
        for p in self.partitions:
            self.cancel(p)
        self._pool.shutdown()
