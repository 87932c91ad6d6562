"""Measures of predicted click probabilities, and intervals for differences between two models on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]
ECE_BINS = 15


def weighted_auc(labels: Ints, scores: Floats, weights: Floats | None = None) -> float:
    """Area under the ROC curve, ties counted half; nan without both classes. `weights`: how often each row counts."""
    order = np.argsort(scores, kind="stable")
    return _auc_sorted(labels[order], _ties(scores[order]), None if weights is None else weights[order])


def auc(labels: Ints, scores: Floats) -> float:
    """Area under the ROC curve, ties counted half; nan without both classes."""
    return weighted_auc(labels, scores)


def _ties(ordered: Floats) -> NDArray[np.int64]:
    """Starts of the runs of equal values."""
    return np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.zeros(0, np.int64)


def _auc_sorted(labels: Ints, starts: NDArray[np.int64], weights: Floats | None) -> float:
    if not len(labels):
        return float("nan")
    w = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
    positive = np.add.reduceat(w * (labels == 1), starts)
    negative = np.add.reduceat(w * (labels != 1), starts)
    p, n = positive.sum(), negative.sum()
    if p == 0 or n == 0:
        return float("nan")
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / (p * n))


def _codes(groups: NDArray[Any]) -> NDArray[np.int64]:
    return np.unique(groups, return_inverse=True)[1].reshape(-1)


def group_aucs(labels: Ints, scores: Floats, groups: NDArray[Any]) -> tuple[Floats, NDArray[np.int64]]:
    """(AUC of each group with both classes, its rows). `groups`: any id per row."""
    code = _codes(groups)
    order = np.lexsort((scores, code))
    code, y, s = code[order], labels[order] == 1, scores[order]
    if not len(code):
        return np.zeros(0), np.zeros(0, np.int64)
    runs = np.flatnonzero(np.r_[True, (code[1:] != code[:-1]) | (s[1:] != s[:-1])])  # equal (group, score)
    positive, negative = np.add.reduceat(y, runs, dtype=np.float64), np.add.reduceat(~y, runs, dtype=np.float64)
    group = np.flatnonzero(np.r_[True, code[runs][1:] != code[runs][:-1]])
    p, n = np.add.reduceat(positive, group), np.add.reduceat(negative, group)
    before = np.cumsum(negative) - negative
    below = before - np.repeat(before[group], np.diff(np.r_[group, len(runs)]))
    won = np.add.reduceat(positive * (below + negative / 2), group)
    both = (p > 0) & (n > 0)
    return won[both] / (p * n)[both], (p + n)[both].astype(np.int64)


def gauc(labels: Ints, scores: Floats, groups: NDArray[Any], weighted: bool = True) -> float:
    """Mean AUC inside groups (users or impressions) that have both classes; weighted by rows, or plain. nan where none
    has.
    """
    values, rows = group_aucs(labels, scores, groups)
    if not len(values):
        return float("nan")
    return float(np.average(values, weights=rows if weighted else None))


def logloss(labels: Ints, probabilities: Floats) -> float:
    """Mean negative log-likelihood in nats."""
    p = np.clip(probabilities.astype(np.float64), 1e-12, 1 - 1e-12)
    return float(-np.mean(np.where(labels == 1, np.log(p), np.log1p(-p)))) if len(p) else float("nan")


def ece(labels: Ints, probabilities: Floats, bins: int = ECE_BINS) -> float:
    """Expected calibration error over equal-width bins."""
    if not len(labels):
        return float("nan")
    which = np.minimum((probabilities.astype(np.float64) * bins).astype(np.int64), bins - 1)
    gap = np.bincount(which, (labels == 1) - probabilities.astype(np.float64), minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


def ece_floor(probabilities: Floats, draws: int = 200, seed: int = 0) -> tuple[float, float, float]:
    """(mean, 5 %, 95 %) of the ECE that these probabilities would show if they were exactly true."""
    r = np.random.default_rng(seed)
    found = [ece((r.random(len(probabilities)) < probabilities).astype(np.int8), probabilities) for _ in range(draws)]
    return float(np.mean(found)), float(np.quantile(found, 0.05)), float(np.quantile(found, 0.95))


def summary(labels: Ints, probabilities: Floats, groups: NDArray[Any] | None = None) -> dict[str, float]:
    """auc, logloss, ece, and gauc (weighted by rows) with gauc_mean (plain) where `groups` are given."""
    found = {
        "auc": auc(labels, probabilities),
        "logloss": logloss(labels, probabilities),
        "ece": ece(labels, probabilities),
    }
    if groups is not None:
        values, rows = group_aucs(labels, probabilities, groups)
        found["gauc"] = float(np.average(values, weights=rows)) if len(values) else float("nan")
        found["gauc_mean"] = float(values.mean()) if len(values) else float("nan")
    return found


class Interval(NamedTuple):
    """Difference (second minus first) with the 2.5 and 97.5 % points of its bootstrap distribution."""

    diff: float
    low: float
    high: float


def paired_bootstrap(
    labels: Ints,
    first: Floats,
    second: Floats,
    units: NDArray[Any],
    metric: str = "auc",
    draws: int = 500,
    seed: int = 0,
) -> Interval:
    """Interval of metric(second) - metric(first) when `units` (users or impressions, an id per row) are drawn anew.

    `metric`: auc, logloss, ece or gauc (of `units`, weighted by rows). Draws without both classes are left out.
    """
    code = _codes(units)
    measure = MEASURES[metric]
    a, b = measure(labels, first, code), measure(labels, second, code)
    n = int(code.max(initial=-1)) + 1
    ones = np.ones(n)
    r = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        weights = np.bincount(r.integers(0, n, n), minlength=n).astype(np.float64)
        found.append(b(weights) - a(weights))
    spread = np.array([x for x in found if np.isfinite(x)])
    low, high = np.quantile(spread, [0.025, 0.975]) if len(spread) else (float("nan"), float("nan"))
    return Interval(float(b(ones) - a(ones)), float(low), float(high))


def intervals(
    labels: Ints,
    scores: Mapping[str, Sequence[Floats]],
    units: NDArray[Any],
    metric: str = "auc",
    draws: int = 500,
    seed: int = 0,
) -> dict[tuple[str, str], Interval]:
    """Interval of metric(b) - metric(a) for every ordered pair (a, b) of models, all on the same draws of `units`.

    A model's metric is the mean over its seeds, each an array of probabilities. `metric`: as in `paired_bootstrap`, or
    gauc_mean (a plain mean over `units`).
    """
    code = _codes(units)
    n = int(code.max(initial=-1)) + 1
    r = np.random.default_rng(seed)
    drawn = [np.ones(n), *(np.bincount(r.integers(0, n, n), minlength=n).astype(np.float64) for _ in range(draws))]
    found: dict[str, NDArray[np.float64]] = {}
    for name, each in scores.items():
        measures = [MEASURES[metric](labels, p, code) for p in each]
        found[name] = np.array([np.mean([m(weights) for m in measures]) for weights in drawn])
    out = {}
    for a, of_a in found.items():
        for b, of_b in found.items():
            gap = of_b - of_a
            spread = gap[1:][np.isfinite(gap[1:])]
            low, high = np.quantile(spread, [0.025, 0.975]) if len(spread) else (float("nan"), float("nan"))
            out[a, b] = Interval(float(gap[0]), float(low), float(high))
    return out


Measure = Callable[[Floats], float]  # weight of each unit -> the metric


def _auc_measure(labels: Ints, scores: Floats, code: NDArray[np.int64]) -> Measure:
    order = np.argsort(scores, kind="stable")
    y, starts, unit = labels[order], _ties(scores[order]), code[order]
    return lambda weights: _auc_sorted(y, starts, weights[unit])


def _logloss_measure(labels: Ints, scores: Floats, code: NDArray[np.int64]) -> Measure:
    p = np.clip(scores.astype(np.float64), 1e-12, 1 - 1e-12)
    total = np.bincount(code, -np.where(labels == 1, np.log(p), np.log1p(-p)))
    rows = np.bincount(code)
    return lambda weights: float(weights @ total / (weights @ rows))


def _ece_measure(labels: Ints, scores: Floats, code: NDArray[np.int64]) -> Measure:
    p = scores.astype(np.float64)
    which = np.minimum((p * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    gap = (labels == 1) - p

    def measure(weights: Floats) -> float:
        w = weights[code]
        return float(np.abs(np.bincount(which, gap * w, minlength=ECE_BINS)).sum() / w.sum())

    return measure


def _gauc_measure(labels: Ints, scores: Floats, code: NDArray[np.int64], weighted: bool = True) -> Measure:
    values, rows = np.zeros(code.max(initial=-1) + 1), np.zeros(code.max(initial=-1) + 1)
    for_both = np.unique(code[labels == 1])[np.isin(np.unique(code[labels == 1]), code[labels != 1])]
    values[for_both], rows[for_both] = group_aucs(labels, scores, code)
    if not weighted:
        rows = (rows > 0).astype(np.float64)
    return lambda weights: float((weights * rows) @ values / (weights @ rows)) if (weights @ rows) > 0 else float("nan")


MEASURES: dict[str, Callable[[Ints, Floats, NDArray[np.int64]], Measure]] = {
    "auc": _auc_measure, "logloss": _logloss_measure, "ece": _ece_measure, "gauc": _gauc_measure,
    "gauc_mean": lambda labels, scores, code: _gauc_measure(labels, scores, code, weighted=False),
}  # fmt: skip
