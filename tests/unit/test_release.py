"""`train`, whole, on a small city: a folder that loads, its card, and what is said where something is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from stream_dmgin.cli.main import cli
from stream_dmgin.datasets import form
from stream_dmgin.datasets.grouping import group_map
from stream_dmgin.errors import StreamDmginError
from stream_dmgin.models.registry import load_model
from stream_dmgin.replay.score import score
from stream_dmgin.replay.source import DatasetSource
from stream_dmgin.scoring.check import check
from stream_dmgin.scoring.engine import choose_engine
from stream_dmgin.simulator.parquet import write_history
from stream_dmgin.simulator.world import Plan
from stream_dmgin.training.card import reliability, segments
from stream_dmgin.training.evaluate import days
from stream_dmgin.training.loop import predict
from stream_dmgin.training.rows import TrainingRows
from stream_dmgin.training.trees import forest_logits
from stream_dmgin.training.zoo import rows_read_by
from tests.unit.test_training import make

RECIPE = """
[inputs]
groups = 8
events = 4
short = 8
item_buckets = 64
category_buckets = 16
advertiser_buckets = 16
[model]
width = 16
item_width = 8
hidden = [16, 8]
[training]
epochs = 1
batch = 256
lists = 0.5
reported = ["order"]
delay_days = 5
[trees]
rows_a_leaf = 20
rounds = 60
bags = 2
"""


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("city")
    write_history(Plan(users=60, items=60, seed=3, life=(100, 400), days=40, order_delay_days=2.0), path)
    (path / "mine.toml").write_text(RECIPE)
    return path


def train(city: Path, *more: object) -> tuple[int, str, str]:
    args = [
        "train",
        "--data",
        city,
        "--train-days",
        "5-35",
        "--valid-days",
        "36-39",
        "--recipe",
        city / "mine.toml",
        *more,
    ]
    done = CliRunner().invoke(cli, [*map(str, args), "-o", "json"])
    if isinstance(done.exception, StreamDmginError):  # `main` makes an exit code of it
        return done.exception.exit_code, done.stdout, str(done.exception)
    return done.exit_code, done.stdout, done.stderr


def test_a_model_with_its_card(city: Path, tmp_path: Path) -> None:
    code, out, said = train(
        city, "--out", tmp_path / "small", "--rows", tmp_path / "rows", "--checkpoint", tmp_path / "c.pt"
    )
    assert code == 0, said
    done = json.loads(out)
    model = load_model(tmp_path / "small")
    assert model.id == done["model"] and model.config.heads[0] == "order" and model.config.width == 16
    card = (tmp_path / "small" / "card.md").read_text()
    assert re.search(r"stream_dmgin \d+\.\d+\.\d+, torch", card)
    for part in (
        "## Trained on",
        "## How to make it again",
        "### Clicks by segment",
        "### Calibration of clicks",
        "## Limits",
    ):
        assert part in card
    assert done["rows_sha256"] in card and re.search(r"2\d{3}-\d\d-\d\d \d\d:\d\d UTC to 2\d{3}", card)
    assert "come from advertisers" in card and "within 5 days" in card
    named = {s["segment"] for s in done["segments"]}
    assert {"surface feed", "surface map"} <= named and any(s.startswith("items shown ") for s in named)
    assert len(done["reliability"]) == 10 and done["segments"] and done["valid"]["order"]["rows"] > 0
    assert (tmp_path / "small" / "curve.svg").exists() and (tmp_path / "small" / "curve.csv").exists()
    # again, from the kept rows and the checkpoint: the same weights
    code, out, said = train(
        city, "--out", tmp_path / "small", "--rows", tmp_path / "rows", "--checkpoint", tmp_path / "c.pt"
    )
    assert code == 0 and json.loads(out)["valid"] == done["valid"], said
    assert f"goes on from {tmp_path / 'c.pt'}" in said
    code, _, said = train(city, "--out", tmp_path / "x", "--rows", tmp_path / "rows", "--train-days", "6-35")
    assert code == 2 and "holds the rows of other days" in said
    (tmp_path / "c.pt").write_bytes(b"torn")
    code, _, said = train(city, "--out", tmp_path / "x", "--rows", tmp_path / "rows", "--checkpoint", tmp_path / "c.pt")
    assert code == 2 and "is damaged" in said


def test_what_cannot_be_trained_is_said_first(city: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for more, message in (
        (("--valid-days", "35-39"), "--valid-days 35-39 must come after --train-days 5-35"),
        (("--valid-days", "90-91", "--train-days", "80-89"), "holds no rows on days 80-89 and 90-91"),
        (("--checkpoint", tmp_path), f"{tmp_path} is a directory: --checkpoint names a file"),
        (("--checkpoint", tmp_path / "file" / "c.pt"), "c.pt can't be written"),
    ):
        code, _, said = train(city, "--out", tmp_path / "x", *more)
        assert code == 2 and message in said and not (tmp_path / "x").exists()


MODELS = {"trees": "trees", "stack": "stack", "ensemble": "dmgin,no-interest,din,lightgbm"}


@pytest.mark.parametrize("architecture", MODELS)
def test_trees_and_stacks_are_released_and_score_as_they_were_trained(
    city: Path, tmp_path: Path, architecture: str
) -> None:
    what = ("--out", tmp_path / "m", "--rows", tmp_path / "rows", "--model", MODELS[architecture])
    code, out, said = train(city, *what, "--checkpoint", tmp_path / "c.pt")
    assert code == 0, said
    done, model = json.loads(out), load_model(tmp_path / "m")
    assert done["architecture"] == model.architecture == architecture and model.id == done["model"]
    about = "no-interest 0." if architecture == "ensemble" else "oosted trees"
    assert about in (tmp_path / "m" / "card.md").read_text() and check(model, rounds=1)["ok"]
    assert ("order" in done["valid"]) == (architecture != "trees")  # further heads are the network's
    rows, log = TrainingRows.load(tmp_path / "rows"), form.read(city)
    valid = rows.between(*days(log.meta, "36-39", "--valid-days"))
    z = forest_logits(model.forest, rows, valid)
    for m in model.members:
        z = z + m.weight * predict(m.network, rows_read_by(m.kind, rows), valid)["ctr"][rows.rows_of(valid)]
    source = DatasetSource(log)
    first = int(np.searchsorted(source.requests.ts, rows["r_ts"][valid[0]]))
    (found,) = score(source, group_map(log), {model.id: choose_engine(model)[0]}, first, first + len(valid))
    # training rows keep the statistics of groups in 16 bits, which only the network reads
    allowed = 1e-6 if architecture == "trees" else 1e-4
    np.testing.assert_allclose(found.ctr, model.calibration.apply("ctr", z), rtol=0, atol=allowed)
    if architecture == "ensemble":  # each network has a checkpoint of its own, from which it is there again at once
        assert {p.name for p in tmp_path.glob("c.pt*")} == {"c.pt", "c.pt.no-interest", "c.pt.din"}
        code, out, said = train(city, *what, "--checkpoint", tmp_path / "c.pt")
        assert code == 0 and json.loads(out)["model"] == done["model"] and "no-interest: epoch" not in said, said
        code, _, said = train(city, *what, "--from", tmp_path / "m")
        assert code == 2 and "--from is for one network" in said


def test_segments_of_few_rows_are_not_named() -> None:
    rows, _ = make(blocks=20, users=80)
    every = np.arange(rows.requests)
    p = np.full(len(rows), 0.4)
    found = {x["segment"]: x for x in segments(rows, every, p)}
    assert found["lists of one"]["rows"] + found["lists of 2 to 9"]["rows"] == len(rows)
    assert "lists of 10 or more" not in found and "00 to 06 h UTC" not in found  # none; all of them
    tenths = reliability(rows.labels(), np.linspace(0, 1, len(rows)))
    assert len(tenths) == 10 and sum(b["rows"] for b in tenths) == len(rows)
    assert not segments(rows, every[:0], p[:0])
