"""The network: its shapes, what must not matter, what must."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from stream_dmgin.features.spec import InputSpec
from stream_dmgin.models import ragged
from stream_dmgin.models.dmgin import DMGIN
from stream_dmgin.models.trunk import Dense, DMGINConfig, tents
from stream_dmgin.scoring.graphs import example_inputs

SPEC = InputSpec(
    groups=12, events=6, short=8, item_buckets=64, category_buckets=16, advertiser_buckets=16, surface_buckets=4
)
CONFIG = DMGINConfig(spec=SPEC, heads=("order",), width=16, item_width=8, hidden=(32, 16))


@pytest.fixture(scope="module")
def model() -> DMGIN:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = DMGIN(CONFIG).eval().requires_grad_(False)
    for p in made.parameters():  # what starts at zero would hide what it multiplies
        if not p.any():
            torch.nn.init.normal_(p, std=0.2)
    return made


def tensors(x: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(v) for k, v in x.items()}


def test_logits_per_head_and_candidate(model: DMGIN) -> None:
    found = model(tensors(example_inputs(SPEC, 5, 7)))
    assert list(found) == ["ctr", "order"]
    assert all(z.shape == (5, 7) and torch.isfinite(z).all() for z in found.values())
    assert found["ctr"].std() > 0.01


def test_an_empty_history_gives_numbers_and_nothing_of_its_padding(model: DMGIN) -> None:
    x = example_inputs(SPEC, 2, 4)
    for k in ("g_mask", "e_mask", "s_mask"):
        x[k][:] = False
    x["c_group"][:] = SPEC.groups
    first = model(tensors(x))["ctr"]
    assert torch.isfinite(first).all()
    other = example_inputs(SPEC, 2, 4, seed=9)
    for k in ("e_item", "e_cls", "e_time", "e_dwell", "e_hour", "s_item", "s_cls", "g_stat", "g_time", "e_id"):
        x[k] = other[k]
    torch.testing.assert_close(model(tensors(x))["ctr"], first, rtol=0, atol=1e-6)


def test_padded_groups_and_events_do_not_count(model: DMGIN) -> None:
    x = example_inputs(SPEC, 4, 5)
    before = model(tensors(x))["ctr"]
    for k in ("e_item", "e_cls", "e_time", "e_dwell", "e_hour"):
        x[k] = np.where(x["e_mask"][..., None] if x[k].ndim == 4 else x["e_mask"], x[k], 1).astype(np.int32)
    for k in ("g_time", "g_age"):
        x[k] = np.where(x["g_mask"], x[k], 3.0).astype(np.float32)
    torch.testing.assert_close(model(tensors(x))["ctr"], before, rtol=0, atol=1e-6)


def test_ragged_tower_equals_the_padded_one(model: DMGIN) -> None:
    for seed in range(4):
        x = example_inputs(SPEC, 6, 5, seed)
        t = ragged.user_tower(model, x)
        g = t.groups.shape[1]
        cut = tensors({**x, "g_age": x["g_age"][:, :g], "g_size": x["g_size"][:, :g]})
        wanted, found = model(tensors(x)), model.head(t, cut)
        for head in wanted:
            torch.testing.assert_close(found[head], wanted[head], rtol=0, atol=2e-6)


def test_one_group_can_be_encoded_by_itself(model: DMGIN) -> None:
    x = tensors(example_inputs(SPEC, 3, 2))
    rows = {k: v.flatten(0, 1) for k, v in x.items() if k.startswith("e_") or k == "g_stat"}
    every, _ = model.encode_groups(rows)
    one, _ = model.encode_groups({k: v[17:18] for k, v in rows.items()})
    torch.testing.assert_close(one[0], every[17], rtol=0, atol=1e-6)


def test_candidates_do_not_see_one_another(model: DMGIN) -> None:
    x = example_inputs(SPEC, 3, 6)
    whole = model(tensors(x))["ctr"]
    one = {k: v[:, 2:3] if k.startswith("c_") else v for k, v in x.items()}
    torch.testing.assert_close(model(tensors(one))["ctr"][:, 0], whole[:, 2], rtol=0, atol=2e-6)


def test_history_counters_group_and_same_item_all_count(model: DMGIN) -> None:
    x = example_inputs(SPEC, 4, 6, seed=3)
    x["c_group"][3], x["e_mask"][3, 0] = 0, True
    x["g_mask"][3, 0] = True
    base = model(tensors(x))["ctr"]
    changes = {
        "same item": {"c_id": np.broadcast_to(x["e_id"][:, :1, 0], x["c_id"].shape).copy()},
        "own group": {"c_group": np.full_like(x["c_group"], SPEC.groups)},
        "counters": {"c_dense": x["c_dense"] + 1},
        "user": {"u_dense": x["u_dense"] + 1},
        "size": {"g_size": x["g_size"] * np.linspace(0, 2, SPEC.groups, dtype=np.float32)},
        "age": {"g_age": x["g_age"][:, ::-1].copy()},
        "evolution": {"g_time": x["g_time"] * 0.1},
        "statistics": {"g_stat": x["g_stat"] + 1},
        "short": {"s_item": x["s_item"][:, ::-1].copy()},
    }
    for name, change in changes.items():
        assert (model(tensors({**x, **change}))["ctr"] - base).abs().max() > 1e-6, name


def test_no_heads_one_layer() -> None:
    config = replace(CONFIG, heads=(), layers=1, bins=0)
    assert list(DMGIN(config).eval()(tensors(example_inputs(SPEC, 2, 3)))) == ["ctr"]


def test_training_looks_the_time_bias_up_as_serving_does(model: DMGIN) -> None:
    x = tensors(example_inputs(SPEC, 3, 2))
    groups = torch.randn(3, SPEC.groups, CONFIG.width)
    plain = DMGIN(replace(CONFIG, dropout=0.0, hash_dropout=0.0))
    plain.load_state_dict(model.state_dict())
    served = plain.eval().evolve(groups, x["g_time"], x["g_mask"])
    trained = plain.train().evolve(groups, x["g_time"], x["g_mask"])
    torch.testing.assert_close(trained, served, rtol=0, atol=1e-6)


def test_tents_are_a_partition_of_one() -> None:
    x = torch.linspace(-1, 40, 200)
    torch.testing.assert_close(tents(x).sum(-1), torch.ones(200))


def test_dense_inputs_are_standardised_and_cut() -> None:
    dense = Dense(3, 4)
    x = torch.stack([torch.linspace(0, 100, 1001), torch.full((1001,), 7.0), (torch.arange(1001) > 900).float()], 1)
    dense.fit(x)
    y = dense(x)
    assert y.shape == (1001, dense.out) and torch.isfinite(y).all()
    torch.testing.assert_close(y[:, 0].mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    assert not y[:, 1].any()  # constant
    torch.testing.assert_close(y[500, 3 : 3 + 4], torch.tensor([1.0, 1.0, 0.0, 0.0]), atol=1e-5, rtol=0)
    assert torch.isfinite(dense(torch.full((1, 3), 1e30))).all()
