"""Live traffic by the clock of the city: for each tick the requests made and the events that have become due.

Pure function of the plan and the pace: the wall clock comes in only where `live.py` waits for the next tick. What follows
a request reaches the log at least IMPRESSION_LAG_S after it, so that no score can know its own outcome.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.simulator import behaviour as b
from stream_dmgin.simulator.columns import joined, taken
from stream_dmgin.simulator.ids import event_numbers, request_numbers
from stream_dmgin.simulator.world import DAY_MS, EVENTS_PER_IMPRESSION, World

TICK_S = 0.02
IMPRESSION_LAG_S = 1.0


@dataclass(frozen=True)
class Pace:
    """How fast, how long. `speed`: city seconds in a second of the wall clock."""

    events_per_s: float = 2000
    requests_per_s: float = 20
    seconds: float = 60
    candidates: int = 20
    speed: float = 1.0


class Due(NamedTuple):
    """Events as columns, users and requests already numbered over the whole city."""

    tick: NDArray[np.int64]  # when it is written
    user: NDArray[np.int64]
    request: NDArray[np.int64]  # request number
    number: NDArray[np.int64]  # event number
    item: NDArray[np.int32]
    kind: NDArray[np.uint8]
    ts: NDArray[np.int64]
    dwell: NDArray[np.int64]
    value: NDArray[np.float64]
    position: NDArray[np.int16]
    surface: NDArray[np.uint8]


@dataclass(frozen=True)
class Asked:
    """One score request with its truth: p of each candidate; labels of those shown (the first ones)."""

    user: int
    number: int
    ts: int
    surface: int
    lat: float
    lon: float
    items: list[int]
    p: list[float]
    labels: list[int]


@dataclass(frozen=True)
class Tick:
    """What is written at one tick."""

    index: int
    city_ms: int
    requests: list[Asked]
    events: Due


def traffic(world: World, pace: Pace) -> Iterator[Tick]:
    """Ticks until `pace.seconds` are over; the last one carries everything still on its way."""
    plan = world.plan
    start = plan.start_ms + plan.days * DAY_MS
    r = np.random.default_rng([plan.seed, 4242])
    weight = np.concatenate([np.sqrt(k.users.life) for k in world.blocks])
    who = np.cumsum(weight) / weight.sum()  # the busy come oftener, but not as much as their lives are longer
    firsts = np.array([k.users.first for k in world.blocks])
    pending = _no_events()
    ticks = max(1, round(pace.seconds / TICK_S))
    made, views_made, per_view = 0.0, 0, plan.shown * EVENTS_PER_IMPRESSION
    for t in range(ticks):
        asks = int(pace.requests_per_s * TICK_S * (t + 1)) - int(pace.requests_per_s * TICK_S * t)
        wanted = pace.events_per_s * TICK_S * (t + 1) - made - asks * per_view
        others = max(0, round(wanted / per_view))
        n = asks + others
        city_ms = start + round(t * TICK_S * 1000 * pace.speed)
        requests: list[Asked] = []
        if n:
            users = np.searchsorted(who, r.random(n))
            ts = city_ms + (np.arange(n) * TICK_S * 1000 * pace.speed / n).astype(np.int64)
            block = np.searchsorted(firsts, users, side="right") - 1
            for asking, part in ((True, np.arange(asks)), (False, np.arange(asks, n))):
                for k in np.unique(block[part]):
                    mine = part[block[part] == k]
                    found, events = _play(
                        world, int(k), users[mine], ts[mine], pace.candidates if asking else plan.shown
                    )
                    pending = joined([pending, _due(world, int(k), found, events, t, pace)])
                    made += len(events.page)
                    if asking:
                        requests += _asked(world, int(k), found)
            views_made += n
            per_view = made / views_made if views_made > 200 else per_view
        last = t == ticks - 1
        ready = pending.tick <= (ticks + 10**9 if last else t)
        due, later = np.flatnonzero(ready), np.flatnonzero(~ready)
        due = due[np.argsort(pending.tick[due], kind="stable")]
        yield Tick(t, city_ms, requests, taken(pending, due))
        pending = taken(pending, later)


def _play(
    world: World, k: int, users: NDArray[np.int64], ts: NDArray[np.int64], candidates: int
) -> tuple[b.Views, b.Events]:
    block, plan = world.blocks[k], world.plan
    views = b.new_views(len(users), candidates)._replace(user=(users - block.users.first).astype(np.int32), ts=ts)
    return views, b.play(plan.seed, world.base, plan.shown, views, world.city.arrays, block.users, block.memory)


def _due(world: World, k: int, views: b.Views, e: b.Events, tick: int, pace: Pace) -> Due:
    user = (world.blocks[k].users.first + views.user[e.page]).astype(np.int64)
    request = request_numbers(user, views.number[e.page])
    later = IMPRESSION_LAG_S + (e.ts - views.ts[e.page]) / 1000 / pace.speed
    at = tick + np.ceil(later / TICK_S).astype(np.int64)
    return Due(
        at,
        user,
        request,
        event_numbers(request, e.position, e.kind),
        e.item,
        e.kind,
        e.ts,
        e.dwell,
        e.value,
        e.position,
        views.surface[e.page],
    )


def _asked(world: World, k: int, views: b.Views) -> list[Asked]:
    first, shown = world.blocks[k].users.first, world.plan.shown
    lat, lon = world.city.latlon(views.x, views.y)
    out = []
    for v in range(len(views.user)):
        there = np.flatnonzero(views.item[v] >= 0)
        if not len(there):
            continue
        user = first + int(views.user[v])
        number = int(request_numbers(views.user[v : v + 1] + np.int64(first), views.number[v : v + 1])[0])
        labels = (views.outcome[v, there[there < shown]] >> b.CLICK) & 1
        out.append(
            Asked(
                user, number, int(views.ts[v]), int(views.surface[v]), float(lat[v]),
                float(lon[v]), views.item[v, there].tolist(), np.round(views.p[v, there].astype(float), 6).tolist(), labels.tolist(),
            )
        )  # fmt: skip
    return out


def _no_events() -> Due:
    i = np.empty(0, np.int64)
    small = np.empty(0, np.uint8)
    return Due(i, i, i, i, np.empty(0, np.int32), small, i, i, np.empty(0), np.empty(0, np.int16), small)
