"""What follows a click: labels that are missing, late or never reported teach nothing wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from stream_dmgin.datasets import form
from stream_dmgin.datasets.form import DAY_MS
from stream_dmgin.errors import InputError
from stream_dmgin.models.calibration import sigmoid
from stream_dmgin.simulator.parquet import write_history
from stream_dmgin.simulator.world import Plan
from stream_dmgin.training import objective
from stream_dmgin.training.heads import as_of, fit_late, head_measures, rows_as_of
from stream_dmgin.training.options import Options
from stream_dmgin.training.rows import TrainingRows
from tests.unit.test_training import CONFIG, OPTIONS, SPEC, loop, make

DAYS = 20


def clicks(n: int = 60_000, rate: float = 0.2, mean_days: float = 2.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ts, order or not in the end, when an order is reported) of clicks over DAYS days."""
    r = np.random.default_rng(3)
    ts = np.sort(r.integers(0, DAYS * DAY_MS, n))
    ordered = (r.random(n) < rate).astype(np.int8)
    return ts, ordered, ts + (r.exponential(mean_days, n) * DAY_MS).astype(np.int64)


def test_late_orders_are_waited_for_in_the_mean() -> None:
    ts, ordered, when = clicks()
    cutoff = DAYS * DAY_MS
    naive = as_of(ordered, ts, when, cutoff)
    fair = as_of(ordered, ts, when, cutoff, delay_days=8.0)
    assert (naive.label == fair.label).all() and naive.label.mean() < 0.185 and (naive.seen == 1).all()
    new = ts > cutoff - DAY_MS
    assert naive.label[new].mean() < 0.07 and fair.seen[ts < cutoff - 10 * DAY_MS].min() > 0.99
    z = np.full(len(ts), -1.0, np.float32)
    assert sigmoid(np.array(np.dot(fit_late(z[:1].repeat(len(z)), fair.label, fair.seen), (-1, 1)))) == pytest.approx(
        0.2, abs=0.006
    )
    assert (as_of(ordered, ts, when, cutoff // 2).label[ts >= cutoff // 2] == ordered[ts >= cutoff // 2]).all()


def test_the_loss_of_a_late_label_has_its_minimum_at_the_truth() -> None:
    ts, ordered, when = clicks()
    known = as_of(ordered, ts, when, DAYS * DAY_MS, delay_days=8.0)
    y, seen = torch.from_numpy(known.label.astype(np.float32)), torch.from_numpy(known.seen)
    z = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([z], max_iter=50)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = objective.late(z.expand(len(y)), y, seen).mean()
        total.backward()
        return total

    optimizer.step(loss)
    assert float(torch.sigmoid(z.detach())) == pytest.approx(0.2, abs=0.006)
    flat = torch.linspace(-8, 8, 9)
    for label in (0.0, 1.0):  # with nothing late it is the cross-entropy
        torch.testing.assert_close(
            objective.late(flat, torch.full((9,), label), torch.ones(9)),
            torch.nn.functional.binary_cross_entropy_with_logits(flat, torch.full((9,), label), reduction="none"),
        )
    assert torch.isfinite(objective.late(torch.tensor([-60.0, 60.0]), torch.zeros(2), torch.tensor([0.01, 0.01]))).all()


def test_an_advertiser_that_never_reports_teaches_no_zero() -> None:
    r = np.random.default_rng(5)
    who = r.integers(-1, 20, 20_000)
    label = (r.random(20_000) < 0.2).astype(np.int8)
    label[who == 7] = 0  # reports nothing
    few = np.flatnonzero(who == 9)
    label[few] = 0
    label[few[5:]] = -1  # five clicks without an order are no evidence
    known = as_of(label, np.zeros(20_000, np.int64), np.zeros(20_000, np.int64), 1, who)
    assert known.silent == 1 and (known.label[who == 7] == -1).all()
    assert (known.label[who != 7] == label[who != 7]).all()
    assert as_of(label, np.zeros(20_000, np.int64), np.zeros(20_000, np.int64), 1).silent == 0


def test_training_with_masked_and_late_labels() -> None:
    rows, _ = make(blocks=30, users=60)
    n = len(rows)
    part = np.repeat(rows["r_ts"], rows["r_rows"])
    late = part + 3 * 1000
    table = pa.table({
        "request_id": [str(i) for i in range(n)], "user_id": ["u"] * n, "item_id": [f"i{i % 4}" for i in range(n)], "ts": part,
        "label": rows.labels(), "label_order_at": pa.array(late, mask=rows.labels("order") != 1),
    })  # fmt: skip
    items = form.table(form.ITEMS, {"item_id": [f"i{i}" for i in range(4)], "advertiser": ["a", "a", "b", None]})
    data = form.Dataset(form.table(form.EVENTS, {k: [] for k in form.EVENTS}), table, items, form.Meta("t", 0))
    options = replace(OPTIONS, epochs=1, reported=("order",), delay_days=1e-5)
    known = rows_as_of(rows, data, 0, 20_000, options)
    y, then = rows.labels("order"), known.labels("order")
    gone = (late >= 20_000) & (part < 20_000) & (y == 1)
    assert gone.any() and (then[gone] == 0).all() and (then[~gone] == y[~gone]).all()
    assert (known.labels() == rows.labels()).all() and known["seen"].min() < 1
    fitted = loop.train(CONFIG, known, known.between(0, 20_000), known, known.between(20_000, 30_000), options)
    test = rows.between(20_000, 30_000)
    found = head_measures(loop.predict(fitted.network, rows, test), fitted.calibration, rows, test, True)
    assert set(found) == {"ctr", "order"} and 0 < found["order"]["predicted"] <= 1
    assert (
        rows_as_of(
            rows, data.__class__(data.events, table.drop_columns(["label_order_at"]), items, data.meta), 0, 9, OPTIONS
        )
        is rows
    )
    with pytest.raises(InputError, match=r"training.reported names cart: the log has the heads order"):
        rows_as_of(rows, data, 0, 9, replace(options, reported=("cart",)))


def test_orders_of_the_city_come_late_where_they_are_asked_to(tmp_path: Path) -> None:
    plan = Plan(users=60, items=60, seed=3, life=(100, 400), days=40)
    for name, p in (("now", plan), ("late", replace(plan, order_delay_days=3.0))):
        write_history(p, tmp_path / name)
    now, late = (form.read(tmp_path / n) for n in ("now", "late"))
    assert "label_order_at" not in now.rows.column_names
    at = late.rows["label_order_at"]
    ordered = late.rows["label_order"].fill_null(0).to_numpy() == 1
    assert (at.is_valid().to_numpy() == ordered).all() and ordered.sum() > 50
    assert late.rows["label_order"].equals(now.rows["label_order"])
    days = (at.drop_null().to_numpy() - late.rows["ts"].to_numpy()[ordered]) / DAY_MS
    assert 2.0 < days.mean() < 4.0
    orders = late.events.filter(late.events["type"].to_numpy(zero_copy_only=False) == "order")
    assert sorted(orders["visible_at"].to_pylist()) == sorted(at.drop_null().to_pylist())


def test_unknown_labels_everywhere_leave_a_head_as_it_was() -> None:
    rows, kept = TrainingRows(SPEC, ("order",)), make(blocks=6)[1]
    for i, x in enumerate(kept):
        y = (x["c_dense"][..., 0] > 0).astype(np.int8)
        rows.append(x, y, np.full(len(y), i), np.arange(len(y)))
    fitted = loop.train(CONFIG, rows, rows.between(0, 4), rows, rows.between(4, 6), replace(OPTIONS, epochs=1))
    assert fitted.calibration.platt["order"] == (1.0, 0.0)
    assert Options().heads > 0 and all(torch.isfinite(p).all() for p in fitted.network.parameters())
