"""Comparison of models on the same rows: measures, intervals, verdicts, and a page that stands alone."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from stream_dmgin.ab import plots, report
from stream_dmgin.ab.compare import Bin, compare, gain
from stream_dmgin.ab.guard import refuse_worse
from stream_dmgin.errors import InputError, StreamDmginError
from stream_dmgin.training.metrics import Interval


def _rows(noise: float, seed: int = 1, n: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    r = np.random.default_rng(seed)
    p = r.beta(2, 3, n)
    y = (r.random(n) < p).astype(np.int8)
    logit = np.log(p / (1 - p)) + noise * r.standard_normal(n)
    return y, r.integers(0, 300, n), p, 1 / (1 + np.exp(-logit))


def test_the_truth_beats_a_noisy_copy() -> None:
    y, users, truth, noisy = _rows(1.0)
    c = compare(y, users, {"noisy": noisy, "truth": truth}, "noisy", draws=200)
    d = c.differences["truth"]
    assert d["auc"].low > 0 and d["logloss"].high < 0 and gain("logloss", d["logloss"]) == 1
    assert c.verdict.startswith("truth is better than noisy")
    assert compare(y, users, {"truth": truth, "noisy": noisy}, "truth", draws=200).verdict.startswith(
        "noisy is worse than truth"
    )
    assert c.metrics["truth"]["ece"] < c.ece_noise[1] * 2
    assert sum(b.rows for b in c.reliability["truth"]) == len(y)


def test_a_model_against_itself_shows_no_difference() -> None:
    y, users, truth, _ = _rows(0.0)
    c = compare(y, users, {"a": truth, "b": truth}, "a", draws=100)
    assert c.verdict.startswith("No difference between b and a")
    assert all(i == Interval(0.0, 0.0, 0.0) for i in c.differences["b"].values())


def test_one_kind_of_label_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="nothing can be compared"):
        compare(np.zeros(3, np.int8), np.arange(3), {"a": np.full(3, 0.5), "b": np.full(3, 0.5)}, "a")


def test_the_page_stands_alone_and_escapes_names(tmp_path: Path) -> None:
    y, users, truth, noisy = _rows(0.5)
    c = compare(y, users, {"<b>old</b>": noisy, "new": truth}, "<b>old</b>", draws=50)
    report.write(c, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<b>old" not in page and "&lt;b&gt;old" in page
    for outside in ("<script", "http://", "https://", "url("):
        assert outside not in page.replace("http://www.w3.org/2000/svg", "")
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(data["metrics"]["new"]) == {"auc", "gauc", "logloss", "ece"}
    assert set(data["differences"]["new"]["auc"]) == {"diff", "low", "high"}


def test_plots_are_well_formed() -> None:
    y, users, truth, noisy = _rows(0.5, n=200)
    c = compare(y, users, {"a & b": truth, "n": noisy}, "n", draws=20)
    ElementTree.fromstring(plots.reliability(c.reliability))
    ElementTree.fromstring(plots.intervals(c.differences["a & b"], dict.fromkeys(c.differences["a & b"], "#000")))


def test_a_reliability_diagram_says_which_line_is_whose_and_what_is_luck() -> None:
    few, sure = Bin(2, 0.9, 0.0), Bin(5000, 0.03, 0.02)
    drawn = plots.reliability({f"model-{k}": [sure, Bin(400, 0.11, 0.1 + k / 100), few] for k in range(14)})
    root = ElementTree.fromstring(drawn)
    words = [e.text for e in root.iter() if e.tag.endswith("text")]
    assert all(f"model-{k}" in words for k in range(14)) and "observed click rate" in words
    lines = [e for e in root if e.tag.endswith("polyline")]
    assert len({(e.get("stroke"), e.get("stroke-dasharray")) for e in lines}) == 14
    assert all(len(str(e.get("points")).split()) == 2 for e in lines)  # two rows say nothing of a rate
    assert "0.4" in words and "1" not in words  # the axes end where the rows do
    assert "hollow: fewer than 30 rows; 14 of them outside" in words
    places = [float(str(e.get(k))) for e in root.iter() if e.tag.endswith("circle") for k in ("cx", "cy")]
    assert min(places) >= 44 and max(places) <= 320 - 44  # all inside the frame
    assert ElementTree.fromstring(plots.reliability({})) is not None


def test_a_challenger_that_is_surely_worse_is_refused() -> None:
    y, users, truth, noisy = _rows(1.0)
    scores = {"truth": truth, "noisy": noisy}
    with pytest.raises(StreamDmginError, match="noisy is not released: worse auc and logloss than the running truth"):
        refuse_worse(compare(y, users, scores, "truth", draws=100))
    refuse_worse(compare(y, users, scores, "noisy", draws=100))  # better
    refuse_worse(compare(y, users, {"a": truth, "b": truth.copy()}, "a", draws=100))  # the same
    logit = np.log(truth / (1 - truth)) + 0.8  # the order is the same, only the probabilities are off
    with pytest.raises(StreamDmginError, match="worse logloss than"):
        refuse_worse(compare(y, users, {"truth": truth, "off": 1 / (1 + np.exp(-logit))}, "truth", draws=100))
