"""Fits side by side: what comes out is what one process makes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from stream_dmgin.cli.main import cli
from stream_dmgin.datasets import form
from stream_dmgin.errors import InputError, StreamDmginError
from stream_dmgin.training import evaluate as protocol
from stream_dmgin.training import recipes
from stream_dmgin.training.side import side_by_side
from tests.contests import plan, short_log, smaller

Tell = Callable[[str], None]


def square(x: int, tell: Tell) -> int:
    tell(f"{x} squared")
    if x < 0:
        raise InputError(f"{x} is below 0")
    return x * x


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_are_in_order_and_all_is_told(jobs: int) -> None:
    told: list[str] = []
    ready: list[tuple[int, int]] = []
    found = side_by_side(
        {f"of {x}": partial(square, x) for x in (3, 1, 2)}, jobs, told.append, lambda *n: ready.append(n)
    )
    assert found == {"of 3": 9, "of 1": 1, "of 2": 4} and list(found) == ["of 3", "of 1", "of 2"]
    assert sorted(told) == ["1 squared", "2 squared", "3 squared"] and ready == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(InputError, match="-1 is below 0"):
        side_by_side({x: partial(square, x) for x in (1, -1)}, jobs, told.append)


def killed(tell: Tell) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def test_a_killed_process_is_told_as_such() -> None:
    with pytest.raises(StreamDmginError, match="fewer than --jobs 2"):
        side_by_side({"killed": killed, "not": partial(square, 2)}, 2, lambda text: None)
    assert side_by_side({2: partial(square, 2), 3: partial(square, 3)}, 2, lambda text: None) == {
        2: 4,
        3: 9,
    }  # and the next ones run


@pytest.mark.parametrize("kept", [False, True])
def test_a_comparison_is_the_same_side_by_side(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: bool) -> None:
    data = short_log()
    monkeypatch.setattr(recipes, "of", smaller(recipes.of))
    models = ("item-ctr", "dmgin", "sim", "dmgin-category-groups", "stack")
    said: list[str] = []
    ready: list[tuple[int, int]] = []

    def run(jobs: int, keep: Path | None) -> dict[str, list[bytes]]:
        _, scored = protocol.evaluate_all(
            data, plan(data, 1), models, 2, say=said.append, keep=keep, jobs=jobs, fitted=lambda *n: ready.append(n)
        )
        return {
            m: [p.tobytes() for kind in (s.raw, s.calibrated, s.online) for p in kind.values()]
            for m, s in scored.items()
        }

    alone = run(1, None)
    ready.clear()
    assert run(2, tmp_path if kept else None) == alone
    assert ready == [(i + 1, 8) for i in range(8)]  # dmgin, sim, category-groups and the stack's trees, two seeds
    assert sum(text.startswith("lightgbm, seed 2: epoch") for text in said) == 2
    if kept:
        said.clear()
        assert run(2, tmp_path) == alone
        assert sum(": kept in " in text for text in said) == 8


def test_a_stack_is_trained_side_by_side(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(recipes, "of", smaller(recipes.of, members=("dmgin", "no-interest", "lightgbm")))
    form.write(short_log(), tmp_path / "log")
    days = ["--train-days", "1-5", "--valid-days", "6-7", "--model", "stack", "--data-dir", str(tmp_path)]
    for name, jobs in (("alone", "1"), ("both", "3")):
        args = ["train", "--data", str(tmp_path / "log"), *days, "--out", str(tmp_path / name / "m"), "--jobs", jobs]
        done = CliRunner().invoke(cli, args, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert "no-interest: epoch" in done.stderr
    files = {
        name: {f.name: f.read_bytes() for f in (tmp_path / name / "m").glob("*.safetensors")}
        for name in ("alone", "both")
    }
    assert files["alone"] and files["alone"] == files["both"]
