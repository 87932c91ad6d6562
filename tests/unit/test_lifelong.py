"""The lifelong trial: strata of lives, what is sampled, and a gap that only the truth closes."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from stream_dmgin.ab.plots import lines
from stream_dmgin.cli.main import cli
from stream_dmgin.datasets import form
from stream_dmgin.errors import UsageError
from stream_dmgin.replay.source import DatasetSource
from stream_dmgin.simulator.users import BLOCK
from stream_dmgin.simulator.world import Plan
from stream_dmgin.training import lifelong
from stream_dmgin.training.measure import Scored


def test_strata_are_blocks_of_their_own() -> None:
    assert lifelong.strata("100x20, 1000x3") == ((100, 20), (1000, 3))
    assert Plan(strata=((100, 20), (1000, 3))).blocks() == [(20, (100, 100)), (3, (1000, 1000))]
    assert Plan(users=BLOCK + 5).blocks() == [(BLOCK, (100, 100_000)), (5, (100, 100_000))]
    for wrong in ("", "100", "100x", "5x3", "100x5000", "1e5x3"):
        with pytest.raises(UsageError, match="--lives"):
            lifelong.strata(wrong)


def test_the_command_end_to_end(tmp_path: Path) -> None:
    arguments = (
        "--lives 60x60,600x6 --items 60 --epochs 1 --requests 8 --model no-interest,sim --no-pair-counters -o json"
    )
    found = CliRunner().invoke(cli, ["lifelong", "--out", str(tmp_path), *arguments.split()])
    assert found.exit_code == 0, found.output
    result = json.loads(found.stdout)
    assert [(g["model"], g["life"]) for g in result["gaps"]] == [
        (m, n) for n in (60, 600) for m in ("no-interest", "sim")
    ]
    for g in result["gaps"]:
        than = g["than_first"]
        assert g["gap"] > 0 and g["rows"] > 0 and than["low"] - 1e-9 <= than["diff"] <= than["high"] + 1e-9
    assert (tmp_path / "lifelong.svg").read_text().startswith("<svg") and json.loads(
        (tmp_path / "lifelong.json").read_text()
    )
    # the gap is measured against the truth of the very rows: the truth itself has none, and longer lives are longer
    data = form.read(tmp_path / "city")
    trial = lifelong.Trial(((60, 60), (600, 6)), 60, requests=8)
    from pyarrow.parquet import read_table

    sampled, truth = lifelong._sampled(data, read_table(tmp_path / "city" / "oracle.parquet"), trial)
    source = DatasetSource(sampled)
    assert max(np.unique(np.array(source.requests.user), return_counts=True)[1]) == 8
    row = np.arange(len(truth))
    perfect, off = (Scored(row, source.requests.label, calibrated={1: p}) for p in (truth, np.clip(truth + 0.1, 0, 1)))
    found = lifelong.gaps(source, {"truth": perfect, "off": off}, truth, trial, draws=50)
    assert [g.gap == 0 for g in found] == [True, False, True, False] and found[1].than_first.low > 0
    per_user = [sum(u in users for u in data.events["user_id"].to_pylist()) / n for users, n in (
        ({f"u{k}" for k in range(60)}, 60), ({f"u{BLOCK + k}" for k in range(6)}, 6))]  # fmt: skip
    assert per_user[1] > 5 * per_user[0]


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="don't fit"):
        lifelong.measure(lifelong.Trial(((100, 2),), 60, days=10), ("item-ctr",), tmp_path)


def test_lines() -> None:
    svg = lines({"a<b": [(100, 0.02), (1000, 0.01)], "c": [(100, 0.03), (1000, 0.0101)]}, "x", "y")
    assert "a&lt;b 0.0100" in svg and svg.count("<polyline") == 2 and svg.count("<circle") == 4


def test_many_lines_stay_apart() -> None:
    svg = lines({f"m{k}": [(100, 0.03), (1000, 0.02 + k * 1e-4)] for k in range(24)}, "x", "y")
    at = sorted(float(y) for y in re.findall(r'y="([\d.]+)" text-anchor="start"', svg))
    assert len(at) == 24 and min(b - a for a, b in itertools.pairwise(at)) > 11 and at[0] > 0 and at[-1] < 420
    assert (
        len(set(re.findall(r'polyline fill="none" stroke-width="1.5" (stroke="\S+" stroke-dasharray="[^"]+")', svg)))
        == 24
    )
