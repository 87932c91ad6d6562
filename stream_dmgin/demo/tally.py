"""What the demo counts: requests, scores, latency, and the quality of scores against the truth and a simple rival.

Fed by the watcher's threads, read by the view; every method takes the lock for a short time only.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.simulator.traffic import IMPRESSION_LAG_S
from stream_dmgin.training.metrics import auc, ece, logloss

FLOOR_WEIGHT = 20  # impressions at the global rate that an item starts with


@dataclass(frozen=True)
class Quality:
    """Measures over all shown candidates that were scored so far. nan until both classes are there."""

    rows: int
    clicks: int
    auc: float
    logloss: float
    ece: float
    oracle_auc: float
    oracle_logloss: float
    floor_auc: float
    floor_logloss: float

    @property
    def closed(self) -> float:
        """Share of the way from the floor's logloss to the oracle's."""
        return (self.floor_logloss - self.logloss) / max(1e-9, self.floor_logloss - self.oracle_logloss)


@dataclass(frozen=True)
class Example:
    """A request with its score and its truth, for show."""

    user: str
    city_ms: int
    surface: str
    items: list[str]
    ctr: list[float]
    p: list[float]
    labels: list[int]


@dataclass
class _Request:
    written_ms: int
    ts: int = 0
    user: str = ""
    surface: str = ""
    items: list[str] = field(default_factory=list)
    floor: NDArray[np.float64] | None = None
    ctr: list[float] | None = None
    late: bool = False


class Tally:
    """Counts of one demo run.

    A score read later than IMPRESSION_LAG_S after its request may have seen the request's own outcome in the state: it counts
    as a score, but not in the quality (`late`).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, _Request] = {}
        self._seen: set[str] = set()
        self._answered: dict[str, int] = {}  # scores that came before their request was read here
        self._early: dict[str, tuple[int, list[float]]] = {}
        self._truth: dict[str, tuple[list[float], list[int]]] = {}
        self._columns: list[list[float]] = [[], [], [], []]  # label, ctr, oracle, floor
        self._impressions: dict[str, int] = {}
        self._clicks: dict[str, int] = {}
        self._all = [0, 0]
        self._latency: list[float] = []
        self.recent: deque[tuple[float, float]] = deque(maxlen=4000)  # (when, ms)
        self.events = {"impressions": 0, "clicks": 0, "post-clicks": 0}
        self.statuses: dict[str, int] = {}
        self.models: set[str] = set()
        self.requests = self.scores = self.late = 0
        self.example: Example | None = None

    def event(self, topic: str, item: str) -> None:
        """An event was read; impressions and clicks feed the floor."""
        with self._lock:
            self.events[topic] += 1
            if topic == "impressions":
                self._impressions[item] = self._impressions.get(item, 0) + 1
                self._all[0] += 1
            elif topic == "clicks":
                self._clicks[item] = self._clicks.get(item, 0) + 1
                self._all[1] += 1

    def request(self, request_id: str, written_ms: int, user: str, ts: int, surface: str, items: list[str]) -> None:
        """A request was read: what the floor says of it is taken now, before anything that followed it is counted."""
        with self._lock:
            if request_id in self._seen:
                return
            self._seen.add(request_id)
            self.requests += 1
            rate = self._all[1] / self._all[0] if self._all[0] else 0.1
            clicks = np.array([self._clicks.get(i, 0) for i in items], float)
            shown = np.array([self._impressions.get(i, 0) for i in items], float)
            floor = np.clip((clicks + FLOOR_WEIGHT * rate) / (np.maximum(shown, clicks) + FLOOR_WEIGHT), 1e-4, 1 - 1e-4)
            self._open[request_id] = _Request(written_ms, ts, user, surface, items, floor)
            early = self._early.pop(request_id, None)
            if early:
                self._score(request_id, *early)

    def score(self, request_id: str, read_ms: int, status: str, ctr: list[float], model: str) -> None:
        """A score was read. Repeated scores of a request count once."""
        with self._lock:
            if request_id in self._answered:
                return
            self._answered[request_id] = read_ms
            self.scores += 1
            self.statuses[status] = self.statuses.get(status, 0) + 1
            self.models.add(model)
            if request_id in self._open:
                self._score(request_id, read_ms, ctr)
            else:
                self._early[request_id] = (read_ms, ctr)

    def truth(self, request_id: str, p: list[float], labels: list[int]) -> None:
        """The simulator's truth of a request."""
        with self._lock:
            self._truth[request_id] = (p, labels)
            self._join(request_id)

    def _score(self, request_id: str, read_ms: int, ctr: list[float]) -> None:
        r = self._open[request_id]
        ms = max(0.0, float(read_ms - r.written_ms))
        self._latency.append(ms)
        self.recent.append((time.monotonic(), ms))
        r.ctr, r.late = ctr, ms > 1000 * IMPRESSION_LAG_S
        self._join(request_id)

    def _join(self, request_id: str) -> None:
        r, t = self._open.get(request_id), self._truth.get(request_id)
        if r is None or t is None or r.ctr is None or r.floor is None:
            return
        del self._open[request_id], self._truth[request_id]
        p, labels = t
        n = len(labels)
        if r.late:
            self.late += 1
        elif len(r.ctr) >= n:  # a rejected or expired request has no ctr
            for column, values in zip(self._columns, (labels, r.ctr, p, r.floor.tolist()), strict=True):
                column.extend(values[:n])
            self.example = Example(r.user, r.ts, r.surface, r.items, r.ctr, p, labels)

    def unanswered(self) -> int:
        """Requests without a score so far."""
        with self._lock:
            return len(self._seen - self._answered.keys())

    def latencies(self) -> NDArray[np.float64]:
        """Milliseconds from request written to score read, of all answered requests."""
        with self._lock:
            return np.array(self._latency)

    def quality(self) -> Quality:
        """Measures so far."""
        with self._lock:
            y, ctr, p, floor = (np.array(c, float) for c in self._columns)
        nan = float("nan")
        if not len(y) or y.min() == y.max():
            return Quality(len(y), int(y.sum()), nan, nan, nan, nan, nan, nan, nan)
        label = y.astype(np.int64)
        return Quality(
            len(y), int(y.sum()), auc(label, ctr), logloss(label, ctr), ece(label, ctr),
            auc(label, p), logloss(label, p), auc(label, floor), logloss(label, floor),
        )  # fmt: skip
