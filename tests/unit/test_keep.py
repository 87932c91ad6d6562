"""What long measurements keep: only what is missing is made again, and nothing is taken for something else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from stream_dmgin.cli.main import cli
from stream_dmgin.datasets import form
from stream_dmgin.errors import InputError, UsageError
from stream_dmgin.training import contest, recipes
from stream_dmgin.training import evaluate as protocol
from stream_dmgin.training.measure import Scored, differences, measure
from tests.contests import plan, short_log, smaller


@pytest.fixture(scope="module")
def data() -> form.Dataset:
    return short_log()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "of", smaller(recipes.of))


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is fitted, as it is."""
    names: list[str] = []

    def fit(name: str, *rest: object, **more: object) -> contest.Contender:
        names.append(name)
        return before(name, *rest, **more)  # type: ignore[arg-type]

    before = contest.fit
    monkeypatch.setattr(contest, "fit", fit)
    return names


def scores(found: dict[str, Scored]) -> dict[str, list[bytes]]:
    kinds = ("raw", "calibrated", "online", "frozen")
    return {m: [p.tobytes() for k in kinds for p in getattr(s, k).values()] for m, s in found.items()}


def test_only_what_is_missing_is_fitted(
    data: form.Dataset, small: None, fitted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def run(*models: str, refit: int = 0, keep: Path | None = tmp_path, **more: int) -> dict[str, Scored]:
        fitted.clear()
        return protocol.evaluate_all(data, plan(data, refit), models, keep=keep, say=said.append, **more)[1]  # type: ignore[arg-type]

    plain = run("dmgin", "din", "lightgbm", "stack", seeds=2, keep=None)
    assert fitted == 2 * ["dmgin", "din", "lightgbm"]
    run("din", "dmgin")
    run("lightgbm", "stack", first_seed=2)
    assert fitted == ["lightgbm", "dmgin"]  # the member that nobody named
    monkeypatch.setattr(protocol, "training_rows", None)  # the rows are kept, too
    again = run("dmgin", "din", "lightgbm", "stack", seeds=2)
    assert sorted(fitted) == ["din", "lightgbm"]  # of one seed each
    assert scores(again) == scores(plain)
    assert all(set(s.seconds) == {1, 2} and min(s.seconds.values()) > 0 for s in again.values())
    once_more = run("dmgin", "din", "lightgbm", "stack", seeds=2)
    assert not fitted and scores(once_more) == scores(plain)
    source = protocol.evaluate_all(data, plan(data), ("item-ctr",))[0]
    assert measure(source, once_more["stack"])["calibrated"] == measure(source, plain["stack"])["calibrated"]
    assert differences(source, once_more, draws=5) == differences(source, plain, draws=5)
    # another plan, another recipe, another log: other files
    run("lightgbm", refit=1)
    assert fitted == ["lightgbm"]
    of = recipes.of
    monkeypatch.setattr(recipes, "of", lambda meta: replace(of(meta), trees=replace(of(meta).trees, leaves=4)))
    run("dmgin", "lightgbm")
    assert fitted == ["lightgbm"]  # options of trees are nothing to a network
    # a damaged file is said and made again
    kept = next((tmp_path / "scores").glob("din-seed1-*"))
    raw = kept.read_bytes()
    kept.write_bytes(raw[:-9] + bytes(9))
    run("din")
    assert fitted == ["din"] and any("damaged" in s and "din, seed 1 is fitted again" in s for s in said)
    assert not list(tmp_path.rglob("*.part"))
    kept.write_bytes(b"")
    assert scores(run("din")) == {"din": [p for i, p in enumerate(scores(plain)["din"]) if i % 2 == 0]}


def test_a_damaged_folder_of_rows_is_replayed_again(data: form.Dataset, small: None, tmp_path: Path) -> None:
    said: list[str] = []

    def run() -> dict[str, Scored]:
        return protocol.evaluate_all(data, plan(data), ("lightgbm",), keep=tmp_path, say=said.append)[1]

    first = run()
    (column,) = tmp_path.glob("rows-*/c_dense.npy")
    column.write_bytes(column.read_bytes()[:500])
    assert scores(run()) == scores(first) and any("replaying again" in s for s in said)


def test_hidden_inputs_are_another_measurement(
    data: form.Dataset, small: None, fitted: list[str], tmp_path: Path
) -> None:
    spec = recipes.of(data.meta).spec
    names = tuple(n for n in spec.candidate_features if n.startswith(("ug_", "ui_")))[:4]
    _, shown = protocol.evaluate_all(data, plan(data), ("lightgbm", "dmgin-random-groups"), keep=tmp_path)
    _, hidden = protocol.evaluate_all(data, plan(data), ("lightgbm", "dmgin-random-groups"), keep=tmp_path, hide=names)
    assert fitted == 2 * ["lightgbm", "dmgin-random-groups"]
    assert all(not np.array_equal(shown[m].raw[1], hidden[m].raw[1]) for m in shown)
    _, again = protocol.evaluate_all(data, plan(data), ("lightgbm", "dmgin-random-groups"), keep=tmp_path)
    assert len(fitted) == 4 and scores(again) == scores(shown)  # what is kept was not touched by hiding


@pytest.mark.parametrize("refit", [0, 1])
def test_a_stack_of_peers_too(data: form.Dataset, monkeypatch: pytest.MonkeyPatch, refit: int) -> None:
    monkeypatch.setattr(recipes, "of", smaller(recipes.of, members=("dmgin", "din", "lightgbm")))
    _, scored = protocol.evaluate_all(data, plan(data, refit), ("stack",))
    p = scored["stack"]
    assert np.isfinite(p.calibrated[1]).all() and np.isfinite(p.frozen[1]).all()
    monkeypatch.setattr(recipes, "of", smaller(recipes.of, members=("lightgbm",)))
    _, alone = protocol.evaluate_all(data, plan(data, refit), ("lightgbm", "stack"))
    assert np.abs(alone["stack"].calibrated[1] - alone["lightgbm"].calibrated[1]).max() < 0.02
    for wrong in ((), ("stack",), ("item-ctr",), ("dinn",)):
        monkeypatch.setattr(recipes, "of", smaller(recipes.of, members=wrong))
        with pytest.raises(InputError, match=r"stack\.members"):
            protocol.evaluate_all(data, plan(data), ("stack",))


def test_a_worker_serves_no_peer_that_looks_further_back_than_the_state(data: form.Dataset, tmp_path: Path) -> None:
    form.write(data, tmp_path / "log")
    (tmp_path / "r.toml").write_text('[stack]\nmembers = ["dmgin", "sim", "lightgbm"]\n')
    words = f"train --data {tmp_path}/log --train-days 0-1 --valid-days 2-3 --out {tmp_path}/m --model"
    for model, why in (("stack", "can't be served: sim"), ("dmgin,stack", "served: stack"), ("din", "two or more")):
        found = CliRunner().invoke(cli, [*words.split(), model, "--recipe", str(tmp_path / "r.toml")])
        assert isinstance(found.exception, UsageError) and why in str(found.exception)


def test_the_lifelong_trial_keeps_its_city(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fitted: list[str]) -> None:
    monkeypatch.setattr(recipes, "of", smaller(recipes.of))
    words = f"lifelong --lives 60x40,300x6 --items 60 --epochs 1 --requests 8 --no-pair-counters --keep {tmp_path}/k -o json"

    def run(model: str) -> dict[str, object]:
        out = tmp_path / f"of-{model}"
        found = CliRunner().invoke(cli, [*words.split(), "--model", model, "--out", str(out)])
        assert found.exit_code == 0, found.output
        assert not (out / "city").exists() and (out / "lifelong.md").is_file()
        return json.loads(found.stdout)  # type: ignore[no-any-return]

    one = run("no-interest")
    monkeypatch.setattr("stream_dmgin.training.lifelong.write_history", None)
    monkeypatch.setattr(protocol, "training_rows", None)
    two = run("no-interest,din")
    assert fitted == ["no-interest", "din"] and two["gaps"][0] == one["gaps"][0]  # type: ignore[index]
    table = (tmp_path / "of-no-interest,din" / "lifelong.md").read_text()
    assert "| din | " in table and "above no-interest" in table and " with 60 (" in table
