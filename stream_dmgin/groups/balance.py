"""Load balance: no group larger than a cap. A hot group costs every user whose life it swallows.

An overfull group is split by K-means into as many as it needs; for each one that came to be, the smallest group elsewhere is
dissolved into its neighbours, so that the number of groups stays what was asked for.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from stream_dmgin.groups.items import Matrix
from stream_dmgin.groups.kmeans import Labels, kmeans

_CHUNK = 4096


class Balanced(NamedTuple):
    """`labels`: int64[N] into `centres` float32[K',D]. `split`: groups that were over the cap. `moved`: items that are not in the
    group (or the part of it) that K-means put them in."""

    labels: Labels
    centres: Matrix
    split: int
    moved: int


def cap_of(n: int, k: int, max_load: float) -> int:
    """The most items that a group may hold."""
    return max(1, math.ceil(max_load * n / k))


def balance(x: Matrix, labels: Labels, centres: Matrix, cap: int, k: int, seed: int = 0) -> Balanced:
    """At most `k` groups of at most `cap` rows; `k * cap` must hold all rows. Rows and centres in one space."""
    labels = labels.copy()
    means = list(centres)
    over = np.flatnonzero(np.bincount(labels, minlength=len(means)) > cap)
    todo: list[int] = over.tolist()
    while todo:
        g = todo.pop()
        rows = np.flatnonzero(labels == g)
        parts = math.ceil(len(rows) / cap)
        found, new = kmeans(x[rows], parts, seed)
        sizes = np.bincount(found, minlength=parts)
        if sizes.max() == len(rows):  # all alike: no clustering can tell them apart
            found = np.arange(len(rows)) // cap
            new = np.repeat(means[g][None], parts, 0)
            sizes = np.bincount(found, minlength=parts)
        number = np.r_[g, len(means) + np.arange(parts - 1)]
        labels[rows] = number[found]
        means[g] = new[0]
        means += list(new[1:])
        todo += [int(number[p]) for p in np.flatnonzero(sizes > cap)]
    every = np.asarray(means, np.float32)
    labels, moved = _dissolve(x, labels, every, cap, k)
    return Balanced(labels, every, len(over), moved)


def _dissolve(x: Matrix, labels: Labels, centres: Matrix, cap: int, k: int) -> tuple[Labels, int]:
    """Take the smallest groups apart until `k` are left; each item goes to the nearest group with room."""
    sizes = np.bincount(labels, minlength=len(centres))
    there = np.flatnonzero(sizes)
    if len(there) <= k:
        return labels, 0
    gone = there[np.argsort(sizes[there], kind="stable")][: len(there) - k]
    stays = np.zeros(len(centres), bool)
    stays[there] = True
    stays[gone] = False
    homeless = np.flatnonzero(np.isin(labels, gone))
    return place(x, labels, centres, cap, homeless, stays), len(homeless)


def place(x: Matrix, labels: Labels, centres: Matrix, cap: int, rows: Labels, allowed: np.ndarray) -> Labels:
    """Put `rows` (in this order) each into the nearest of the `allowed` groups (bool[K]) that has room; the others stay. Raises
    ValueError where there is no room."""
    labels = labels.copy()
    stay = np.ones(len(labels), bool)
    stay[rows] = False
    sizes = np.bincount(labels[stay & (labels >= 0)], minlength=len(centres))
    if len(rows) > int(np.clip(cap - sizes[allowed], 0, None).sum()):
        raise ValueError("no room for all rows")
    square = (centres.astype(np.float64) ** 2).sum(1)
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        far = square - 2.0 * x[part].astype(np.float64) @ centres.T.astype(np.float64)
        far[:, ~allowed] = np.inf
        for i, d in zip(part, far, strict=True):
            to = int(np.argmin(np.where(sizes < cap, d, np.inf)))
            labels[i] = to
            sizes[to] += 1
    return labels


def relieve(x: Matrix, labels: Labels, centres: Matrix, cap: int) -> tuple[Labels, int]:
    """Without new groups: the rows of overfull groups beyond the `cap` nearest to its centre go to the nearest group with
    room. Returns labels and how many went."""
    sizes = np.bincount(labels, minlength=len(centres))
    own = ((x - centres[labels]) ** 2).sum(1)
    over: list[int] = []
    for g in np.flatnonzero(sizes > cap):
        members = np.flatnonzero(labels == g)
        over += members[np.argsort(own[members], kind="stable")][cap:].tolist()
    over.sort(key=lambda i: (own[i], i))
    if not over:
        return labels, 0
    return place(x, labels, centres, cap, np.array(over, np.int64), np.ones(len(centres), bool)), len(over)
