"""Asking a log that is away again and again, where the worker can't go on without its answer: while partitions are assigned.

The rest of the loop lives through an outage by itself (readers and producers try again inside). Here the loop's thread waits:
the worker isn't ready and says why, its watchdog knows, and a stop signal ends the wait.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from stream_dmgin.errors import LogUnavailable
from stream_dmgin.worker.health import Health

T = TypeVar("T")
log_ = logging.getLogger(__name__)

FIRST_S, LONGEST_S = 0.2, 5.0  # pauses between two attempts
SAY_S = 30.0
STEP_S = 0.1  # a stop signal waits no longer, but for an attempt that is under way


class Patience:
    """`stop()`: whether the worker was told to end."""

    def __init__(self, health: Health, stop: Callable[[], bool] = lambda: False) -> None:
        self._health, self._stop = health, stop

    def ask(self, doing: str, ask: Callable[[], T]) -> T:
        """What `ask()` returns, as soon as it doesn't raise LogUnavailable any more; raises that once the worker is to stop."""
        before, began, said = self._health.waiting, time.monotonic(), float("-inf")
        pause = FIRST_S
        try:
            while True:
                try:
                    found = ask()
                except LogUnavailable as e:
                    if self._stop():
                        raise
                    now = time.monotonic()
                    if now - said >= SAY_S:
                        said = now
                        log_.warning(
                            "%s: the log is away (%s). Waiting for it, for %.0f s by now", doing, e, now - began
                        )
                    self._wait(f"log: {doing}: {e}", pause, e)
                    pause = min(2 * pause, LONGEST_S)
                else:
                    if said > 0:
                        log_.info("%s: the log is back after %.0f s", doing, time.monotonic() - began)
                    return found
        finally:
            self._health.waiting = before
            self._health.waits()

    def _wait(self, why: str, seconds: float, error: LogUnavailable) -> None:
        self._health.waiting = why
        self._health.waits()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self._stop():
                raise error
            self._health.progress()
            time.sleep(STEP_S)
