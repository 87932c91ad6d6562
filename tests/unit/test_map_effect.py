"""What maps do to a model's quality: the same rows, paired."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from stream_dmgin.cli.groups import command
from stream_dmgin.datasets import form
from stream_dmgin.errors import UsageError
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.training import evaluate as protocol
from stream_dmgin.training.map_effect import compare_maps
from tests.logs import dataset


def test_maps_are_compared_on_the_same_rows() -> None:
    data = dataset(600)
    data.meta.day_ms = 20_000
    plan = protocol.Plan(*(protocol.days(data.meta, d, "--days") for d in ("1-5", "6-7", "8-9")), 0, data.meta.day_ms)
    one = GroupMap(dict.fromkeys(data.items["item_id"].to_pylist(), 0))
    said: list[str] = []
    got = compare_maps(
        data, plan, {"own": None, "one": one}, "item-ctr", progress=lambda n, done, total: said.append(n)
    )
    assert list(got["maps"]) == ["own", "one"] and {"auc", "logloss", "ece"} <= set(got["maps"]["one"])
    (d,) = got["differences"]
    assert (d["map"], d["than"]) == ("one", "own") and d["auc"]["low"] <= d["auc"]["diff"] <= d["auc"]["high"]
    assert d["auc"]["diff"] == 0.0 and set(said) == {"own", "one"}  # the floor asks the item alone, whatever its group
    with pytest.raises(UsageError, match="two maps or more"):
        compare_maps(data, plan, {"own": None}, "item-ctr")


def test_maps_are_compared_on_a_log_of_ones_own(tmp_path: Path) -> None:
    data = dataset(600)
    data.meta.day_ms = 20_000
    form.write(data, tmp_path / "log")
    (tmp_path / "one.csv").write_text(
        "item_id,group\n" + "".join(f"{i},0\n" for i in data.items["item_id"].to_pylist())
    )
    days = ["--train-days", "1-5", "--valid-days", "6-7", "--test-days", "8-9", "--model", "item-ctr", "-o", "json"]
    maps = ["--map", "own", "--map", str(tmp_path / "one.csv")]
    args = ["effect", "own", "--data", str(tmp_path / "log"), *maps, *days, "--data-dir", str(tmp_path)]
    done = CliRunner().invoke(command, args, catch_exceptions=False)
    found = json.loads(done.stdout)
    assert list(found["maps"]) == ["own", str(tmp_path / "one.csv")] and found["dataset"] == "test"
    assert len(found["differences"]) == 1 and found["rows"] > 0


def test_the_command_needs_the_days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream_dmgin.datasets.load", lambda name, path: dataset(50))
    args = ["effect", "mind", "--data", str(tmp_path), "--map", "own", "--data-dir", str(tmp_path)]
    with pytest.raises(UsageError, match="--train-days"):
        CliRunner().invoke(command, [*args, "--test-days", "1-2"], catch_exceptions=False)
