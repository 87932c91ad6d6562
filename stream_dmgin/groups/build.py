"""A map from vectors: cluster, balance, give the rest a group, number the groups, measure.

A map is built once for many items (minutes, not the hot path), deterministically by seed whatever the order of the rows.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from stream_dmgin.errors import InputError, UsageError
from stream_dmgin.groups import kmeans, quality
from stream_dmgin.groups.balance import balance, cap_of, place
from stream_dmgin.groups.coclicks import groups_of, groups_per_user
from stream_dmgin.groups.items import Items, Matrix
from stream_dmgin.groups.kmeans import Labels
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.groups.quality import Quality
from stream_dmgin.groups.residual import residual
from stream_dmgin.groups.space import SOURCES, Space
from stream_dmgin.groups.stability import compare, numbered_like

MAX_LOAD = 3.0  # a group holds at most this many times the mean
METHODS = ("kmeans", "residual")


@dataclass(frozen=True)
class Clustering:
    """How vectors are clustered. `levels`: codes of each level, for the method residual. `only_new`: items of the previous map
    keep their groups, others join the nearest."""

    method: str = "kmeans"
    k: int = 0
    levels: tuple[int, ...] = ()
    max_load: float = MAX_LOAD
    seed: int = 0
    library: str = "auto"
    only_new: bool = False


@dataclass(frozen=True)
class Built:
    """A map, its measures, and where each item's group comes from (`source`: one of SOURCES an item)."""

    groups: GroupMap
    quality: Quality
    source: list[str]
    report: dict[str, Any]


def build(space: Space, how: Clustering, previous: GroupMap | None = None) -> Built:
    """Group the items of `space`: those with vectors by clustering, others by category, the rest stay groups of their own.

    Without `previous`, groups are numbered in the order of their first item by id, so that equal clusterings give equal maps;
    with it, clustering begins at its groups and they keep their numbers. Raises InputError, UsageError.
    """
    _check(space, how, previous)
    split = moved = 0
    levels: tuple[int, ...] = ()
    rows, ids = space.vectors.rows, space.items.ids
    names = [ids[i] for i in rows.tolist()]
    if how.only_new and previous is not None:
        groups = _joining(space.x, names, previous, how.max_load)
        k, levels = len(np.unique(groups)), previous.levels
    elif how.method == "residual":
        levels = how.levels
        groups, _, moved = residual(space.x, levels, how.seed, how.library, how.max_load)
        k = len(np.unique(groups))
    else:
        k = how.k
        groups, split, moved = cluster(
            space.x, how, None if previous is None else _centres(space.x, names, previous, k)
        )
        groups = _in_order(groups) if previous is None else numbered_like(previous, names, groups)
    every = np.full(len(space.items), -1, np.int64)
    every[rows] = groups
    source = np.full(len(space.items), SOURCES.index("singleton"))
    source[rows] = np.where(space.by_behaviour, SOURCES.index("behaviour"), SOURCES.index("content"))
    by_category = _by_category(space.items, every, levels, previous)
    every[by_category >= 0] = by_category[by_category >= 0]
    source[by_category >= 0] = SOURCES.index("category")
    if how.only_new and previous is not None:
        every = np.array([previous.items.get(n, g) for n, g in zip(ids, every.tolist(), strict=True)], np.int64)
    items = {name: g for name, g in zip(ids, every.tolist(), strict=True) if g >= 0}
    if how.only_new and previous is not None:
        items = {**previous.items, **items}
    found = GroupMap(items, "residual" if levels else "kmeans", levels)
    measured = _measured(space, groups, every, k, split, moved)
    said = [SOURCES[i] for i in source.tolist()]
    return Built(found, measured, said, _report(space, how, found, measured, Counter(said), every, previous))


def _check(space: Space, how: Clustering, previous: GroupMap | None) -> None:
    n = len(space.vectors.rows)
    if how.method not in METHODS:
        raise UsageError(f"--method {how.method!r} is not known: choose one of {', '.join(METHODS)}")
    if how.only_new and previous is None:
        raise UsageError("--only-new needs the map whose groups stay: give --previous")
    if previous is not None and not how.only_new and how.method == "residual":
        raise UsageError("residual codes can't be matched to a previous map: use --only-new, or --method kmeans")
    if not how.max_load >= 1:
        raise InputError(f"a cap of {how.max_load} times the mean size can't be kept: give 1 or more")
    if not n and space.items.category is None:
        raise InputError(
            "no item has an embedding, enough clicks, or a category: there is nothing to group by. Give --encoder for their"
            " words, or --events"
        )
    if n and how.method == "kmeans" and not how.only_new and not 1 <= how.k <= n:
        raise InputError(f"{how.k} groups of {n} items can't be built: choose K between 1 and {n}")


def cluster(x: Matrix, how: Clustering, start: Matrix | None = None) -> tuple[Labels, int, int]:
    """(label of each row, groups that were split, rows moved): at most `how.k` groups of at most `max_load` times the mean."""
    if not len(x):
        return np.zeros(0, np.int64), 0, 0
    labels, centres = kmeans.kmeans(x, how.k, how.seed, how.library, start)
    done = balance(x, labels, centres, cap_of(len(x), how.k, how.max_load), how.k, how.seed)
    return done.labels, done.split, done.moved


def _in_order(labels: Labels) -> Labels:
    _, first, code = np.unique(labels, return_index=True, return_inverse=True)
    return np.asarray(np.argsort(np.argsort(first))[code.reshape(-1)], np.int64)


def _old(names: list[str], previous: GroupMap) -> Labels:
    return np.array([previous.items.get(n, -1) for n in names], np.int64)


def _means(x: Matrix, old: Labels) -> tuple[Labels, Matrix]:
    """(numbers of the old groups that have rows, their mean vectors)."""
    known = np.flatnonzero(old >= 0)
    numbers, code = np.unique(old[known], return_inverse=True)
    means = np.zeros((len(numbers), x.shape[1]))
    np.add.at(means, code.reshape(-1), x[known].astype(np.float64))
    return numbers, (means / np.maximum(np.bincount(code.reshape(-1)), 1)[:, None]).astype(np.float32)


def _centres(x: Matrix, names: list[str], previous: GroupMap, k: int) -> Matrix | None:
    """The previous groups' means in today's vectors, those with most items first; None where no item is known to it."""
    old = _old(names, previous)
    numbers, means = _means(x, old)
    if not len(numbers):
        return None
    sizes = np.array([np.count_nonzero(old == g) for g in numbers]) if len(numbers) > k else np.zeros(len(numbers))
    return means[np.argsort(-sizes, kind="stable")][:k]


def _joining(x: Matrix, names: list[str], previous: GroupMap, max_load: float) -> Labels:
    if not len(x):
        return np.zeros(0, np.int64)
    old = _old(names, previous)
    numbers, means = _means(x, old)
    if not len(numbers):
        raise InputError(f"none of the items is in map {previous.id}: its groups have no place among these embeddings")
    labels = np.searchsorted(numbers, old)
    new = np.flatnonzero(old < 0)
    # old groups may be over the cap by now: nobody moves, they only take no more
    cap = max(cap_of(len(x), len(numbers), max_load), 1)
    sizes = np.bincount(labels[old >= 0], minlength=len(numbers))
    allowed = sizes < cap
    labels[new] = -1
    if len(new):
        labels = place(x, labels, means, cap, new, allowed)
    return numbers[labels]


def _by_category(items: Items, groups: Labels, levels: tuple[int, ...], previous: GroupMap | None) -> Labels:
    """Groups of the items that have a category and nothing else: one for each category, beyond all others. In a hierarchical
    map each is a first-level code of its own."""
    out = np.full(len(items), -1, np.int64)
    if items.category is None:
        return out
    bare = [i for i in np.flatnonzero(groups < 0).tolist() if items.category[i] is not None]
    below = math.prod(levels[1:]) if levels else 1
    top = max([int(groups.max(initial=-1)), *(previous.items.values() if previous is not None else ())])
    first = max(levels[0], top // below + 1) if levels else top + 1
    number: dict[str, int] = {}
    if previous is not None:  # a category that had a group of its own goes on with it
        taken = set(groups[groups >= 0].tolist())
        for i in bare:
            g, c = previous.items.get(items.ids[i], -1), str(items.category[i])
            if g >= 0 and g not in taken and c not in number:
                number[c] = g
                taken.add(g)
    for c in sorted({str(items.category[i]) for i in bare} - set(number)):
        number[c], first = first * below, first + 1
    for i in bare:
        out[i] = number[str(items.category[i])]
    return out


def _measured(space: Space, groups: Labels, every: Labels, k: int, split: int, moved: int) -> Quality:
    placed = np.flatnonzero(every >= 0)
    _, sizes = np.unique(every[placed], return_counts=True)
    category = space.items.category
    there = len(np.unique(groups)) if len(groups) else 0
    return Quality(
        items=len(placed), groups=len(sizes), empty=max(k - there, 0), smallest=int(sizes.min(initial=len(placed))),
        median=float(np.median(sizes)) if len(sizes) else 0.0, largest=int(sizes.max(initial=0)),
        balance=quality.balance_of(sizes, len(sizes) + max(k - there, 0)) if len(sizes) else 0.0,
        cohesion=quality.cohesion_of(space.x, groups),
        purity=quality.purity_of(every[placed].tolist(), None if category is None else [category[i] for i in placed.tolist()]),
        split=split, moved=moved, left_out=len(every) - len(placed),
    )  # fmt: skip


def _report(
    space: Space, how: Clustering, found: GroupMap, measured: Quality, sources: Counter[str], every: Labels,
    previous: GroupMap | None,
) -> dict[str, Any]:  # fmt: skip
    report: dict[str, Any] = {
        "id": found.id, "method": "only-new" if how.only_new else how.method, "levels": list(found.levels), "seed": how.seed,
        "max_load": how.max_load, "library": kmeans.available() if how.library == "auto" else how.library,
        "quality": measured.as_dict(), "sources": {s: sources.get(s, 0) for s in SOURCES}, "made_from": space.about,
    }  # fmt: skip
    if space.clicks is not None and space.pairs is not None:
        of = groups_of(space.clicks, space.items.ids, every)
        per_user = groups_per_user(space.clicks, of)
        report["clicks"] = {
            "users": len(per_user), "groups_per_user_median": float(np.median(per_user)),
            "groups_per_user_p95": float(np.quantile(per_user, 0.95)), "remembered": quality.remembered(space.clicks, of),
            "foretold": quality.foretold(every, space.pairs),
        }  # fmt: skip
    if previous is not None:
        report["previous"] = {"id": previous.id, **compare(previous, found, how.seed).as_dict()}
    return report
