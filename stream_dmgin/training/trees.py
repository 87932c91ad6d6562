"""LightGBM, the peer that every network must beat: gradient-boosted trees on the very rows that replay gives the network.

Inputs are the candidate's counters and pairs (c_dense), the user's features (u_dense) and the surface as a category;
groups and events enter through the counts made of them alone. Strong regularisation, early stop on the valid rows, the mean of
several boosters of other seeds. Where requests are lists, the click is also taken apart: boosters for the order inside a list, whose
loss starts from log(1 / length of the list), so that what they add is what sets a row apart from its neighbours; and one for the
expected logarithm of that length. Lengths are known only in training: a score never sees its own list. All boosters together are
one `Forest`, which is also what serves.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.errors import InputError, UsageError
from stream_dmgin.models.calibration import Calibration, fit_platt, sigmoid
from stream_dmgin.models.forest import Forest, grown, joined
from stream_dmgin.training.loop import Point, Requests
from stream_dmgin.training.metrics import auc, logloss
from stream_dmgin.training.rows import TrainingRows

Floats = NDArray[np.float64]
WEIGHTS = np.linspace(0.0, 1.5, 16)
CLICK, ORDER, LENGTH = "click", "order", "length"  # what boosters aim at


@dataclass(frozen=True)
class TreeOptions:
    """How to boost. `bags`: boosters of each kind, of which the mean counts.

    `patience`: rounds without a gain before stopping. `order_weight`: of the logit by way of the list (order inside it, less its expected
    length); None: the one of WEIGHTS with the smallest logloss on the valid rows.
    """

    leaves: int = 15
    rows_a_leaf: int = 300
    l2: float = 20.0
    feature_fraction: float = 0.2
    row_fraction: float = 0.8
    lr: float = 0.05
    rounds: int = 3000
    patience: int = 100
    bags: int = 1
    order: bool = True  # boosters for the order inside lists and for their length, where there are lists
    order_weight: float | None = None
    without: tuple[str, ...] = ()  # inputs that no tree may ask for, as shell patterns of their names
    seed: int = 1


@dataclass
class Trees:
    """Fitted boosters as one forest, whose score is the raw logit.

    `rounds` of each booster: of the click, the order, the length; `weight` of the way by the list; `gains`: share of the gain that each
    input brought, greatest first.
    """

    forest: Forest
    options: TreeOptions
    rounds: tuple[int, ...]
    weight: float
    calibration: Calibration
    gains: Mapping[str, float]
    curve: list[Point] = field(default_factory=list)

    def logits(self, rows: TrainingRows, requests: Requests) -> Floats:
        """Raw logits of the rows of these requests, in the order of `rows.rows_of`."""
        return forest_logits(self.forest, rows, requests)


def forest_logits(forest: Forest, rows: TrainingRows, requests: Requests) -> Floats:
    """Scores of the rows of these requests, in the order of `rows.rows_of`."""
    c = rows["c_dense"][rows.rows_of(requests)]
    return forest.scores(c, rows["u_dense"][requests], rows["x_cat"][requests], rows["r_rows"][requests])


def design(rows: TrainingRows, requests: Requests) -> tuple[NDArray[np.float32], list[str]]:
    """(inputs [rows of the requests, columns], names of the columns; the last is the surface's number)."""
    take, n = rows.rows_of(requests), rows["r_rows"][requests]
    c, u = rows["c_dense"], rows["u_dense"]
    x = np.empty((len(take), c.shape[1] + u.shape[1] + 1), np.float32)
    x[:, : c.shape[1]] = c[take]
    x[:, c.shape[1] : -1] = np.repeat(u[requests], n, 0)
    x[:, -1] = np.repeat(rows["x_cat"][requests], n)
    np.nan_to_num(x, copy=False, nan=0.0)  # as the forest reads it
    return x, [*rows.spec.candidate_features, *(f"u_{n}" for n in rows.spec.user_features), "surface"]


def train_trees(
    rows: TrainingRows,
    train_requests: Requests,
    valid_requests: Requests,
    options: TreeOptions = TreeOptions(),
    report: Callable[[Point], None] | None = None,
) -> Trees:
    """Boost on some requests, stop, blend and calibrate on others. One thread, the same again by seed.

    UsageError where lightgbm is not installed, InputError where either part has no rows of both classes.
    """
    started = time.monotonic()
    learn = _Part(rows, train_requests, "training", options.without)
    judge = _Part(rows, valid_requests, "validation", options.without)
    pointwise = _boost(options, learn, judge, CLICK)
    lists = options.order and learn.length.max() > 1
    order = _boost(options, learn, judge, ORDER) if lists else []
    length = _boost(replace(options, bags=1), learn, judge, LENGTH) if lists else []
    flat = forest = _mean(rows, pointwise)
    weight = 0.0
    if lists:
        inside = _inside(rows, order, length)
        z, s = (forest_logits(f, rows, valid_requests)[judge.known] for f in (flat, inside))
        fixed = options.order_weight
        weight = best_weight(lambda w: z + w * s, judge.y, WEIGHTS) if fixed is None else fixed
        forest = joined([(flat, 1.0), (inside, weight)]) if weight else flat
    z = forest_logits(forest, rows, valid_requests)[judge.known]
    platt = fit_platt(z, judge.y)
    p = sigmoid(platt[0] * z + platt[1])
    rounds = tuple(int(b.best_iteration) for b in (*pointwise, *order, *length))
    best = Point(rounds[0], rounds[0], float("nan"), logloss(judge.y, p), auc(judge.y, z), time.monotonic() - started)
    if report is not None:
        report(best)
    return Trees(forest, options, rounds, weight, Calibration({"ctr": platt}), _gains(pointwise, learn.names), [best])


def refit_trees(rows: TrainingRows, requests: Requests, before: Trees) -> Trees:
    """Trees grown anew on these requests with what was chosen for `before`: rounds, weight and calibration stay.

    Nothing is held out, so that the newest rows count too.
    """
    forest, gains = regrown(rows, requests, before.options, before.rounds, before.weight)
    return replace(before, forest=forest, gains=gains)


def regrown(
    rows: TrainingRows, requests: Requests, o: TreeOptions, rounds: tuple[int, ...], weight: float
) -> tuple[Forest, dict[str, float]]:  # fmt: skip
    """(Forest, share of the gain of each input) on these requests, with rounds and weight as `Trees` has them."""
    learn = _Part(rows, requests, "training", o.without)
    pointwise = _boost(o, learn, None, CLICK, rounds[: o.bags])
    forest = _mean(rows, pointwise)
    if weight:
        order = _boost(o, learn, None, ORDER, rounds[o.bags : -1])
        length = _boost(replace(o, bags=1), learn, None, LENGTH, rounds[-1:])
        forest = joined([(forest, 1.0), (_inside(rows, order, length), weight)])
    return forest, _gains(pointwise, learn.names)


def best_weight(blend: Callable[[float], Floats], labels: NDArray[np.int8], weights: Floats) -> float:
    """The weight whose blend has the smallest logloss on these rows, once calibrated."""

    def loss(w: float) -> float:
        z = blend(w)
        slope, offset = fit_platt(z, labels)
        return logloss(labels, sigmoid(slope * z + offset))

    return float(min(weights.tolist(), key=loss))


class _Part:
    """Known rows of some requests: inputs, labels, and the length of each row's list. Inputs are cut into bins once for all aims."""

    def __init__(self, rows: TrainingRows, requests: Requests, name: str, without: tuple[str, ...] = ()) -> None:
        x, self.names = design(rows, requests)
        for k, column in enumerate(self.names):
            if any(fnmatchcase(column, pattern) for pattern in without):
                x[:, k] = 0.0  # a constant is never split
        y = rows.labels()[rows.rows_of(requests)]
        self.known = y >= 0
        n = rows["r_rows"][requests]
        self.x, self.y = x[self.known], y[self.known]
        self.length = np.repeat(n, n)[self.known].astype(np.float64)
        if not len(self.y) or self.y.min() == self.y.max():
            raise InputError(f"the {name} days hold no rows with both labels ({len(self.y)} rows): choose other days")
        self._binned: Any = None

    def aimed(self, o: TreeOptions, aim: str, reference: Any = None) -> Any:
        """LightGBM's data set with the labels of this aim, in the bins of `reference` where one is given."""
        label = np.log(self.length) if aim == LENGTH else self.y
        start = -np.log(self.length) if aim == ORDER else None
        if self._binned is None:
            self._binned = _lightgbm().Dataset(
                self.x, label, init_score=start, feature_name=self.names, categorical_feature=["surface"], reference=reference,
                params={"min_data_per_group": o.rows_a_leaf, "verbosity": -1}, free_raw_data=False,
            )  # fmt: skip
        else:
            self._binned.set_label(label)
            self._binned.set_init_score(start)
            if start is None:  # which alone would leave the one from before in place
                self._binned.set_field("init_score", None)
        return self._binned


def _boost(o: TreeOptions, learn: _Part, judge: _Part | None, aim: str, rounds: tuple[int, ...] = ()) -> list[Any]:
    """`o.bags` boosters for one aim; stopped by `judge`, or after so many `rounds` each."""
    lgb = _lightgbm()
    sets = [learn.aimed(o, aim)]
    if judge is not None:
        sets.append(judge.aimed(o, aim, sets[0]))
    out = []
    for bag in range(o.bags):
        parameters = _parameters(o, o.seed + 1000 * bag, "regression" if aim == LENGTH else "binary")
        if judge is None:
            made = lgb.train(parameters, sets[0], rounds[bag])
            made.best_iteration = rounds[bag]
        else:
            made = lgb.train(parameters, sets[0], o.rounds, sets[1:], callbacks=[
                lgb.early_stopping(o.patience, verbose=False)
            ])  # fmt: skip
        out.append(made)
    return out


def _inside(rows: TrainingRows, order: list[Any], length: list[Any]) -> Forest:
    """The logit by way of the list: how it stands inside its list, less the expected logarithm of the list's length."""
    return joined([(_mean(rows, order), 1.0), (_mean(rows, length), -1.0)])


def _mean(rows: TrainingRows, boosters: list[Any]) -> Forest:
    share = 1.0 / len(boosters)
    return grown([(b, share) for b in boosters], len(rows.spec.candidate_features), len(rows.spec.user_features))


def _gains(boosters: list[Any], names: list[str]) -> dict[str, float]:
    g = np.sum([b.feature_importance("gain") for b in boosters], 0)
    share = g / max(1e-12, g.sum())
    return {names[i]: float(share[i]) for i in np.argsort(-share)}


def _parameters(o: TreeOptions, seed: int, objective: str) -> dict[str, Any]:
    return {
        "objective": objective, "num_leaves": o.leaves, "min_data_in_leaf": o.rows_a_leaf, "lambda_l2": o.l2,
        "feature_fraction": o.feature_fraction, "bagging_fraction": o.row_fraction, "bagging_freq": 1, "learning_rate": o.lr,
        "min_data_per_group": o.rows_a_leaf, "cat_l2": o.l2, "seed": seed, "deterministic": True, "force_col_wise": True,
        "num_threads": 1, "verbosity": -1,
    }  # fmt: skip


def _lightgbm() -> Any:
    try:
        return importlib.import_module("lightgbm")
    except ImportError as e:
        raise UsageError(f"lightgbm is not installed ({e}): pip install 'stream-dmgin[trees]'") from e
