"""City and people together: the base rate, the written history, and single moments for the live mode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.simulator import behaviour as b
from stream_dmgin.simulator.city import City, build_city
from stream_dmgin.simulator.users import BLOCK, Memory, UserArrays, build_users, no_memory

DAY_MS = 86_400_000
START_MS = 1_751_328_000_000  # 2025-07-01, the start of a history that is given no other
BASE_CTR = 0.085
EVENTS_PER_IMPRESSION = 1.24  # with its click, dwell and the rest, on average
# How busy the hours of weekdays and weekends are.
_BUSY = np.array([
    [1, 1, 0, 0, 0, 1, 3, 6, 8, 6, 5, 8, 11, 9, 6, 5, 6, 8, 11, 12, 11, 9, 6, 3],
    [2, 1, 1, 0, 0, 0, 1, 3, 5, 7, 9, 10, 11, 11, 10, 9, 9, 9, 11, 12, 11, 10, 8, 5],
], float)  # fmt: skip
HOURS = np.cumsum(_BUSY / _BUSY.sum(1, keepdims=True), axis=1)


@dataclass(frozen=True)
class Plan:
    """What makes a simulated world: equal plans give equal worlds, byte for byte."""

    users: int = 1000
    items: int = 2000
    seed: int = 7
    city: int = 1  # seed of the city alone: other people, the same shops
    life: tuple[int, int] = (100, 100_000)
    start_ms: int = START_MS
    days: int = 180
    shown: int = 10
    order_delay_days: float = 0.0  # mean time until an order of the history is reported
    drift: float = 0.0  # how much the whole city changes from week to week (`drift.py`)
    strata: tuple[tuple[int, int], ...] = ()  # (events of a life, users with it), in place of `users` and `life`

    def blocks(self) -> list[tuple[int, tuple[int, int]]]:
        """(users, bounds of their lives) of each block of users."""
        if self.strata:
            return [(users, (life, life)) for life, users in self.strata]
        return [(min(BLOCK, self.users - k * BLOCK), self.life) for k in range(-(-self.users // BLOCK))]


@dataclass
class Block:
    """Some users, and what they remember so far."""

    users: UserArrays
    memory: Memory


@dataclass
class World:
    """A city, its base logit, and (for the live mode) all of its people."""

    plan: Plan
    city: City
    base: float
    blocks: list[Block] = field(default_factory=list)


def build_world(plan: Plan) -> World:
    """The city with its base logit set so that fresh users click BASE_CTR of what they see. People come with `history`."""
    city = build_city(plan.items, plan.city, plan.drift)
    pilot = build_users(city, 0, 400, plan.city)
    views = b.new_views(8000, plan.shown)
    r = np.random.default_rng(plan.city)
    views.user[:] = np.repeat(np.arange(400), 20)
    views.ts[:] = START_MS + np.sort(r.integers(0, 60 * DAY_MS, (400, 20)), axis=1).ravel()
    b.play(plan.city, 0.0, plan.shown, views, city.arrays, pilot, no_memory(pilot))
    p = views.p[views.item >= 0].astype(float)
    z = np.log(p) - np.log1p(-p)
    low, high = -12.0, 6.0
    for _ in range(40):
        mid = (low + high) / 2
        low, high = (mid, high) if float(np.mean(1 / (1 + np.exp(-(z + mid))))) < BASE_CTR else (low, mid)
    return World(plan, city, low)


def history(world: World, *, keep: bool = False) -> Iterator[tuple[UserArrays, b.Views, b.Events]]:
    """The whole history, a block of users at a time (events by user, not by time). `keep`: leave users and memory in
    `world.blocks`, for the live mode."""
    p = world.plan
    for block, (count, life) in enumerate(p.blocks()):
        users = build_users(world.city, block, count, p.seed, life)
        memory = no_memory(users)
        user, ts = view_times(p, users)
        views = b.new_views(len(user), p.shown)._replace(user=user, ts=ts)
        events = b.play(p.seed, world.base, p.shown, views, world.city.arrays, users, memory)
        if keep:
            world.blocks.append(Block(users, memory))
        yield users, views, events


def view_times(p: Plan, users: UserArrays) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """User and time of each view of a block's history; a user's views are in order of time."""
    if p.days <= 0:
        return np.empty(0, np.int32), np.empty(0, np.int64)
    counts = np.maximum(1, np.round(users.life / (p.shown * EVENTS_PER_IMPRESSION))).astype(np.int64)
    user, ts = np.empty(int(counts.sum()), np.int32), np.empty(int(counts.sum()), np.int64)
    b.schedule(
        np.uint64(p.seed), users.first, users.life, users.joined, 0.0, p.start_ms, p.days, HOURS, counts, user, ts
    )
    return user, ts
