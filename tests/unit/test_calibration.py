"""Platt with shifts by segment; calibration that follows the stream and never sees a label too early; weights of a stack."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from stream_dmgin.errors import FormatError
from stream_dmgin.features.spec import InputSpec
from stream_dmgin.models.calibration import Calibration, fit_platt, fit_shifts, sigmoid
from stream_dmgin.models.segments import KINDS, segment_codes, segment_name
from stream_dmgin.training.metrics import ece, logloss
from stream_dmgin.training.online import HOUR_MS, NEVER, Answered, OnlineOptions, fit_window, follow
from stream_dmgin.training.report import LEAST, by_segment
from stream_dmgin.training.stack import stack_weights

SPEC = InputSpec(groups=4, events=4, short=4)


def test_shifts_mend_the_segments_that_need_it(tmp_path: Path) -> None:
    r = np.random.default_rng(1)
    z = r.normal(-1, 1, 40_000)
    codes = {"surface": r.integers(0, 4, len(z)), "hour": r.integers(0, 8, len(z))}
    y = (r.random(len(z)) < sigmoid(z + np.array([0.0, 0.5, -0.5, 0.0])[codes["surface"]])).astype(np.int8)
    shifts = fit_shifts(z, y, codes)
    assert [round(shifts["surface"][s], 1) for s in range(4)] == pytest.approx([0, 0.5, -0.5, 0], abs=0.11)
    assert max(abs(x) for x in shifts["hour"].values()) < 0.12
    c = Calibration({"ctr": (1.0, 0.0), "order": (2.0, 0.1)}, shifts)
    assert logloss(y, c.apply("ctr", z, codes)) < logloss(y, c.apply("ctr", z)) - 0.005
    both = c.apply_all({"order": z, "ctr": z}, codes)
    np.testing.assert_array_equal(both["ctr"], c.apply("ctr", z, codes))
    np.testing.assert_array_equal(both["order"], c.apply("order", z, codes))  # shifts are of ctr alone
    beyond = {k: np.full(len(z), 50) for k in codes}
    np.testing.assert_array_equal(c.apply("ctr", z, beyond), c.apply("ctr", z))  # an unknown segment is left as it is
    c.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == c
    (tmp_path / "c.json").write_text('{"platt": {"ctr": [1, 0]}, "shifts": {"weather": {"1": 2}}}')
    with pytest.raises(FormatError, match="not a calibration"):
        Calibration.load(tmp_path / "c.json")


def test_few_rows_move_a_shift_little() -> None:
    z, y = np.zeros(8), np.ones(8, np.int8)
    assert 0 < fit_shifts(z, y, {"item": np.zeros(8, np.int64)})["item"][0] < 0.2


def test_segments_are_read_from_the_inputs() -> None:
    hours = [0.0, 2.9, 3.0, 12.0, 23.9]
    u = np.zeros((5, len(SPEC.user_features)), np.float32)
    names = SPEC.user_features
    u[:, names.index("hour_sin")] = [math.sin(2 * math.pi * h / 24) for h in hours]
    u[:, names.index("hour_cos")] = [math.cos(2 * math.pi * h / 24) for h in hours]
    u[:, names.index("log1p_events")] = np.log1p([0, 9, 10, 99, 100])
    counts = np.array([1, 2, 1, 1, 1])
    c = np.zeros((6, len(SPEC.candidate_features)), np.float32)
    c[:, SPEC.candidate_features.index("item_log1p_impressions_life")] = np.log1p([0, 9, 10, 99, 100, 5000])
    codes = segment_codes(SPEC, c, u, np.array([7, 0, 3, 3, 3]), counts)
    assert set(codes) == set(KINDS)
    assert codes["hour"].tolist() == [0, 0, 0, 1, 4, 7]
    assert codes["user"].tolist() == [0, 0, 0, 1, 1, 2]
    assert codes["item"].tolist() == [0, 0, 1, 1, 2, 2]
    assert codes["surface"].tolist() == [7, 0, 0, 3, 3, 3]
    assert (
        segment_name("hour", 4) == "12-15 UTC"
        and segment_name("item", 0) == "cold"
        and segment_name("surface", 7) == "7"
    )


def stream(n: int = 60_000, days: int = 6) -> tuple[Answered, np.ndarray]:
    """A model whose offset is right at first and drifts by one in the middle; labels are visible a minute later."""
    r = np.random.default_rng(3)
    ts = np.sort(r.integers(0, days * 24 * HOUR_MS, n))
    z = r.normal(-1, 1, n)
    truth = z - (ts > days * 12 * HOUR_MS)
    y = (r.random(n) < sigmoid(truth)).astype(np.int8)
    codes = {k: np.zeros(n, np.int64) for k in KINDS}
    return Answered(ts, z, y, ts + 60_000, codes), truth


def test_calibration_follows_a_drift() -> None:
    rows, _ = stream()
    start, end = 3 * 24 * HOUR_MS, 6 * 24 * HOUR_MS
    p = follow(rows, Calibration(), start, end, OnlineOptions(window_ms=12 * HOUR_MS))
    late = rows.ts >= start + 24 * HOUR_MS
    assert np.isnan(p[rows.ts < start]).all() and np.isfinite(p[rows.ts >= start]).all()
    fixed = sigmoid(rows.logit)
    assert ece(rows.label[late], p[late]) < 0.02 < 0.05 < ece(rows.label[late], fixed[late])


def test_no_label_helps_before_it_is_visible() -> None:
    """Turn around every label that was not yet visible at a moment: no earlier score moves."""
    rows, _ = stream(20_000)
    start, end = 24 * HOUR_MS, 5 * 24 * HOUR_MS
    kinds = OnlineOptions(kinds=KINDS, least=100)
    p = follow(rows, Calibration(), start, end, kinds)
    for at in (start, 2 * start, 2 * start + 5 * HOUR_MS + 1234):
        moved = np.where(rows.visible >= at, 1 - rows.label, rows.label).astype(np.int8)
        q = follow(Answered(rows.ts, rows.logit, moved, rows.visible, rows.codes), Calibration(), start, end, kinds)
        same = (rows.ts >= start) & (rows.ts <= at)
        np.testing.assert_array_equal(p[same], q[same])
    assert not np.array_equal(p[rows.ts >= start], q[rows.ts >= start], equal_nan=True)


def test_too_little_to_go_by_changes_nothing() -> None:
    rows, _ = stream(3000)
    held = Calibration({"ctr": (0.7, 0.2), "order": (1.0, 0.5)})
    never = Answered(rows.ts, rows.logit, rows.label, np.full(len(rows.ts), NEVER), rows.codes)
    assert fit_window(never, 10**12, held, OnlineOptions()) is held
    one_class = Answered(rows.ts, rows.logit, np.zeros_like(rows.label), rows.visible, rows.codes)
    assert fit_window(one_class, rows.ts[-1], held, OnlineOptions(least=10)) is held
    found = fit_window(rows, int(rows.ts[-1]), held, OnlineOptions(least=10))
    assert found.platt["order"] == (1.0, 0.5) and found.platt["ctr"] != (0.7, 0.2)


def test_weights_of_a_stack() -> None:
    r = np.random.default_rng(0)
    truth = r.normal(0, 1.5, 20_000)
    y = (r.random(len(truth)) < sigmoid(truth)).astype(np.int8)
    a, b = truth + r.normal(0, 1, len(truth)), truth + r.normal(0, 1, len(truth))
    noise = r.normal(0, 1, len(truth))
    found = stack_weights(np.stack([a, b, -truth], 1), y)
    assert found[2] == 0 and found[0] == pytest.approx(found[1], abs=0.05) and found[0] > 0.2
    alone = stack_weights(np.stack([truth, noise], 1), y)
    assert alone[0] == pytest.approx(1.0, abs=0.1) and alone[1] < 0.05
    few = stack_weights(np.stack([a[:40], b[:40]], 1), y[:40])  # too few rows to choose by: nearly equal shares
    assert few == pytest.approx([0.5, 0.5], abs=0.2)
    slope, offset = fit_platt(np.stack([a, b], 1) @ found[:2], y)
    assert slope == pytest.approx(1.0, abs=0.05) and abs(offset) < 0.1


def test_a_segment_is_measured_on_its_own_rows() -> None:
    r = np.random.default_rng(2)
    surface = np.repeat([1, 2, 3], [4000, 2000, LEAST - 1])
    r.shuffle(surface)
    p = r.uniform(0.1, 0.4, len(surface))
    y = (r.random(len(p)) < np.where(surface == 2, p / 2, p)).astype(
        np.int8
    )  # told twice as often as it is on surface 2
    found = {
        s["segment"]: s for s in by_segment(y, {"surface": surface}, {"calibrated": [p, p]}, {1: "feed", 2: "map"})
    }
    assert list(found) == ["all", "feed", "map"]  # too few rows on surface 3
    for name, code in (("feed", 1), ("map", 2)):
        mine, s = surface == code, found[name]
        assert s["rows"] == mine.sum() and s["rate"] == pytest.approx(y[mine].mean())
        assert s["calibrated"]["predicted"] == pytest.approx(p[mine].mean())
        assert s["calibrated"]["ece"] == pytest.approx(ece(y[mine], p[mine]))
        assert s["calibrated"]["logloss"] == pytest.approx(logloss(y[mine], p[mine]))
    assert found["feed"]["calibrated"]["ece"] < 0.03 < 0.09 < found["map"]["calibrated"]["ece"]
    assert found["map"]["calibrated"]["ece_high"] < 0.05  # no noise
