"""Several models as one: a weighted sum of their calibrated logits, its weights fitted on the valid rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.models.calibration import Calibration, fit_platt
from stream_dmgin.training.rows import TrainingRows

Floats = NDArray[np.float64]
RIDGE = 30.0  # pulls the weights to equal shares: as strong as some hundred rows, so that few valid rows don't choose at will


@dataclass(frozen=True)
class StackOptions:
    """Names of the members, of those that `evaluate --model` knows."""

    members: tuple[str, ...] = ("dmgin", "lightgbm")


class Member(Protocol):
    """A fitted model of the stack."""

    @property
    def calibration(self) -> Calibration:
        """Platt parameters of `ctr`, fitted on the valid rows."""
        ...

    def logits(self, rows: TrainingRows, requests: NDArray[np.int64]) -> NDArray[np.floating]:
        """Raw logits of the rows of these requests, in the order of `rows.rows_of`."""
        ...


@dataclass(frozen=True)
class Stack:
    """`weights` of the members' calibrated logits, none below 0."""

    members: tuple[Member, ...]
    weights: tuple[float, ...]
    calibration: Calibration

    def logits(self, rows: TrainingRows, requests: NDArray[np.int64]) -> Floats:
        """The weighted sum for the rows of these requests."""
        total: Floats = np.zeros(len(rows.rows_of(requests)))
        for m, w in zip(self.members, self.weights, strict=True):
            if w > 0:
                total += w * straight(m, rows, requests)
        return total


def straight(model: Member, rows: TrainingRows, requests: NDArray[np.int64]) -> Floats:
    """Calibrated logits."""
    slope, offset = model.calibration.platt["ctr"]
    return slope * model.logits(rows, requests).astype(np.float64) + offset


def fit_stack(members: Sequence[Member], rows: TrainingRows, judge: NDArray[np.int64]) -> Stack:
    """Weights and calibration from the known rows of these requests, which no member learned from."""
    y = rows.labels()[rows.rows_of(judge)]
    known = y >= 0
    z = np.stack([straight(m, rows, judge)[known] for m in members], 1)
    weights = stack_weights(z, y[known])
    platt = fit_platt(z @ weights, y[known])
    return Stack(tuple(members), tuple(float(w) for w in weights), Calibration({"ctr": platt}))


def stack_weights(z: Floats, labels: NDArray[np.integer], ridge: float = RIDGE) -> Floats:
    """Weights [members] >= 0 for logits [rows, members] with the smallest logloss, a free offset beside them.

    Newton's method; a member whose weight falls below 0 is left out and the others are fitted again.
    """
    y = labels.astype(np.float64)
    n = z.shape[1]
    weights = np.full(n, 1.0 / n)
    used = np.ones(n, bool)
    while True:
        design = np.concatenate([z[:, used], np.ones((len(z), 1))], 1)
        equal = np.r_[np.full(used.sum(), 1.0 / used.sum()), 0.0]
        pull = np.r_[np.full(used.sum(), ridge), 1e-3]
        w = equal.copy()
        for _ in range(30):
            p = 1.0 / (1.0 + np.exp(-np.clip(design @ w, -40.0, 40.0)))
            curvature = (design * (p * (1.0 - p))[:, None]).T @ design + np.diag(pull)
            step = np.linalg.solve(curvature, design.T @ (p - y) + pull * (w - equal))
            w -= step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
            if np.abs(step).max() < 1e-9:
                break
        weights[:] = 0.0
        weights[used] = w[:-1]
        if (weights >= 0).all() or used.sum() == 1:
            found: Floats = np.maximum(weights, 0.0)
            return found
        used &= weights >= 0
        used[int(np.argmax(weights))] = True
