"""A model published on the control topic goes live without a pause: loaded beside the running one, then swapped in.

The key `model` of the control topic names it: {"id": ...}. A model that can't be loaded is said so once, and the running one
stays. Loading runs in a thread of its own; the swap happens between two turns of the loop.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from stream_dmgin.errors import StreamDmginError
from stream_dmgin.features.spec import InputSpec, Reads
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.scoring.scorer import Scorer
from stream_dmgin.settings import Settings
from stream_dmgin.worker.health import Health

if TYPE_CHECKING:  # torch takes seconds to import
    from stream_dmgin.scoring.engine import Engine

log_ = logging.getLogger(__name__)

KEY = "model"


def reads(settings: Settings, control: Mapping[str, Any]) -> Reads:
    """What the counters must learn and the catalogue keep: as set, or since the model of the settings, or the published one, reads it.
    Where the two read embeddings of different widths, the first counts: it is what a worker begins with."""
    from stream_dmgin.models.registry import describe, find_model

    online, audience, rhythm, embedding = bool(settings["worker.online"]), bool(settings["worker.audience"]), False, 0
    record = control.get(KEY)
    for name in (settings["worker.model"], record.get("id") if isinstance(record, Mapping) else None):
        if not isinstance(name, str):
            continue
        try:
            spec = InputSpec.of(describe(find_model(name, settings.data_dir))["config"]["spec"])
        except (StreamDmginError, ValueError, TypeError):
            continue  # item rates; or it is said when the model is loaded
        needs = Reads.of([spec])
        online, audience, rhythm = online or needs.online, audience or needs.audience, rhythm or needs.rhythm
        embedding = embedding or needs.embedding
    return Reads(online or audience, int(settings["worker.embedding"]) or embedding, audience, rhythm)


class ScorersByMap:
    """One model's scorers, one for each group map that owned partitions have: two while they go over to another map, each
    with towers of its own. Made when first asked for (milliseconds). One thread."""

    MAPS = 2

    def __init__(self, engine: Engine, make: Callable[[GroupMap], Scorer]) -> None:
        self.engine, self._make = engine, make
        self._scorers: dict[str, Scorer] = {}

    def of(self, groups: GroupMap) -> Scorer:
        """The scorer over this map. Of more than two maps, the one not asked for longest goes."""
        found = self._scorers.pop(groups.id, None) or self._make(groups)
        self._scorers[groups.id] = found
        while len(self._scorers) > self.MAPS:
            del self._scorers[next(iter(self._scorers))]
        return found

    def forget(self, user_id: bytes) -> None:
        """Drop the towers of an erased user."""
        for scorer in self._scorers.values():
            scorer.towers.drop(user_id)

    def keep_only(self, groups: GroupMap) -> None:
        """Every partition has this map: the memory of others is given back."""
        self._scorers = {k: s for k, s in self._scorers.items() if k == groups.id}


class Releases:
    """Watches `health.control`, the view of the control topic; `poll` gives the scorers to swap in, when there are some."""

    def __init__(self, health: Health, running: str, load: Callable[[str], ScorersByMap]) -> None:
        self._health, self._load = health, load
        self._wanted = running
        self._ready: ScorersByMap | None = None
        self._thread: threading.Thread | None = None

    def poll(self) -> ScorersByMap | None:
        """The scorers of a newly published model, once it is loaded; None otherwise. Doesn't block."""
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
