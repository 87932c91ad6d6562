"""Metrics against scikit-learn or by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from stream_dmgin.models.calibration import Calibration, fit_platt, sigmoid
from stream_dmgin.training import metrics

R = np.random.default_rng(0)
N = 3000
P = np.round(R.beta(1, 4, N), 2).clip(0.01, 0.99)  # many ties
Y = (R.random(N) < P).astype(np.int8)
USERS = R.integers(0, 200, N)


def test_auc_with_ties_and_weights() -> None:
    assert metrics.auc(Y, P) == pytest.approx(roc_auc_score(Y, P))
    w = R.integers(0, 4, N).astype(float)
    assert metrics.weighted_auc(Y, P, w) == pytest.approx(roc_auc_score(Y, P, sample_weight=w))
    assert np.isnan(metrics.auc(np.ones(3, np.int8), P[:3])) and np.isnan(metrics.auc(Y[:0], P[:0]))


def test_gauc_is_the_mean_over_groups_with_both_classes() -> None:
    each = {u: roc_auc_score(Y[u == USERS], P[u == USERS]) for u in np.unique(USERS) if 0 < Y[u == USERS].mean() < 1}
    rows = {u: int((u == USERS).sum()) for u in each}
    wanted = sum(each[u] * rows[u] for u in each) / sum(rows.values())
    assert metrics.gauc(Y, P, USERS) == pytest.approx(wanted)
    assert metrics.gauc(Y, P, USERS, weighted=False) == pytest.approx(np.mean(list(each.values())))
    assert metrics.gauc(Y, P, np.array([f"u{u}" for u in USERS])) == pytest.approx(wanted)
    assert np.isnan(metrics.gauc(np.zeros(4, np.int8), P[:4], np.arange(4)))


def test_logloss_and_ece() -> None:
    assert metrics.logloss(Y, P) == pytest.approx(log_loss(Y, P))
    y, p = np.array([1, 0, 1, 1], np.int8), np.array([0.1, 0.1, 0.9, 0.9])
    assert metrics.ece(y, p) == pytest.approx((2 * 0.4 + 2 * 0.1) / 4)
    mean, low, high = metrics.ece_floor(P)
    assert low < mean < high < 0.05 and metrics.ece(Y, P) < 2 * high


def test_bootstrap_finds_what_is_there_and_not_what_is_not() -> None:
    noise = np.clip(P + R.normal(0, 0.2, N), 0.001, 0.999)
    for metric, sign in (("auc", -1), ("logloss", 1), ("ece", 1), ("gauc", -1)):
        d = metrics.paired_bootstrap(Y, P, noise, USERS, metric, draws=100)
        assert d.low <= d.diff <= d.high and d.diff * sign > 0 and d.low * d.high > 0, metric
    same = metrics.paired_bootstrap(Y, P, P, USERS, draws=20)
    assert same == (0.0, 0.0, 0.0)
    assert metrics.paired_bootstrap(Y, P, noise, USERS, "auc").diff == pytest.approx(
        metrics.auc(Y, noise) - metrics.auc(Y, P)
    )
    assert metrics.paired_bootstrap(Y, P, noise, USERS, "gauc", draws=5).diff == pytest.approx(
        metrics.gauc(Y, noise, USERS) - metrics.gauc(Y, P, USERS)
    )


def test_platt_mends_slope_and_offset() -> None:
    z = R.normal(0, 1.5, 20000)
    y = (R.random(20000) < sigmoid(z)).astype(np.int8)
    slope, offset = fit_platt(2 * z + 1, y)
    assert slope == pytest.approx(0.5, abs=0.03) and offset == pytest.approx(-0.5, abs=0.06)
    assert fit_platt(z[:5], np.zeros(5, np.int8)) == (1.0, 0.0)
    assert all(np.isfinite(fit_platt(np.array([-50.0, 50.0]), np.array([0, 1]))))  # separable
    p = Calibration({"ctr": (100.0, 0.0)}).apply("ctr", np.array([-9e9, 9e9, 0.0]))
    assert (p > 0).all() and (p < 1).all() and p[2] == 0.5
