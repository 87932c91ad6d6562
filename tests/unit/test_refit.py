"""`refit` and `train --from`, whole, on a small city: what goes on from where, what is refused, what the card says."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from stream_dmgin.cli.main import cli
from stream_dmgin.datasets import form
from stream_dmgin.errors import InputError, StreamDmginError
from stream_dmgin.log.base import open_log
from stream_dmgin.models.registry import Model, load_model
from stream_dmgin.replay.logsource import LogSource
from stream_dmgin.replay.outcomes import label_heads
from stream_dmgin.replay.source import DatasetSource
from stream_dmgin.simulator.parquet import write_history
from stream_dmgin.simulator.world import Plan
from stream_dmgin.training import continual
from stream_dmgin.training.parent import learned_until
from tests.unit.test_release import RECIPE

DAY = 86_400_000
Call = Callable[..., tuple[int, Any, str]]


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("city")
    write_history(Plan(users=60, items=60, seed=3, life=(100, 400), days=40, order_delay_days=2.0), path)
    (path / "mine.toml").write_text(RECIPE)
    (path / "wild.toml").write_text(RECIPE + "[refit]\nlr = 0.3\nepochs = 2\n")
    for name, model in (("network", "dmgin"), ("both", "stack"), ("several", "dmgin,no-interest,din")):
        code, _, said = run("train", "--data", path, "--train-days", "5-20", "--valid-days", "21-24", "--recipe", path / "mine.toml",
                            "--rows", path / ("flat" if name == "several" else "rows"), "--model", model, "--out", path / name)  # fmt: skip
        assert code == 0, said
    return path


def run(*arguments: object) -> tuple[int, Any, str]:
    done = CliRunner().invoke(cli, [*map(str, arguments), "-o", "json"])
    if isinstance(done.exception, StreamDmginError):  # `main` makes an exit code of it
        return done.exception.exit_code, None, str(done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, json.loads(done.stdout) if done.exit_code == 0 else None, done.stderr


def test_a_refit_is_a_release_that_names_its_parent(city: Path, tmp_path: Path) -> None:
    parent = load_model(city / "network")
    arguments = ("refit", city, "--from", city / "network", "--out", tmp_path / "next", "--recipe", city / "mine.toml")
    code, plan, said = run(*arguments, "--dry-run")
    assert code == 0 and not plan["released"] and not (tmp_path / "next").exists(), said
    (tmp_path / ".next.part").mkdir()  # of one that was killed
    code, done, said = run(*arguments)
    assert code == 0, said
    assert done["from"] == parent.id and done["released"] and not done["published"]
    assert {k: done[k] for k in ("requests", "since", "held_since", "judged_since", "until")} == {
        k: plan[k] for k in ("requests", "since", "held_since", "judged_since", "until")
    }
    assert done["differences"]["logloss"]["low"] <= 0 and done["rows"] > 0
    model = load_model(tmp_path / "next")
    assert model.id == done["model"] and model.calibration != parent.calibration and model.heads == parent.heads
    assert model.training["parent"] == parent.id and learned_until(model) > learned_until(parent)
    card = (tmp_path / "next" / "card.md").read_text()
    assert not re.search(r"surface \d", card)  # by name, not by bucket
    assert f"began with the weights of `{parent.id}`" in card and "rows that judged it" in card
    assert not list(tmp_path.glob(".*"))
    # the next one begins where this one ended
    code, after, said = run(
        "refit", city, "--from", tmp_path / "next", "--out", tmp_path / "third", "--dry-run", "--hold", "0.7"
    )
    assert code == 0 and after["since"] >= done["held_since"], said
    code, _, said = run(*arguments)
    assert code == 2 and "is there already" in said


def refitted(city: Path, name: str, tmp_path: Path) -> tuple[Model, Model, dict[str, Any]]:
    """A release of the city, what `refit` makes of it, and what it says."""
    code, done, said = run(
        "refit", city, "--from", city / name, "--out", tmp_path / "next", "--recipe", city / "mine.toml"
    )
    assert code == 0, said
    return load_model(city / name), load_model(tmp_path / "next"), done


def test_a_stack_is_refitted_whole(city: Path, tmp_path: Path) -> None:
    parent, model, done = refitted(city, "both", tmp_path)
    assert model.architecture == "stack" and model.network_weight == parent.network_weight
    assert model.forest.trees == parent.forest.trees and done["metrics"][model.id]["auc"] > 0.6
    assert model.training["parts"] == parent.training["parts"]
    # what it learned from is not what its parent did
    mine, theirs = model.forest.arrays(), parent.forest.arrays()
    assert any(not np.array_equal(mine[k], theirs[k]) for k in mine) and model.id != parent.id


def test_an_ensemble_is_refitted_in_each_of_its_members(city: Path, tmp_path: Path) -> None:
    parent, model, done = refitted(city, "several", tmp_path)
    assert model.architecture == "ensemble" and len(model.members) > 1 and done["metrics"][model.id]["auc"] > 0.6
    for new, old in zip(model.members, parent.members, strict=True):
        assert (new.kind, new.weight) == (old.kind, old.weight)
        mine, theirs = new.network.state_dict(), old.network.state_dict()
        assert not np.array_equal(mine["deep.weight"], theirs["deep.weight"])
        assert all(np.isfinite(v.numpy()).all() for v in mine.values())


def test_what_was_taught_is_taught_again(city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taught.toml").write_text(RECIPE.replace("[training]", "[training]\nteacher = 0.5"))
    code, _, said = run("train", "--data", city, "--train-days", "5-20", "--valid-days", "21-24", "--recipe", tmp_path / "taught.toml",
                        "--rows", city / "rows", "--out", tmp_path / "one")  # fmt: skip
    assert code == 0, said
    asked: list[continual.Requests] = []
    before = continual.lesson_again

    def lesson_again(rows: object, learn: continual.Requests, *rest: object) -> object:
        found = before(rows, learn, *rest)  # type: ignore[arg-type]
        asked.append(learn)
        assert np.isfinite(found.chances[rows.rows_of(learn)]).all()  # type: ignore[attr-defined]
        return found

    monkeypatch.setattr(continual, "lesson_again", lesson_again)
    for name in ("two", "three"):
        of = "one" if name == "two" else "two"
        code, done, said = run("refit", city, "--from", tmp_path / of, "--out", tmp_path / name, "--hold", "0.7")
        assert code == 0 and done["metrics"][done["model"]]["auc"] > 0.6, said
    first, last = (load_model(tmp_path / n).training for n in ("one", "three"))
    assert len(asked) == 2 and last["teacher"] == first["teacher"] and last["trees"] == first["trees"]


def test_what_is_worse_is_not_released(city: Path, tmp_path: Path) -> None:
    code, _, said = run(
        "refit", city, "--from", city / "network", "--out", tmp_path / "wild", "--recipe", city / "wild.toml"
    )
    assert code == 1 and "is not released: worse" in said
    assert not (tmp_path / "wild").exists() and not list(tmp_path.glob(".*"))


def test_wrong_parents_and_sources_are_refused(city: Path, tmp_path: Path) -> None:
    def refused(*more: object, parent: Path = city / "network") -> str:
        code, _, said = run("refit", city, "--from", parent, "--out", tmp_path / "x", *more)
        assert code == 2 and not (tmp_path / "x").exists(), said
        return said

    broken = tmp_path / "broken"
    shutil.copytree(city / "network", broken)
    (broken / "weights.safetensors").write_bytes(b"torn")
    assert "is damaged" in refused(parent=broken)
    assert "write YYYY-MM-DD" in refused("--since", "soon")
    assert "labelled candidates to learn from are new since" in refused("--since", "2030-01-01")
    old = tmp_path / "old"
    shutil.copytree(city / "network", old)
    config = json.loads((old / "config.json").read_text())
    del config["training"]["learned_until"], config["training"]["period"]
    (old / "config.json").write_text(json.dumps(config))
    assert "doesn't say up to when it has learned" in refused(parent=old)
    other = tmp_path / "other"
    data = form.read(city)
    data.meta.heads = ["order", "cart"]
    form.write(data, other)
    code, _, said = run("refit", other, "--from", city / "network", "--out", tmp_path / "x")
    assert code == 2 and "other heads" in said
    both = tmp_path / "both"
    shutil.copytree(city / "both", both)
    config = json.loads((both / "config.json").read_text())
    del config["training"]["parts"]
    (both / "config.json").write_text(json.dumps(config))
    assert "how its trees were grown" in refused(parent=both)


def test_training_begins_with_a_released_model(city: Path, tmp_path: Path) -> None:
    arguments = ("train", "--data", city, "--train-days", "10-30", "--valid-days", "31-34", "--out", tmp_path / "next")
    code, done, said = run(*arguments, "--from", city / "network")
    assert code == 0 and done["parent"] == load_model(city / "network").id, said
    assert load_model(tmp_path / "next").config == load_model(city / "network").config
    assert "epoch 0.00" in said  # what it begins with is a choice, too
    (city / "wide.toml").write_text(RECIPE.replace("width = 16", "width = 32"))
    code, _, said = run(*arguments, "--from", city / "network", "--recipe", city / "wide.toml")
    assert code == 2 and "model.width (16, here 32)" in said
    code, _, said = run(*arguments, "--from", city / "network", "--model", "trees")
    assert code == 2 and "--from is for networks" in said


def test_the_newest_of_what_is_new_judges(city: Path) -> None:
    r = DatasetSource(form.read(city)).requests
    since = int(r.at[0]) + 20 * DAY
    at = continual.split(r, since, 0.4, 600_000, 7 * DAY)
    assert 0 < at.first < at.new < at.cut < at.judge < at.last < len(r)
    assert r.at[at.new - 1] <= since < r.at[at.new] and r.at[at.last - 1] <= r.at[-1] - 600_000
    new, held, judged = (int(r.first[at.last] - r.first[a]) for a in (at.new, at.cut, at.judge))
    assert held / new == pytest.approx(0.4, abs=0.02) and judged / new == pytest.approx(0.2, abs=0.02)
    with pytest.raises(InputError, match="to judge"):
        continual.split(r, int(r.at[-1]) - 3 * DAY, 0.02, 0, 0)


def test_the_log_itself_will_do(city: Path, tmp_path: Path) -> None:
    where = ("--log", f"file:{tmp_path / 'log'}", "--data-dir", tmp_path)
    assert run("topics", "apply", *where, "--partitions", 2)[0] == 0
    assert run("topics", "import", city, *where)[0] == 0
    with open_log(f"file:{tmp_path / 'log'}") as log:
        source = LogSource(log)
    parent = load_model(city / "network")
    data = label_heads(source, parent.heads)
    rows = form.read(city).rows
    for head in parent.heads:  # what the log says of each candidate is what the rows say
        wanted = dict(
            zip(zip(rows["request_id"].to_pylist(), rows["item_id"].to_pylist()), rows[f"label_{head}"].to_pylist())
        )
        keys = zip(data.rows["request_id"].to_pylist(), data.rows["item_id"].to_pylist())
        found = dict(zip(keys, source.requests.heads[head].tolist()))
        assert found == {k: -1 if v is None else v for k, v in wanted.items()}
    arguments = ("--from", city / "network", "--recipe", city / "mine.toml", "--groups", city / "groups.csv")
    code, done, said = run("refit", "log", *where, *arguments, "--out", tmp_path / "next", "--publish", "--yes")
    assert code == 0 and done["published"] and done["from"] == parent.id, said
    _, same, _ = run("refit", city, *arguments, "--out", tmp_path / "other", "--dry-run")
    assert same["requests"] == done["requests"]
    # the one that is live goes on next, where none is named; it is not on the search path of models here
    code, _, said = run("refit", "log", *where, "--out", tmp_path / "third", "--dry-run")
    assert code == 2 and f"model {done['model']!r} is not known" in said
