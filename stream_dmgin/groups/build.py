"""Groups from item embeddings: K-means on the unit sphere, with a cap on the size of a group.

A map is built once for many items (minutes, not the hot path), deterministically by seed whatever the order of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.errors import InputError
from stream_dmgin.groups.map import GroupMap

MAX_LOAD = 3.0  # a group holds at most this many times the mean
_SMALL = 5_000_000  # items x groups up to which all of Lloyd's K-means is affordable
_CHUNK = 4096

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Embeddings:
    """Items with vectors, sorted by id. `left_out`: rows without a vector. `category` where the file had the column."""

    ids: list[str]
    vectors: Matrix
    left_out: int
    category: list[str | None] | None


@dataclass(frozen=True)
class Quality:
    """How good a map is. `balance`: e^entropy of the sizes / groups (1: all equal). `purity`: share of items that are of
    their group's commonest category, where known. `cohesion`: mean cosine of an item and its group's mean. `moved`: items
    put elsewhere because their group was full."""

    items: int
    groups: int
    empty: int
    smallest: int
    median: float
    largest: int
    balance: float
    cohesion: float
    purity: float | None
    moved: int
    left_out: int

    def as_dict(self) -> dict[str, Any]:
        """The numbers by name."""
        return asdict(self)


def read_embeddings(path: str | Path) -> Embeddings:
    """Read Parquet with `item_id` and `embedding` (or `vector`): lists of equal numbers of floats. Raises InputError naming
    the row and the fix."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        column = next((c for c in ("embedding", "vector") if c in names), None)
        if "item_id" not in names or column is None:
            raise InputError(f"{path} needs the columns item_id and embedding (or vector); it has {', '.join(names)}")
        wanted = ["item_id", column, *(["category"] if "category" in names else [])]
        table = pq.read_table(path, columns=wanted).combine_chunks()
    except (OSError, pa.ArrowException) as e:
        raise InputError(f"{path} can't be read as Parquet: {e}") from None
    ids = table.column("item_id").cast(pa.string()).to_pylist()
    there = [i for i, ok in enumerate(table.column(column).is_valid().to_pylist()) if ok]
    if not there:
        raise InputError(f"{path}: no item has an embedding, so there is nothing to group")
    lists = table.column(column).take(pa.array(there, pa.int64()))
    vectors = _matrix(path, column, lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists, there)
    row_of: dict[str, int] = {}
    for i in there:
        if not ids[i]:
            raise InputError(f"{path}, row {i}: item_id is empty")
        if row_of.setdefault(ids[i], i) != i:
            raise InputError(f"{path}: item {ids[i]!r} is in rows {row_of[ids[i]]} and {i}: keep one of them")
    order = sorted(range(len(there)), key=lambda j: ids[there[j]])
    categories = table.column("category").cast(pa.string()).to_pylist() if "category" in table.column_names else None
    return Embeddings(
        [ids[there[j]] for j in order],
        vectors[order],
        len(ids) - len(there),
        None if categories is None else [categories[there[j]] for j in order],
    )


def _matrix(path: str | Path, column: str, lists: Any, rows: list[int]) -> Matrix:
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        widths = np.asarray(pc.list_value_length(lists).to_numpy(zero_copy_only=False), np.int64)
        flat = np.asarray(pc.list_flatten(lists).cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False))
    except pa.ArrowException as e:
        raise InputError(f"{path}: column {column} must hold lists of numbers: {e}") from None
    odd = np.flatnonzero(widths != widths[0])
    if len(odd):
        i = int(odd[0])
        raise InputError(
            f"{path}, row {rows[i]}: an embedding of {widths[i]} numbers, where the first has {widths[0]}:"
            " all must come from one encoder"
        )
    if widths[0] == 0:
        raise InputError(f"{path}: embeddings of no numbers can't be grouped")
    out: Matrix = flat.reshape(len(rows), int(widths[0]))
    bad = np.flatnonzero(~np.isfinite(out).all(1))
    if len(bad):
        raise InputError(
            f"{path}, row {rows[int(bad[0])]}: the embedding holds a number that is not finite (or a null)"
        )
    return out


def build(items: Embeddings, k: int, seed: int = 0, max_load: float = MAX_LOAD) -> tuple[GroupMap, Quality]:
    """Cluster the items into at most `k` groups, none larger than `max_load` times the mean. Groups are numbered in the order
    of their first item by id, so that equal clusterings give equal maps. Raises InputError."""
    n = len(items.ids)
    if not 1 <= k <= n:
        raise InputError(f"{k} groups of {n} items can't be built: choose K between 1 and {n}")
    if not max_load >= 1:
        raise InputError(f"a cap of {max_load} times the mean size can't be kept: give 1 or more")
    norms = np.linalg.norm(items.vectors.astype(np.float64), axis=1, keepdims=True)
    x = (items.vectors / np.maximum(norms, 1e-12)).astype(np.float32)
    labels, centres = _cluster(x, k, seed)
    labels, moved = _balanced(x, labels, centres, max(1, math.ceil(max_load * n / k)))
    first: dict[int, int] = {}
    for i, label in enumerate(labels.tolist()):
        first.setdefault(label, i)
    number = {label: g for g, label in enumerate(sorted(first, key=lambda c: first[c]))}
    groups = np.array([number[c] for c in labels.tolist()])
    found = GroupMap(dict(zip(items.ids, groups.tolist(), strict=True)), "kmeans")
    return found, _quality(x, groups, k, moved, items)


def _cluster(x: Matrix, k: int, seed: int) -> tuple[NDArray[np.int64], Matrix]:
    import warnings

    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    if len(x) * k <= _SMALL:
        means = KMeans(k, n_init=4, random_state=seed)
    else:
        means = MiniBatchKMeans(k, batch_size=max(1024, 4 * k), n_init=1, max_no_improvement=20, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct items than k: some groups stay empty
        labels = means.fit_predict(x)
    return np.asarray(labels, np.int64), np.asarray(means.cluster_centers_, np.float32)


def _balanced(x: Matrix, labels: NDArray[np.int64], centres: Matrix, cap: int) -> tuple[NDArray[np.int64], int]:
    """Keep the `cap` items nearest to the centre of each overfull group; the others go, the nearest first, to the nearest
    centre with room."""
    labels = labels.copy()
    sizes = np.bincount(labels, minlength=len(centres))
    own = ((x - centres[labels]) ** 2).sum(1)
    over: list[int] = []
    for g in np.flatnonzero(sizes > cap):
        members = np.flatnonzero(labels == g)
        members = members[np.argsort(own[members], kind="stable")]
        over += members[cap:].tolist()
        sizes[g] = cap
    over.sort(key=lambda i: (own[i], i))
    square = (centres.astype(np.float64) ** 2).sum(1)
    for start in range(0, len(over), _CHUNK):
        part = over[start : start + _CHUNK]
        far = square - 2.0 * x[part].astype(np.float64) @ centres.T.astype(np.float64)
        for i, d in zip(part, far, strict=True):
            to = int(np.argmin(np.where(sizes < cap, d, np.inf)))
            labels[i] = to
            sizes[to] += 1
    return labels, len(over)


def _quality(x: Matrix, groups: NDArray[np.int64], k: int, moved: int, items: Embeddings) -> Quality:
    sizes = np.bincount(groups)
    share = sizes / sizes.sum()
    order = np.argsort(groups, kind="stable")
    means = np.add.reduceat(x[order], np.cumsum(sizes) - sizes).astype(np.float64)
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return Quality(
        items=len(groups), groups=len(sizes), empty=k - len(sizes), smallest=int(sizes.min()), median=float(np.median(sizes)),
        largest=int(sizes.max()), balance=float(np.exp(-(share * np.log(share)).sum()) / k),
        cohesion=float((x * means[groups]).sum(1).mean()), purity=_purity(groups, items.category), moved=moved,
        left_out=items.left_out,
    )  # fmt: skip


def _purity(groups: NDArray[np.int64], category: list[str | None] | None) -> float | None:
    if category is None:
        return None
    counts: dict[int, dict[str, int]] = {}
    known = 0
    for g, c in zip(groups.tolist(), category, strict=True):
        if c is not None:
            of = counts.setdefault(g, {})
            of[c] = of.get(c, 0) + 1
            known += 1
    return sum(max(of.values()) for of in counts.values()) / known if known else None


def describe(groups: GroupMap, samples: int = 3) -> list[Mapping[str, Any]]:
    """Groups by size, the largest first: `group`, `size` and the first `samples` items by id."""
    members: dict[int, list[str]] = {}
    for name, g in groups.items.items():
        members.setdefault(g, []).append(name)
    ranked = sorted(members, key=lambda g: (-len(members[g]), g))
    return [{"group": g, "size": len(members[g]), "items": members[g][:samples]} for g in ranked]
