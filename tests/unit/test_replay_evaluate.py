"""The protocol: spans of days, folds of the refit track, what is measured, and that no test day chooses anything."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from stream_dmgin.datasets import form
from stream_dmgin.errors import InputError, UsageError
from stream_dmgin.replay.source import DatasetSource
from stream_dmgin.training import evaluate as protocol
from stream_dmgin.training import measure as measuring
from stream_dmgin.training import recipes, report
from stream_dmgin.training.online import NEVER
from stream_dmgin.training.report import by_segment, write_report
from stream_dmgin.training.zoo import MODELS, PEERS, named
from tests.contests import evaluate, plan, short_log, smaller
from tests.logs import T0

HOUR = 3_600_000


@pytest.fixture(scope="module")
def data() -> form.Dataset:
    return short_log()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "of", smaller(recipes.of))


def test_days() -> None:
    meta = form.Meta("x", 1000, day_ms=10)
    assert protocol.days(meta, "0-2", "--d") == (1000, 1030) and protocol.days(meta, "4", "--d") == (1040, 1050)
    for wrong in ("", "a-b", "3-1", "-1", "1-"):
        with pytest.raises(UsageError, match="--d"):
            protocol.days(meta, wrong, "--d")


def test_steps_of_the_refit_track() -> None:
    spans = ((0, 50), (50, 60), (60, 95))
    assert protocol.Plan(*spans, 2, 10).steps() == [(60, 80), (80, 95)]
    assert protocol.Plan(*spans).steps() == [(60, 95)]


@pytest.mark.parametrize(("refit", "model"), [(0, "dmgin"), (1, "stack"), (1, "lightgbm")])
def test_each_test_row_is_scored_once_a_seed(
    data: form.Dataset, small: None, tmp_path: Path, refit: int, model: str
) -> None:
    source, scored = evaluate(data, plan(data, refit), model, seeds=2)
    measuring.write_scores(source, scored, tmp_path / "s.parquet")
    t = pq.read_table(tmp_path / "s.parquet")
    day = data.day(data.rows["ts"].to_numpy())
    want = data.rows.filter((day >= 8) & (day <= 9))
    assert t.num_rows == 2 * want.num_rows and set(t["seed"].to_pylist()) == {1, 2}
    assert t["item_id"].to_pylist() == 2 * want["item_id"].to_pylist()
    assert all(np.isfinite(t[c].to_numpy()).all() for c in ("ctr", "ctr_raw", "ctr_online"))
    m = measuring.measure(source, scored)
    assert (
        set(m["calibrated"]) >= {"auc", "gauc", "logloss", "ece", "gauc_live"}
        and m["ece_noise"]["low"] < m["ece_noise"]["high"]
    )


@pytest.mark.parametrize(
    ("refit", "model", "teacher"),
    [
        (0, "dmgin", 0.0),
        (0, "lightgbm", 0.0),
        (0, "stack", 0.0),
        (1, "stack", 0.0),
        (0, "dmgin", 0.5),
        (1, "stack", 0.5),
    ],
)
def test_labels_and_feedback_of_test_days_change_no_score_of_the_first(
    data: form.Dataset, small: None, monkeypatch: pytest.MonkeyPatch, refit: int, model: str, teacher: float
) -> None:
    """Turn around every label from the first test day on: scores of the first test moment stay what they were."""
    of = recipes.of
    monkeypatch.setattr(
        recipes, "of", lambda meta: replace(of(meta), options=replace(of(meta).options, teacher=teacher))
    )
    _, before = evaluate(data, plan(data, refit), model)
    start = plan(data).test[0]
    late = data.rows["ts"].to_numpy() >= start
    label = np.where(late, 1 - data.rows["label"].to_numpy(), data.rows["label"].to_numpy()).astype(np.int8)
    rows = data.rows.set_column(data.rows.column_names.index("label"), "label", [label])
    events = data.events.filter(data.events["ts"].to_numpy() < start)
    _, after = evaluate(form.Dataset(events, rows, data.items, data.meta), plan(data, refit), model)
    first = data.rows["ts"].to_numpy()[before.row] <= data.rows["ts"].to_numpy()[before.row[0]]
    assert first.any() and np.array_equal(before.calibrated[1][first], after.calibrated[1][first])
    assert np.array_equal(before.online[1][first], after.online[1][first])
    assert not np.array_equal(before.calibrated[1], after.calibrated[1])  # later state did see other events


def test_the_floor_and_the_model_without_interests(data: form.Dataset, small: None) -> None:
    source, floor = evaluate(data, plan(data), model="item-ctr")
    assert set(floor.calibrated) == {1} and 0.3 < measuring.measure(source, floor)["raw"]["auc"] < 0.8
    _, bare = evaluate(data, plan(data), model="no-interest")
    _, whole = evaluate(data, plan(data))
    assert np.isfinite(bare.calibrated[1]).all() and not np.array_equal(bare.calibrated[1], whole.calibrated[1])


def test_all_models_on_one_replay_with_their_differences(data: form.Dataset, small: None, tmp_path: Path) -> None:
    source, scored = protocol.evaluate_all(data, plan(data), seeds=2)
    assert list(scored) == list(MODELS)
    alone = evaluate(data, plan(data), "lightgbm")[1]
    assert np.array_equal(alone.calibrated[1], scored["lightgbm"].calibrated[1])
    assert not np.array_equal(alone.calibrated[1], scored["lightgbm"].calibrated[2])  # seeds differ
    measuring.write_scores(source, scored, tmp_path / "s.parquet")
    t = pq.read_table(tmp_path / "s.parquet")
    assert t.num_rows == 9 * len(alone.row) and set(t["model"].to_pylist()) == set(MODELS)
    pairs = measuring.differences(source, scored, draws=20)
    assert len(pairs) == 10 + 6 and (pairs[-1].model, pairs[-1].than) == ("stack", "lightgbm")
    assert [p.scores for p in pairs] == ["calibrated"] * 10 + ["online"] * 6  # the floor isn't followed
    measured = {m: measuring.measure(source, s) for m, s in scored.items()}
    for d in pairs:
        found = {m: x[d.scores] for m, x in measured.items() if d.scores in x}
        for k, i in d.metrics.items():
            assert i.low <= i.high and abs(i.diff - (found[d.model][k] - found[d.than][k])) < 1e-9


def test_optional_inputs_are_named(data: form.Dataset, small: None) -> None:
    assert recipes.block_names("surface, session") == ("session", "surface") and recipes.block_names("none") == ()
    with pytest.raises(UsageError, match="name some of session, surface, engagement"):
        recipes.block_names("sessions")
    _, plain = evaluate(data, plan(data), "lightgbm")
    _, more = protocol.evaluate_all(data, plan(data), ("lightgbm",), blocks=("session", "surface", "engagement"))
    assert not np.array_equal(plain.calibrated[1], more["lightgbm"].calibrated[1])


def test_wrong_days_are_refused(data: form.Dataset) -> None:
    span = protocol.days(data.meta, "1-5", "--days")
    with pytest.raises(InputError, match="test days"):
        evaluate(data, protocol.Plan(span, (span[1], span[1] + 40_000), (T0 + HOUR, T0 + 2 * HOUR)))
    with pytest.raises(UsageError, match="follow one another"):
        evaluate(data, protocol.Plan(span, span, (span[1], span[1] + 40_000)))
    with pytest.raises(UsageError, match="--model"):
        evaluate(data, plan(data), model="nothing")


def test_feedback_must_be_visible_before_a_refit(data: form.Dataset) -> None:
    time = plan(data).test[0]
    known = protocol._visible_before(data, DatasetSource(data).requests.id, time)
    for i, ok in zip(DatasetSource(data).requests.id, known.tolist(), strict=True):
        last = (
            max(e["visible_at"] for e in data.events.to_pylist() if e["request_id"] == i)
            if i in ("q5", "q300", "q590")
            else None
        )
        if last is not None:
            assert ok == (last < time)


def test_a_label_is_known_once_impressions_and_clicks_are_visible(data: form.Dataset) -> None:
    ids = ["q5", "q300", "nobody"]
    found = protocol.label_times(data, ids)
    events = data.events.to_pylist()
    for i, at in zip(ids[:2], found.tolist(), strict=False):
        mine = [e["visible_at"] for e in events if e["request_id"] == i and e["topic"] in ("impressions", "clicks")]
        assert at == (max(mine) if mine else NEVER)
    assert found[2] == NEVER


def test_a_refit_learns_from_the_valid_days_too(data: form.Dataset, small: None) -> None:
    _, frozen = evaluate(data, plan(data), "lightgbm")
    _, refitted = evaluate(data, plan(data, 1), "lightgbm")
    assert not np.array_equal(frozen.raw[1], refitted.raw[1])
    assert set(frozen.codes) == {"surface", "hour", "user", "item"} and len(frozen.codes["item"]) == len(frozen.row)


def test_peers_and_ablations_on_one_replay(data: form.Dataset, small: None) -> None:
    models = named("dmgin,twin-v2,dmgin-no-stat,dmgin-random-groups,din,dmgin")
    assert models == ("dmgin", "twin-v2", "dmgin-no-stat", "dmgin-random-groups", "din")
    source, scored = protocol.evaluate_all(data, plan(data), models)
    found = [s.calibrated[1] for s in scored.values()]
    assert all(np.isfinite(p).all() for p in found)
    assert len({p.tobytes() for p in found}) == len(models)  # each is another model
    assert all(np.isfinite(s.frozen[1]).all() for s in scored.values())
    pairs = measuring.differences(source, scored, draws=20)
    assert len(pairs) == 20 and all(p.metrics["auc"].low <= p.metrics["auc"].high for p in pairs)
    assert set(named("all")) >= {*MODELS, *PEERS} and "dmgin-no-across" in named("ablations")
    with pytest.raises(UsageError, match=r"choose of item-ctr, .*ablations"):
        named("dmgin,dien")


def test_no_peer_looks_into_the_test_days(data: form.Dataset, small: None) -> None:
    """Without the events from the first test day on, the first moment's scores of a peer stay what they were."""
    _, before = evaluate(data, plan(data), "hstu")
    events = data.events.filter(data.events["visible_at"].to_numpy() < plan(data).test[0])
    _, after = evaluate(form.Dataset(events, data.rows, data.items, data.meta), plan(data), "hstu")
    first = data.rows["ts"].to_numpy()[before.row] <= data.rows["ts"].to_numpy()[before.row[0]]
    assert first.any() and np.array_equal(before.calibrated[1][first], after.calibrated[1][first])
    assert not np.array_equal(before.calibrated[1], after.calibrated[1])


def test_rows_are_kept_and_used_again(
    data: form.Dataset, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first = protocol.evaluate_all(data, plan(data), ("lightgbm",), rows_dir=tmp_path / "rows")
    monkeypatch.setattr(protocol, "training_rows", None)
    _, again = protocol.evaluate_all(data, plan(data), ("lightgbm",), rows_dir=tmp_path / "rows")
    assert np.array_equal(first["lightgbm"].calibrated[1], again["lightgbm"].calibrated[1])
    fewer = replace(plan(data), train=protocol.days(data.meta, "2-5", "--days"))
    with pytest.raises(InputError, match="of other requests than these days"):
        protocol.evaluate_all(data, fewer, ("lightgbm",), rows_dir=tmp_path / "rows")


def test_a_report_shows_every_model_and_segment(
    data: form.Dataset, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "LEAST", 10)
    source, scored = protocol.evaluate_all(data, plan(data), ("item-ctr", "lightgbm"))
    found = scored["lightgbm"]
    scores = {"calibrated": [found.calibrated[1]], "online": [found.online[1]]}
    lines = by_segment(found.label, found.codes, scores, found.surfaces)
    assert lines[0]["segment"] == "all" and lines[0]["rows"] == len(found.row)
    for kind in {s["kind"] for s in lines} - {"all"}:
        assert sum(s["rows"] for s in lines if s["kind"] == kind) <= len(found.row)
    assert {s["kind"] for s in lines} >= {"all", "user", "item"}
    models = {
        m: {"seeds": 1, "metrics": measuring.measure(source, s), "segments": lines if m == "lightgbm" else []}
        for m, s in scored.items()
    }
    different = [
        {"model": d.model, "than": d.than, "scores": d.scores, **{k: i._asdict() for k, i in d.metrics.items()}}
        for d in measuring.differences(source, scored, draws=20)
    ]
    result = {
        "dataset": "d", "track": "frozen", "rows": len(found.row), "clicks": 1, "models": models, "differences": different,
    }  # fmt: skip
    write_report(tmp_path, result, found.label, {m: s.calibrated[1] for m, s in scored.items()}, "evaluate d")
    text = (tmp_path / "report.md").read_text()
    assert "| lightgbm | 1 | online |" in text and "| item-ctr | 1 | calibrated |" in text and "| user " in text
    assert "| 0.0000) |" not in text and " (0.0000)" not in text  # one seed has no deviation
    assert "What follows a click" not in text  # neither has heads
    models["lightgbm"]["metrics"]["heads"] = {
        "order": {"rows": 1200, "rate": 0.1, "predicted": 0.11, "auc": 0.7, "logloss": 0.3, "ece": 0.02, "ece_noise": 0.01}
    }  # fmt: skip
    text = report.markdown(result, "evaluate d")
    assert "| lightgbm | order | 1,200 | 0.1000 | 0.1100 | 0.7000 | 0.3000 | 0.0200 (0.0100) |" in text
    assert "| lightgbm less item-ctr | calibrated | auc |" in text and "    evaluate d" in text
    assert json.loads((tmp_path / "report.json").read_text())["models"]["lightgbm"]["segments"] == lines
    assert "<title>Reliability" in (tmp_path / "reliability.svg").read_text()
