"""A forest scores what LightGBM scores, by arrays alone; several boosters are one; what doesn't fit is refused."""

from __future__ import annotations

from typing import Any

import lightgbm as lgb
import numpy as np
import pytest

from stream_dmgin.errors import FormatError
from stream_dmgin.models.forest import Forest, grown, joined

D, U, REQUESTS, CANDIDATES = 9, 6, 120, 25


class Rows:
    """Inputs with ties, zeros, infinities and surfaces beyond one word, and what LightGBM reads of them."""

    def __init__(self, seed: int) -> None:
        r = np.random.default_rng(seed)
        n = REQUESTS * CANDIDATES
        self.c = r.normal(size=(n, D)).astype(np.float32)
        self.u = r.normal(size=(REQUESTS, U)).astype(np.float32)
        self.s = r.integers(0, 90, REQUESTS).astype(np.int32)
        self.c[:, 3], self.c[:, 5] = np.round(self.c[:, 3]), 0
        self.c[r.random(n) < 0.01, 1] = np.inf
        self.counts = np.full(REQUESTS, CANDIDATES)
        self.x = np.concatenate([self.c, np.repeat(self.u, CANDIDATES, 0), np.repeat(self.s, CANDIDATES)[:, None]], 1)
        z = self.c[:, 0] + self.c[:, 3] + np.repeat(self.u[:, 1] + (self.s % 3 == 0) * 2 - 1, CANDIDATES)
        self.y = (r.random(n) < 1 / (1 + np.exp(-z))).astype(int)


def booster(rows: Rows, seed: int, **more: Any) -> Any:
    options = {
        "objective": "binary",
        "num_leaves": 15,
        "min_data_per_group": 50,
        "feature_fraction": 0.5,
        "verbosity": -1,
    }
    data = lgb.Dataset(rows.x, rows.y, categorical_feature=[D + U])
    made = lgb.train({**options, "seed": seed, "num_threads": 1, **more}, data, 30)
    made.best_iteration = 20 + seed
    return made


@pytest.fixture(scope="module")
def rows() -> Rows:
    return Rows(0)


@pytest.fixture(scope="module")
def boosters(rows: Rows) -> list[Any]:
    return [booster(rows, 1), booster(rows, 2, num_leaves=40)]


def score(forest: Forest, rows: Rows) -> Any:
    return forest.scores(rows.c, rows.u, rows.s, rows.counts)


def test_a_forest_scores_what_lightgbm_scores(rows: Rows, boosters: list[Any]) -> None:
    other = Rows(1)  # surfaces and values that the trees never saw
    for given in (rows, other):
        want = 0.5 * boosters[0].predict(given.x, raw_score=True) + 0.7 * boosters[1].predict(given.x, raw_score=True)
        forest = grown([(boosters[0], 0.5), (boosters[1], 0.7)], D, U, 0.1)
        assert forest.trees == 43 and len(forest.sets) and forest.sets.shape[1] == 2
        np.testing.assert_allclose(score(forest, given), want + 0.1, rtol=0, atol=1e-12)
        parts = [(grown([(boosters[0], 1.0)], D, U, 0.3), 0.5), (grown([(boosters[1], 1.0)], D, U), 0.7)]
        np.testing.assert_allclose(score(joined(parts, -0.05), given), want + 0.1, rtol=0, atol=1e-12)


def test_missing_numbers_count_as_zero(rows: Rows, boosters: list[Any]) -> None:
    forest = grown([(boosters[0], 1.0)], D, U)
    c = rows.c.copy()
    c[::7, 0] = np.nan
    np.testing.assert_array_equal(
        forest.scores(c, rows.u, rows.s, rows.counts),
        forest.scores(np.nan_to_num(c, nan=0.0, posinf=np.inf), rows.u, rows.s, rows.counts),
    )


def test_a_row_scores_the_same_alone(rows: Rows, boosters: list[Any]) -> None:
    forest = grown([(boosters[0], 1.0)], D, U)
    all_of_them = score(forest, rows)
    for k in (0, 33, len(rows.c) - 1):
        i = k // CANDIDATES
        alone = forest.scores(rows.c[k : k + 1], rows.u[i : i + 1], rows.s[i : i + 1], np.array([1]))
        assert alone[0] == all_of_them[k]


def test_arrays_and_back(rows: Rows, boosters: list[Any]) -> None:
    forest = grown([(boosters[0], 1.0)], D, U, 0.2)
    again = Forest.of_arrays(forest.arrays())
    np.testing.assert_array_equal(score(again, rows), score(forest, rows))
    for name, wrong in (
        ("tree", forest.tree + 100),
        ("leaf_start", forest.leaf_start + 10_000),
        ("keep", forest.keep[1:]),
    ):
        with pytest.raises(FormatError, match="fit together"):
            Forest.of_arrays({**forest.arrays(), name: wrong})
    with pytest.raises(FormatError, match="leaf"):
        Forest.of_arrays({k: v for k, v in forest.arrays().items() if k != "leaf"})
    with pytest.raises(ValueError, match="columns"):
        forest.scores(rows.c[:, 1:], rows.u, rows.s, rows.counts)


def test_trees_that_cannot_be_served_are_refused(rows: Rows) -> None:
    with pytest.raises(FormatError, match="64 at most"):
        grown([(booster(rows, 1, num_leaves=80, min_data_in_leaf=5, min_data_per_group=5), 1.0)], D, U)
    with pytest.raises(FormatError, match="only the surface"):
        grown([(booster(rows, 1), 1.0)], D, U + 1)
    holes = Rows(3)
    holes.x[::3, 0] = np.nan
    with pytest.raises(FormatError, match="missing values 'NaN'"):
        grown([(booster(holes, 1), 1.0)], D, U)
