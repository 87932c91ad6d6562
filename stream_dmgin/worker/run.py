"""Puts a worker together and runs it: under Faust on Kafka, alone on the embedded log and for bounded runs."""

from __future__ import annotations

import gc
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from stream_dmgin import topics
from stream_dmgin.counters.learner import STRETCH
from stream_dmgin.errors import LogUnavailable
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import GroupReader, Log, open_log
from stream_dmgin.scoring.scorer import Scorer
from stream_dmgin.scoring.tower_cache import TowerCache
from stream_dmgin.settings import Settings
from stream_dmgin.state import store
from stream_dmgin.worker.admin import Admin
from stream_dmgin.worker.answers import FLOOR, Answers
from stream_dmgin.worker.copies import ALL, Choice, number
from stream_dmgin.worker.delivery import AtLeastOnce, Delivery, ExactlyOnce
from stream_dmgin.worker.disk import Disk, disk_full
from stream_dmgin.worker.erasing import Erasing
from stream_dmgin.worker.fetching import Fetching
from stream_dmgin.worker.followed import nothing
from stream_dmgin.worker.forgetting import Forgetting
from stream_dmgin.worker.health import Health
from stream_dmgin.worker.http import HealthServer, free_address
from stream_dmgin.worker.lag import LagWatcher
from stream_dmgin.worker.limits import DeadLetterLimit
from stream_dmgin.worker.loop import Loop
from stream_dmgin.worker.maintenance import Maintenance
from stream_dmgin.worker.ordered import OrderedReader
from stream_dmgin.worker.partitions import Owned, Partitions, check_topics, read_groups
from stream_dmgin.worker.patience import Patience
from stream_dmgin.worker.place import place, sharing
from stream_dmgin.worker.recovery import Recovery
from stream_dmgin.worker.regroup import Regroup
from stream_dmgin.worker.releases import Releases, ScorersByMap, reads
from stream_dmgin.worker.shared import Shared
from stream_dmgin.worker.snapshots import Checkpoints, Snapshots
from stream_dmgin.worker.standby import Standby
from stream_dmgin.worker.watchdog import Watchdog

log_ = logging.getLogger(__name__)

POLL_S = 0.05
DISK_S = 0.5
UNOWNED_S = 30.0  # --until-end: so long may the group take to give partitions


@dataclass
class Worker:
    """The parts of one worker. `turns(stop)` is the data path: it runs until `stop` is set."""

    log: Log
    loop: Loop
    partitions: Partitions
    shared: Shared
    health: Health
    regroup: Regroup
    synced: int = 0  # the stream's time when the shared counters last had all of it

    def turns(self, stop: threading.Event) -> None:
        """Turn until told to stop."""
        # What is loaded by now (torch, compiled kernels) lives as long as the process: a full collection would walk
        # through all of it, for tens of milliseconds, while requests wait.
        gc.collect()
        gc.freeze()
        try:
            while not stop.is_set():
                self.loop.turn(POLL_S)
        except LogUnavailable as e:
            if not stop.is_set():
                raise
            log_.warning("told to stop while the log is away: %s", e)

    def until_end(self, stop: threading.Event, told: Callable[[int], None] = lambda records: None) -> None:
        """Turn until everything that the topics held at the start is folded, answered and committed, and the stores have the
        group map to go by. `told` gets the number of records of each turn."""
        ends = self.partitions.ends()
        t0 = time.monotonic()
        while not stop.is_set():
            n = self.loop.turn(POLL_S)
            told(n)
            if n == 0 and self.partitions.reached(ends) and not self.regroup.busy:
                break
            if not (self.partitions.owned or self.partitions.coming) and time.monotonic() - t0 > UNOWNED_S:
                log_.warning("no partitions yet: is another worker of this group running? Still waiting")
                t0 = time.monotonic()
        self.loop.commit()
        self.loop.settle()

    def sync_counters(self, ordered: OrderedReader, step_ms: int) -> None:
        """Bring what was folded into the shared counters, if the stream's time has moved on by so much since the last time: a second of
        ours may be hours of the stream."""
        if ordered.stream_time - self.synced >= max(1, step_ms):
            self.loop.commit()
            self.loop.flush()
            self.shared.catch_up()
            self.synced = ordered.stream_time


@contextmanager
def worker(
    settings: Settings, *, score: bool, ordered: bool = False, stop: Callable[[], bool] = lambda: False
) -> Iterator[Worker]:
    """A worker with its stores and connections; leaving the block commits, leaves the group and closes everything.

    `ordered`: a backlog in the order of record timestamps (worker/ordered.py), for bounded runs. `stop()`: whether the worker was
    told to end, asked wherever it waits for a log that is away.
    """
    with ExitStack() as stack:
        health = Health()
        stack.enter_context(sharing(settings.data_dir, alone=bool(number(settings["worker.standby"]))))
        store.budget(settings["worker.rocksdb_mb"] << 20)
        log = stack.enter_context(open_log(settings.log, settings.kafka))
        check_topics(log, settings.prefix)
        recovery = Recovery(settings) if settings["snapshot.to"] else None
        groups = recovery.groups() if recovery else read_groups(settings["worker.groups"], settings.data_dir / "state")
        health.groups = groups.id
        writer = log.writer(linger_ms=0 if score else 5)
        stack.callback(writer.close)
        needs = partial(reads, settings) if score else nothing
        shared = Shared(log, settings.prefix, settings.data_dir / "shared", writer, health, needs)
        health.control = shared.control.others
        stack.callback(shared.close)
        answers = _answers(settings, shared, groups, health) if score else None
        part: list[Any] = []

        def commit(o: Owned, rows: Sequence[tuple[bytes, bytes]]) -> None:
            if standby is not None and standby.copies.get(o.partition) is o:
                standby.commit(o, rows)
            else:
                part[0].commit_one(o, rows)

        standby: Standby | None = None
        erasing = Erasing(
            log, settings.prefix, settings.data_dir, shared.control, health, commit=commit,
            forget=answers.forget if answers is not None else lambda user: None,
        )  # fmt: skip

        def opened(o: Owned) -> None:
            shared.opened(o)
            erasing.opened(o)

        partitions = Partitions(
            log, settings.prefix, settings.data_dir / "state", groups, health, cache_mb=settings["worker.cache_mb"], score=score,
            on_open=opened, before_open=shared.catch_up_counters,
            release=lambda released: part[0].release(released), on_lost=lambda: part[0].lost(),  # noqa: PLW0108 - the loop comes later
        )  # fmt: skip
        partitions.patience = Patience(health, stop)
        if recovery:
            partitions.fetching = Fetching(recovery.missing, recovery.fill, health)
            stack.callback(partitions.fetching.close)
        stack.callback(partitions.close)
        partitions.wait_for_state = not ordered
        names = [settings.topic(t) for t in (*topics.EVENTS, *((topics.REQUESTS,) if score else ()))]
        reader: GroupReader = log.group_reader(
            settings["worker.group"], names, partitions,
            instance_id=settings["worker.instance_id"], protocol=settings["worker.group_protocol"],
        )  # fmt: skip
        partitions.reader = reader
        if ordered:
            reader = OrderedReader(reader, tuple(names), partitions)
        stack.callback(reader.close)
        stack.callback(partitions.leave)
        delivery: Delivery
        if settings["worker.exactly_once"]:
            transactions = log.transactions(
                f"{settings['worker.group']}-{stack.enter_context(place(settings.data_dir))}"
            )
            stack.callback(transactions.close)
            delivery = ExactlyOnce(
                transactions, reader, lambda: loop.done(), lambda: bool(partitions.owned), settings["worker.transaction_ms"] / 1000  # noqa: PLW0108
            )  # fmt: skip
        else:
            delivery = AtLeastOnce(writer, reader)
        loop = Loop(
            reader, writer, partitions, shared, answers, health, settings.prefix, delivery,
            commit_interval_s=settings["worker.commit_interval_s"], max_batch=settings["worker.max_batch"],
            max_requests=settings["worker.max_requests"],
            limit=DeadLetterLimit(*(settings[f"worker.dead_letter_{x}"] for x in ("share", "count", "window"))),
        )  # fmt: skip
        part.append(loop)
        if not ordered:  # a merge by time can't hold single partitions back
            disk = Disk(settings.data_dir, settings["worker.disk_free_mb"], settings["worker.disk_free_percent"])
            loop.chores.append(lambda: _watch_disk(disk, health))
        if (copied := number(settings["worker.standby"])) and not ordered:
            chosen = None
            if copied != ALL and settings.log.startswith("kafka://"):  # the embedded log has one owner, and others wait
                chosen = stack.enter_context(Choice(settings, partitions.total, copied, reader.member)).wanted
            standby = Standby(
                log, settings.prefix, partitions.total, shared.control, health, open_store=partitions.open_store,
                path=partitions.path, fetching=partitions.fetching, published=shared.published, mine=partitions.not_others,
                on_open=erasing.opened, wanted=chosen,
            )  # fmt: skip
            stack.callback(standby.close)
            partitions.standby = standby
            loop.chores.append(standby.turn)
        copies = standby.copies if standby is not None else {}
        loop.chores.append(lambda: erasing.turn({**copies, **partitions.owned}))
        shared.catch_up()
        regroup = Regroup(
            settings,
            partitions,
            shared.control,
            health,
            loop.commit_one,
            answers.settled if answers else lambda groups: None,
            recovery.fetch if recovery else None,
        )
        stack.callback(regroup.close)
        regroup.begin()
        loop.chores.append(regroup.turn)
        checkpoints = Checkpoints(loop.between, partitions, loop.commit_one, settings.data_dir, health)
        maintenance = Maintenance(loop.between, partitions, loop.commit_one)
        stack.enter_context(
            Admin(
                settings.data_dir,
                {"checkpoint": checkpoints.verb, "compact": maintenance.compact, "stats": maintenance.stats},
            )
        )
        if settings["snapshot.to"] and settings["snapshot.every_s"]:
            forgetting = Forgetting(
                settings.data_dir, settings.prefix, loop.between, partitions, shared.control, loop.commit_one,
                settings["snapshot.erase_within_days"],
            )  # fmt: skip
            stack.enter_context(Snapshots(settings, checkpoints, forgetting, health))
        stack.callback(loop.between.close)
        try:
            made = Worker(log, loop, partitions, shared, health, regroup)
            if isinstance(reader, OrderedReader):
                sync = partial(made.sync_counters, reader, settings["worker.ordered_step_ms"])
                loop.before_answers = sync
                if shared.counters.online is not None:  # it learns in steps as small as a replay's
                    reader.at_once = STRETCH
                    loop.chores.append(sync)
            yield made
        except BaseException:
            partitions.close()  # whatever failed, nothing more is written: the log is folded again from the last commit
            raise
        loop.end()


def _watch_disk(disk: Disk, health: Health) -> None:
    now = time.monotonic()
    if now - disk.looked >= DISK_S:
        disk.looked = now
        health.waiting = disk.look()
        health.waits()
        health.metrics.disk_free.set(disk.free)


def _answers(settings: Settings, shared: Shared, groups: GroupMap, health: Health) -> Answers:
    """What answers requests: the model of the settings, until another is published; or item rates, when asked for."""
    name = settings["worker.model"]
    if name == FLOOR:
        health.model = FLOOR
        return Answers(None, None, "item rates, as asked", shared, settings.prefix, health)
    load = partial(_scorers, settings, shared, groups, health)
    scorers = load(name)
    health.model = scorers.engine.model.id
    releases = Releases(health, scorers.engine.model.id, load)
    return Answers(scorers, releases, "", shared, settings.prefix, health)


def _scorers(settings: Settings, shared: Shared, groups: GroupMap, health: Health, model_id: str) -> ScorersByMap:
    """The model on its engine, with a scorer over `groups` at the ready."""
    from stream_dmgin.models.registry import load_model
    from stream_dmgin.scoring.engine import choose_engine

    model = load_model(model_id, settings.data_dir)
    engine, why = choose_engine(model)
    log_.info("model %s, engine %s", model.id, why)
    stage = health.metrics.stage

    def observe(name: str, seconds: float) -> None:
        stage.labels(name).observe(seconds)

    def make(groups: GroupMap) -> Scorer:
        return Scorer(
            engine, shared.catalogue, shared.counters, groups, max_users=settings["worker.max_requests"],
            tower_cache=TowerCache(settings["worker.tower_cache_mb"] << 20), observe=observe,
        )  # fmt: skip

    scorers = ScorersByMap(engine, make)
    scorers.of(groups)
    return scorers


def run(settings: Settings, *, score: bool, until_end: bool, ordered: bool = False) -> dict[str, Any]:
    """Run a worker until SIGTERM, SIGINT or the end of the log; what it did, as the contract's JSON. Blocks. Raises DiskFull where
    that is what something else came from."""
    try:
        return _run(settings, score=score, until_end=until_end, ordered=ordered)
    except Exception as e:
        full = disk_full(e, settings.data_dir)
        if full is None:
            raise
        log_.debug("the disk is full", exc_info=e)
        raise full from None


def _run(settings: Settings, *, score: bool, until_end: bool, ordered: bool) -> dict[str, Any]:
    t0 = time.monotonic()
    http: str = "off" if until_end else settings["worker.http"]
    if http != "off":
        http = free_address(http, chosen=settings.origin["worker.http"] != "default")
    with _signals() as stop, ExitStack() as views:
        with worker(settings, score=score, ordered=ordered, stop=stop.is_set) as w:
            if until_end:
                with Watchdog(w.health, settings["worker.stall_s"]):
                    w.until_end(stop)
            else:
                views.enter_context(LagWatcher(settings, w.health))
                views.enter_context(_views(settings, http, w.health, stop))
                with Watchdog(w.health, settings["worker.stall_s"]):
                    w.turns(stop)
            w.health.stopping = True
        totals = w.loop.totals  # the views end after the worker: partitions are released before Faust is waited for
    return {**asdict(totals), "seconds": round(time.monotonic() - t0, 3)}


@contextmanager
def _views(settings: Settings, http: str, health: Health, stop: threading.Event) -> Iterator[None]:
    """Health and metrics at `http`, through Faust on Kafka."""
    with ExitStack() as stack:
        if settings.log.startswith("kafka://"):
            from stream_dmgin.worker import faust_app

            stack.enter_context(faust_app.running(settings, http, health, stop))
        elif http != "off":
            stack.enter_context(HealthServer(http, health))
        yield


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    handlers = [(s, signal.signal(s, lambda *_: stop.set())) for s in (signal.SIGTERM, signal.SIGINT)]
    try:
        yield stop
    finally:
        for s, h in handlers:
            signal.signal(s, h)
