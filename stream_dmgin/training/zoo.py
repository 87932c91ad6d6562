"""Everything that `evaluate` can fit on the same rows, by name: each learns on some requests, is chosen and calibrated on others.

| name | what |
|---|---|
| dmgin | the network |
| no-interest | the same network without groups and short sequence |
| lightgbm | gradient-boosted trees on the same inputs (`trees.py`) |
| stack | weighted sum of the recipe's members in logit space, weights fitted on the valid rows (`stack.py`) |
| item-ctr | an item's click rate for life, smoothed: the floor, which learns nothing |
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.models.calibration import Calibration
from stream_dmgin.training.loop import Fitted, Options, Point, Requests, train
from stream_dmgin.training.recipes import Recipe
from stream_dmgin.training.rows import TrainingRows
from stream_dmgin.training.stack import fit_stack
from stream_dmgin.training.trees import train_trees

FLOOR = "item-ctr"
MODELS = (FLOOR, "no-interest", "dmgin", "lightgbm", "stack")

Report = Callable[[str, Point], None]


class Contender(Protocol):
    """A fitted model."""

    @property
    def calibration(self) -> Calibration:
        """Platt parameters of `ctr`, fitted on the valid rows."""
        ...

    def logits(self, rows: TrainingRows, requests: Requests) -> NDArray[np.floating]:
        """Raw logits of the rows of these requests, in the order of `rows.rows_of`."""
        ...


@dataclass(frozen=True)
class Bare:
    """A network fitted without groups and short sequence."""

    fitted: Fitted

    @property
    def calibration(self) -> Calibration:
        """Of the network."""
        return self.fitted.calibration

    def logits(self, rows: TrainingRows, requests: Requests) -> NDArray[np.floating]:
        """As `Contender` says."""
        return self.fitted.logits(without_interests(rows), requests)


def fit(
    name: str, recipe: Recipe, rows: TrainingRows, learn: Requests, judge: Requests, options: Options,
    fitted: MutableMapping[str, Contender], report: Report,
) -> Contender:  # fmt: skip
    """Fit a model of MODELS (not the floor). `fitted` holds what was fitted on these requests before, and gets the model too."""
    if name in fitted:
        return fitted[name]
    made: Contender
    if name == "dmgin":
        made = train(recipe.config, rows, learn, rows, judge, options, report=lambda p: report(name, p))
    elif name == "no-interest":
        bare = without_interests(rows)
        made = Bare(train(recipe.config, bare, learn, bare, judge, options, report=lambda p: report(name, p)))
    elif name == "lightgbm":
        trees = replace(recipe.trees, seed=options.seed)
        made = train_trees(rows, learn, judge, trees, report=lambda p: report(name, p))
    else:
        members = [fit(m, recipe, rows, learn, judge, options, fitted, report) for m in recipe.stack.members]
        made = fit_stack(members, rows, judge)
    fitted[name] = made
    return made


def without_interests(rows: TrainingRows) -> TrainingRows:
    """The same rows with no groups and no short sequence: what the interest modules add is the difference."""
    out = TrainingRows(rows.spec, rows.heads)
    keep = ("r_rows", "r_ts", "r_key", "u_dense", "x_cat", "c_item", "c_id", "c_dense", "label")
    for name in keep:
        out.columns[name] = rows.columns[name]
    for name in ("r_groups", "r_short"):
        out.columns[name].extend(np.zeros(rows.requests, np.int32))
    out.columns["c_group"].extend(np.full(len(rows), rows.spec.groups, np.int32))
    return out
