"""A model published on the control topic goes live without a pause: loaded beside the running one, then swapped in.

The key `model` of the control topic names it: {"id": ...}. A model that can't be loaded is said so once, and the running one
stays. Loading runs in a thread of its own; the swap happens between two turns of the loop.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from stream_dmgin.errors import StreamDmginError
from stream_dmgin.scoring.scorer import Scorer
from stream_dmgin.worker.health import Health

log_ = logging.getLogger(__name__)

KEY = "model"


class Releases:
    """Watches `health.control`, the view of the control topic; `poll` gives the scorer to swap in, when there is one."""

    def __init__(self, health: Health, running: str, load: Callable[[str], Scorer]) -> None:
        self._health, self._load = health, load
        self._wanted = running
        self._ready: Scorer | None = None
        self._thread: threading.Thread | None = None

    def poll(self) -> Scorer | None:
        """The scorer of a newly published model, once it is loaded; None otherwise. Doesn't block."""
        if self._thread is not None:
            if self._thread.is_alive():
                return None
            self._thread = None
            ready, self._ready = self._ready, None
            return ready
        record = self._health.control.get(KEY)
        wanted = record.get("id") if isinstance(record, Mapping) else None
        if isinstance(wanted, str) and wanted != self._wanted:
            self._wanted = wanted
            self._thread = threading.Thread(target=self._run, args=(wanted,), name="load-model", daemon=True)
            self._thread.start()
        return None

    def _run(self, wanted: str) -> None:
        try:
            self._ready = self._load(wanted)
        except StreamDmginError as e:
            log_.error("the published model %r can't be loaded, the running one stays: %s", wanted, e)
