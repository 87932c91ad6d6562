"""Training of the towers: batches of pairs, InfoNCE, early stop on pairs that are held out.

Three kinds of pair come from the items themselves (name and picture, category and description, keyword and scene), a fourth
from the event log (items clicked together).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_dmgin.errors import InputError
from stream_dmgin.groups.coclicks import Pairs
from stream_dmgin.groups.items import Items, View, unit
from stream_dmgin.groups.towers import Towers

# (one view, its partners in the order of preference): the first partner that the items have makes the kind of pair
KINDS = (("text", ("image",)), ("category", ("description", "text", "image")), ("keyword", ("scene", "image", "text")))
CO_CLICK = "co-click"
FEW = 10  # with fewer pairs of a kind there is nothing to hold out
AMONG = 500  # a held-out pair's partner is looked for among so many

Ints = NDArray[np.int64]
Said = Callable[["Epoch"], None]


@dataclass(frozen=True)
class Options:
    """`pairs`: at most so many of each kind an epoch, drawn anew."""

    width: int = 64
    epochs: int = 20
    patience: int = 2
    batch: int = 512
    pairs: int = 200_000
    lr: float = 1e-3
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """`found`: share of held-out pairs, by kind, whose partner is among the ten nearest of 500."""

    epoch: int
    train_loss: float
    held_out_loss: float
    found: dict[str, float]


@dataclass(frozen=True)
class Trained:
    """`vectors`: of each item that has any view, in the common space. `epochs`: the first is the state before training."""

    vectors: View
    pairs: dict[str, int]
    epochs: list[Epoch]
    best: int


@dataclass(frozen=True)
class _Kind:
    """Rows of the items on both sides; pairs whose `left_key` or `right_key` agree are no contrast to each other."""

    name: str
    left_views: tuple[str, ...]
    right_views: tuple[str, ...]
    left: Ints
    right: Ints
    left_key: Ints
    right_key: Ints
    held_out: NDArray[np.bool_]
    log_share: NDArray[np.float32] | None = None


def pair_kinds(items: Items) -> list[tuple[str, str]]:
    """The kinds of pair that the items' own views make: (one view, the other)."""
    out = []
    for one, partners in KINDS:
        other = next((p for p in partners if p in items.views), None)
        if one in items.views and other is not None and len(_both(items, one, other)) >= FEW:
            out.append((one, other))
    return out


def _both(items: Items, one: str, other: str) -> Ints:
    return np.intersect1d(items.views[one].rows, items.views[other].rows)


def train(items: Items, clicked: Pairs | None, options: Options | None = None, said: Said = lambda e: None) -> Trained:
    """Train towers on all pairs there are, and embed every item that has a view: the mean of what its views become.
    The same seed and input give the same result on the same machine. Raises InputError where there is no pair."""
    o = options or Options()
    torch.manual_seed(o.seed)
    r = np.random.default_rng(o.seed)
    kinds = _kinds(items, clicked, r)
    if not kinds:
        raise InputError(
            "there is no pair to train on: give items two of their views (name and picture, category and description, keyword"
            " and scene), or --events with clicks of items that have one; or build without training (--towers off)"
        )
    towers = Towers({v: x.vectors.shape[1] for v, x in items.views.items()}, o.width)
    data = {v: torch.from_numpy(unit(x.vectors)) for v, x in items.views.items()}
    place = {v: _place(x.rows, len(items)) for v, x in items.views.items()}
    optimizer = torch.optim.AdamW(towers.parameters(), lr=o.lr, weight_decay=1e-3)

    def side(views: tuple[str, ...], rows: Ints) -> Tensor:
        """float32[B,width]: the mean over those of `views` that each row has."""
        total = torch.zeros(len(rows), o.width)
        for v in views:
            at = place[v][rows]
            have = np.flatnonzero(at >= 0)
            if len(have):
                total = total.index_add(0, torch.from_numpy(have), towers(v, data[v][torch.from_numpy(at[have])]))
        return torch.nn.functional.normalize(total, dim=-1)

    def loss(k: _Kind, some: Ints) -> Tensor:
        a, b = side(k.left_views, k.left[some]), side(k.right_views, k.right[some])
        same = (k.left_key[some][:, None] == k.left_key[some]) | (k.right_key[some][:, None] == k.right_key[some])
        np.fill_diagonal(same, False)
        share = None if k.log_share is None else torch.from_numpy(k.log_share[k.right[some]])
        return towers.contrast(a, b, torch.from_numpy(same), share)

    @torch.no_grad()
    def judge() -> tuple[float, dict[str, float]]:
        towers.eval()
        losses, found = [], {}
        for k in kinds:
            test = np.flatnonzero(k.held_out)
            batches = [test[i : i + AMONG] for i in range(0, min(max(len(test) - AMONG, 0), 9 * AMONG) + 1, AMONG)]
            losses.append(float(np.mean([float(loss(k, b)) for b in batches])))
            sides = [(side(k.left_views, k.left[b]), side(k.right_views, k.right[b]), b) for b in batches]
            found[k.name] = float(np.mean([_found(x, y, k, b) for x, y, b in sides]))
        return float(np.mean(losses)), found

    epochs = [Epoch(0, float("nan"), *judge())]
    said(epochs[0])
    best, weights = 0, copy.deepcopy(towers.state_dict())
    for epoch in range(1, o.epochs + 1):
        towers.train()
        batches = []
        for n, k in enumerate(kinds):
            learn = r.permutation(np.flatnonzero(~k.held_out))[: o.pairs]
            batches += [(n, learn[i : i + o.batch]) for i in range(0, len(learn), o.batch) if len(learn) - i > 1]
        losses = []
        for b in r.permutation(len(batches)):
            n, some = batches[b]
            optimizer.zero_grad(set_to_none=True)
            value = loss(kinds[n], some)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(value.detach()))
        epochs.append(Epoch(epoch, float(np.mean(losses)), *judge()))
        said(epochs[-1])
        if epochs[-1].held_out_loss < epochs[best].held_out_loss:
            best, weights = epoch, copy.deepcopy(towers.state_dict())
        elif epoch - best >= o.patience:
            break
    towers.load_state_dict(weights)
    towers.eval()
    described = items.described()
    rows = np.unique(np.concatenate([*(v.rows for v in described.values()), *(v.rows for v in items.views.values())]))
    own = np.isin(rows, np.concatenate([v.rows for v in described.values()]))
    vectors = np.empty((len(rows), o.width), np.float32)
    with torch.no_grad():  # an item that has nothing but a category stands where its category stands
        for views, which in ((tuple(described), np.flatnonzero(own)), (tuple(items.views), np.flatnonzero(~own))):
            for start in range(0, len(which), 8192):
                some = which[start : start + 8192]
                vectors[some] = side(views, rows[some]).numpy()
    return Trained(View(rows, vectors), {k.name: len(k.left) for k in kinds}, epochs, best)


def _found(a: Tensor, b: Tensor, k: _Kind, some: Ints) -> float:
    """Share of rows whose partner is among the ten nearest, equals of the partner counting as it."""
    near = (a @ b.T).topk(min(10, len(some)), dim=1).indices.numpy()
    return float((k.right_key[some][near] == k.right_key[some][:, None]).any(1).mean())


def _place(rows: Ints, n: int) -> Ints:
    out = np.full(n, -1, np.int64)
    out[rows] = np.arange(len(rows))
    return out


def _keys(view: View, rows: Ints, n: int) -> Ints:
    """A number for each distinct vector, of the given rows."""
    number: dict[bytes, int] = {}
    code = np.array([number.setdefault(x.tobytes(), len(number)) for x in view.vectors], np.int64)
    return code[_place(view.rows, n)[rows]]


def _kinds(items: Items, clicked: Pairs | None, r: np.random.Generator) -> list[_Kind]:
    out = []
    n = len(items)
    for one, other in pair_kinds(items):
        rows = _both(items, one, other)
        held = np.zeros(len(rows), bool)
        held[r.permutation(len(rows))[: max(1, len(rows) // 10)]] = True
        keys = _keys(items.views[one], rows, n), _keys(items.views[other], rows, n)
        out.append(_Kind(f"{one}-{other}", (one,), (other,), rows, rows, *keys, held))
    if clicked is not None:
        views = tuple(items.described())
        have = np.zeros(n, bool)
        for v in views:
            have[items.views[v].rows] = True
        keep = have[clicked.left] & have[clicked.right]
        left, right, held = clicked.left[keep], clicked.right[keep], clicked.held_out[keep]
        if (~held).sum() >= FEW and held.any():
            order = r.permutation(len(left))  # neighbours in time are neighbours in the table
            left, right, held = left[order], right[order], held[order]
            counts = np.bincount(np.r_[left, right], minlength=n).astype(np.float64)
            share = np.log(np.maximum(counts, 0.5) / counts.sum()).astype(np.float32)
            out.append(_Kind(CO_CLICK, views, views, left, right, left, right, held, share))
    return out


def as_they_are(items: Items) -> View:
    """What is clustered without training: the one embedding, or all views of an item side by side (a missing one is zeros)."""
    described: Mapping[str, View] = items.described()
    rows = np.unique(np.concatenate([v.rows for v in described.values()]))
    parts = []
    for v in described.values():
        part = np.zeros((len(rows), v.vectors.shape[1]), np.float32)
        part[np.searchsorted(rows, v.rows)] = unit(v.vectors) if len(described) > 1 else v.vectors
        parts.append(part)
    return View(rows, np.concatenate(parts, 1))
