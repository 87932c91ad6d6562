"""A second teacher beside the clicks: trees on the same rows, which say of each row how likely its click was (distillation).

A click is one draw, its chance says more. No row is taught by trees that have seen its label: the requests to learn from are dealt into
parts by lot, and the trees that teach a part grew on all the others. What a network minimises is in `training/objective.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.models.calibration import fit_platt, sigmoid
from stream_dmgin.training.columns import Column
from stream_dmgin.training.loop import Point, Requests
from stream_dmgin.training.objective import TAUGHT
from stream_dmgin.training.rows import TrainingRows
from stream_dmgin.training.side import side_by_side
from stream_dmgin.training.trees import TreeOptions, train_trees

PARTS = 4
Chances = NDArray[np.float32]


def chances(
    rows: TrainingRows, learn: Requests, judge: Requests, trees: TreeOptions, seed: int, jobs: int = 1,
    report: Callable[[Point], None] = lambda point: None,
) -> Chances:  # fmt: skip
    """How likely a click was [rows], for the rows of the requests `learn`; nan for all others. `judge` says when to stop growing. The same
    again by seed. `jobs`: trees that are grown at a time, each in a process of its own.

    UsageError where lightgbm is not installed, InputError where a part has no rows of both classes."""
    part = np.random.default_rng([seed, len(learn)]).permutation(np.arange(len(learn)) % PARTS)
    grown = replace(trees, seed=seed, bags=1)  # more bags taught no better (docs/adr/0023-teacher.md)
    fits = {k: partial(_taught, rows, learn[part != k], learn[part == k], judge, grown) for k in range(PARTS)}
    logits = np.full(len(rows), np.nan)
    for k, z in side_by_side(fits, jobs, report).items():
        logits[rows.rows_of(learn[part == k])] = z
    y = rows.labels()
    known = (y >= 0) & ~np.isnan(logits)
    slope, offset = fit_platt(
        logits[known], y[known]
    )  # one for all parts: two numbers are all that a row is told of its own click
    return sigmoid(slope * logits + offset).astype(np.float32)


def _taught(
    rows: TrainingRows, learn: Requests, pupils: Requests, judge: Requests, options: TreeOptions, tell: Callable[[Point], None]
) -> NDArray[np.float64]:  # fmt: skip
    """Raw logits of the rows of `pupils`, by trees that have not seen them."""
    return train_trees(rows, learn, judge, options, tell).logits(rows, pupils)


def attach(rows: TrainingRows, taught: Chances) -> TrainingRows:
    """The same rows (not copied) with what `chances` gave for them, or for the same requests as another model reads them."""
    out = copy.copy(rows)
    out.columns = {**rows.columns, TAUGHT: Column.of(taught)}
    return out
