"""How many groups? A table of what each number costs and gives, and a choice by rule.

With clicks the choice is the smallest K that foretells held-out clicks nearly as well as the best, with no more groups a user
than are kept at hand. Without clicks it is where cohesion stops rising faster than ln K.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from stream_dmgin.errors import InputError
from stream_dmgin.groups import quality
from stream_dmgin.groups.build import Clustering, cluster
from stream_dmgin.groups.coclicks import groups_of, groups_per_user
from stream_dmgin.groups.space import Space

HOT_GROUPS = 128  # groups of a user that the state keeps at hand for the model
NEARLY = 0.98  # of the best is good enough, if it takes fewer groups
_FROM, _TO = 16, 16_384


class Trial(NamedTuple):
    """One number of groups: see `quality.Quality`. `remembered`: nats a click, `foretold`: nats a pair of clicks (`quality.py`).
    `median_user`, `p95_user`: groups that users' clicks fall into. None without clicks (or categories)."""

    k: int
    cohesion: float
    purity: float | None
    balance: float
    largest: int
    split: int
    median_user: float | None
    p95_user: float | None
    remembered: float | None
    foretold: float | None
    seconds: float


def default_ks(n: int) -> list[int]:
    """Powers of two from 16 up to one group for eight items."""
    return [k for k in (1 << i for i in range(20)) if _FROM <= k <= min(_TO, n // 8)] or [max(1, n // 2)]


def sweep(
    space: Space, how: Clustering, ks: Sequence[int] = (), seen: Callable[[int, int], None] = lambda done, total: None
) -> list[Trial]:
    """Cluster with each of `ks` and measure. Raises InputError for numbers that can't be built."""
    n = len(space.vectors.rows)
    if not n:
        raise InputError("no item has an embedding or enough clicks: there is no K to choose")
    tried = sorted(set(ks)) or default_ks(n)
    if tried[0] < 1 or tried[-1] > n:
        raise InputError(
            f"{tried[-1] if tried[-1] > n else tried[0]} groups of {n} items can't be built: choose K between 1 and {n}"
        )
    out = []
    category = space.items.category
    mine = None if category is None else [category[i] for i in space.vectors.rows.tolist()]
    for done, k in enumerate(tried):
        seen(done, len(tried))
        start = time.monotonic()
        labels, split, _ = cluster(space.x, replace(how, k=k))
        seconds = time.monotonic() - start
        sizes = np.bincount(labels)
        every = np.full(len(space.items), -1, np.int64)
        every[space.vectors.rows] = labels
        of = None if space.clicks is None else groups_of(space.clicks, space.items.ids, every)
        users = None if of is None or space.clicks is None else groups_per_user(space.clicks, of)
        out.append(Trial(
            k, quality.cohesion_of(space.x, labels), quality.purity_of(labels.tolist(), mine), quality.balance_of(sizes, k),
            int(sizes.max()), split, None if users is None else float(np.median(users)),
            None if users is None else float(np.quantile(users, 0.95)),
            None if of is None or space.clicks is None else quality.remembered(space.clicks, of),
            None if space.pairs is None else quality.foretold(every, space.pairs), seconds,
        ))  # fmt: skip
    seen(len(tried), len(tried))
    return out


def choose(trials: Sequence[Trial]) -> tuple[int, str]:
    """(the K to take, why)."""
    told = [(t, _told(t)) for t in trials]
    fits = [x for x in told if (x[0].p95_user or 0) <= HOT_GROUPS] or told[:1]
    best, most = max(fits, key=lambda x: x[1])
    if most > 0:
        least = next(t for t, x in fits if x >= NEARLY * most)
        return least.k, (
            f"the fewest groups that tell {100 * NEARLY:.0f} % of what the best K ({best.k}) does about the next click, by the user's"
            f" past and by clicks nearby, with at most {HOT_GROUPS} groups for 95 % of users"
        )
    return _knee(trials), "the number of groups beyond which cohesion rises more slowly than before"


def _told(t: Trial) -> float:
    """Nats about the group of a click: by the user's past and by a click nearby, each where it tells anything."""
    return max(0.0, t.remembered or 0.0) + max(0.0, t.foretold or 0.0)


def _knee(trials: Sequence[Trial]) -> int:
    """Where the curve of cohesion over ln K is farthest above the line from its first point to its last."""
    if len(trials) < 3:
        return trials[-1].k
    x = np.log([t.k for t in trials])
    y = np.array([t.cohesion for t in trials])
    rise = np.maximum(y[-1] - y[0], 1e-12)
    above = (y - y[0]) / rise - (x - x[0]) / (x[-1] - x[0])
    return trials[int(np.argmax(above))].k


def as_rows(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """The trials as plain rows, unknown measures left out."""
    return [{k: v for k, v in t._asdict().items() if v is not None} for t in trials]
