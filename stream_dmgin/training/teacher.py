"""A second teacher beside the clicks: trees on the same rows, which say of each row how likely its click was (distillation).

A click is one draw, its chance says more. No row is taught by trees that have seen its label: the requests to learn from are dealt into
parts by lot, and the trees that teach a part grew on all the others. What a network minimises is in `training/objective.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.models.calibration import fit_platt, sigmoid
from stream_dmgin.training.columns import Column
from stream_dmgin.training.loop import Point, Requests
from stream_dmgin.training.objective import TAUGHT
from stream_dmgin.training.rows import TrainingRows
from stream_dmgin.training.side import side_by_side
from stream_dmgin.training.trees import TreeOptions, forest_logits, regrown, train_trees

PARTS = 4
Chances = NDArray[np.float32]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Grown:
    """What the days that choose have chosen for the trees of a teacher: rounds of each booster, weight of the way by the list."""

    rounds: tuple[int, ...]
    weight: float


@dataclass(frozen=True)
class Lesson:
    """How likely a click was [rows]; nan for rows of which nothing is said."""

    chances: Chances
    grown: Grown


def lesson(
    rows: TrainingRows, learn: Requests, judge: Requests, trees: TreeOptions, seed: int, jobs: int = 1,
    report: Callable[[Point], None] = lambda point: None,
) -> Lesson:  # fmt: skip
    """For the rows of the requests `learn`; `judge` says when to stop growing. The same again by seed. `jobs`: trees that are grown at a
    time, each in a process of its own.

    UsageError where lightgbm is not installed, InputError where a part has no rows of both classes."""
    parts = _parts(learn, seed)
    options = _options(trees, seed)
    fits = {k: partial(_chosen, rows, np.setdiff1d(learn, p), p, judge, options) for k, p in enumerate(parts)}
    logits, grown = zip(*side_by_side(fits, jobs, report).values(), strict=True)
    rounds = np.mean([g.rounds for g in grown], 0).round().astype(int)
    return Lesson(
        _chances(rows, parts, logits), Grown(tuple(rounds.tolist()), float(np.mean([g.weight for g in grown])))
    )


def lesson_again(rows: TrainingRows, learn: Requests, trees: TreeOptions, grown: Grown, seed: int) -> Lesson:
    """For requests of which none is held out: with what was chosen before."""
    parts = _parts(learn, seed)
    options = _options(trees, seed)
    logits = []
    for p in parts:
        forest, _ = regrown(rows, np.setdiff1d(learn, p), options, grown.rounds, grown.weight)
        logits.append(forest_logits(forest, rows, p))
    return Lesson(_chances(rows, parts, logits), grown)


def attach(rows: TrainingRows, taught: Chances) -> TrainingRows:
    """The same rows (not copied) with the chances of a lesson, of them or of the same requests as another model reads them."""
    out = copy.copy(rows)
    out.columns = {**rows.columns, TAUGHT: Column.of(taught)}
    return out


def _options(trees: TreeOptions, seed: int) -> TreeOptions:
    return replace(trees, seed=seed, bags=1)  # more bags taught no better (docs/adr/0023-teacher.md)


def _parts(learn: Requests, seed: int) -> list[Requests]:
    part = np.random.default_rng([seed, len(learn)]).permutation(np.arange(len(learn)) % PARTS)
    return [learn[part == k] for k in range(PARTS)]


def _chosen(
    rows: TrainingRows, learn: Requests, pupils: Requests, judge: Requests, options: TreeOptions, tell: Callable[[Point], None]
) -> tuple[Floats, Grown]:  # fmt: skip
    """Raw logits of the rows of `pupils` by trees that have not seen them."""
    made = train_trees(rows, learn, judge, options, tell)
    return made.logits(rows, pupils), Grown(made.rounds, made.weight)


def _chances(rows: TrainingRows, parts: Sequence[Requests], found: Sequence[Floats]) -> Chances:
    logits = np.full(len(rows), np.nan)
    for part, z in zip(parts, found, strict=True):
        logits[rows.rows_of(part)] = z
    y = rows.labels()
    known = (y >= 0) & ~np.isnan(logits)
    # one calibration for all parts: two numbers are all that a row is told of its own click
    slope, offset = fit_platt(logits[known], y[known])
    return sigmoid(slope * logits + offset).astype(np.float32)
