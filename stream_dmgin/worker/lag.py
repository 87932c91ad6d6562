"""How far the worker is behind the log. Asking a broker for the ends takes milliseconds, so a thread of its own does it."""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType
from typing import Self

from stream_dmgin.errors import StreamDmginError
from stream_dmgin.log.base import open_log
from stream_dmgin.settings import Settings
from stream_dmgin.worker.health import Health

log_ = logging.getLogger(__name__)

EVERY_S = 5.0


class LagWatcher:
    """Sets `health.lag` (records by topic) and the gauge from the offsets that the loop last reported; `health.log_away` while
    the log doesn't answer."""

    def __init__(self, settings: Settings, health: Health) -> None:
        self._settings, self._health = settings, health
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lag", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(EVERY_S)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with open_log(self._settings.log, self._settings.kafka) as log:
                    while not self._stop.wait(EVERY_S):
                        self._look({t: log.ends(t) for t in {t for t, _ in self._health.offsets}})
                        self._answers("")
            except StreamDmginError as e:
                log_.warning("the lag can't be told: %s", e)
                self._answers(f"log: {e}")
                self._stop.wait(EVERY_S)

    def _answers(self, why_not: str) -> None:
        self._health.log_away = why_not
        self._health.waits()

    def _look(self, ends: dict[str, dict[int, int]]) -> None:
        lag = dict.fromkeys(ends, 0)
        for (t, p), offset in self._health.offsets.items():
            if t in ends:
                lag[t] += max(0, ends[t].get(p, 0) - offset)
        self._health.lag, self._health.lag_at = lag, time.monotonic()
        for t, n in lag.items():
            self._health.metrics.lag.labels(t).set(n)
