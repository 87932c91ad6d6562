"""Training rows and the loop: nothing lost on the way, the same again by seed, resumed as if never stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stream_dmgin.errors import InputError
from stream_dmgin.features.spec import InputSpec
from stream_dmgin.models import ragged
from stream_dmgin.models.calibration import sigmoid
from stream_dmgin.models.dmgin import DMGIN
from stream_dmgin.models.trunk import DMGINConfig
from stream_dmgin.scoring.graphs import example_inputs
from stream_dmgin.training import loop
from stream_dmgin.training.metrics import auc, ece
from stream_dmgin.training.rows import TrainingRows

SPEC = InputSpec(
    groups=8, events=5, short=6, item_buckets=64, category_buckets=16, advertiser_buckets=16, surface_buckets=4
)
CONFIG = DMGINConfig(spec=SPEC, heads=("order",), width=16, item_width=8, hidden=(32, 16))
OPTIONS = loop.Options(epochs=2, batch=256, average=0.9, checks=1, lr=3e-3)


def make(blocks: int = 10, users: int = 40, candidates: int = 5) -> tuple[TrainingRows, list[dict[str, np.ndarray]]]:
    rows, kept = TrainingRows(SPEC, ("order",)), []
    r = np.random.default_rng(1)
    for i in range(blocks):
        x = example_inputs(SPEC, users, candidates if i % 2 else 1, seed=i)
        x["c_mask"] = np.arange(x["c_id"].shape[1]) < r.integers(1, 6, users)[:, None]
        z = 1.5 * x["c_dense"][..., 0] + x["u_dense"][:, None, 3] + np.where(x["c_group"] < SPEC.groups, 1.0, 0.0) - 1.0
        y = (r.random(z.shape) < sigmoid(z)).astype(np.int8)
        rows.append(x, y, np.full(users, i * 1000), np.arange(users) + i * users, {"order": np.where(y == 1, y, -1)})
        kept.append(x)
    return rows, kept


@pytest.fixture(scope="module")
def filled() -> tuple[TrainingRows, list[dict[str, np.ndarray]]]:
    return make()


def test_rows_hold_what_the_network_needs(filled: tuple[TrainingRows, list[dict[str, np.ndarray]]]) -> None:
    rows, kept = filled
    torch.manual_seed(0)
    model = DMGIN(CONFIG)
    loop.prepare(model, rows, np.arange(rows.requests))
    model.eval()
    for p in model.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.2)
    found, at = loop.predict(model, rows, batch=100), 0
    with torch.inference_mode():
        for x in kept:
            wanted = model({k: torch.from_numpy(v) for k, v in x.items()})
            n = int(x["c_mask"].sum())
            for head in ("ctr", "order"):  # statistics are kept in 16 bits
                np.testing.assert_allclose(
                    found[head][at : at + n], wanted[head].numpy()[x["c_mask"]], rtol=0, atol=5e-3
                )
            at += n
    assert at == len(rows) and set(np.unique(rows.labels("order"))) == {-1, 1}


def test_every_row_comes_once_a_pass(filled: tuple[TrainingRows, list[dict[str, np.ndarray]]]) -> None:
    rows, _ = filled
    some = rows.between(2000, 9000)
    for generator in (None, np.random.default_rng(0)):
        seen = np.concatenate([b.rows[b.rows >= 0].numpy() for b in rows.batches(64, some, generator)])
        assert sorted(seen) == sorted(rows.rows_of(some))
    for batch in rows.batches(64):
        real = batch.rows >= 0
        assert (batch.labels["ctr"][~real] == -1).all()
        np.testing.assert_array_equal(batch.labels["ctr"][real], rows.labels()[batch.rows[real]])
    assert len(rows.keys()) == len(rows) and not list(rows.batches(64, some[:0]))


def test_rows_survive_the_disk(filled: tuple[TrainingRows, list[dict[str, np.ndarray]]], tmp_path: Path) -> None:
    rows, _ = filled
    rows.save(tmp_path / "rows")
    again = TrainingRows.load(tmp_path / "rows", SPEC)
    for name in rows.columns:
        np.testing.assert_array_equal(again[name], rows[name])
    with pytest.raises(InputError, match="other inputs"):
        TrainingRows.load(tmp_path / "rows", InputSpec())
    with pytest.raises(InputError, match="not a training set"):
        TrainingRows.load(tmp_path)


def test_training_learns_and_calibrates_and_repeats_itself() -> None:
    rows, _ = make(blocks=40, users=80)
    learn, judge = rows.between(0, 28000), rows.between(28000, 40000)
    options = replace(OPTIONS, epochs=4, lr=5e-3)
    seen: list[loop.Point] = []
    fitted = loop.train(CONFIG, rows, learn, rows, judge, options, report=seen.append)
    assert fitted.curve == seen and fitted.best.valid_logloss == min(p.valid_logloss for p in seen)
    take = rows.rows_of(judge)
    z, y = loop.predict(fitted.network, rows, judge)["ctr"][take], rows.labels()[take]
    assert auc(y, z) > 0.75 and auc(y, z) == pytest.approx(fitted.best.valid_auc)
    assert ece(y, fitted.calibration.apply("ctr", z)) < 0.12
    again = loop.train(CONFIG, rows, learn, rows, judge, options)
    np.testing.assert_array_equal(
        loop.predict(again.network, rows, judge)["ctr"], loop.predict(fitted.network, rows, judge)["ctr"]
    )
    other = loop.train(CONFIG, rows, learn, rows, judge, replace(options, seed=2, epochs=1))
    assert other.best.valid_logloss != fitted.best.valid_logloss


def test_a_resumed_run_ends_where_the_whole_one_does(
    filled: tuple[TrainingRows, list[dict[str, np.ndarray]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, _ = filled
    learn, judge = rows.between(0, 7000), rows.between(7000, 10000)
    whole = loop.train(CONFIG, rows, learn, rows, judge, OPTIONS)

    class Stop(Exception):
        pass

    def stop(point: loop.Point) -> None:
        if point.epoch > 1.0:
            raise Stop

    with pytest.raises(Stop):
        loop.train(CONFIG, rows, learn, rows, judge, OPTIONS, tmp_path / "c.pt", stop)
    resumed = loop.train(CONFIG, rows, learn, rows, judge, OPTIONS, tmp_path / "c.pt")
    assert [p.valid_logloss for p in resumed.curve] == [p.valid_logloss for p in whole.curve]
    with pytest.raises(InputError, match="other options"):
        loop.train(CONFIG, rows, learn, rows, judge, replace(OPTIONS, lr=1e-2), tmp_path / "c.pt")


def test_missing_labels_count_nowhere() -> None:
    z = {"ctr": torch.zeros(2, 3), "order": torch.full((2, 3), 9.0)}
    y = {"ctr": torch.tensor([[1.0, 0.0, -1.0], [0.0, -1.0, -1.0]]), "order": torch.full((2, 3), -1.0)}
    total, pointwise = loop.losses(z, y, replace(OPTIONS, order=0.0))
    assert float(total) == pytest.approx(np.log(2)) and float(pointwise) == pytest.approx(np.log(2))
    ordered, _ = loop.losses(z, y, replace(OPTIONS, order=1.0))
    assert float(ordered) == pytest.approx(np.log(2) + np.log(2) / 3)  # one list of two, over three rows


def test_days_without_both_labels_are_refused(filled: tuple[TrainingRows, list[dict[str, np.ndarray]]]) -> None:
    rows, _ = filled
    with pytest.raises(InputError, match="training days"):
        loop.train(CONFIG, rows, rows.between(0, 0), rows, rows.between(0, 5000), OPTIONS)


def test_empty_histories_train() -> None:
    rows = TrainingRows(SPEC, ())
    x = example_inputs(SPEC, 64, 1)
    for k in ("g_mask", "e_mask", "s_mask"):
        x[k][:] = False
    x["c_group"][:] = SPEC.groups
    rows.append(x, (x["c_dense"][..., 0] > 0).astype(np.int8), np.arange(64), np.arange(64))
    config = replace(CONFIG, heads=())
    fitted = loop.train(config, rows, np.arange(64), rows, np.arange(64), replace(OPTIONS, epochs=1))
    assert all(torch.isfinite(p).all() for p in fitted.network.parameters())
    with torch.inference_mode():
        for batch in rows.batches(64):
            assert torch.isfinite(ragged.forward(fitted.network, batch.inputs)["ctr"]).all()
