"""Ends the worker when its work stands still, so that the supervisor starts it anew: better than a process that lives and does
nothing.

Two things are standing still: a turn in which nothing went on for `stall_s` seconds (the main thread hangs, in librdkafka,
RocksDB or a model), and turns that bring no records for `stall_s` seconds although the log has some (a consumer that stalled
silently). A slow batch is neither: whatever takes long says that it goes on (`Health.step`). Nor is a worker that waits on purpose,
nor one whose broker can't be asked how far the log is.

The thread looks once a second. If it can't run itself, because something holds the interpreter's lock, a timer of C's
(faulthandler) ends the process `GRACE_S` later.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from numba.core import event

from stream_dmgin.worker.health import Health
from stream_dmgin.worker.lag import EVERY_S

log_ = logging.getLogger(__name__)

LOOK_S = 1.0
GRACE_S = 30.0
PAUSED_S = 5.0  # a look that comes so much too late: the whole process was stopped, not the work
FRESH_S = 4 * EVERY_S  # so old may the last word on the log's ends be
EXIT_CODE = 1
STDERR = 2  # faulthandler writes there without the interpreter's help


COMPILING = "numba:run_pass"


class _Compiler(event.Listener):  # type: ignore[misc]
    """numba's passes are steps: kernels that are not in its cache yet take minutes to compile on a busy machine, in one turn."""

    def __init__(self, health: Health) -> None:
        self._health = health

    def on_start(self, event: Any) -> None:
        """A pass begins."""
        self._health.step()

    def on_end(self, event: Any) -> None:
        """A pass has ended."""
        self._health.step()


class Watchdog:
    """Watches between `__enter__` and `__exit__`. `stall_s` 0: never."""

    def __init__(self, health: Health, stall_s: float, end: Callable[[str], None] | None = None) -> None:
        self._health, self._stall_s, self._end = health, stall_s, end or end_process
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._compiler = _Compiler(health)
        self._from = self._looked = time.monotonic()  # nothing from before this counts
        self._behind_since: float | None = None

    def __enter__(self) -> Self:
        if self._stall_s:
            self._from = self._looked = time.monotonic()
            self._arm()
            event.register(COMPILING, self._compiler)
            self._thread.start()
        return self

    def __exit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        if self._stall_s:
            event.unregister(COMPILING, self._compiler)
            faulthandler.cancel_dump_traceback_later()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            found = self.look(time.monotonic())
            if self._stop.is_set():
                return
            if found:
                self._end(found)
                return
            self._arm()

    def _arm(self) -> None:
        """Have C end the process if this isn't called again in time."""
        faulthandler.dump_traceback_later(self._stall_s + min(GRACE_S, self._stall_s), exit=True, file=STDERR)

    def look(self, now: float) -> str:
        """What stands still at this moment (of time.monotonic), or "" ."""
        h = self._health
        if now - self._looked > LOOK_S + PAUSED_S:
            self._from = now
        self._looked = now
        lag = sum(h.lag.values()) if now - h.lag_at < FRESH_S else 0
        if not lag or h.waiting:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = now
        idle = now - max(h.stepped, self._from)
        if idle > self._stall_s:
            return f"nothing has gone on inside a turn of the loop for {idle:.0f} s (worker.stall_s): the main thread hangs"
        if self._behind_since is not None:
            idle = now - max(h.moved, self._from, self._behind_since)
            if idle > self._stall_s:
                return f"no record was read for {idle:.0f} s (worker.stall_s), though {lag} wait in the log: the consumer stalled"
        return ""


def end_process(why: str) -> None:
    """Say why, with the stacks of all threads, and end the process at once: its locks and stores may be part of the trouble."""
    stacks = []
    names = {t.ident: t.name for t in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        stacks.append(f"thread {names.get(ident, '?')}:\n{''.join(traceback.format_stack(frame))}")
    log_.critical(
        "watchdog: %s. Ending with exit code %d, to be started anew; nothing is lost\n%s",
        why,
        EXIT_CODE,
        "".join(stacks),
    )
    logging.shutdown()
    os._exit(EXIT_CODE)
