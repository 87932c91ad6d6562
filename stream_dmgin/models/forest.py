"""Boosted trees as arrays, evaluated without the library that grew them: what is trained is what serves.

Several boosters, each with a weight, are one `Forest`: the weights are multiplied into the leaves. Every inner node asks
whether an input exceeds its threshold (or whether the surface is in its set); a yes rules out the leaves on its left. A tree is
a word of one bit a leaf, all nodes that say yes are struck out of it in any order, and the lowest bit left is the leaf. So
nodes are sorted by input and threshold, not by tree: what asks about the user is settled once for all candidates of a
request, and what asks about a candidate is read from memory in order, up to the first threshold that holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numba.cpython.unsafe.numbers import trailing_zeros
from numpy.typing import NDArray

from stream_dmgin.errors import FormatError

Floats = NDArray[np.float64]
LEAVES_MAX = 64
_CATEGORICAL = 1  # bit of LightGBM's decision type; bits 2 and 3: how missing values go, 0 where training saw none


@dataclass(frozen=True)
class Forest:
    """Trees over the columns [c_dense, u_dense]. `offset` is added to every sum."""

    candidate_columns: int
    user_columns: int
    offset: float
    node_start: NDArray[np.int64]  # [columns + 1]: nodes of each column, sorted by threshold
    threshold: Floats  # [nodes]
    tree: NDArray[np.int32]  # [nodes]
    keep: NDArray[np.uint64]  # [nodes]: the leaves that stay when the input exceeds the threshold
    sets: NDArray[np.uint64]  # [categorical nodes, words]: bit s is set where surface s goes left
    set_tree: NDArray[np.int32]
    set_keep: NDArray[np.uint64]
    leaf_start: NDArray[np.int64]  # [trees]
    leaf: Floats  # values

    @property
    def trees(self) -> int:
        """How many."""
        return len(self.leaf_start)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything as arrays by name, for a file; `of_arrays` reads it."""
        sizes = np.array([self.candidate_columns, self.user_columns], np.int64)
        return {"sizes": sizes, "offset": np.array([self.offset])} | {k: getattr(self, k) for k in _ARRAYS}

    @classmethod
    def of_arrays(cls, given: dict[str, NDArray[Any]]) -> Forest:
        """What `arrays` gave. FormatError where something is missing or doesn't fit together."""
        try:
            c, u = (int(x) for x in given["sizes"])
            arrays: list[Any] = [given[k] for k in _ARRAYS]
            made = cls(c, u, float(given["offset"][0]), *arrays)
        except (KeyError, TypeError, ValueError, IndexError) as e:
            raise FormatError(f"these are not the arrays of a forest ({e!r})") from e
        n = len(made.threshold)
        fits = (
            len(made.node_start) == made.candidate_columns + made.user_columns + 1
            and made.node_start[0] == 0 and made.node_start[-1] == n == len(made.tree) == len(made.keep)
            and len(made.sets) == len(made.set_tree) == len(made.set_keep)
            and bool((np.diff(made.node_start) >= 0).all())
            and all(len(t) == 0 or (0 <= t.min() and t.max() < made.trees) for t in (made.tree, made.set_tree))
            and (made.trees == 0 or (made.leaf_start.min() >= 0 and made.leaf_start.max() < len(made.leaf)))
        )  # fmt: skip
        if not fits:
            raise FormatError("the arrays of the forest don't fit together")
        return made

    def scores(
        self, c_dense: NDArray[np.float32], u_dense: NDArray[np.float32], x_cat: NDArray[np.int32], counts: NDArray[np.integer]
    ) -> Floats:  # fmt: skip
        """Sums [rows] of requests with `counts` [requests] candidates each, whose inputs lie one after another in c_dense
        [rows, D]; u_dense [requests, U], x_cat [requests]. Each row's sum depends on its own inputs alone."""
        if c_dense.shape[1:] != (self.candidate_columns,) or u_dense.shape[1:] != (self.user_columns,):
            raise ValueError(f"inputs of {c_dense.shape[1:]} and {u_dense.shape[1:]} columns don't fit this forest")
        out = np.empty(len(c_dense))
        first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        _scores(
            np.ascontiguousarray(c_dense, np.float32), np.ascontiguousarray(u_dense, np.float32), x_cat.astype(np.int64), first,
            self.offset, self.node_start, self.threshold, self.tree, self.keep, self.sets, self.set_tree, self.set_keep,
            self.leaf_start, self.leaf, out,
        )  # fmt: skip
        return out


_ARRAYS = ("node_start", "threshold", "tree", "keep", "sets", "set_tree", "set_keep", "leaf_start", "leaf")


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _scores(
    c: Any, u: Any, surface: Any, first: Any, offset: Any, node_start: Any, threshold: Any, tree: Any, keep: Any,
    sets: Any, set_tree: Any, set_keep: Any, leaf_start: Any, leaf: Any, out: Any,
) -> None:  # fmt: skip
    columns, user_columns, trees = c.shape[1], u.shape[1], len(leaf_start)
    of_user, of_row = np.empty(trees, np.uint64), np.empty(trees, np.uint64)
    for r in range(len(first) - 1):
        of_user[:] = ~np.uint64(0)
        for k in range(len(set_tree)):
            s = surface[r]
            word = s >> 6
            left = (
                s >= 0 and word < sets.shape[1] and (sets[k, word] >> np.uint64(s & 63)) & np.uint64(1) == np.uint64(1)
            )
            if not left:
                of_user[set_tree[k]] &= set_keep[k]
        for j in range(user_columns):
            x = np.float64(u[r, j])
            if x != x:
                x = np.float64(0.0)  # as LightGBM does where training saw no missing value
            for k in range(node_start[columns + j], node_start[columns + j + 1]):
                if x <= threshold[k]:
                    break
                of_user[tree[k]] &= keep[k]
        for i in range(first[r], first[r + 1]):
            of_row[:] = of_user
            for j in range(columns):
                x = np.float64(c[i, j])
                if x != x:
                    x = np.float64(0.0)
                for k in range(node_start[j], node_start[j + 1]):
                    if x <= threshold[k]:
                        break
                    of_row[tree[k]] &= keep[k]
            total = offset
            for t in range(trees):
                total += leaf[leaf_start[t] + trailing_zeros(of_row[t])]
            out[i] = total


def grown(
    boosters: Sequence[tuple[Any, float]], candidate_columns: int, user_columns: int, offset: float = 0.0
) -> Forest:
    """The sum of (LightGBM booster, its weight), as many rounds of each as its `best_iteration` says.

    Inputs of the boosters: candidate columns, user columns, and last the surface, the only categorical one. FormatError where a tree asks
    something that is not known here.
    """
    nodes: list[tuple[int, float, int, int]] = []  # column, threshold, tree, leaves that stay
    sets: list[tuple[int, int, int]] = []  # surfaces that go left, tree, leaves that stay
    leaves: list[float] = []
    starts: list[int] = []
    surface = candidate_columns + user_columns
    for booster, weight in boosters:
        for each in booster.dump_model(num_iteration=booster.best_iteration)["tree_info"]:
            number, start = len(starts), len(leaves)
            starts.append(start)
            _walk(each["tree_structure"], weight, surface, number, start, nodes, sets, leaves)
            if len(leaves) - start > LEAVES_MAX:
                raise FormatError(f"a tree of {len(leaves) - start} leaves: {LEAVES_MAX} at most can be served")
    column = np.array([n[0] for n in nodes], np.int64)
    threshold = np.array([n[1] for n in nodes], np.float64)
    order = np.lexsort((threshold, column))
    words = max((x.bit_length() + 63) // 64 for x in [1, *(s[0] for s in sets)])
    return Forest(
        candidate_columns, user_columns, offset,
        np.searchsorted(column[order], np.arange(surface + 1)).astype(np.int64), threshold[order],
        np.array([n[2] for n in nodes], np.int32)[order], np.array([n[3] for n in nodes], np.uint64)[order],
        np.array([[s[0] >> (64 * w) & _WORD for w in range(words)] for s in sets], np.uint64).reshape(len(sets), words),
        np.array([s[1] for s in sets], np.int32), np.array([s[2] for s in sets], np.uint64),
        np.array(starts, np.int64), np.array(leaves, np.float64),
    )  # fmt: skip


_WORD = (1 << 64) - 1


def _walk(
    node: dict[str, Any], weight: float, surface: int, tree: int, start: int, nodes: list[tuple[int, float, int, int]],
    sets: list[tuple[int, int, int]], leaves: list[float],
) -> None:  # fmt: skip
    """Leaves of a subtree from left to right, and its inner nodes."""
    if "split_feature" not in node:
        leaves.append(weight * float(node["leaf_value"]))
        return
    low = len(leaves) - start
    _walk(node["left_child"], weight, surface, tree, start, nodes, sets, leaves)
    high = len(leaves) - start
    stay = _WORD & ~((1 << high) - (1 << low)) if high <= LEAVES_MAX else _WORD
    column, kind = int(node["split_feature"]), node["decision_type"]
    if kind not in ("<=", "==") or (kind == "<=" and node["missing_type"] != "None"):
        raise FormatError(f"a node that compares by {kind!r}, missing values {node['missing_type']!r}, is not known")
    if kind == "==":
        if column != surface:
            raise FormatError(f"column {column} is categorical: only the surface may be")
        sets.append((sum(1 << int(s) for s in node["threshold"].split("||")), tree, stay))
    else:
        nodes.append((column, float(node["threshold"]), tree, stay))
    _walk(node["right_child"], weight, surface, tree, start, nodes, sets, leaves)


def joined(parts: Sequence[tuple[Forest, float]], offset: float = 0.0) -> Forest:
    """One forest whose score is the weighted sum of theirs, plus `offset`."""
    a = parts[0][0]
    columns = a.candidate_columns + a.user_columns
    trees = np.cumsum([0, *(f.trees for f, _ in parts)])
    leaves = np.cumsum([0, *(len(f.leaf) for f, _ in parts)])
    column = np.concatenate([np.repeat(np.arange(columns), np.diff(f.node_start)) for f, _ in parts])
    threshold = np.concatenate([f.threshold for f, _ in parts])
    order = np.lexsort((threshold, column))
    words = max(f.sets.shape[1] for f, _ in parts)
    return Forest(
        a.candidate_columns, a.user_columns, offset + sum(w * f.offset for f, w in parts),
        np.searchsorted(column[order], np.arange(columns + 1)).astype(np.int64), threshold[order],
        np.concatenate([f.tree + np.int32(t) for (f, _), t in zip(parts, trees, strict=False)])[order],
        np.concatenate([f.keep for f, _ in parts])[order],
        np.concatenate([np.pad(f.sets, ((0, 0), (0, words - f.sets.shape[1]))) for f, _ in parts]),
        np.concatenate([f.set_tree + np.int32(t) for (f, _), t in zip(parts, trees, strict=False)]),
        np.concatenate([f.set_keep for f, _ in parts]),
        np.concatenate([f.leaf_start + n for (f, _), n in zip(parts, leaves, strict=False)]),
        np.concatenate([w * f.leaf for f, w in parts]),
    )  # fmt: skip
