"""LightGBM on training rows: learns, repeats itself by seed, orders lists without seeing them, refits, and the stack's weight."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from stream_dmgin.errors import InputError, UsageError
from stream_dmgin.features.spec import InputSpec
from stream_dmgin.models.calibration import sigmoid
from stream_dmgin.scoring.graphs import example_inputs
from stream_dmgin.training.metrics import auc, ece, logloss
from stream_dmgin.training.rows import TrainingRows
from stream_dmgin.training.trees import TreeOptions, best_weight, design, refit_trees, train_trees

SPEC = InputSpec(
    groups=4, events=4, short=4, item_buckets=64, category_buckets=8, advertiser_buckets=8, surface_buckets=8
)
OPTIONS = TreeOptions(rows_a_leaf=20, rounds=120, lr=0.1, feature_fraction=0.6, patience=20, l2=1.0)


def make(candidates: int = 4, requests: int = 1600) -> TrainingRows:
    """Clicks by one input of the candidate, one of the user, and the surface."""
    rows, r = TrainingRows(SPEC), np.random.default_rng(5)
    for i in range(requests // 200):
        x = example_inputs(SPEC, 200, candidates, seed=i)
        x["c_mask"] = np.arange(candidates) < r.integers(1, candidates + 1, 200)[:, None]
        z = 1.5 * x["c_dense"][..., 3] + x["u_dense"][:, None, 2] + np.where(x["x_cat"] % 2, 1.5, -1.5)[:, None]
        y = (r.random(z.shape) < sigmoid(z)).astype(np.int8)
        y[r.random(z.shape) < 0.1] = -1
        rows.append(x, y, np.full(200, i), np.arange(200))
    return rows


def test_inputs_are_those_of_the_network() -> None:
    rows = make(requests=400)
    some = np.array([7, 3, 250])
    x, names = design(rows, some)
    take = rows.rows_of(some)
    assert x.shape == (len(take), len(names)) and len(set(names)) == len(names)
    np.testing.assert_array_equal(x[:, : len(SPEC.candidate_features)], rows["c_dense"][take])
    of = np.repeat(some, rows["r_rows"][some])
    np.testing.assert_array_equal(x[:, len(SPEC.candidate_features) : -1], rows["u_dense"][of])
    np.testing.assert_array_equal(x[:, -1], rows["x_cat"][of])


@pytest.mark.parametrize("candidates", [1, 4])
def test_trees_learn_calibrate_and_repeat_themselves(candidates: int) -> None:
    rows = make(candidates, 4000)
    learn, judge = rows.between(0, 15), rows.between(15, 20)
    fitted = train_trees(rows, learn, judge, OPTIONS)
    z, y = fitted.logits(rows, judge), rows.labels()[rows.rows_of(judge)]
    p = fitted.calibration.apply("ctr", z)
    assert auc(y[y >= 0], p[y >= 0]) > 0.8 and ece(y[y >= 0], p[y >= 0]) < 0.08
    assert fitted.curve[0].valid_logloss == pytest.approx(logloss(y[y >= 0], p[y >= 0]))
    assert len(fitted.rounds) == (3 if candidates > 1 else 1)
    assert next(iter(fitted.gains)) in (SPEC.candidate_features[3], "surface", "u_" + SPEC.user_features[2])
    np.testing.assert_array_equal(train_trees(rows, learn, judge, OPTIONS).logits(rows, judge), z)
    assert not np.array_equal(train_trees(rows, learn, judge, replace(OPTIONS, seed=2)).logits(rows, judge), z)


def test_a_score_does_not_depend_on_the_list_it_is_in() -> None:
    rows = make(4, 2000)
    fitted = train_trees(rows, rows.between(0, 7), rows.between(7, 10), replace(OPTIONS, order_weight=0.6))
    assert fitted.weight == 0.6 and len(fitted.rounds) == 3
    z = fitted.logits(rows, np.arange(rows.requests))
    of = np.repeat(np.arange(rows.requests), rows["r_rows"])
    for k in (5, 77):
        alone = fitted.forest.scores(
            rows["c_dense"][k : k + 1], rows["u_dense"][of[k : k + 1]], rows["x_cat"][of[k : k + 1]], np.array([1])
        )
        assert alone[0] == z[k]


def test_inputs_left_out_are_in_no_tree() -> None:
    rows = make(4, 2000)
    learn, judge = rows.between(0, 7), rows.between(7, 10)
    best = next(iter(train_trees(rows, learn, judge, OPTIONS).gains))
    less = train_trees(rows, learn, judge, replace(OPTIONS, without=(best[:3] + "*",)))
    assert less.gains[best] == 0.0 and max(less.gains.values()) > 0.0


def test_bags_are_averaged() -> None:
    rows = make(1, 2000)
    learn, judge = rows.between(0, 7), rows.between(7, 10)
    one = train_trees(rows, learn, judge, OPTIONS)
    three = train_trees(rows, learn, judge, replace(OPTIONS, bags=3))
    assert len(three.rounds) == 3 and three.forest.trees == sum(three.rounds)
    assert not np.array_equal(one.logits(rows, judge), three.logits(rows, judge))


def test_a_refit_keeps_what_was_chosen_and_learns_from_new_rows() -> None:
    rows = make(4, 4000)
    learn, judge = rows.between(0, 10), rows.between(10, 15)
    fitted = train_trees(rows, learn, judge, replace(OPTIONS, bags=2, order_weight=0.5))
    same = refit_trees(rows, learn, fitted)
    np.testing.assert_array_equal(same.logits(rows, judge), fitted.logits(rows, judge))
    more = refit_trees(rows, rows.between(0, 15), fitted)
    assert more.rounds == fitted.rounds and more.calibration == fitted.calibration and more.weight == 0.5
    late = rows.between(15, 20)
    assert not np.array_equal(more.logits(rows, late), fitted.logits(rows, late))


def test_the_weight_of_a_blend_is_the_better_models() -> None:
    r = np.random.default_rng(0)
    truth = r.normal(0, 1.5, 20_000)
    y = (r.random(len(truth)) < sigmoid(truth)).astype(np.int8)
    noise = r.normal(0, 1, len(truth))
    grid = np.linspace(0, 1, 11)
    assert best_weight(lambda w: (1 - w) * noise + w * truth, y, grid) == pytest.approx(1.0, abs=0.11)
    a, b = truth + r.normal(0, 1, len(truth)), truth + r.normal(0, 1, len(truth))
    assert best_weight(lambda w: (1 - w) * a + w * b, y, grid) == pytest.approx(0.5, abs=0.11)


def test_what_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make(1, 400)
    rows["label"][rows.rows_of(rows.between(0, 1))] = 0
    with pytest.raises(InputError, match="training days hold no rows with both labels"):
        train_trees(rows, rows.between(0, 1), rows.between(1, 2), OPTIONS)
    with pytest.raises(InputError, match="validation days"):
        train_trees(rows, rows.between(1, 2), rows.between(5, 6), OPTIONS)
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(UsageError, match=r"pip install 'stream-dmgin\[trees\]'"):
        train_trees(rows, rows.between(1, 2), rows.between(1, 2), OPTIONS)
