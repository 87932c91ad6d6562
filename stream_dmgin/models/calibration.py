"""From logits to probabilities: two parameters a head (Platt), fitted on rows the weights never saw."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.errors import FormatError

EDGE = 1e-6  # probabilities stay within [EDGE, 1 - EDGE]: strictly between 0 and 1, with a finite logloss


def sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Probabilities of any shape, strictly between 0 and 1."""
    x = np.clip(logits.astype(np.float64), -40.0, 40.0)
    return np.clip(1.0 / (1.0 + np.exp(-x)), EDGE, 1.0 - EDGE)


def fit_platt(logits: NDArray[np.floating], labels: NDArray[np.integer], ridge: float = 1e-3) -> tuple[float, float]:
    """(slope, offset) such that sigmoid(slope * logit + offset) has the smallest logloss; (1, 0) without both classes.

    Newton's method on two parameters; `ridge` pulls weakly to (1, 0), so that few rows or separable ones can't run
    away.
    """
    z, y = logits.astype(np.float64), labels.astype(np.float64)
    if not len(y) or y.min() == y.max():
        return 1.0, 0.0
    design = np.stack([z, np.ones_like(z)], 1)
    start = np.array([1.0, 0.0])
    weights = start.copy()
    for _ in range(50):
        p = 1.0 / (1.0 + np.exp(-np.clip(design @ weights, -40.0, 40.0)))
        gradient = design.T @ (p - y) + ridge * (weights - start)
        curvature = (design * (p * (1.0 - p))[:, None]).T @ design + ridge * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        step *= min(1.0, 2.0 / max(np.abs(step).max(), 1e-12))  # far from the optimum Newton overshoots
        weights -= step
        if np.abs(step).max() < 1e-10:
            break
    return float(weights[0]), float(weights[1])


@dataclass(frozen=True)
class Calibration:
    """Slope and offset of each head; a head not named is left as it is."""

    platt: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def apply(self, head: str, logits: NDArray[np.floating]) -> NDArray[np.float64]:
        """Calibrated probabilities of a head's logits, any shape."""
        slope, offset = self.platt.get(head, (1.0, 0.0))
        return sigmoid(logits.astype(np.float64) * slope + offset)

    def apply_all(self, logits: Mapping[str, NDArray[np.floating]]) -> dict[str, NDArray[np.float64]]:
        """Calibrated probabilities of several heads' logits, all of one shape: one pass for all."""
        platt = np.array([self.platt.get(head, (1.0, 0.0)) for head in logits])
        z = np.stack([*logits.values()]).astype(np.float64)
        wide = (-1, *(1,) * (z.ndim - 1))
        return dict(zip(logits, sigmoid(z * platt[:, 0].reshape(wide) + platt[:, 1].reshape(wide)), strict=True))

    def save(self, path: Path) -> None:
        """Write as JSON: {"platt": {head: [slope, offset]}}."""
        path.write_text(json.dumps({"platt": {k: list(v) for k, v in self.platt.items()}}, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what `save` wrote."""
        try:
            platt = {str(k): (float(a), float(b)) for k, (a, b) in json.loads(path.read_text())["platt"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise FormatError(
                f"{path} is not a calibration ({e!r}): take the model's folder from its release again"
            ) from e
        return cls(platt)
