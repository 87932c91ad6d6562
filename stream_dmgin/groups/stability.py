"""What changes from one map to the next, and how to change little: groups keep their numbers, new items join old groups."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.groups.map import GroupMap

_SAMPLE = 20_000  # items that the adjusted mutual information is computed on, at most

Ints = NDArray[np.int64]


class Stability(NamedTuple):
    """Of the items in both maps: `stayed`, share with the same number (what `publish` needs not fold anew); `together`, of the pairs
    of items that shared a group, the share that still does; `ami`, adjusted mutual information (1: the same division, 0: chance);
    None without shared items. `added`, `removed`: items in one map only."""

    shared: int
    stayed: float | None
    together: float | None
    ami: float | None
    added: int
    removed: int

    def as_dict(self) -> dict[str, Any]:
        """The numbers by name."""
        return self._asdict()


def compare(old: GroupMap, new: GroupMap, seed: int = 0) -> Stability:
    """How alike two maps are."""
    names = [n for n in new.items if n in old.items]
    added, removed = len(new) - len(names), len(old) - len(names)
    if not names:
        return Stability(0, None, None, None, added, removed)
    a, b = (np.array([m.items[n] for n in names], np.int64) for m in (old, new))
    return Stability(len(names), float((a == b).mean()), _together(a, b), _ami(a, b, seed), added, removed)


def _cells(a: Ints, b: Ints) -> tuple[Ints, Ints, Ints]:
    """(group in a, group in b, items) of each pair of groups that share items."""
    both, counts = np.unique(np.stack([a, b]), axis=1, return_counts=True)
    return both[0], both[1], counts


def _together(a: Ints, b: Ints) -> float:
    before = np.unique(a, return_counts=True)[1].astype(np.float64)
    still = _cells(a, b)[2].astype(np.float64)
    pairs = (before * (before - 1)).sum()
    return float((still * (still - 1)).sum() / pairs) if pairs else 1.0


def _ami(a: Ints, b: Ints, seed: int) -> float:
    from sklearn.metrics import adjusted_mutual_info_score

    if len(a) > _SAMPLE:
        some = np.random.default_rng(seed).choice(len(a), _SAMPLE, replace=False)
        a, b = a[some], b[some]
    return float(adjusted_mutual_info_score(a, b))


def numbered_like(previous: GroupMap, ids: list[str], labels: Ints) -> Ints:
    """The labels renumbered so that each group has the number of the old group with which it shares most items (the largest
    overlaps first, each old number once); groups without a partner get numbers that the old map does not use."""
    old = np.array([previous.items.get(name, -1) for name in ids], np.int64)
    known = (old >= 0) & (labels >= 0)
    a, b, counts = _cells(old[known], labels[known]) if known.any() else (np.zeros(0, np.int64),) * 3
    number: dict[int, int] = {}
    taken: set[int] = set()
    for i in np.lexsort((b, a, -counts)).tolist():
        was, now = int(a[i]), int(b[i])
        if now not in number and was not in taken:
            number[now] = was
            taken.add(was)
    fresh = max(previous.items.values(), default=-1) + 1
    for now in np.unique(labels[labels >= 0]).tolist():
        if now not in number:
            number[now], fresh = fresh, fresh + 1
    return np.array([number.get(g, -1) for g in labels.tolist()], np.int64)
