"""Every peer: shapes, padding that changes nothing, gradients everywhere, a planted signal learned; and the flat sequence itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_dmgin.datasets import form
from stream_dmgin.errors import StreamDmginError, UsageError
from stream_dmgin.features.spec import N_AGE, N_CLS, N_DWELL, N_HOUR, InputSpec
from stream_dmgin.models.calibration import Calibration
from stream_dmgin.models.dmgin import DMGIN
from stream_dmgin.models.peers import PEERS, base
from stream_dmgin.models.peers.base import Peer, best
from stream_dmgin.models.registry import save_model, untrained
from stream_dmgin.models.trunk import MODULES, DMGINConfig
from stream_dmgin.scoring.engine import choose_engine
from stream_dmgin.scoring.graphs import example_inputs
from stream_dmgin.training import loop
from stream_dmgin.training.lives import CLUSTER, LifeRows, Lives, lives_of
from stream_dmgin.training.metrics import auc
from stream_dmgin.training.rows import TrainingRows
from tests.logs import T0, dataset

SPEC = InputSpec(
    groups=4, events=4, short=6, item_buckets=64, category_buckets=16, advertiser_buckets=16, surface_buckets=4
)
CONFIG = DMGINConfig(spec=SPEC, heads=("order",), width=16, item_width=8, hidden=(32, 16), dropout=0.0)
REQUEST = ("c_item", "c_id", "c_dense", "u_dense", "x_cat", "s_item", "s_cls", "s_time", "s_dwell", "s_mask")


def batch(users: int = 7, candidates: int = 3, length: int = 40, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs of a peer; the first user has no history."""
    r = np.random.default_rng(seed)
    x: dict[str, NDArray] = {k: v for k, v in example_inputs(SPEC, users, candidates, seed).items() if k in REQUEST}
    n = r.integers(0, length + 1, users)
    n[0], n[-1] = 0, length
    mask = np.arange(length) < n[:, None]
    shape = (users, length)
    sizes = (SPEC.item_buckets, SPEC.category_buckets, SPEC.advertiser_buckets)
    x["h_item"] = np.stack([r.integers(0, high, shape) for high in sizes], -1) * mask[..., None]
    for name, high in (("h_cls", N_CLS), ("h_dwell", N_DWELL), ("h_hour", N_HOUR), ("h_time", N_AGE)):
        x[name] = r.integers(0, high, shape) * mask
    x["h_age"] = np.sort(r.uniform(0, 18, shape), 1).astype(np.float32) * mask
    x["h_size"] = np.zeros(shape, np.float32)
    x["h_mask"] = mask
    return {k: torch.from_numpy(v.astype(np.int32) if v.dtype == np.int64 else v) for k, v in x.items()}


def peer(name: str, config: DMGINConfig = CONFIG) -> Peer:
    torch.manual_seed(0)
    made = PEERS[name](config)
    for p in made.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.2)
    return made


@pytest.mark.parametrize("name", PEERS)
def test_shapes_and_padding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = peer(name).eval(), batch()
    with torch.inference_mode():
        found = model(x)
        assert set(found) == {"ctr", "order"} and all(v.shape == (7, 3) and v.isfinite().all() for v in found.values())
        # what lies behind the mask doesn't matter, nor how much of it there is, nor who else is in the batch
        noise = {k: torch.where(x["h_mask"].view(*x["h_mask"].shape, *[1] * (v.ndim - 2)), v, v.flip(0)) for k, v in x.items() if k.startswith("h_") and k != "h_mask"}  # fmt: skip
        torch.testing.assert_close(model({**x, **noise})["ctr"], found["ctr"], rtol=0, atol=1e-5)
        wide = {k: torch.cat([v, torch.zeros_like(v[:, :9])], 1) if k.startswith("h_") else v for k, v in x.items()}
        torch.testing.assert_close(model(wide)["ctr"], found["ctr"], rtol=0, atol=1e-5)
        alone = {k: v[:1, :1] if k.startswith("h_") else v[:1] for k, v in x.items()}
        torch.testing.assert_close(model(alone)["ctr"], found["ctr"][:1], rtol=0, atol=1e-5)
        monkeypatch.setattr(base, "CELLS", 300)  # in parts, for memory's sake
        torch.testing.assert_close(model(x)["ctr"], found["ctr"], rtol=0, atol=1e-5)
        # candidates don't see each other
        one = {k: v[:, :1] if k.startswith("c_") else v for k, v in x.items()}
        torch.testing.assert_close(model(one)["ctr"], found["ctr"][:, :1], rtol=0, atol=1e-5)
        other = {**x, "h_item": x["h_item"].roll(5, 1) * x["h_mask"].unsqueeze(-1)}
        assert not torch.allclose(model(other)["ctr"][-1], found["ctr"][-1], rtol=0, atol=1e-6)  # and history counts


@pytest.mark.parametrize("name", PEERS)
def test_the_gradient_reaches_every_parameter(name: str) -> None:
    model, x = peer(name).train(), batch()
    x["h_item"][:, :, 1] = 3
    x["c_item"][:, :, 1] = 3  # so that a search by category finds something
    sum(v.square().sum() for v in model(x).values()).backward()
    lacking = [k for k, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not lacking


def test_a_search_takes_the_best_that_exist_in_order_of_time() -> None:
    scores = torch.tensor([[[1.0, 5.0, 3.0, 9.0]]])
    index, found = best(scores, torch.tensor([[True, True, True, False]]), 2)
    assert index.tolist() == [[[1, 2]]] and found.all()
    index, found = best(scores, torch.tensor([[True, False, False, False]]), 6)
    assert found.tolist() == [[[True] + [False] * 5]] and index[0, 0, 0] == 0 and int(index.max()) < 4


def planted(users: int = 1000, seed: int = 1) -> tuple[TrainingRows, Lives]:
    """One candidate a request, clicked where the user's flat sequence is of its category: nothing else tells."""
    r = np.random.default_rng(seed)
    x = example_inputs(SPEC, users, 1, seed)
    length = 12
    likes = r.integers(1, 3, users)
    category = np.repeat(likes, length)
    same = r.random(users) < 0.5
    x["c_item"][:, 0, 1] = np.where(same, likes, 3 - likes)
    y = (r.random(users) < np.where(same, 0.9, 0.1)).astype(np.int8)[:, None]
    x["c_dense"][:], x["u_dense"][:] = 0.0, 0.0
    x["s_mask"][:] = False
    rows = TrainingRows(SPEC)
    rows.append(x, y, np.arange(users) + T0, np.arange(users))
    n = users * length
    item = np.stack([r.integers(1, 64, n), category, np.ones(n)], -1).astype(np.int32)
    ts = T0 - r.integers(0, 10**9, (users, length))
    ends = np.arange(1, users + 1) * length
    cluster = np.tile(np.arange(length) // 3, users).astype(np.int32)
    one = np.ones(n, np.uint8)
    lives = Lives(
        item,
        one,
        -np.sort(-ts, 1)[:, ::-1].ravel(),
        one,
        np.zeros(n, np.int64),
        cluster,
        ends - length,
        ends,
        np.full(users, T0),
    )
    return rows, lives


@pytest.mark.parametrize("name", PEERS)
def test_a_planted_signal_is_learned(name: str) -> None:
    rows, lives = planted()
    mine = LifeRows(rows, lives, PEERS[name].reach, PEERS[name].clustered)
    learn, judge = np.arange(800), np.arange(800, 1000)
    config = replace(CONFIG, heads=(), hash_dropout=0.0)
    options = loop.Options(epochs=8, batch=64, lr=1e-2, average=0.9, checks=1, order=0.0, table_decay=0.0)

    def build(config: DMGINConfig) -> Peer:
        made = PEERS[name](config)
        torch.nn.init.normal_(made.category.weight)  # what products of small numbers need thousands of steps to come to
        return made

    fitted = loop.train(config, mine, learn, mine, judge, options, build=build)
    assert auc(rows.labels()[judge], fitted.logits(mine, judge)) > 0.8


def log(events: list[tuple[str, str, str, int, int, int | None]]) -> form.Dataset:
    """(user, item, type, ts, visible_at, dwell_ms); items are named CATEGORY-NUMBER."""
    topic = {"click": "clicks", "impression": "impressions"}
    columns = {
        "topic": [topic.get(e[2], "post-clicks") for e in events], "user_id": [e[0] for e in events],
        "item_id": [e[1] for e in events], "type": [e[2] for e in events], "ts": [e[3] for e in events],
        "visible_at": [e[4] for e in events], "dwell_ms": [e[5] for e in events],
    }  # fmt: skip
    names = sorted({e[1] for e in events})
    items = {"item_id": names, "category": [n.split("-")[0] for n in names]}
    return form.Dataset(
        form.in_visible_order(form.table(form.EVENTS, columns)),
        form.no_rows(),
        form.table(form.ITEMS, items),
        form.Meta("x", T0),
    )


def test_the_flat_sequence_is_what_was_visible_strictly_earlier() -> None:
    minute = 60_000
    data = log([
        ("u", "a-1", "impression", T0, T0, None), ("u", "a-1", "click", T0, T0 + 10, None),
        ("v", "b-1", "click", T0 + 1, T0 + 5, None), ("u", "a-1", "dwell", T0 + minute, T0 + minute, 8000),
        ("u", "b-1", "order", T0 + 2 * minute, T0 + 2 * minute, None), ("u", "c-9", "dwell", T0 + 1, T0 + 3 * minute, 2000),
    ])  # fmt: skip
    at = np.array([T0 + 10, T0 + 11, T0 + minute + 1, T0 + 9 * minute, T0 + 9 * minute])
    lives = lives_of(data, SPEC, ["u", "u", "u", "u", "nobody"], at)
    assert (lives.end - lives.start).tolist() == [0, 1, 1, 3, 0]
    x = lives.flat(np.arange(5), 100)
    assert x["h_mask"].sum(1).tolist() == [0, 1, 1, 3, 0] and x["h_item"].shape == (5, 3, 3)
    assert x["h_dwell"][:, 0].tolist() == [0, 0, 4, 2, 0]  # the click's dwell only when known; its own event is gone
    assert x["h_cls"][3].tolist() == [6, 4, 1]  # newest first; a dwell without a click before it stays
    assert x["h_age"][2, 0] == pytest.approx(np.log2(2 + 1 / minute)) and x["h_time"][2, 0] == 2
    cut = lives.flat(np.arange(5), 2)
    np.testing.assert_array_equal(cut["h_item"], x["h_item"][:, :2])
    assert (
        lives_of(log([("u", "a-1", "impression", T0, T0, None)]), SPEC, ["u"], at[:1])
        .flat(np.arange(1), 9)["h_mask"]
        .sum()
        == 0
    )


def test_the_flat_sequence_has_the_buckets_of_the_features() -> None:
    """Against the short sequence that replay read from the state: the same events, the same buckets."""
    from stream_dmgin.datasets.grouping import group_map
    from stream_dmgin.replay.rows import training_rows
    from stream_dmgin.replay.source import DatasetSource

    data = dataset(300)
    source = DatasetSource(data)
    spec = replace(SPEC, short=64)
    rows = training_rows(source, group_map(data), spec)
    lives = lives_of(data, spec, source.requests.user, source.requests.at)
    x = lives.flat(np.arange(rows.requests), 64)
    np.testing.assert_array_equal(x["h_mask"].sum(1), rows["r_short"])
    starts = rows.offsets()["r_short"]
    for k in range(0, rows.requests, 7):  # events visible at one time may lie in another order
        short, n = slice(starts[k], starts[k + 1]), rows["r_short"][k]
        for mine, theirs in (("h_item", "s_item"), ("h_cls", "s_cls"), ("h_dwell", "s_dwell")):
            assert sorted(x[mine][k, :n].tolist()) == sorted(rows[theirs][short].tolist())


def test_clusters_hold_like_events_and_grow_without_looking_ahead() -> None:
    data = log([("u", f"{'ab'[k % 2]}-{k}", "click", T0 + k, T0 + k, None) for k in range(100)])
    at = T0 + np.arange(0, 101, 4)
    lives = lives_of(data, SPEC, ["u"] * len(at), at)
    x = lives.clusters(np.arange(len(at)), 1000)
    size = np.rint(np.exp(x["h_size"])) * x["h_mask"]
    assert size.sum(1).tolist() == [*range(0, 101, 4)] and size.max() == CLUSTER
    assert (x["h_mask"].sum(1) == [2 * -(-k // (2 * CLUSTER)) for k in range(0, 101, 4)]).all()
    for k in range(1, len(at)):  # a cluster has one category, and stands as its newest event
        n = int(x["h_mask"][k].sum())
        flat = lives.flat(np.array([k]), 1000)
        assert x["h_item"][k, 0].tolist() == flat["h_item"][0, 0].tolist()
        assert len(set(map(tuple, x["h_item"][k, :n].tolist()))) == n
    assert lives.clusters(np.arange(len(at)), 10)["h_size"].max() <= np.log(10)


@pytest.mark.parametrize("module", MODULES)
def test_each_module_can_be_left_out(module: str) -> None:
    torch.manual_seed(0)
    model = DMGIN(replace(CONFIG, off=(module,)))
    x = {k: torch.from_numpy(v) for k, v in example_inputs(SPEC, 5, 3).items()}
    found = model(x)["ctr"]
    assert found.shape == (5, 3) and found.isfinite().all()
    model(x)["ctr"].sum().backward()
    unused = {k for k, p in model.named_parameters() if p.grad is None}
    assert not unused
    whole = sum(p.numel() for p in DMGIN(CONFIG).parameters())
    assert sum(p.numel() for p in model.parameters()) < whole


def test_serving_runs_a_model_without_a_module_or_says_why_not(tmp_path) -> None:
    model = untrained("x", replace(CONFIG, off=("stat", "across")))
    engine, why = choose_engine(model)
    assert engine.name == "eager" and "without stat, across" in why
    with pytest.raises(StreamDmginError, match="without stat, across"):
        choose_engine(model, "fused")
    x = example_inputs(SPEC, 3, 2)
    wanted = model.network({k: torch.from_numpy(v) for k, v in x.items()})["ctr"]
    np.testing.assert_allclose(engine.logits(engine.tower(x), x)["ctr"], wanted, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="switched off: name some of stat"):
        replace(CONFIG, off=("attentoin",))
    with pytest.raises(ValueError, match="none to switch off"):
        PEERS["din"](replace(CONFIG, off=("stat",)))
    with pytest.raises(UsageError, match="can be measured but not served"):
        save_model(tmp_path, "din", PEERS["din"](CONFIG), Calibration(), {}, "")
