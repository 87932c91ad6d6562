"""The simulator on a log: items first, then (if wanted) a history dated in the past, then live traffic at a given pace."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np

from stream_dmgin import topics as names
from stream_dmgin.log.base import Log, TopicInfo, Writer
from stream_dmgin.records import Event, Request, encode
from stream_dmgin.settings import Settings
from stream_dmgin.simulator import behaviour as b
from stream_dmgin.simulator.columns import taken
from stream_dmgin.simulator.ids import event_numbers, lag, request_numbers, tag
from stream_dmgin.simulator.parquet import write_groups
from stream_dmgin.simulator.traffic import TICK_S, Due, Pace, Tick, traffic
from stream_dmgin.simulator.words import SURFACES
from stream_dmgin.simulator.world import DAY_MS, Plan, World, build_world, history

_TOPIC_OF_KIND = (names.IMPRESSIONS, names.CLICKS) + (names.POST_CLICKS,) * 6


def simulate(
    log: Log,
    settings: Settings,
    plan: Plan,
    pace: Pace,
    hold: Path | None = None,
    oracle_out: Path | None = None,
    groups_out: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Write the simulation to the log; returns counts and rates. Blocks for about `pace.seconds`; raises LogUnavailable.

    `hold`: between history and live part, create `hold`.waiting and wait until `hold` exists. `oracle_out`: JSON lines of
    the requests' truth.
    """
    ensure_topics(log, settings)
    world = build_world(plan)
    if groups_out:
        write_groups(world.city, groups_out)
    with ExitStack() as stack:
        writer = log.writer(linger_ms=5)
        stack.callback(writer.close)
        out = Output(writer, settings, plan)
        out.items(world)
        written = 0
        for users, views, events in history(world, keep=True):
            if plan.days:
                user = (users.first + views.user[events.page]).astype(np.int64)
                request = request_numbers(user, views.number[events.page])
                number = event_numbers(request, events.position, events.kind)
                seen = events.ts + lag(number)
                order = np.argsort(seen, kind="stable")
                due = Due(
                    seen,
                    user,
                    request,
                    number,
                    events.item,
                    events.kind,
                    events.ts,
                    events.dwell,
                    events.value,
                    events.position,
                    views.surface[events.page],
                )
                out.events(taken(due, order), dated=True)
                written += len(order)
                say(f"history: {written:,} events written")
        writer.flush()
        if hold:
            hold.with_name(hold.name + ".waiting").touch()
            while not hold.exists() and not stopped():
                time.sleep(0.02)
        oracle = stack.enter_context(oracle_out.open("w", encoding="utf-8")) if oracle_out else None
        result = _live(world, pace, out, oracle, stopped)
        writer.flush()
    return {"items": plan.items, "users": plan.users, "history_events": written, **result}


def ensure_topics(log: Log, settings: Settings) -> None:
    """Create the topics of the contract that are missing, with the configured number of partitions."""
    there = log.topics()
    log.create(
        TopicInfo(
            settings.topic(t.name), settings["partitions"] if t.user_keyed else 1,
            {"cleanup.policy": t.cleanup, "retention.ms": str(t.retention_ms)},
        )
        for t in names.ALL.values()
        if settings.topic(t.name) not in there
    )  # fmt: skip


def _live(world: World, pace: Pace, out: Output, oracle: IO[str] | None, stopped: Callable[[], bool]) -> dict[str, Any]:
    clicks = shown = 0
    begun = time.monotonic()
    events_before, late = out.events_written, 0.0
    if pace.seconds > 0:
        for tick in traffic(world, pace):
            wait = begun + tick.index * TICK_S - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            late = max(late, -wait)
            out.requests(tick, oracle)
            out.events(tick.events, dated=False)
            out.writer.poll()
            clicks += int(np.count_nonzero(tick.events.kind == b.CLICK))
            shown += int(np.count_nonzero(tick.events.kind == b.IMPRESSION))
            if stopped():
                break
    out.writer.flush()
    took = max(time.monotonic() - begun, 1e-9)
    events = out.events_written - events_before
    return {
        "events": events, "requests": out.requests_written, "seconds": round(took, 3), "events_per_s": round(events / took, 1),
        "requests_per_s": round(out.requests_written / took, 1), "ctr": round(clicks / shown, 4) if shown else None,
        "latest_tick_late_ms": round(late * 1000, 1), "start_ms": world.plan.start_ms,
        "city_end_ms": world.plan.start_ms + world.plan.days * DAY_MS + round(pace.seconds * 1000 * pace.speed),
    }  # fmt: skip


class Output:
    """Encodes and appends. Cost: about 4 us an event on Kafka, of which 2 us are the client's queue."""

    def __init__(self, writer: Writer, settings: Settings, plan: Plan) -> None:
        self.writer = writer
        self.events_written = self.requests_written = 0
        self._topics = [settings.topic(t) for t in _TOPIC_OF_KIND]
        self._items_topic, self._requests_topic = settings.topic(names.ITEMS), settings.topic(names.REQUESTS)
        self._tag = tag(plan)
        self._item_ids = [f"s{i}" for i in range(plan.items)]

    def items(self, world: World) -> None:
        """The catalogue, one record an item."""
        for item in world.city.items():
            self.writer.append(self._items_topic, item.item_id.encode(), encode(item))

    def events(self, due: Due, dated: bool) -> None:
        """Events in order. `dated`: the record's timestamp is `due.tick` (when the event became known), else now."""
        append, topics, item_ids, t = self.writer.append, self._topics, self._item_ids, self._tag
        for n, (at, user, request, number, item, kind, ts, dwell, value, position, surface) in enumerate(
            zip(*(c.tolist() for c in due), strict=True)
        ):
            user_id = f"u{user}"
            event = Event(
                user_id, item_ids[item], ts, f"e{t}{number}", b.KINDS[kind], f"q{t}{request}", position,
                dwell if dwell >= 0 else None, value if value == value else None, surface=SURFACES[surface],
            )  # fmt: skip
            append(topics[kind], user_id.encode(), encode(event), timestamp=at if dated else None)
            if not n % 5000:
                self.writer.poll()
        self.events_written += len(due.ts)

    def requests(self, tick: Tick, oracle: IO[str] | None) -> None:
        """Score requests, and their truth beside the log."""
        for a in tick.requests:
            user_id, request_id = f"u{a.user}", f"q{self._tag}{a.number}"
            candidates = [self._item_ids[i] for i in a.items]
            context = {"lat": a.lat, "lon": a.lon, "surface": SURFACES[a.surface]}
            if oracle:
                truth = {"request_id": request_id, "ts": a.ts, "items": candidates, "p": a.p, "labels": a.labels}
                oracle.write(json.dumps(truth) + "\n")
            self.writer.append(
                self._requests_topic, user_id.encode(), encode(Request(request_id, user_id, a.ts, candidates, context))
            )
            self.requests_written += 1
        if oracle and tick.requests:
            oracle.flush()
