"""From logits to probabilities: two parameters a head (Platt), fitted on rows the weights never saw; for `ctr` also a shift for
each segment of traffic that wants one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.errors import FormatError
from stream_dmgin.models.segments import KINDS

Shifts = Mapping[str, Mapping[int, float]]  # kind of segment -> code -> what is added to the logit
Codes = Mapping[str, NDArray[np.int64]]  # kind of segment -> code of each logit
SHIFT_RIDGE = 25.0  # a shift is believed as far as its rows outweigh this: about 100 rows of rate one half, 600 of a twentieth

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


def fit_shifts(
    logits: NDArray[np.floating], labels: NDArray[np.integer], codes: Codes, ridge: float = SHIFT_RIDGE, sweeps: int = 5
) -> dict[str, dict[int, float]]:
    """Shift of each segment on top of calibrated logits, kind by kind in turn, pulled to 0 by `ridge`."""
    z, y = logits.astype(np.float64), labels.astype(np.float64)
    seen = {k: np.unique(c, return_inverse=True) for k, c in codes.items()}
    shift = {k: np.zeros(len(u)) for k, (u, _) in seen.items()}
    for _ in range(sweeps):
        for kind, (_, at) in seen.items():
            p = 1.0 / (1.0 + np.exp(-np.clip(z, -40.0, 40.0)))
            n = len(shift[kind])
            gradient = np.bincount(at, p - y, n) + ridge * shift[kind]
            step = np.clip(gradient / (np.bincount(at, p * (1.0 - p), n) + ridge), -1.0, 1.0)
            shift[kind] -= step
            z = z - step[at]
    return {k: dict(zip(u.tolist(), shift[k].tolist(), strict=True)) for k, (u, _) in seen.items()}


@dataclass(frozen=True)
class Calibration:
    """Slope and offset of each head; a head not named is left as it is. `shifts` of `ctr` by segment, on top."""

    platt: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    shifts: Shifts = field(default_factory=dict)

    def apply(
        self, head: str, logits: NDArray[np.floating], codes: Codes | None = None
    ) -> NDArray[np.float64]:
        """Calibrated probabilities of a head's logits, any shape; `codes` in that shape, for the shifts of `ctr`."""
        slope, offset = self.platt.get(head, (1.0, 0.0))
        z = logits.astype(np.float64) * slope + offset
        return sigmoid(z + self._shift(codes) if head == "ctr" and codes is not None else z)

    def apply_all(
        self, logits: Mapping[str, NDArray[np.floating]], codes: Codes | None = None
    ) -> dict[str, NDArray[np.float64]]:
        """Calibrated probabilities of several heads' logits, all of one shape: one pass for all."""
        platt = np.array([self.platt.get(head, (1.0, 0.0)) for head in logits])
        z = np.stack([*logits.values()]).astype(np.float64)
        wide = (-1, *(1,) * (z.ndim - 1))
        z = z * platt[:, 0].reshape(wide) + platt[:, 1].reshape(wide)
        if codes is not None and self.shifts:
            z[list(logits).index("ctr")] += self._shift(codes)
        return dict(zip(logits, sigmoid(z), strict=True))

    def _shift(self, codes: Codes) -> NDArray[np.float64] | float:
        total: NDArray[np.float64] | float = 0.0
        for kind, shifts in self.shifts.items():
            table = np.zeros(max(shifts, default=0) + 2)  # the last for codes beyond
            table[list(shifts)] = list(shifts.values())
            total = total + table[np.minimum(codes[kind], len(table) - 1)]
        return total

    def save(self, path: Path) -> None:
        """Write as JSON: {"platt": {head: [slope, offset]}, "shifts": {kind: {code: shift}}}, the latter where there are any."""
        saved: dict[str, Any] = {"platt": {k: list(v) for k, v in self.platt.items()}}
        if self.shifts:
            saved["shifts"] = {k: {str(c): x for c, x in v.items()} for k, v in self.shifts.items()}
        path.write_text(json.dumps(saved, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what `save` wrote."""
        try:
            raw = json.loads(path.read_text())
            platt = {str(k): (float(a), float(b)) for k, (a, b) in raw["platt"].items()}
            shifts = {str(k): {int(c): float(x) for c, x in v.items()} for k, v in raw.get("shifts", {}).items()}
            if any(k not in KINDS or min(v, default=0) < 0 or max(v, default=0) > 1 << 20 for k, v in shifts.items()):
                raise ValueError("shifts of unknown segments")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise FormatError(
                f"{path} is not a calibration ({e!r}): take the model's folder from its release again"
            ) from e
        return cls(platt, shifts)
