"""Released trees and stacks: saved, loaded, refused where damaged, and served by the engine as they were trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stream_dmgin.errors import FormatError, UsageError
from stream_dmgin.features.spec import InputSpec
from stream_dmgin.models import registry
from stream_dmgin.models.calibration import Calibration, sigmoid
from stream_dmgin.models.segments import KINDS, segment_codes
from stream_dmgin.models.trunk import DMGINConfig
from stream_dmgin.scoring.check import check, export
from stream_dmgin.scoring.engine import choose_engine
from stream_dmgin.scoring.graphs import example_inputs
from stream_dmgin.scoring.stacked import StackEngine
from stream_dmgin.training.rows import TrainingRows
from stream_dmgin.training.trees import TreeOptions, Trees, train_trees

SPEC = InputSpec(
    groups=4, events=4, short=4, item_buckets=64, category_buckets=8, advertiser_buckets=8, surface_buckets=8
)
NETWORK = registry.untrained("net", DMGINConfig(SPEC, ("order",), width=16, item_width=8, hidden=(16, 8)))


@pytest.fixture(scope="module")
def trees() -> Trees:
    rows, r = TrainingRows(SPEC), np.random.default_rng(5)
    for i in range(10):
        x = example_inputs(SPEC, 200, 4, seed=i)
        z = 1.5 * x["c_dense"][..., 3] + x["u_dense"][:, None, 2] + np.where(x["x_cat"] % 2, 1.5, -1.5)[:, None]
        rows.append(x, (r.random(z.shape) < sigmoid(z)).astype(np.int8), np.full(200, i), np.arange(200))
    options = TreeOptions(rows_a_leaf=20, rounds=60, lr=0.1, feature_fraction=0.6, patience=20, l2=1.0)
    return train_trees(rows, rows.between(0, 7), rows.between(7, 10), options)


def saved(directory: Path, trees: Trees, weight: float, calibration: Calibration = Calibration()) -> registry.Model:
    made = registry.save_model(
        directory, "both", NETWORK.network, calibration, {}, "For a test.\n", trees.forest, weight
    )
    loaded = registry.load_model(directory)
    assert loaded.id == made == registry.model_id(directory)
    return loaded


def test_a_stack_is_served_as_the_sum_of_its_parts(tmp_path: Path, trees: Trees) -> None:
    model = saved(tmp_path, trees, 0.4, Calibration({"ctr": (1.1, -0.2)}))
    assert model.architecture == "stack" and model.heads == ("order",)
    x = example_inputs(SPEC, 8, 30)
    engine, why = choose_engine(model)
    assert isinstance(engine, StackEngine) and "trees" in engine.name and "trees beside it" in why
    network, _ = choose_engine(NETWORK)
    of_network = network.logits(network.tower(x), x)
    rows = TrainingRows(SPEC)
    rows.append(x, np.zeros((8, 30), np.int8), np.arange(8), np.arange(8))
    of_trees = np.full((8, 30), np.nan)
    of_trees[x["c_mask"]] = trees.logits(rows, np.arange(8))
    found = engine.head(engine.tower(x), x)
    want = sigmoid(1.1 * (0.4 * of_network["ctr"] + of_trees) - 0.2)
    np.testing.assert_allclose(found["ctr"][x["c_mask"]], want[x["c_mask"]], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found["order"], sigmoid(of_network["order"]), rtol=0, atol=1e-6)
    report = check(model, rounds=1)
    assert report["ok"], report["reason"]
    with pytest.raises(UsageError, match="can't hold"):
        export(model, tmp_path / "x")


def test_trees_alone_need_no_network_and_no_lightgbm(
    tmp_path: Path, trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "lightgbm", None)
    shifts = {"surface": {1: 0.5, 3: -0.5}}
    model = saved(tmp_path, trees, 0.0, Calibration({"ctr": (1.0, 0.0)}, shifts))
    assert model.architecture == "trees" and not (tmp_path / "weights.safetensors").exists()
    engine, why = choose_engine(model)
    assert engine.name == "trees" and "no network" in why
    x = example_inputs(SPEC, 8, 5)
    towers = engine.tower(x)
    assert sum(t.nbytes for t in towers) == 0 and len(towers) == 8
    raw = engine.logits(towers, x)["ctr"].astype(np.float64)
    codes = segment_codes(SPEC, x["c_dense"].reshape(40, -1), x["u_dense"], x["x_cat"], np.full(8, 5))
    assert set(codes) == set(KINDS)
    moved = np.array([shifts["surface"].get(int(s), 0.0) for s in x["x_cat"]])[:, None]
    np.testing.assert_allclose(engine.head(towers, x)["ctr"], sigmoid(raw + moved), rtol=0, atol=1e-9)
    assert check(model, rounds=1)["ok"]
    # a model saved over it as a network leaves no trees behind
    registry.save_model(tmp_path, "net", NETWORK.network, Calibration(), {}, "For a test.\n")
    assert registry.load_model(tmp_path).architecture == "dmgin" and not (tmp_path / "forest.safetensors").exists()


def test_damaged_trees_are_refused(tmp_path: Path, trees: Trees) -> None:
    saved(tmp_path, trees, 0.4)
    file = tmp_path / "forest.safetensors"
    raw = file.read_bytes()
    file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(UsageError, match=r"forest\.safetensors is damaged"):
        registry.load_model(tmp_path)
    file.unlink()
    with pytest.raises(UsageError, match=r"lacks forest\.safetensors"):
        registry.load_model(tmp_path)
    narrow = InputSpec(groups=4, events=4, short=4, blocks=("session",))
    other = registry.untrained("other", DMGINConfig(narrow, (), width=16, item_width=8, hidden=(16, 8)))
    registry.save_model(tmp_path, "other", other.network, Calibration(), {}, "", trees.forest, 0.0)
    with pytest.raises(FormatError, match="other columns"):
        registry.load_model(tmp_path)
