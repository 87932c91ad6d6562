"""Reads the log for the demo in two threads of its own: requests and events in one, scores in the other, so that the time
at which a score is read doesn't wait for anything else. The truth comes from the simulator's file."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from stream_dmgin import topics as names
from stream_dmgin.demo.probe import WARM
from stream_dmgin.demo.tally import Tally
from stream_dmgin.errors import LogUnavailable
from stream_dmgin.log.base import Batch, Log
from stream_dmgin.records import decode_score
from stream_dmgin.settings import Settings

POLL_S = 0.05
T = TypeVar("T")


class _Seen(msgspec.Struct):
    item_id: str


class _Asked(msgspec.Struct):
    request_id: str
    user_id: str
    ts: int
    candidates: list[str]
    context: dict[str, str | float] = {}


def patient(ask: Callable[[], T], seconds: float = 20.0) -> T:
    """The answer of a log that may be away for a moment (a topic just made may have no leader yet). Blocks; raises LogUnavailable."""
    end = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except LogUnavailable:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def written(log: Log, topic: str) -> int:
    """Records that a topic holds or held."""
    return sum(patient(lambda: log.ends(topic)).values())


class Watcher:
    """Feeds a tally until `close`. A failure of a thread is raised by `check`."""

    def __init__(self, log: Log, settings: Settings, tally: Tally, oracle: Path) -> None:
        self._log, self._settings, self.tally, self._oracle = log, settings, tally, oracle
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._truth_at = 0
        self.woken: dict[str, int] = {}  # warm-up requests answered, and when
        both = ((names.REQUESTS, *names.EVENTS), self._events), ((names.SCORES,), self._scores)
        self._threads = [threading.Thread(target=self._run, args=a, name=f"watch-{a[0][0]}", daemon=True) for a in both]
        for t in self._threads:
            t.start()

    def check(self) -> None:
        """Raises what a thread died of."""
        if self._failure:
            raise self._failure

    def close(self) -> None:
        """Stop reading; seconds at most."""
        self._stop.set()
        for t in self._threads:
            t.join(10)

    def read_truth(self) -> None:
        """What the simulator wrote to its oracle file since the last call; only whole lines."""
        if not self._oracle.exists():
            return
        with self._oracle.open("rb") as f:
            f.seek(self._truth_at)
            for line in f:
                if not line.endswith(b"\n"):
                    break
                self._truth_at += len(line)
                t = json.loads(line)
                self.tally.truth(t["request_id"], t["p"], t["labels"])

    def dead_letters(self) -> int:
        """Records in the dead letters."""
        return self.written(names.DEAD_LETTERS)

    def written(self, *topics: str) -> int:
        """Records that these topics hold."""
        return sum(written(self._log, self._settings.topic(t)) for t in topics)

    def _run(self, topics: tuple[str, ...], take: Callable[[Batch], None]) -> None:
        try:
            full = [self._settings.topic(t) for t in topics]
            there = patient(self._log.topics)
            reader = self._log.reader(full)
            try:
                reader.assign({(t, p): 0 for t in full for p in range(there[t].partitions)})
                while not self._stop.is_set():
                    batch = reader.poll(5000, POLL_S)
                    if batch is not None:
                        take(batch)
                        batch.release()
            finally:
                reader.close()
        except BaseException as e:
            self._failure = e

    def _events(self, batch: Batch) -> None:
        seen, asked = msgspec.msgpack.Decoder(_Seen), msgspec.msgpack.Decoder(_Asked)
        which = batch.topic
        for i in (which == 0).nonzero()[0].tolist():  # requests before the events of the same batch
            r = asked.decode(batch.value(i) or b"")
            if r.request_id.startswith(WARM):
                continue
            surface = str(r.context.get("surface", ""))
            self.tally.request(r.request_id, int(batch.timestamp[i]), r.user_id, r.ts, surface, r.candidates)
        for i in (which > 0).nonzero()[0].tolist():
            self.tally.event(names.EVENTS[which[i] - 1], seen.decode(batch.value(i) or b"").item_id)

    def _scores(self, batch: Batch) -> None:
        now = int(time.time() * 1000)
        for i in range(len(batch)):
            s = decode_score(batch.value(i) or b"")
            if s.request_id.startswith(WARM):
                self.woken[s.request_id] = now
                continue
            self.tally.score(s.request_id, now, s.status, s.ctr, s.model)
