"""A map in samples: its largest groups, and what stands nearest to the middle of some of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.groups.items import Items, Matrix, View, unit
from stream_dmgin.groups.map import GroupMap


def describe(groups: GroupMap, samples: int = 3) -> list[Mapping[str, Any]]:
    """Groups by size, the largest first: `group`, `size` and the first `samples` items by id."""
    members: dict[int, list[str]] = {}
    for name, g in groups.items.items():
        members.setdefault(g, []).append(name)
    ranked = sorted(members, key=lambda g: (-len(members[g]), g))
    return [{"group": g, "size": len(members[g]), "items": members[g][:samples]} for g in ranked]


class Cluster(NamedTuple):
    """A group among embeddings. `middle`: names of the items nearest to its mean; `edge`: of those farthest from it. `beside`: the
    group whose mean is nearest, None where it is alone. `category`: the commonest, with its share."""

    group: int
    size: int
    category: str | None
    share: float
    cohesion: float
    middle: list[str]
    edge: list[str]
    beside: int | None


class Seen(NamedTuple):
    """Means of the groups' unit vectors, float32[K,D], with their numbers and sizes; `of`: int64[M], each row's index among
    them (-1: none)."""

    numbers: NDArray[np.int64]
    sizes: NDArray[np.int64]
    means: Matrix
    of: NDArray[np.int64]


def means_of(groups: GroupMap, items: Items, vectors: View) -> Seen:
    """Where the groups of a map stand among the vectors of items."""
    label = np.array([groups.items.get(items.ids[i], -1) for i in vectors.rows.tolist()], np.int64)
    known = np.flatnonzero(label >= 0)
    numbers, code = np.unique(label[known], return_inverse=True)
    code = code.reshape(-1)
    total = np.zeros((len(numbers), vectors.vectors.shape[1]))
    np.add.at(total, code, unit(vectors.vectors[known]).astype(np.float64))
    of = np.full(len(label), -1, np.int64)
    of[known] = code
    sizes = np.bincount(code, minlength=len(numbers))
    return Seen(numbers, sizes, (total / np.maximum(sizes, 1)[:, None]).astype(np.float32), of)


def categories_of(seen: Seen, items: Items, vectors: View) -> list[tuple[str | None, float]]:
    """The commonest category of each group, and its share of the group's items that have one."""
    counts: list[Counter[str]] = [Counter() for _ in seen.numbers]
    if items.category is not None:
        for g, i in zip(seen.of.tolist(), vectors.rows.tolist(), strict=True):
            if g >= 0 and (c := items.category[i]) is not None:
                counts[g][c] += 1
    out: list[tuple[str | None, float]] = []
    for c in counts:
        best = min(c.items(), key=lambda x: (-x[1], x[0])) if c else None
        out.append((None, 0.0) if best is None else (best[0], best[1] / c.total()))
    return out


def clusters(seen: Seen, items: Items, vectors: View, which: Sequence[int], samples: int = 5) -> list[Cluster]:
    """Some groups (indices among `seen`) with their neighbours."""
    names, categories = items.names(), categories_of(seen, items, vectors)
    directions = unit(seen.means)
    out = []
    for g in which:
        rows = np.flatnonzero(seen.of == g)
        near = unit(vectors.vectors[rows]) @ directions[g]
        order = np.argsort(-near, kind="stable")
        called = [names[i] or items.ids[i] for i in vectors.rows[rows[order]].tolist()]
        other = directions @ directions[g]
        other[g] = -np.inf
        out.append(
            Cluster(
                int(seen.numbers[g]), len(rows), *categories[g], float(near.mean()), called[:samples],
                called[samples:][-min(2, samples) :], int(seen.numbers[int(other.argmax())]) if len(other) > 1 else None,
            )
        )  # fmt: skip
    return out


def some_of(seen: Seen, n: int = 12) -> list[int]:
    """Indices of groups to look at: spread evenly over the order of sizes, the largest and the smallest among them."""
    order = np.argsort(-seen.sizes, kind="stable")
    return [
        int(g) for g in order[np.unique(np.linspace(0, len(order) - 1, min(n, len(order))).round().astype(np.int64))]
    ]


def plane(x: Matrix, means: Matrix) -> tuple[Matrix, Matrix]:
    """Rows and means on the two directions in which the means differ most (principal components)."""
    centre = means.mean(0)
    _, _, axes = np.linalg.svd(means.astype(np.float64) - centre, full_matrices=False)
    two = np.zeros((2, means.shape[1]))
    two[: min(2, len(axes))] = axes[:2]
    two *= np.where(two[np.arange(2), np.abs(two).argmax(1)] < 0, -1.0, 1.0)[
        :, None
    ]  # a sign that does not depend on the library
    return ((x - centre) @ two.T).astype(np.float32), ((means - centre) @ two.T).astype(np.float32)
