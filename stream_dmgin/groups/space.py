"""From items and clicks to one vector an item: encode words, train the towers, fill in what has no content by behaviour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.errors import InputError, UsageError
from stream_dmgin.groups import contrast
from stream_dmgin.groups.behaviour import behaviour, carried
from stream_dmgin.groups.coclicks import WINDOW, Clicks, Pairs, pairs_of, with_clicked
from stream_dmgin.groups.encode import encode_items
from stream_dmgin.groups.items import Items, Matrix, View, unit

SOURCES = ("content", "behaviour", "category", "singleton")  # in this order an item is given its group by
TOWERS = ("auto", "on", "off")


@dataclass(frozen=True)
class Making:
    """How vectors are made. `encoder`: a name of `encode.ENCODERS`, or none. `towers`: auto trains where there are pairs."""

    encoder: str = "none"
    towers: str = "auto"
    window: int = WINDOW
    training: contrast.Options = field(default_factory=contrast.Options)


@dataclass(frozen=True)
class Space:
    """Items, and vectors of length 1 of those that have content or behaviour. `by_behaviour`: bool[M], of which rows of `vectors`
    the clicks alone tell. `pairs`: of the clicks, None without clicks. `about`: what was done, for the report."""

    items: Items
    vectors: View
    by_behaviour: NDArray[np.bool_]
    clicks: Clicks | None
    pairs: Pairs | None
    about: dict[str, Any]

    @property
    def x(self) -> Matrix:
        """The vectors alone."""
        return self.vectors.vectors


def make_space(
    items: Items | None, clicks: Clicks | None = None, making: Making | None = None,
    seen: Callable[[str, int, int], None] | None = None, said: Callable[[contrast.Epoch], None] | None = None,
) -> Space:  # fmt: skip
    """One vector for each item that has content or behaviour. Raises InputError where none has. `seen(what, done, total)` and
    `said` tell of the progress."""
    m = making or Making()
    if m.towers not in TOWERS:
        raise UsageError(f"--towers {m.towers!r} is not known: choose one of {', '.join(TOWERS)}")
    if items is None and clicks is None:
        raise UsageError("there is nothing to group: give --items, --events, or both")
    about: dict[str, Any] = {"encoder": m.encoder, "views": {}, "pairs": {}, "epochs": []}
    if items is not None and m.encoder != "none":
        items = encode_items(items, m.encoder, m.training.seed, None if seen is None else _part(seen, "encode"))
    if items is not None and not items.views and clicks is None and items.category is None:
        raise InputError("the items have words, but no embeddings: give --encoder, or --events")
    if clicks is not None:
        items = with_clicked(items, clicks)
    assert items is not None
    about["views"] = {v: len(x.rows) for v, x in items.views.items()}
    pairs = None if clicks is None else pairs_of(clicks, items.ids, m.window, m.training.seed)
    learned = None if pairs is None else pairs.part(held_out=False)
    content = _content(items, pairs, m, about, said, None if seen is None else _part(seen, "train"))
    behaved = None if learned is None else behaviour(learned, len(items), seed=m.training.seed)
    vectors, by_behaviour = _joined(content, behaved)
    return Space(items, vectors, by_behaviour, clicks, pairs, about)


def _part(seen: Callable[[str, int, int], None], what: str) -> Callable[[int, int], None]:
    return lambda done, total: seen(what, done, total)


def _content(
    items: Items, pairs: Pairs | None, m: Making, about: dict[str, Any], said: Callable[[contrast.Epoch], None] | None,
    seen: Callable[[int, int], None] | None,
) -> View | None:  # fmt: skip
    if not items.views:
        if m.towers == "on":
            raise InputError("there are no embeddings to train towers on: give --items with some, or --encoder")
        return None
    can = bool(contrast.pair_kinds(items)) or _clicked_with_content(items, pairs)
    if m.towers == "off" or (m.towers == "auto" and not can):
        return contrast.as_they_are(items)

    def told(e: contrast.Epoch) -> None:
        if said is not None:
            said(e)
        if seen is not None:
            seen(e.epoch, m.training.epochs)

    trained = contrast.train(items, pairs, m.training, told)
    about["pairs"], about["best_epoch"] = trained.pairs, trained.best
    about["epochs"] = [
        {"epoch": e.epoch, "train_loss": e.train_loss, "held_out_loss": e.held_out_loss, "found": e.found}
        for e in trained.epochs
    ]
    return trained.vectors


def _clicked_with_content(items: Items, pairs: Pairs | None) -> bool:
    if pairs is None:
        return False
    have = np.zeros(len(items), bool)
    for v in items.described().values():
        have[v.rows] = True
    both = have[pairs.left] & have[pairs.right]
    return bool((both & ~pairs.held_out).sum() >= contrast.FEW and (both & pairs.held_out).any())


def _joined(content: View | None, behaved: View | None) -> tuple[View, NDArray[np.bool_]]:
    if content is None and behaved is None:
        return View(np.zeros(0, np.int64), np.zeros((0, 1), np.float32)), np.zeros(0, bool)
    if content is None:
        assert behaved is not None
        return behaved, np.ones(len(behaved.rows), bool)
    more = carried(content, behaved) if behaved is not None else View(np.zeros(0, np.int64), content.vectors[:0])
    rows = np.r_[content.rows, more.rows]
    order = np.argsort(rows, kind="stable")
    vectors = np.concatenate([unit(content.vectors), more.vectors])[order]
    return View(rows[order], vectors), np.r_[np.zeros(len(content.rows), bool), np.ones(len(more.rows), bool)][order]
