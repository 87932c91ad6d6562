"""Work that other threads hand to the loop, run between two of its turns, when no batch is open. One job a turn, so that the
fold never waits for two."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from stream_dmgin.errors import StreamDmginError, UnavailableError

T = TypeVar("T")

WAIT_S = 600.0  # a turn may be held up for long: by a broker that is away, by stores that are being opened


class Between:
    """A queue of jobs for the loop's thread. Jobs must be short: the fold stands while one runs."""

    def __init__(self) -> None:
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._lock = threading.Lock()
        self._closed = False

    def call(self, job: Callable[[], T], timeout: float = WAIT_S) -> T:
        """From any other thread: have the loop run `job`, and wait for what it returns or raises.

        Raises UnavailableError when the worker stops first or doesn't come round within `timeout` seconds.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise _stopping()
            self._jobs.append((job, future))
        try:
            return future.result(timeout)
        except TimeoutError:
            future.cancel()
            raise UnavailableError(f"the worker has not come round for {timeout:.0f} s: look at /health/live") from None

    def run(self) -> None:
        """On the loop's thread: run the job that has waited longest, if there is one."""
        if not self._jobs:  # once a turn: without the lock
            return
        with self._lock:
            job, future = self._jobs.popleft()
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(job())
        except Exception as e:  # the asker's error: the loop goes on, unless it is hurt itself
            future.set_exception(e)

    def close(self) -> None:
        """No more jobs; those that wait fail. Idempotent."""
        with self._lock:
            self._closed = True
            jobs, self._jobs = list(self._jobs), deque()
        for _, future in jobs:
            if future.set_running_or_notify_cancel():
                future.set_exception(_stopping())


def _stopping() -> StreamDmginError:
    return UnavailableError("the worker is stopping: ask again when it runs")
