"""Training rows and the loop: nothing lost on the way, the same again by seed, resumed as if never stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from stream_dmgin.errors import InputError, StreamDmginError
from stream_dmgin.features.spec import InputSpec
from stream_dmgin.models import ragged
from stream_dmgin.models.calibration import sigmoid
from stream_dmgin.models.dmgin import DMGIN
from stream_dmgin.models.trunk import DMGINConfig
from stream_dmgin.scoring.graphs import example_inputs
from stream_dmgin.training import loop, objective
from stream_dmgin.training.curve import plot, write_curve
from stream_dmgin.training.further import further, with_older
from stream_dmgin.training.items import ItemStart
from stream_dmgin.training.metrics import auc, ece, logloss
from stream_dmgin.training.options import RefitOptions
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
    filled: tuple[TrainingRows, list[dict[str, np.ndarray]]], tmp_path: Path
) -> None:
    rows, _ = filled
    learn, judge = rows.between(0, 7000), rows.between(7000, 10000)
    taken: list[int] = []
    whole = loop.train(CONFIG, rows, learn, rows, judge, OPTIONS, progress=lambda done, steps: taken.append(done))
    path, epoch = tmp_path / "c.pt", taken[-1] // 2

    class Stop(Exception):
        pass

    def stop_at(step: int) -> Callable[[int, int], None]:
        def stop(done: int, steps: int) -> None:
            if done == step:
                raise Stop

        return stop

    for step in (epoch - 1, epoch + 1, taken[-1] - 1):  # in the first epoch, right after it, and in the second
        with pytest.raises(Stop):
            loop.train(CONFIG, rows, learn, rows, judge, OPTIONS, path, checkpoint_steps=2, progress=stop_at(step))
    resumed = loop.train(CONFIG, rows, learn, rows, judge, OPTIONS, path, checkpoint_steps=2)
    assert [replace(p, seconds=0) for p in resumed.curve] == [replace(p, seconds=0) for p in whole.curve]
    for name, wanted in whole.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], wanted), name
    for change in ({"options": replace(OPTIONS, lr=1e-2)}, {"config": replace(CONFIG, width=8)}, {"learn": learn[1:]}):
        c = {"config": CONFIG, "learn": learn, "options": OPTIONS} | change
        with pytest.raises(InputError, match=r"was written with other (options|config|requests): give the same"):
            loop.train(c["config"], rows, c["learn"], rows, judge, c["options"], path)


def test_training_ends_where_it_gains_no_more_and_keeps_its_best(
    filled: tuple[TrainingRows, list[dict[str, np.ndarray]]],
) -> None:
    rows, _ = filled
    learn, judge = rows.between(0, 3000), rows.between(7000, 10000)  # few to learn from: soon learnt by heart
    options = replace(OPTIONS, epochs=30, lr=2e-2, average=0.0, patience=2, decay=0.0, table_decay=0.0)
    fitted = loop.train(CONFIG, rows, learn, rows, judge, options)
    found = [p.valid_logloss for p in fitted.curve]
    best = int(np.argmin(found))
    assert len(found) == best + 1 + options.patience < options.epochs  # two validations without a gain
    take = rows.rows_of(judge)
    z = loop.predict(fitted.network, rows, judge)["ctr"][take]
    assert logloss(rows.labels()[take], sigmoid(z)) == pytest.approx(found[best], abs=1e-6) and found[-1] > found[best]


def test_a_damaged_checkpoint_is_refused(
    filled: tuple[TrainingRows, list[dict[str, np.ndarray]]], tmp_path: Path
) -> None:
    rows, _ = filled
    learn, judge = rows.between(0, 7000), rows.between(7000, 10000)
    path, options = tmp_path / "c.pt", replace(OPTIONS, epochs=1)
    loop.train(CONFIG, rows, learn, rows, judge, options, path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[:-100], bytes(flipped), b"", b"no checkpoint at all"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"is damaged.*delete it to start anew"):
            loop.train(CONFIG, rows, learn, rows, judge, options, path)
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]  # no halves are left


def test_the_order_inside_a_list_is_learned_beside_the_click() -> None:
    spec = replace(SPEC, groups=2, events=2, short=2)
    rows, r = TrainingRows(spec, ()), np.random.default_rng(4)
    for i in range(20):
        x = example_inputs(spec, 60, 6, seed=i)
        x["c_mask"] = np.arange(6) < r.integers(2, 7, 60)[:, None]
        z = np.where(x["c_mask"], 2.0 * x["c_dense"][..., 0], -np.inf)
        one = (z + r.gumbel(size=z.shape)).argmax(1)  # one click a list
        rows.append(x, (np.arange(6) == one[:, None]).astype(np.int8), np.full(60, i * 1000), np.arange(60) + 60 * i)
    learn, judge = rows.between(0, 14000), rows.between(14000, 20000)
    config, options = replace(CONFIG, spec=spec, heads=()), replace(OPTIONS, epochs=4, order=0.0, lr=5e-3)
    fitted = loop.train(config, rows, learn, rows, judge, replace(options, lists=1.0))
    assert fitted.network.config == config and fitted.list_weight >= 0  # one output again
    p = fitted.calibration.apply("ctr", fitted.logits(rows, judge))
    assert logloss(rows.labels()[rows.rows_of(judge)], p) == pytest.approx(fitted.best.valid_logloss, abs=2e-3)
    assert fitted.best.valid_auc > 0.7
    single = TrainingRows(spec, ())  # lists of one have no order: no second output
    single.append(
        {**x, "c_mask": np.arange(6) < np.ones((60, 1))}, np.tile([[1], [0]], (30, 6)), np.zeros(60), np.zeros(60)
    )
    some = np.arange(60)
    assert loop.train(config, single, some, single, some, replace(options, epochs=1, lists=1.0)).list_weight == 0


def test_the_weight_of_the_second_output_is_the_one_that_serves_best() -> None:
    r = np.random.default_rng(1)
    a, b = r.normal(size=(2, 20_000))
    y = (r.random(20_000) < sigmoid(0.8 * (a + 0.6 * b) - 1)).astype(np.int8)
    assert objective.list_weight(a, b, y) == pytest.approx(0.6, abs=0.06)
    assert objective.list_weight(a, -b, y) == 0.0 and objective.list_weight(a, b, np.zeros(20_000, np.int8)) == 0.0


def test_blending_two_outputs_is_one_output_of_their_sum() -> None:
    torch.manual_seed(1)
    network = DMGIN(objective.with_lists(CONFIG)).eval()
    for p in network.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.2)
    x = {k: torch.from_numpy(v) for k, v in example_inputs(SPEC, 4, 3).items()}
    with torch.inference_mode():
        both = network(x)
        one = objective.blended(network, 0.7, DMGIN).eval()(x)
    torch.testing.assert_close(one["ctr"], both["ctr"] + 0.7 * both[objective.LISTS], rtol=0, atol=1e-5)
    torch.testing.assert_close(one["order"], both["order"], rtol=0, atol=1e-6)
    assert objective.LISTS not in one


def test_inputs_that_are_no_numbers_are_refused() -> None:
    x = example_inputs(SPEC, 3, 2)
    x["c_dense"][1, 0, 2] = np.nan
    labels = (np.zeros((3, 2), np.int8), np.arange(3), np.arange(3))
    with pytest.raises(InputError, match=f"input {SPEC.candidate_features[2]} is not finite"):
        TrainingRows(SPEC).append(x, *labels)
    x["c_mask"][1] = False  # padding may be anything
    TrainingRows(SPEC).append(x, *labels)


def test_a_run_that_diverges_says_so(filled: tuple[TrainingRows, list[dict[str, np.ndarray]]]) -> None:
    rows, _ = filled
    learn, judge = rows.between(0, 7000), rows.between(7000, 10000)
    with pytest.raises(StreamDmginError, match="the loss is no number any more at step"):
        loop.train(CONFIG, rows, learn, rows, judge, replace(OPTIONS, lr=1e30, epochs=4))


def test_the_curve_as_table_and_picture(tmp_path: Path) -> None:
    points = [loop.Point(i, i / 2, 0.5 / i if i > 1 else float("nan"), 0.6 / i, 0.7, 1.0) for i in range(1, 5)]
    write_curve(tmp_path / "curve.csv", points)
    assert len((tmp_path / "curve.csv").read_text().splitlines()) == 5
    svg = ElementTree.parse(tmp_path / "curve.svg").getroot()
    assert len(svg.findall("{http://www.w3.org/2000/svg}polyline")) == 2
    assert "nan" not in (tmp_path / "curve.svg").read_text()
    for few in ([], points[:1]):
        ElementTree.fromstring(plot(few))


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


@pytest.mark.parametrize("lists", [0.0, 0.5])
def test_a_network_goes_on_from_where_it_is(lists: float) -> None:
    rows, _ = make(blocks=30, users=80)
    early, middle, late = rows.between(0, 10_000), rows.between(10_000, 15_000), rows.between(15_000, 30_000)
    options = replace(OPTIONS, lists=lists, lr=5e-3)
    before = loop.train(CONFIG, rows, early, rows, middle, options)
    known, test = np.concatenate([early, middle]), rows.between(26_000, 30_000)
    y = rows.labels()[rows.rows_of(test)]

    def loss(model: loop.Fitted) -> float:
        return logloss(y, model.calibration.apply("ctr", model.logits(rows, test)))

    nothing = further(before, rows, known, known, options, RefitOptions())
    assert nothing is before
    # steps of no length: the calibrated scores stay what they were, also through the two outputs
    still = further(before, rows, np.concatenate([known, late]), known, options, RefitOptions(lr=1e-9))
    np.testing.assert_allclose(still.logits(rows, test), before.logits(rows, test), rtol=0, atol=2e-3)
    some = rows.between(15_000, 26_000)
    refit = RefitOptions(lr=3e-3, old=0.5)
    after = further(before, rows, np.concatenate([known, some]), known, options, refit)
    assert loss(after) < loss(before) and after.calibration == before.calibration
    again = further(before, rows, np.concatenate([known, some]), known, options, refit)
    np.testing.assert_array_equal(again.logits(rows, test), after.logits(rows, test))


def test_what_is_shown_again_is_drawn_by_lot() -> None:
    new, known = np.arange(100, 120), np.arange(100)
    some = with_older(new, known, 1.5, seed=1)
    assert len(some) == 50 and (np.diff(some) > 0).all() and set(new) <= set(some)
    np.testing.assert_array_equal(with_older(new, known, 1.5, seed=1), some)
    np.testing.assert_array_equal(with_older(new, known, 0.0, seed=1), new)
    assert len(with_older(new, known, 9.0, seed=1)) == 120
    with pytest.raises(ValueError, match="old is 0 or more"):
        RefitOptions(old=-1)


def test_a_run_may_begin_with_the_weights_of_another() -> None:
    rows, _ = make(blocks=20, users=80)
    learn, judge = rows.between(0, 14_000), rows.between(14_000, 20_000)
    first = loop.train(CONFIG, rows, learn, rows, judge, OPTIONS)
    options = replace(OPTIONS, epochs=1, lr=1e-9)
    second = loop.train(CONFIG, rows, learn, rows, judge, options, start=first.network)
    assert second.best.valid_logloss == pytest.approx(first.best.valid_logloss, abs=1e-4)


def test_items_that_training_never_met_are_the_unknown_item() -> None:
    """A new item falls on a row of the table that no step has touched: it says what the unknown item says, and no noise."""
    rows, _ = make(blocks=10, users=80)
    for name in ("c_item", "e_item", "s_item"):
        rows[name][:, 0] %= 40  # rows 40 to 63 of the table are of items to come
    learn, judge = rows.between(0, 7_000), rows.between(7_000, 10_000)
    met = np.unique(np.concatenate([rows[n][:, 0] for n in ("c_item", "e_item", "s_item")]))
    assert len(met) == 40
    table = loop.train(CONFIG, rows, learn, rows, judge, OPTIONS).network.item.weight.detach().numpy()
    assert (table[40:] == table[0]).all() and len(np.unique(table[:40], axis=0)) == 40
    begun = ItemStart(np.array([41, 50]), np.ones((2, CONFIG.item_width), np.float32))
    table = loop.train(CONFIG, rows, learn, rows, judge, OPTIONS, items=begun).network.item.weight.detach().numpy()
    np.testing.assert_array_equal((table[40:] == table[0]).all(1), ~np.isin(np.arange(40, 64), [41, 50]))
    first = loop.train(CONFIG, rows, learn, rows, judge, OPTIONS)
    rows["c_item"][:, 0] %= 20
    rows["e_item"][:, 0] %= 20
    rows["s_item"][:, 0] %= 20
    again = loop.train(CONFIG, rows, learn, rows, judge, replace(OPTIONS, epochs=1), start=first.network).network
    was, now = first.network.item.weight.detach().numpy(), again.item.weight.detach().numpy()
    assert (now[40:] == now[0]).all() and not (
        now[0] == was[0]
    ).all()  # the unknown item goes on, and what it stands for with it
    assert (
        not (now[20:40] == now[0]).all(1).any() and np.abs(now[20:40] - was[20:40]).max() < 0.1
    )  # what was learnt once stays


def test_where_item_ids_are_hidden_all_items_are_the_unknown_one_in_refits_too() -> None:
    rows, _ = make(blocks=10, users=80)
    learn, judge = rows.between(0, 6_000), rows.between(6_000, 8_000)
    before = loop.train(replace(CONFIG, hash_dropout=1.0), rows, learn, rows, judge, OPTIONS)
    after = further(before, rows, rows.between(0, 10_000), learn, OPTIONS, RefitOptions(lr=1e-2))
    was, now = (f.network.item.weight.detach().numpy() for f in (before, after))
    assert (was == was[0]).all() and (now == now[0]).all() and not (now[0] == was[0]).all()
