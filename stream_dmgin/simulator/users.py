"""The people: where they live and work, what they like, how those tastes come and go, and how long their lives are.

Users are made in blocks, each from its own seed, so user 70,001 is the same person whoever else is simulated.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.simulator.city import DISTRICT_KM, SIDE, City

BLOCK = 4096  # users of one seed; part of what a seed means
ITEM_SLOTS, CHAIN_SLOTS = 128, 64  # shops and chains a user remembers (by hash: a newcomer displaces)
STEADY, SEASONAL, DRIFTING = 0, 1, 2  # how a taste moves


class UserArrays(NamedTuple):
    """U users of one block, K concepts. Kilometres, days since the epoch."""

    first: int  # number of the first user
    home: NDArray[np.float32]  # [U,2]
    work: NDArray[np.float32]  # [U,2]
    budget: NDArray[np.float32]  # [U] log price they like best
    thrift: NDArray[np.float32]  # [U] how much a price off the budget matters
    lazy: NDArray[np.float32]  # [U] how much distance matters
    loyal: NDArray[np.float32]  # [U] how much past visits matter
    spend: NDArray[np.float32]  # [U] how readily clicks become orders
    life: NDArray[np.int64]  # [U] events of the whole history, wanted
    joined: NDArray[np.float32]  # [U] when they came, as a share of the history
    low: NDArray[np.float32]  # [U,K] taste (logit) out of season
    high: NDArray[np.float32]  # [U,K] taste in season; steady tastes have low = high
    motion: NDArray[np.uint8]  # [U,K] STEADY, SEASONAL, DRIFTING
    period: NDArray[np.float32]  # [U,K] days
    phase: NDArray[np.float32]  # [U,K] 0..1


class Memory(NamedTuple):
    """What changes as users see, click and buy. Amounts decay; the `*_t` say up to which day they are decayed."""

    seen: NDArray[np.float32]  # [U,K] impressions of the concept, half-life SEEN_DAYS
    bought: NDArray[np.float32]  # [U,K] orders in the concept, half-life BOUGHT_DAYS
    clicked: NDArray[np.float32]  # [U,K] clicks (what the ad policy knows), half-life 60 days
    concept_t: NDArray[np.float64]  # [U,K]
    item: NDArray[np.int32]  # [U,ITEM_SLOTS] shop, -1: empty
    item_seen: NDArray[np.float32]  # [U,ITEM_SLOTS]
    item_visits: NDArray[np.float32]  # [U,ITEM_SLOTS]
    item_t: NDArray[np.float64]  # [U,ITEM_SLOTS]
    chain: NDArray[np.int32]  # [U,CHAIN_SLOTS] chain, -1: empty
    chain_visits: NDArray[np.float32]  # [U,CHAIN_SLOTS]
    chain_t: NDArray[np.float64]  # [U,CHAIN_SLOTS]
    views: NDArray[np.int64]  # [U] page views so far: numbers the next one


def build_users(city: City, block: int, count: int, seed: int, life: tuple[int, int] = (100, 100_000)) -> UserArrays:
    """The first `count` users of a block. `life`: bounds of the events of a whole history, heavy-tailed between them."""
    r = np.random.default_rng([seed, block, 77])
    n, k = BLOCK, city.concepts
    side = SIDE * DISTRICT_KM
    home = r.random((n, 2)) * side
    centre = side / 2 + r.normal(0, side / 7, (n, 2))
    work = np.where(r.random((n, 1)) < 0.7, centre, r.random((n, 2)) * side)
    person = r.normal(0, 1, (5, n))
    joined = np.where(r.random(n) < 0.6, 0.0, 0.85 * r.random(n))

    tops = int(city.top.max()) + 1
    leaves = len(city.leaf_names)
    base = 0.45 * r.normal(0, 1, (n, tops))[:, city.top] + 0.4 * r.normal(0, 1, (n, leaves))[:, city.leaf] - 0.65
    low = base + 0.25 * r.normal(0, 1, (n, k))
    # concepts differ in how many people like them
    reach = np.random.default_rng([int(city.arrays.seed), 5]).uniform(0.05, 0.25, k)
    liked = r.random((n, k)) < reach * (1 + 1.2 * np.clip(base + 0.65, -0.7, 1.5))
    high = np.where(liked, low + r.uniform(1.4, 3.2, (n, k)), low)
    kind = r.random((n, k))
    motion = np.where(~liked | (kind < 0.5), STEADY, np.where(kind < 0.8, SEASONAL, DRIFTING))
    low = np.where(liked & (motion == STEADY), high, low)
    period = np.where(motion == SEASONAL, r.uniform(40, 160, (n, k)), r.uniform(250, 600, (n, k)))
    f = np.float32
    number = block * BLOCK + np.arange(n)
    users = UserArrays(
        block * BLOCK, home.astype(f), work.astype(f), (2.8 + 0.6 * person[0]).astype(f), (0.25 * np.exp(0.6 * person[1])).astype(f),
        (0.45 * np.exp(0.5 * person[2])).astype(f), np.exp(0.35 * person[3]).astype(f), (0.5 * person[4]).astype(f),
        lives(number, *life), joined.astype(f), low.astype(f), high.astype(f), motion.astype(np.uint8), period.astype(f),
        r.random((n, k)).astype(f),
    )  # fmt: skip
    changed: dict[str, Any] = {
        name: np.ascontiguousarray(getattr(users, name)[:count]) for name in UserArrays._fields[1:]
    }
    return users._replace(**changed)


def lives(number: NDArray[np.int64], low: int, high: int) -> NDArray[np.int64]:
    """Life of each user: density ~ 1/life^2 between the bounds, spread evenly over the user numbers (golden ratio)."""
    q = (0.5 + number * 0.6180339887498949) % 1.0
    return np.asarray(np.round(low / (1 - q * (1 - low / max(low, high)))), np.int64)


def no_memory(users: UserArrays) -> Memory:
    """Memory of users who have seen nothing yet."""
    n, k = users.low.shape
    f = np.float32
    return Memory(
        np.zeros((n, k), f), np.zeros((n, k), f), np.zeros((n, k), f), np.zeros((n, k)),
        np.full((n, ITEM_SLOTS), -1, np.int32), np.zeros((n, ITEM_SLOTS), f), np.zeros((n, ITEM_SLOTS), f), np.zeros((n, ITEM_SLOTS)),
        np.full((n, CHAIN_SLOTS), -1, np.int32), np.zeros((n, CHAIN_SLOTS), f), np.zeros((n, CHAIN_SLOTS)), np.zeros(n, np.int64),
    )  # fmt: skip
