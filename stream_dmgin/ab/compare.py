"""What can be said about models that scored the same rows: measures, paired intervals, a verdict in words.

Users are drawn anew (with all their rows), so an interval says what another sample of users would have shown. A difference
is claimed only where its whole 95 % interval lies on one side of zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.errors import InputError
from stream_dmgin.training.metrics import ECE_BINS, Interval, ece_floor, paired_bootstrap, summary

METRICS = ("auc", "gauc", "logloss", "ece")
HIGHER_IS_BETTER = {"auc": True, "gauc": True, "logloss": False, "ece": False}
DECIDING = ("auc", "logloss")


@dataclass(frozen=True)
class Bin:
    """One bar of a reliability plot: rows, mean prediction, share of clicks."""

    rows: int
    predicted: float
    clicked: float


@dataclass(frozen=True)
class Comparison:
    """The whole outcome; `to_json` is what `report.json` holds."""

    champion: str
    challengers: Sequence[str]
    rows: int
    users: int
    clicks: int
    metrics: Mapping[str, Mapping[str, float]]
    differences: Mapping[str, Mapping[str, Interval]]
    reliability: Mapping[str, Sequence[Bin]]
    ece_noise: tuple[float, float]  # 5 and 95 % of the ECE that the champion would show if it were exactly true
    verdict: str

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "champion": self.champion, "challengers": list(self.challengers),
            "rows": self.rows, "users": self.users, "clicks": self.clicks,
            "metrics": {m: dict(v) for m, v in self.metrics.items()},
            "differences": {c: {k: i._asdict() for k, i in d.items()} for c, d in self.differences.items()},
            "reliability": {m: [asdict(b) for b in bins] for m, bins in self.reliability.items()},
            "ece_noise": list(self.ece_noise), "verdict": self.verdict,
        }  # fmt: skip


def compare(
    labels: NDArray[np.int8],
    users: NDArray[Any],
    scores: Mapping[str, NDArray[np.float64]],
    champion: str,
    draws: int = 500,
    seed: int = 0,
) -> Comparison:
    """Compare calibrated probabilities of several models on the same rows. Raises InputError without rows of both labels."""
    if not len(labels) or labels.min() == labels.max():
        raise InputError(f"{len(labels)} rows with a known label, all of one kind: nothing can be compared")
    challengers = [m for m in scores if m != champion]
    metrics = {m: {k: v for k, v in summary(labels, p, users).items() if k in METRICS} for m, p in scores.items()}
    differences = {
        c: {k: paired_bootstrap(labels, scores[champion], scores[c], users, k, draws, seed) for k in METRICS}
        for c in challengers
    }
    _, low, high = ece_floor(scores[champion], seed=seed)
    return Comparison(
        champion, challengers, len(labels), len(np.unique(users)), int((labels == 1).sum()), metrics, differences,
        {m: reliability(labels, p) for m, p in scores.items()}, (low, high),
        " ".join(_verdict(champion, c, d) for c, d in differences.items()),
    )  # fmt: skip


def reliability(labels: NDArray[np.int8], p: NDArray[np.float64]) -> list[Bin]:
    """The bins of the ECE that hold any rows."""
    which = np.minimum((p * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    rows = np.bincount(which, minlength=ECE_BINS)
    predicted, clicked = np.bincount(which, p, ECE_BINS), np.bincount(which, labels == 1, ECE_BINS)
    return [Bin(int(rows[b]), float(predicted[b] / rows[b]), float(clicked[b] / rows[b])) for b in np.flatnonzero(rows)]


def gain(metric: str, i: Interval) -> int:
    """1 where the challenger is better for sure, -1 where it is worse, 0 where the interval holds zero."""
    side = 1 if i.low > 0 else -1 if i.high < 0 else 0
    return side if HIGHER_IS_BETTER[metric] else -side


def _verdict(champion: str, challenger: str, d: Mapping[str, Interval]) -> str:
    found = {k: gain(k, d[k]) for k in DECIDING}
    said = ", ".join(f"{k} {d[k].diff:+.4f} [{d[k].low:+.4f}, {d[k].high:+.4f}]" for k in DECIDING)
    if all(g == 1 for g in found.values()):
        return f"{challenger} is better than {champion}: {said}."
    if all(g == -1 for g in found.values()):
        return f"{challenger} is worse than {champion}: {said}."
    if any(found.values()):
        part = ", ".join(f"{'better' if g > 0 else 'worse'} {k}" for k, g in found.items() if g)
        return f"{challenger} against {champion}: {part}, no sure difference otherwise: {said}."
    return f"No difference between {challenger} and {champion} can be claimed on these rows: {said}."
