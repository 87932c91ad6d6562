"""The main job, whole: log, topics, histories, worker, live traffic, scores, and how good they are.

Simulator and worker are processes of their own (`stream-dmgin simulate`, `stream-dmgin worker`), started as a user would
start them. Whatever happens, they are ended before this returns; when this process is killed, their guards end them.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin import topics as names
from stream_dmgin.demo.place import Place, choose
from stream_dmgin.demo.probe import WARM, Probe, free_port
from stream_dmgin.demo.processes import Child
from stream_dmgin.demo.tally import Quality, Tally
from stream_dmgin.demo.view import Screen
from stream_dmgin.demo.watcher import Watcher, written
from stream_dmgin.errors import StreamDmginError
from stream_dmgin.records import Request, encode
from stream_dmgin.settings import Settings
from stream_dmgin.simulator.city import City, build_city
from stream_dmgin.simulator.parquet import write_groups

READY_S = 240.0  # worker started, histories written and folded
DRAIN_S = 60.0  # after the last request
STEP_S = 0.1
QUALITY_S = 1.0


@dataclass(frozen=True)
class Options:
    """What the demo simulates. A day of the city takes 86,400 / `speed` seconds: ten, so that meals, nights and weekends come by
    and nobody is shown more ads an hour than people can be shown."""

    seconds: float = 40
    events_per_s: float = 2000
    requests_per_s: float = 40
    users: int = 400
    life: tuple[int, int] = (200, 50_000)
    items: int = 2000
    days: int = 180
    seed: int = 11
    city: int = 1
    speed: float = 8640


@dataclass
class Outcome:
    """What came of it. `numbers` is the contract's JSON."""

    numbers: dict[str, Any]
    place: Place
    quality: Quality
    history: int
    statuses: dict[str, int]
    models: list[str]
    late: int


def run(
    settings: Settings, auto: bool, options: Options, show: Callable[[Screen], Any], say: Callable[[str], None]
) -> Outcome:
    """Run the demo. `show(screen)` gives a context manager in which the screen is drawn; `say` takes lines of progress.
    Raises StreamDmginError with the end of a child's log; KeyboardInterrupt on SIGINT and SIGTERM."""
    with ExitStack() as stack:
        stack.enter_context(_terminable())
        place = choose(settings, auto, stack, say)
        directory = place.settings.data_dir
        city = build_city(options.items, options.city)
        ensure_topics(place)
        write_groups(city, directory / "groups.csv")
        tally = Tally()
        for topic in names.ALL:  # all have leaders before anyone else asks
            written(place.log, place.settings.topic(topic))
        watcher = Watcher(place.log, place.settings, tally, directory / "oracle.jsonl")
        stack.callback(watcher.close)
        probe = Probe(f"127.0.0.1:{free_port()}")
        go = directory / "go"
        worker = _start(stack, place, "worker", [
            "--groups", str(directory / "groups.csv"), "--http", probe.address,
        ])  # fmt: skip
        simulator = _start(stack, place, "simulator", [
            "--events-per-s", str(options.events_per_s), "--requests-per-s", str(options.requests_per_s),
            "--seconds", str(options.seconds), "--users", str(options.users), "--items", str(options.items),
            "--life", f"{options.life[0]}:{options.life[1]}", "--seed", str(options.seed),
            "--city", str(options.city), "--history-days", str(options.days),
            "--speed", str(options.speed), "--hold", str(go), "--oracle-out", str(directory / "oracle.jsonl"),
        ])  # fmt: skip
        demo = _Demo(place, tally, watcher, probe, worker, simulator, city, options)
        with show(demo.screen):
            demo.warm(go)
            demo.wake()
            demo.live(go)
            demo.drain()
        return demo.outcome()


class _Demo:
    """One run, phase by phase."""

    def __init__(
        self,
        place: Place,
        tally: Tally,
        watcher: Watcher,
        probe: Probe,
        worker: Child,
        simulator: Child,
        city: City,
        options: Options,
    ) -> None:
        self._place, self._tally, self._watcher, self._probe = place, tally, watcher, probe
        self._worker, self._simulator, self._options = worker, simulator, options
        item_names = {i.item_id: i.name or i.item_id for i in city.items()}
        self.screen = Screen(tally, place.settings.log, item_names, options.seconds)
        self._history = 0
        self._live_s = 0.0
        self._measured = 0.0
        self._woken = 0

    def warm(self, go: Path) -> None:
        """Until the histories are written and folded, and read here."""
        waiting = go.with_name(go.name + ".waiting")
        for _ in self._steps(READY_S, "the worker did not catch up with the histories"):
            done = waiting.exists()
            self.screen.phase = "folding histories" if done else "writing histories"
            self.screen.history = sum(self._tally.events.values())
            if done and self._probe.ready() and self._lag() == 0 and self.screen.history == self._written():
                break
        self._history = self.screen.history

    def wake(self) -> None:
        """Some requests whose scores nobody counts, one after another and all at once, so that what a worker does once (loading,
        compiling) is over before anything is timed."""
        self.screen.phase = "waking the worker"
        settings, writer = self._place.settings, self._place.log.writer(linger_ms=0)
        topic = settings.topic(names.REQUESTS)
        sent: list[str] = []
        candidates = [f"s{i}" for i in range(20)]
        try:
            for burst in (1, 1, 8, 8, 1, 1):
                for _ in range(burst):
                    sent.append(f"{WARM}{len(sent)}")
                    user = f"u{len(sent) % self._options.users}"
                    request = Request(sent[-1], user, int(time.time() * 1000), candidates)
                    writer.append(topic, user.encode(), encode(request))
                writer.flush()
                for _ in self._steps(READY_S, "the worker answered no request"):
                    if all(s in self._watcher.woken for s in sent):
                        break
        finally:
            writer.close()
        self._woken = len(sent)

    def live(self, go: Path) -> None:
        """Traffic, until the simulator ends by itself."""
        self.screen.phase = "live"
        go.touch()
        begun = self.screen.live_since = time.monotonic()
        for _ in self._steps(self._options.seconds + 60, "the simulator did not end"):
            if self._simulator.done() is not None:
                break
        self._live_s = time.monotonic() - begun

    def drain(self) -> None:
        """Until every request has its score."""
        self.screen.phase = "waiting for the last scores"
        end = time.monotonic() + DRAIN_S
        for _ in self._steps(DRAIN_S + 5, "the last requests were not read"):
            asked = self._watcher.written(names.REQUESTS) - self._woken
            if (self._tally.requests >= asked and not self._tally.unanswered()) or time.monotonic() > end:
                break
        self._watcher.read_truth()

    def _steps(self, limit: float, otherwise: str) -> Iterator[None]:
        """Comes round every STEP_S, looks after children, threads and screen. Raises StreamDmginError after `limit` seconds."""
        begun = time.monotonic()
        while time.monotonic() - begun < limit:
            self._worker.check()
            if self._worker.done() is not None:
                raise StreamDmginError(
                    f"the worker ended by itself; the end of {self._worker.log}:\n{self._worker.tail()}"
                )
            self._simulator.check()
            self._watcher.check()
            self._look()
            yield
            time.sleep(STEP_S)
        raise StreamDmginError(
            f"{otherwise} within {limit:.0f} s; the end of {self._worker.log}:\n{self._worker.tail()}"
        )

    def _look(self) -> None:
        now = time.monotonic()
        self.screen.see()
        if now - self._measured > QUALITY_S:
            self._measured = now
            self._watcher.read_truth()
            self.screen.quality = self._tally.quality()
            self.screen.lag = self._lag() or 0
            self.screen.dead = self._watcher.dead_letters()

    def _lag(self) -> int | None:
        folded = self._probe.events_folded()
        return None if folded is None else max(0, self._written() - folded)

    def _written(self) -> int:
        return self._watcher.written(*names.EVENTS)

    def outcome(self) -> Outcome:
        """The summary's figures, over the live part."""
        t, q = self._tally, self._tally.quality()
        ms = t.latencies()
        events = self._written() - self._history
        numbers = {
            "log": self._place.settings.log,
            "events": events,
            "requests": t.requests,
            "scores": t.scores,
            "dead_letters": self._watcher.dead_letters(),
            "events_per_s": _figure(events / max(self._live_s, 1e-9), 1),
            "p50_ms": _figure(_percentile(ms, 50), 1),
            "p99_ms": _figure(_percentile(ms, 99), 1),
            "auc": _figure(q.auc, 4),
            "logloss": _figure(q.logloss, 4),
            "ece": _figure(q.ece, 4),
            "oracle_logloss": _figure(q.oracle_logloss, 4),
            "floor_logloss": _figure(q.floor_logloss, 4),
        }
        return Outcome(numbers, self._place, q, self._history, dict(t.statuses), sorted(t.models), t.late)


def _figure(x: float, digits: int) -> float | None:
    """As JSON has it: rounded, and null where there is none."""
    return None if math.isnan(x) else round(float(x), digits)


def _percentile(values: NDArray[np.float64], q: float) -> float:
    return float(np.percentile(values, q)) if len(values) else math.nan


def ensure_topics(place: Place) -> None:
    """Create the topics of this run."""
    from stream_dmgin.simulator.live import ensure_topics as create

    create(place.log, place.settings)


def _start(stack: ExitStack, place: Place, name: str, arguments: list[str]) -> Child:
    """Start a child on the place's log; the stack ends it."""
    s = place.settings
    verb = "simulate" if name == "simulator" else name
    common = ["--log", s.log, "--data-dir", str(s.data_dir), "--prefix", s.prefix]
    environ = {"STREAM_DMGIN_WORKER_GROUP": place.group}
    child = Child(name, [verb, *arguments, *common], s.data_dir / f"{name}.log", environ)
    stack.callback(child.stop)
    return child


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGINT (even where a shell started us with it ignored), SIGTERM and SIGHUP end the demo by KeyboardInterrupt, so that
    everything is closed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
