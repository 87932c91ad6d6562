"""A second teacher: trees that say of each row how likely its click was, and have never seen it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional as F

from stream_dmgin.cli.main import cli
from stream_dmgin.datasets import form
from stream_dmgin.errors import InputError, UsageError
from stream_dmgin.models.calibration import sigmoid
from stream_dmgin.models.trunk import DMGINConfig
from stream_dmgin.training import contest, loop, objective, recipes, zoo
from stream_dmgin.training import evaluate as protocol
from stream_dmgin.training.metrics import auc
from stream_dmgin.training.rows import TrainingRows
from stream_dmgin.training.teacher import attach, lesson, lesson_again
from stream_dmgin.training.trees import TreeOptions, train_trees
from tests.contests import plan, short_log, smaller
from tests.unit.test_trees import OPTIONS, SPEC, make

GREEDY = TreeOptions(
    leaves=31,
    rows_a_leaf=5,
    l2=0.0,
    feature_fraction=1.0,
    row_fraction=1.0,
    lr=0.3,
    rounds=60,
    patience=60,
    order=False,
)


def noise(requests: int = 1200) -> TrainingRows:
    """Clicks that nothing explains, beside inputs that tell every row from the others."""
    rows = make(1, requests)
    r = np.random.default_rng(3)
    rows["label"][:, 0] = r.random(len(rows)) < 0.4
    rows["c_dense"][:] = r.normal(size=rows["c_dense"].shape)
    return rows


def test_no_row_is_taught_by_trees_that_saw_its_click() -> None:
    rows = noise()
    learn, judge = rows.between(0, 5), rows.between(5, 6)
    y = rows.labels()[rows.rows_of(learn)]
    heart = train_trees(rows, learn, learn, GREEDY).logits(rows, learn)
    assert auc(y, heart) > 0.9  # trees like these learn by heart
    found = lesson(rows, learn, judge, GREEDY, seed=1)
    taught = found.chances
    assert abs(auc(y, taught[rows.rows_of(learn)]) - 0.5) < 0.05
    assert np.isnan(taught[rows.rows_of(judge)]).all()
    again = lesson_again(rows, learn, GREEDY, found.grown, seed=2).chances
    assert abs(auc(y, again[rows.rows_of(learn)]) - 0.5) < 0.05


def test_what_can_be_known_is_taught_and_the_same_again_by_seed() -> None:
    rows = make(4, 2400)
    learn, judge = rows.between(0, 9), rows.between(9, 12)
    found = lesson(rows, learn, judge, OPTIONS, seed=1)
    taught = found.chances
    take = rows.rows_of(learn)
    y = rows.labels()[take]
    p = taught[take][y >= 0]
    assert auc(y[y >= 0], p) > 0.75 and abs(p.mean() - (y[y >= 0] == 1).mean()) < 0.01
    assert taught.tobytes() == lesson(rows, learn, judge, OPTIONS, seed=1, jobs=2).chances.tobytes()
    assert taught.tobytes() != lesson(rows, learn, judge, OPTIONS, seed=2).chances.tobytes()
    said: list[loop.Point] = []
    lesson(rows, learn, judge, OPTIONS, 1, report=said.append)
    assert len(said) > 1 and all(p.valid_auc > 0.7 for p in said)
    everything = np.arange(rows.requests)
    new = lesson_again(rows, everything, OPTIONS, found.grown, seed=1)
    assert new.grown == found.grown and len(found.grown.rounds) == 3 and min(found.grown.rounds) > 1
    take = rows.rows_of(judge)
    y = rows.labels()[take]
    assert auc(y[y >= 0], new.chances[take][y >= 0]) > 0.75


def test_a_share_of_the_label_is_the_teachers() -> None:
    z, y = torch.tensor([[0.3, -1.0, 2.0, 0.1]]), torch.tensor([[1.0, 0.0, 0.0, -1.0]])
    taught = torch.tensor([[0.25, 0.5, float("nan"), 0.9]])

    def loss(share: float, taught: torch.Tensor | None = taught) -> tuple[float, float]:
        options = loop.Options(teacher=share, order=0.0)
        total, pointwise = objective.losses({"ctr": z}, {"ctr": y}, options, taught=taught)
        return float(total), float(pointwise)

    def by_hand(target: list[float]) -> float:
        return float(F.binary_cross_entropy_with_logits(z[0, :3], torch.tensor(target)))

    plain = loss(0.0, None)
    assert plain[0] == pytest.approx(by_hand([1.0, 0.0, 0.0])) and loss(0.0) == plain
    assert loss(1.0)[0] == pytest.approx(by_hand([0.25, 0.5, 0.0]))
    assert loss(0.4)[0] == pytest.approx(by_hand([0.7, 0.2, 0.0]))
    assert loss(0.4)[1] == plain[1]  # what is told of the training is the likelihood of the clicks


def test_networks_are_taught_where_their_options_say_so() -> None:
    rows = make(4, 1600)
    rows["label"][rows.rows_of(rows.between(0, 6)), 0] = np.random.default_rng(1).permutation(
        rows.labels()[rows.rows_of(rows.between(0, 6))]
    )  # clicks that say nothing: what is known comes from the teacher
    learn, judge = rows.between(0, 6), rows.between(6, 8)
    truth = 1.5 * rows["c_dense"][:, 3] + np.repeat(
        rows["u_dense"][:, 2] + np.where(rows["x_cat"] % 2, 1.5, -1.5), rows["r_rows"]
    )
    options = loop.Options(epochs=6, batch=128, lr=3e-3, average=0.9, teacher=0.9, order=0.0, checks=1)
    recipe = recipes.Recipe(DMGINConfig(spec=SPEC, width=16, item_width=8, hidden=(32, 16)), options, OPTIONS)
    y = rows.labels()[rows.rows_of(judge)]

    def fit(name: str, rows: TrainingRows) -> float:
        z = zoo.fit(name, recipe, rows, learn, judge, options, lambda name, point: None).logits(rows, judge)
        return auc(y[y >= 0], z[y >= 0])

    knowing = attach(rows, sigmoid(truth).astype(np.float32))
    for name in ("dmgin", "no-interest"):
        assert fit(name, knowing) > 0.75
    assert fit("dmgin", rows) < 0.7  # by a teacher that had only these clicks


def test_one_teacher_for_all_that_read_the_same_and_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, asked = short_log(), []
    of = smaller(recipes.of)
    share = {"teacher": 0.5}
    monkeypatch.setattr(
        recipes,
        "of",
        lambda meta: replace(of(meta), options=replace(of(meta).options, **share)),  # type: ignore[arg-type]
    )
    before = contest.lesson

    def counted(*args: object, **more: object) -> object:
        asked.append(args[4])
        return before(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(contest, "lesson", counted)
    models = ("dmgin", "no-interest", "din", "lightgbm", "dmgin-random-groups")

    def run(*models: str, **more: object) -> dict[str, bytes]:
        found = protocol.evaluate_all(data, plan(data), models, **more)[1]  # type: ignore[arg-type]
        return {m: found[m].raw[1].tobytes() for m in models}

    taught = run(*models, keep=tmp_path, seeds=2)
    assert asked == [1, 1, 2, 2]  # one for the map by lot, one for the others
    assert run(*models, keep=tmp_path, seeds=2) == taught and len(asked) == 4
    assert run("din", "dmgin", jobs=2) == {m: taught[m] for m in ("din", "dmgin")} and len(asked) == 5
    share["teacher"] = 0.0
    plain = run(*models, keep=tmp_path)
    assert {m for m in models if plain[m] == taught[m]} == {"lightgbm"} and len(asked) == 5


def test_without_lightgbm_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make(4, 800)
    recipe = recipes.Recipe(
        DMGINConfig(spec=SPEC, width=16, item_width=8, hidden=(32, 16)), loop.Options(teacher=0.5), OPTIONS
    )
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(UsageError, match=r"stream-dmgin\[trees\]"):
        zoo.fit("dmgin", recipe, rows, rows.between(0, 3), rows.between(3, 4), recipe.options, lambda name, point: None)


def test_a_share_beyond_the_whole_is_refused(tmp_path: Path) -> None:
    data = short_log()
    recipe = tmp_path / "r.toml"
    for wrong in ("1.5", "-0.1"):
        recipe.write_text(f"[training]\nteacher = {wrong}\n")
        with pytest.raises(InputError, match="teacher is a share"):
            recipes.read(recipe, data.meta)


def test_a_release_is_taught_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    form.write(short_log(), tmp_path / "log")
    share = 0.5
    of = smaller(recipes.of, members=("dmgin", "no-interest", "lightgbm"))
    monkeypatch.setattr(recipes, "of", lambda meta: replace(of(meta), options=replace(of(meta).options, teacher=share)))

    def train(name: str, *more: str) -> tuple[dict[str, bytes], dict[str, object]]:
        out = tmp_path / name
        args = [
            "train",
            "--data",
            str(tmp_path / "log"),
            "--train-days",
            "1-5",
            "--valid-days",
            "6-7",
            "--out",
            str(out),
            *more,
        ]
        done = CliRunner().invoke(cli, [*args, "--data-dir", str(tmp_path)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert done.stderr.count("teacher: epoch") == (4 if share else 0)
        return {f.name: f.read_bytes() for f in out.glob("*.safetensors")}, json.loads(
            (out / "config.json").read_text()
        )["training"]

    one, said = train("one")
    assert "Of a click's label 50% is what trees say of it" in (tmp_path / "one" / "card.md").read_text()
    assert said["options"]["teacher"] == 0.5 and said["trees"]["rounds"] == 20  # type: ignore[index, call-overload]
    stack, _ = train("stack", "--model", "stack")
    assert train("side", "--model", "stack", "--jobs", "2")[0] == stack
    share = 0.0
    assert train("plain")[0] != one and "trees say" not in (tmp_path / "plain" / "card.md").read_text()
