"""`train`, whole, on a small city: a folder that loads, its card, and what is said where something is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from stream_dmgin.cli.main import cli
from stream_dmgin.errors import InputError
from stream_dmgin.models.registry import load_model
from stream_dmgin.simulator.parquet import write_history
from stream_dmgin.simulator.world import Plan
from stream_dmgin.training.card import reliability, segments
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
    if isinstance(done.exception, InputError):  # `main` makes an exit code of it
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
    assert len(done["reliability"]) == 10 and done["segments"] and done["valid"]["order"]["rows"] > 0
    assert (tmp_path / "small" / "curve.svg").exists() and (tmp_path / "small" / "curve.csv").exists()
    # again, from the kept rows and the checkpoint: the same weights
    code, out, said = train(
        city, "--out", tmp_path / "small", "--rows", tmp_path / "rows", "--checkpoint", tmp_path / "c.pt"
    )
    assert code == 0 and json.loads(out)["valid"] == done["valid"], said
    code, _, said = train(city, "--out", tmp_path / "x", "--rows", tmp_path / "rows", "--train-days", "6-35")
    assert code == 2 and "holds the rows of other days" in said
    (tmp_path / "c.pt").write_bytes(b"torn")
    code, _, said = train(city, "--out", tmp_path / "x", "--rows", tmp_path / "rows", "--checkpoint", tmp_path / "c.pt")
    assert code == 2 and "is damaged" in said


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
