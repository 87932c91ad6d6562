"""LightGBM, the peer that every network must beat: gradient-boosted trees on the very rows that replay gives the network.

Its inputs are the candidate's counters and pairs (c_dense), the user's features (u_dense) and the surface as a category;
groups and events enter through the counts made of them alone. Strong regularisation, early stop on the valid rows, the same
two calibration parameters. Where requests are lists, a second booster learns the order inside a list: its loss starts from
log(1 / length of the list), known only in training, so that what it adds is what sets a row apart from its neighbours; the
two are blended with the weight that serves the valid rows best. A score never sees its own list.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.errors import InputError, UsageError
from stream_dmgin.models.calibration import Calibration, fit_platt, sigmoid
from stream_dmgin.training.loop import Point, Requests
from stream_dmgin.training.metrics import auc, logloss
from stream_dmgin.training.rows import TrainingRows

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TreeOptions:
    """How to boost: strong regularisation, not searched yet. `patience`: rounds without a gain before stopping."""

    leaves: int = 15
    rows_a_leaf: int = 300
    l2: float = 20.0
    feature_fraction: float = 0.2
    row_fraction: float = 0.8
    lr: float = 0.04
    rounds: int = 3000
    patience: int = 150
    order: bool = True  # a second booster for the order inside lists, where there are lists
    seed: int = 1


@dataclass
class Trees:
    """Fitted boosters; the logit is `pointwise + weight * order`, then calibrated."""

    pointwise: Any
    order: Any | None
    weight: float
    calibration: Calibration
    names: list[str]
    curve: list[Point] = field(default_factory=list)

    def logits(self, rows: TrainingRows, requests: Requests) -> Floats:
        """Raw logits of the rows of these requests, in the order of `rows.rows_of`."""
        x, _ = design(rows, requests)
        z: Floats = self.pointwise.predict(x, raw_score=True)
        return z if self.order is None else z + self.weight * self.order.predict(x, raw_score=True)

    def gains(self) -> dict[str, float]:
        """Share of the pointwise booster's gain that each input brought, greatest first."""
        g = self.pointwise.feature_importance("gain")
        share = g / max(1e-12, g.sum())
        return {self.names[i]: float(share[i]) for i in np.argsort(-share)}


def design(rows: TrainingRows, requests: Requests) -> tuple[NDArray[np.float32], list[str]]:
    """(inputs [rows of the requests, columns], names of the columns; the last is the surface's number)."""
    take, n = rows.rows_of(requests), rows["r_rows"][requests]
    c, u = rows["c_dense"], rows["u_dense"]
    x = np.empty((len(take), c.shape[1] + u.shape[1] + 1), np.float32)
    x[:, : c.shape[1]] = c[take]
    x[:, c.shape[1] : -1] = np.repeat(u[requests], n, 0)
    x[:, -1] = np.repeat(rows["x_cat"][requests], n)
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
    lgb, started = _lightgbm(), time.monotonic()
    parts = [_Part(rows, r) for r in (train_requests, valid_requests)]
    for name, part in zip(("training", "validation"), parts, strict=True):
        if not len(part.y) or part.y.min() == part.y.max():
            raise InputError(f"the {name} days hold no rows with both labels ({len(part.y)} rows): choose other days")
    learn, judge = parts

    def boost(offsets: bool) -> Any:
        sets = [
            lgb.Dataset(
                p.x, p.y, init_score=-np.log(p.length) if offsets else None, feature_name=learn.names,
                categorical_feature=["surface"], free_raw_data=False,
            )
            for p in parts
        ]  # fmt: skip
        sets[1].reference = sets[0]
        return lgb.train(_parameters(options), sets[0], options.rounds, [sets[1]], callbacks=[
            lgb.early_stopping(options.patience, verbose=False)
        ])  # fmt: skip

    pointwise = boost(False)
    order = boost(True) if options.order and learn.length.max() > 1 else None
    z = pointwise.predict(judge.x, raw_score=True)
    weight = 0.0
    if order is not None:
        s = order.predict(judge.x, raw_score=True)
        weight = best_weight(lambda w: z + w * s, judge.y, np.linspace(0.0, 1.5, 16))
        z = z + weight * s
    platt = fit_platt(z, judge.y)
    p = sigmoid(platt[0] * z + platt[1])
    rounds = pointwise.best_iteration
    best = Point(rounds, rounds, float("nan"), logloss(judge.y, p), auc(judge.y, z), time.monotonic() - started)
    if report is not None:
        report(best)
    return Trees(pointwise, order, weight, Calibration({"ctr": platt}), learn.names, [best])


def best_weight(blend: Callable[[float], Floats], labels: NDArray[np.int8], weights: Floats) -> float:
    """The weight whose blend has the smallest logloss on these rows, once calibrated."""

    def loss(w: float) -> float:
        z = blend(w)
        slope, offset = fit_platt(z, labels)
        return logloss(labels, sigmoid(slope * z + offset))

    return float(min(weights.tolist(), key=loss))


class _Part:
    """Known rows of some requests: inputs, labels, and the length of each row's list."""

    def __init__(self, rows: TrainingRows, requests: Requests) -> None:
        x, self.names = design(rows, requests)
        y = rows.labels()[rows.rows_of(requests)]
        known = y >= 0
        n = rows["r_rows"][requests]
        self.x, self.y = x[known], y[known]
        self.length = np.repeat(n, n)[known].astype(np.float64)


def _parameters(o: TreeOptions) -> dict[str, Any]:
    return {
        "objective": "binary", "num_leaves": o.leaves, "min_data_in_leaf": o.rows_a_leaf, "lambda_l2": o.l2,
        "feature_fraction": o.feature_fraction, "bagging_fraction": o.row_fraction, "bagging_freq": 1, "learning_rate": o.lr,
        "min_data_per_group": o.rows_a_leaf, "cat_l2": o.l2, "seed": o.seed, "deterministic": True, "force_col_wise": True,
        "num_threads": 1, "verbosity": -1,
    }  # fmt: skip


def _lightgbm() -> Any:
    try:
        return importlib.import_module("lightgbm")
    except ImportError as e:
        raise UsageError(f"lightgbm is not installed ({e}): pip install 'stream-dmgin[trees]'") from e
