"""How good a map is, by itself and by what it tells of clicks to come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.groups.coclicks import Clicks, Pairs
from stream_dmgin.groups.items import Matrix

# pairs' worth of trust in a group's overall share, against what was seen beside the other group: the best of these is taken
_PRIORS = (10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 1e5)

# clicks' worth of trust in a group's overall share, against what the user clicked before
_HABITS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Quality:
    """`balance`: e^entropy of the sizes / groups (1: all equal). `purity`: share of items that are of their group's commonest
    category, where known. `cohesion`: mean cosine of an item and its group's mean. `split`: groups that were over the cap.
    `moved`: items put elsewhere because of it. `left_out`: items that stay groups of their own."""

    items: int
    groups: int
    empty: int
    smallest: int
    median: float
    largest: int
    balance: float
    cohesion: float
    purity: float | None
    split: int
    moved: int
    left_out: int

    def as_dict(self) -> dict[str, Any]:
        """The numbers by name."""
        return asdict(self)


def balance_of(sizes: Ints, k: int) -> float:
    """e^entropy of the sizes of groups, over `k`: the share of the groups that would do as well, were they all equal."""
    share = sizes[sizes > 0] / sizes.sum()
    return float(np.exp(-(share * np.log(share)).sum()) / k)


def cohesion_of(x: Matrix, groups: Ints) -> float:
    """Mean cosine of a row of length 1 and its group's mean direction."""
    if not len(x):
        return 0.0
    _, label = np.unique(groups, return_inverse=True)
    label = label.reshape(-1)
    order = np.argsort(label, kind="stable")
    sizes = np.bincount(label)
    means = np.add.reduceat(x[order].astype(np.float64), np.cumsum(sizes) - sizes)
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return float((x * means[label]).sum(1).mean())


def purity_of(groups: Sequence[int], category: Sequence[str | None] | None) -> float | None:
    """Share of the items with a category that are of their group's commonest; None where none is known."""
    if category is None:
        return None
    counts: dict[int, dict[str, int]] = {}
    known = 0
    for g, c in zip(groups, category, strict=True):
        if c is not None:
            of = counts.setdefault(g, {})
            of[c] = of.get(c, 0) + 1
            known += 1
    return sum(max(of.values()) for of in counts.values()) / known if known else None


def foretold(groups: Ints, pairs: Pairs) -> float | None:
    """Nats that the group of one click tells about the group of another in the same session, on held-out users: mean of
    ln p(group | group) - ln p(group), both learned from the other users. Too few groups can't tell items apart, too many are
    seen too seldom to learn from, so it has a maximum over K. `groups`: int64[N], -1: a group of its own. None without pairs
    on both sides."""
    learn, test = pairs.part(held_out=False), pairs.part(held_out=True)
    if not len(learn) or not len(test):
        return None
    _, code = np.unique(
        np.where(groups >= 0, groups, groups.max(initial=0) + 1 + np.arange(len(groups))), return_inverse=True
    )
    code = code.reshape(-1)
    k = int(code.max()) + 1
    a, b = (np.r_[code[learn.left], code[learn.right]], np.r_[code[learn.right], code[learn.left]])
    seen = np.bincount(a, minlength=k).astype(np.float64)
    share = (seen + 0.5) / (seen.sum() + 0.5 * k)
    cells, counts = np.unique(a * k + b, return_counts=True)
    x, y = (np.r_[code[test.left], code[test.right]], np.r_[code[test.right], code[test.left]])
    wanted = x * k + y
    at = np.minimum(np.searchsorted(cells, wanted), len(cells) - 1)
    both = np.where(cells[at] == wanted, counts[at], 0)
    return max(float(np.log((both / share[y] + w) / (seen[x] + w)).mean()) for w in _PRIORS)


def remembered(clicks: Clicks, of: Ints) -> float:
    """Nats that the groups of a user's clicks so far tell about the group of the next one: mean over clicks, in the order of time, of
    ln p(group | the user's past) - ln p(group). It is what counting a life by groups is for. Too few groups can't tell tastes apart, in
    too many nobody comes back, so it has a maximum over K; a click is foretold from earlier ones alone, so no user is held out.
    `of`: the group of each click. 0.0 where nobody clicks twice."""
    n = len(of)
    k = int(of.max(initial=-1)) + 1
    if not n:
        return 0.0
    share = np.bincount(of, minlength=k)[of] / (n - 1.0 + k)  # of the other clicks, and one more for each group
    past, here = _before(clicks.user.astype(np.int64)), _before(clicks.user.astype(np.int64) * k + of)
    return max(float(np.log((here / share + w) / (past + w)).mean()) for w in _HABITS)


def _before(keys: Ints) -> NDArray[np.float64]:
    """How often each key came before, in the order of the rows."""
    order = np.argsort(keys, kind="stable")
    new = np.r_[True, keys[order][1:] != keys[order][:-1]]
    at = np.arange(len(keys))
    out = np.empty(len(keys))
    out[order] = at - np.maximum.accumulate(np.where(new, at, 0))
    return out
