"""Several models as one: a weighted sum of their calibrated logits, its weights fitted on the valid rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.models.calibration import fit_platt
from stream_dmgin.training.outcome import Outcome

Floats = NDArray[np.float64]
RIDGE = 30.0  # pulls the weights to equal shares: as strong as some hundred rows, so that few valid rows don't choose at will


@dataclass(frozen=True)
class StackOptions:
    """Names of the members, of those that `evaluate --model` knows and learn something. Served can be those of `zoo.SERVED`."""

    members: tuple[str, ...] = ("dmgin", "lightgbm")


def weigh(logits: Floats, labels: NDArray[np.integer]) -> tuple[Floats, tuple[float, float]]:
    """(weights of the members, slope and offset of their sum) for calibrated logits [rows, members] of rows that no member learned
    from; rows whose label is unknown (-1) don't count."""
    known = labels >= 0
    weights = stack_weights(logits[known], labels[known])
    return weights, fit_platt(logits[known] @ weights, labels[known])


def stacked(members: Sequence[Outcome], labels: NDArray[np.integer]) -> Outcome:
    """What the stack of these members says; `labels` of the valid rows, which come first in an outcome's logits."""
    straight = np.stack([m.straight(m.logits) for m in members], 1)
    held = np.stack([m.straight(m.held) for m in members], 1)
    weights, platt = weigh(straight[: len(labels)], labels)
    return Outcome(straight @ weights, held @ weights, platt, [], sum(m.seconds for m in members))


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
