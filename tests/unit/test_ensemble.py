"""Releases of several networks: saved, loaded, refused where damaged, served as the sum of their parts; and the flat sequence that a peer
reads from the state."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stream_dmgin.datasets import form
from stream_dmgin.datasets.grouping import group_map
from stream_dmgin.errors import FormatError, UsageError
from stream_dmgin.features.spec import InputSpec
from stream_dmgin.models import registry
from stream_dmgin.models.calibration import Calibration, sigmoid
from stream_dmgin.models.members import Member, build, read_by
from stream_dmgin.models.peers import PEERS
from stream_dmgin.models.trunk import DMGINConfig, Trunk
from stream_dmgin.replay.rows import training_rows
from stream_dmgin.replay.source import DatasetSource
from stream_dmgin.scoring.check import check, export
from stream_dmgin.scoring.engine import choose_engine
from stream_dmgin.scoring.graphs import example_inputs
from stream_dmgin.training.lives import FlatRows, LifeRows, lives_of
from tests.unit.test_peers import T0, dataset, log

SPEC = InputSpec(
    groups=4, events=4, short=4, item_buckets=64, category_buckets=8, advertiser_buckets=8, surface_buckets=8, flat=50
)
CONFIG = DMGINConfig(SPEC, ("order",), width=16, item_width=8, hidden=(16, 8))
SHARES = {"dmgin": 0.5, "no-interest": 0.3, "din": 0.9}


def network(kind: str) -> Trunk:
    torch.manual_seed(len(kind))
    made = build(kind, CONFIG).eval().requires_grad_(False)
    for p in made.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.2)
    return made


def saved(directory: Path) -> registry.Model:
    first, *further = (Member(k, network(k), w) for k, w in SHARES.items())
    calibration = Calibration({"ctr": (1.1, -0.2), "order": (0.9, 0.1)})
    made = registry.save_model(
        directory, "three", first.network, calibration, {}, "For a test.\n", None, first.weight, "dmgin", further
    )
    loaded = registry.load_model(directory)
    assert loaded.id == made == registry.model_id(directory)
    return loaded


def said(kind: str, x: dict[str, NDArray[Any]], head: str = "ctr") -> NDArray[np.float32]:
    with torch.inference_mode():
        found: NDArray[np.float32] = network(kind)({k: torch.from_numpy(v) for k, v in read_by(kind, x).items()})[
            head
        ].numpy()
    return found


def test_it_is_served_as_the_sum_of_its_parts(tmp_path: Path) -> None:
    model = saved(tmp_path)
    assert model.architecture == "ensemble" and [m.kind for m in model.members] == list(SHARES)
    x = example_inputs(SPEC, 8, 30)
    engine, why = choose_engine(model)
    assert engine.name == "fused+fused+eager" and "no-interest: fused" in why and "din: eager" in why
    towers = engine.tower(x)
    found = engine.head(towers, x)
    want = sum(w * said(k, x) for k, w in SHARES.items())
    np.testing.assert_allclose(found["ctr"], sigmoid(1.1 * want - 0.2), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found["order"], sigmoid(0.9 * said("dmgin", x, "order") + 0.1), rtol=0, atol=1e-6)
    # one that is told nothing of a past sees the same user everywhere, and no tower of its own
    other = example_inputs(SPEC, 8, 30, seed=3)
    same = {k: v if k[:2] in ("c_", "u_", "x_") else other[k] for k, v in x.items()}
    np.testing.assert_array_equal(said("no-interest", x), said("no-interest", same))
    assert all(t.nbytes > 0 for t in towers) and towers[1].nbytes > towers[0].nbytes
    # a tower is the state's alone: the flat sequence is the request's
    later = {**x, "h_time": np.where(x["h_mask"], np.minimum(31, x["h_time"] + 3), 0).astype(np.int32)}
    assert not np.allclose(engine.head(towers, later)["ctr"][1:], found["ctr"][1:], rtol=0, atol=1e-6)
    for i in range(8):
        one = {k: v[i : i + 1] for k, v in x.items()}
        np.testing.assert_allclose(
            engine.head(towers[i : i + 1], one)["ctr"], found["ctr"][i : i + 1], rtol=0, atol=1e-6
        )
    report = check(model, rounds=1)
    assert report["ok"], report["reason"]
    with pytest.raises(UsageError, match="several networks"):
        export(model, tmp_path / "x")


def test_what_is_damaged_or_unknown_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    file, config = tmp_path / "weights-3.safetensors", tmp_path / "config.json"
    raw, text = file.read_bytes(), config.read_text()
    file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(UsageError, match=r"weights-3\.safetensors is damaged"):
        registry.load_model(tmp_path)
    file.unlink()
    with pytest.raises(UsageError, match=r"lacks weights-3\.safetensors"):
        registry.load_model(tmp_path)
    file.write_bytes(raw)
    for change, why in (
        ({"kind": "oracle"}, "knows no network 'oracle'"),
        ({"weight": None}, "float"),
        ({"config": {}}, "spec"),
    ):
        wrong = json.loads(text)
        wrong["further"][1] |= change
        config.write_text(json.dumps(wrong))
        with pytest.raises(FormatError, match=why):
            registry.load_model(tmp_path)
    wrong = json.loads(text)
    wrong["further"][1]["config"]["spec"]["flat"] = 40
    config.write_text(json.dumps(wrong))
    with pytest.raises(FormatError, match="other inputs than one another"):
        registry.load_model(tmp_path)
    # a model saved over it as one network leaves nothing of the others behind
    registry.save_model(tmp_path, "one", network("dmgin"), Calibration(), {}, "For a test.\n")
    assert registry.load_model(tmp_path).architecture == "dmgin"
    assert [p.name for p in tmp_path.glob("weights*")] == ["weights.safetensors"]


def test_a_peer_that_looks_further_back_than_the_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="SIM, which can be measured but not served"):
        registry.save_model(tmp_path, "sim", PEERS["sim"](CONFIG), Calibration(), {}, "", kind="sim")


def test_the_flat_sequence_of_the_state_is_that_of_the_log() -> None:
    """Same events, same buckets, dwell where it belongs; what is dated alike may lie in another order."""
    minute = 60_000
    told = log([
        ("u", "a-1", "impression", T0, T0, None), ("u", "a-1", "click", T0, T0 + 10, None),
        ("u", "a-1", "dwell", T0 + minute, T0 + minute, 8000), ("u", "b-1", "order", T0 + 2 * minute, T0 + 2 * minute, None),
        ("u", "c-9", "dwell", T0 + 3 * minute, T0 + 3 * minute, 2000),
        ("u", "a-1", "click", T0 + 4 * minute, T0 + 4 * minute, None),
        ("u", "a-1", "dwell", T0 + 5 * minute, T0 + 5 * minute, 4000),
    ])  # fmt: skip
    asked = {"request_id": ["1", "2", "3", "4"], "user_id": ["u", "u", "u", "nobody"], "label": [0, 0, 0, 0]}
    rows_of = {
        **asked,
        "item_id": ["a-1"] * 4,
        "ts": [T0 + minute + 1, T0 + 9 * minute, T0 + 9 * minute + 1, T0 + 9 * minute + 2],
    }
    told = form.Dataset(told.events, form.table(form.ROWS, rows_of), told.items, told.meta)
    names = ("h_item", "h_cls", "h_time", "h_hour", "h_dwell")
    for data, reach in ((told, 50), (told, 2), (dataset(300), 50)):
        source, spec = DatasetSource(data), replace(SPEC, flat=50)
        rows = training_rows(source, group_map(data), spec)
        every = np.arange(rows.requests)
        lives = lives_of(data, spec, source.requests.user, source.requests.at)
        mine, theirs = (
            FlatRows(rows, reach).collate(every).inputs.x,
            LifeRows(rows, lives, reach).collate(every).inputs.x,
        )
        assert set(mine) == set(theirs)
        np.testing.assert_array_equal(mine["h_mask"], theirs["h_mask"])
        for k in range(rows.requests):
            a, b = (sorted(zip(*(x[n][k].tolist() for n in names), strict=True)) for x in (mine, theirs))
            assert a == b, (k, a, b)
        np.testing.assert_allclose(np.sort(mine["h_age"]), np.sort(theirs["h_age"]), rtol=0, atol=1e-5)
    assert mine["h_mask"].any()


def test_what_a_stack_costs_is_measured_beside_its_first_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stream_dmgin.bench import score

    monkeypatch.setattr(score, "LIVES", [20, 60])
    monkeypatch.setattr(score, "USERS", 20)
    registry.save_model(tmp_path / "one", "one", network("dmgin"), Calibration(), {}, "For a test.\n")
    saved(tmp_path / "three")
    found = score.measure(str(tmp_path / "one"), tmp_path, 12, 5, [str(tmp_path / "three")])
    (three,) = found["beside"]
    assert found["p50_ms"] > 0 and three["p99_ms"] >= three["p50_ms"] > 0 and three["model"].startswith("three-")
    other = registry.untrained("other", replace(CONFIG, spec=replace(SPEC, blocks=("session",))))
    registry.save_model(tmp_path / "other", "other", other.network, Calibration(), {}, "For a test.\n")
    with pytest.raises(UsageError, match="reads other inputs"):
        score.measure(str(tmp_path / "one"), tmp_path, 12, 5, [str(tmp_path / "other")])
