"""The eager engine, its tower cache, the registry: what a worker relies on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from stream_dmgin.errors import FormatError, StreamDmginError, UnavailableError, UsageError
from stream_dmgin.features.inputs import Inputs
from stream_dmgin.features.spec import InputSpec
from stream_dmgin.models import registry
from stream_dmgin.models.calibration import Calibration
from stream_dmgin.models.trunk import DMGINConfig
from stream_dmgin.scoring import check, compiled, graphs
from stream_dmgin.scoring.engine import EagerEngine, Engine, UserTower, choose_engine
from stream_dmgin.scoring.fused import FusedEngine
from stream_dmgin.scoring.graphs import example_inputs
from stream_dmgin.scoring.tower_cache import TowerCache

SPEC = InputSpec(
    groups=10, events=6, short=8, item_buckets=64, category_buckets=16, advertiser_buckets=16, surface_buckets=4
)
MODEL = registry.untrained("small", DMGINConfig(spec=SPEC, heads=("order",), width=16, item_width=8, hidden=(32, 16)))


@pytest.fixture(params=[EagerEngine, FusedEngine], ids=["eager", "fused"])
def engine(request: pytest.FixtureRequest) -> Engine:
    made: Engine = request.param(MODEL)
    return made


def test_probabilities_do_not_depend_on_the_batch(engine: Engine) -> None:
    x = example_inputs(SPEC, 7, 9)
    together = engine.head(engine.tower(x), x)
    towers = engine.tower(x)
    for row in (6, 0, 3):
        one = {k: v[row : row + 1] for k, v in x.items()}
        alone = engine.head(engine.tower(one), one)
        cached = engine.head([towers[row]], one)
        for head in ("ctr", "order"):
            assert ((alone[head] > 0) & (alone[head] < 1)).all()
            np.testing.assert_allclose(alone[head][0], together[head][row], rtol=0, atol=1e-6)
            np.testing.assert_allclose(cached[head][0], together[head][row], rtol=0, atol=1e-6)


def test_the_network_says_the_same(engine: Engine) -> None:
    x = example_inputs(SPEC, 5, 4, seed=2)
    wanted = MODEL.network({k: torch.from_numpy(v) for k, v in x.items()})
    found = engine.logits(engine.tower(x), x)
    for head, z in wanted.items():
        np.testing.assert_allclose(found[head], z.numpy(), rtol=0, atol=2e-6)


def test_towers_outlive_the_buffers_they_came_from(engine: Engine) -> None:
    x = Inputs.allocate(SPEC, 3, 4)
    for k, v in example_inputs(SPEC, 3, 4).items():
        x[k][:] = v
    towers = engine.tower(x)
    before = engine.head(towers, x)["ctr"]
    for k in ("g_mask", "e_id", "e_mask", "s_mask"):
        x[k][:] = 0
    np.testing.assert_array_equal(engine.head(towers, x)["ctr"], before)


def maker(engine: Engine, x: dict[str, np.ndarray]) -> Callable[[list[int]], list[UserTower]]:
    """What a scorer does: towers of some rows."""
    return lambda rows: engine.tower({k: v[rows] for k, v in x.items()})


def test_the_cache_serves_a_version_until_the_next_and_stays_in_bounds(engine: Engine) -> None:
    cache = TowerCache(limit_bytes=1 << 20)
    x = example_inputs(SPEC, 4, 3)
    users = [(b"a", 1), (b"b", 1), (b"c", 5), (b"d", 9)]
    first = cache.towers(users, maker(engine, x))
    assert (cache.hits, cache.misses, len(cache)) == (0, 4, 4)
    again = cache.towers([(b"a", 1), (b"b", 2), (b"c", 5), (b"d", 9)], maker(engine, x))
    assert (cache.hits, cache.misses, len(cache)) == (3, 5, 4)
    assert again[0] is first[0] and again[1] is not first[1]
    np.testing.assert_allclose(engine.head(again, x)["ctr"], engine.head(first, x)["ctr"], rtol=0, atol=1e-6)
    assert cache.get(b"a", 2) is None and cache.get(b"nobody", 1) is None
    small = TowerCache(limit_bytes=cache.bytes // 2)
    small.towers(users, maker(engine, x))
    assert small.bytes <= small.limit_bytes and small.evictions > 0 and small.get(b"a", 1) is None
    assert small.get(b"d", 9) is not None
    small.clear()
    assert (len(small), small.bytes) == (0, 0)


def test_a_user_twice_in_a_call(engine: Engine) -> None:
    x = {k: v[[1, 1]] for k, v in example_inputs(SPEC, 2, 3).items()}
    cache = TowerCache()
    towers = cache.towers([(b"a", 1), (b"a", 1)], maker(engine, x))
    assert len(cache) == 1
    p = engine.head(towers, x)["ctr"]
    # the rows of a product need not be summed up alike: with AVX-512 on an EPYC they differ by 4e-9
    np.testing.assert_allclose(p[0], p[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 128, 32), (3, 5, 2), (2, 1, 16)])
def test_fused_equals_the_network_at_other_sizes(shape: tuple[int, int, int]) -> None:
    """Heads of 1, 2 and 4 of odd widths, no layer across groups, no post-click heads; also rows that nobody fills."""
    layers, groups, events = shape
    spec = InputSpec(groups=groups, events=events, short=64, item_buckets=50, category_buckets=7, advertiser_buckets=9)
    for width, heads in ((12, 4), (10, 1), (24, 2)):
        config = DMGINConfig(
            spec=spec, width=width, attention_heads=heads, layers=layers, item_width=6, hidden=(20, 10)
        )
        model = registry.untrained("odd", config)
        with torch.no_grad():
            for p in model.network.parameters():  # zeros and ones at the start would hide what is left out
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
            for name, t in model.network.named_buffers():
                if name.endswith(("mean", "shift")):
                    t.add_(0.3)
                elif name.endswith(("scale", "slope")):
                    t.add_(0.7)
        engine = FusedEngine(model)
        assert engine.verify() < 5e-5
        x = example_inputs(spec, 6, 11, seed=width)
        x["g_mask"][2], x["e_mask"][2], x["s_mask"][2] = False, False, False
        x["e_mask"][3] = False  # impressions alone: groups without events
        wanted = model.network({k: torch.from_numpy(v) for k, v in x.items()})["ctr"].detach().numpy()
        np.testing.assert_allclose(engine.logits(engine.tower(x), x)["ctr"], wanted, rtol=0, atol=5e-5)


def test_an_engine_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream_dmgin.scoring.fused.TOLERANCE", 0.0)
    engine, why = choose_engine(MODEL)
    assert engine.name == "eager" and "differs from the model" in why
    with pytest.raises(StreamDmginError, match="differs from the model"):
        choose_engine(MODEL, "fused")


def test_which_engine_and_why() -> None:
    engine, why = choose_engine(MODEL, "eager")
    assert engine.name == "eager" and "asked" in why
    if not torch.cuda.is_available():
        engine, why = choose_engine(MODEL)
        assert engine.name == "fused" and ("CUDA" in why or "torch_tensorrt" in why)
        with pytest.raises(UnavailableError, match="--engine fused or eager"):
            choose_engine(MODEL, "tensorrt")
    assert choose_engine(MODEL, "fused")[0].name == "fused"
    with pytest.raises(UsageError, match="auto, fused, eager or tensorrt"):
        choose_engine(MODEL, "fast")  # type: ignore[arg-type]


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STREAM_DMGIN_MODELS", str(tmp_path))
    training = {"dataset": "none", "valid": {"ctr": {"auc": 0.7}}}
    registry.save_model(tmp_path / "one", "one", MODEL.network, Calibration({"ctr": (0.9, 0.1)}), training, "# one\n")
    return tmp_path / "one"


def test_a_released_model_comes_back(released: Path) -> None:
    loaded = registry.load_model("one")
    assert loaded.id == registry.model_id(released) and loaded.id.startswith("one-") and loaded.heads == ("order",)
    assert registry.load_model(loaded.id).id == registry.load_model(released).id == loaded.id
    assert loaded.config == MODEL.config and loaded.calibration.platt == {"ctr": (0.9, 0.1)}
    x = example_inputs(SPEC, 3, 4)
    ours, theirs = EagerEngine(MODEL), EagerEngine(loaded)
    np.testing.assert_array_equal(theirs.logits(theirs.tower(x), x)["ctr"], ours.logits(ours.tower(x), x)["ctr"])
    assert check.check(loaded, "eager", rounds=2)["ok"]
    assert registry.describe(released)["training"]["dataset"] == "none"


def test_another_calibration_is_another_id(released: Path) -> None:
    before = registry.model_id(released)
    Calibration({"ctr": (0.8, 0.1)}).save(released / "calibration.json")
    assert registry.model_id(released) != before


def test_models_that_cannot_be_used_say_what_to_do(released: Path) -> None:
    with pytest.raises(UsageError, match=r"not known.*one-"):
        registry.load_model("two")
    config = json.loads((released / "config.json").read_text())

    def broken(name: str, **changes: object) -> Path:
        other = released.parent / name
        shutil.copytree(released, other)
        (other / "config.json").write_text(json.dumps({**config, **changes}))
        return other

    with pytest.raises(UsageError, match="damaged"):
        other = broken("bent")
        (other / "weights.safetensors").write_bytes(b"nonsense")
        registry.load_model(other)
    with pytest.raises(FormatError, match="format 99"):
        registry.load_model(broken("new", format=99))
    with pytest.raises(UsageError, match=r"other inputs.*user"):
        registry.load_model(broken("old", inputs={**config["inputs"], "user": ["age"]}))
    with pytest.raises(FormatError, match="can't be loaded"):
        registry.load_model(broken("wide", config={**config["config"], "width": 24}))
    with pytest.raises(UsageError, match=r"lacks calibration\.json"):
        other = broken("half")
        (other / "calibration.json").unlink()
        registry.load_model(other)
    with pytest.raises(FormatError, match="not a calibration"):
        other = broken("odd")
        (other / "calibration.json").write_text("[]")
        registry.load_model(other)
    with pytest.raises(FormatError, match="not a model's config"):
        other = broken("text")
        (other / "config.json").write_text("{")
        registry.load_model(other)


def test_what_runs_compiled_graphs_cuts_and_pads_as_it_should() -> None:
    runs = {g.name: g.module for g in graphs.graphs(MODEL.network, compiled.MAX_USERS, compiled.CANDIDATES)}
    engine = compiled.CompiledEngine(MODEL, runs, "cpu")
    assert engine.verify() < 1e-5  # one user and one candidate, and many
    x = example_inputs(SPEC, compiled.MAX_USERS + 3, 5)
    eager = EagerEngine(MODEL)
    found, wanted = engine.head(engine.tower(x), x), eager.head(eager.tower(x), x)
    for head in wanted:
        np.testing.assert_allclose(found[head], wanted[head], rtol=0, atol=1e-6)
    with pytest.raises(UsageError, match="at most 1000"):
        engine.logits(engine.tower(x)[:1], example_inputs(SPEC, 1, 1001))
    broken = compiled.CompiledEngine(MODEL, {**runs, "head128": lambda *x: runs["head128"](*x) + 0.1}, "cpu")
    with pytest.raises(StreamDmginError, match="differs from the model"):
        broken.verify()


def test_exported_graphs_score_alike(released: Path, tmp_path: Path) -> None:
    files = check.export(registry.load_model(released), tmp_path / "out")["files"]
    tower, head = (torch.export.load(files[k]).module() for k in ("tower", "head"))
    x = {k: torch.from_numpy(v) for k, v in example_inputs(SPEC, 3, 5).items()}
    from stream_dmgin.scoring.engine import HEAD_INPUTS
    from stream_dmgin.scoring.graphs import TOWER_INPUTS

    groups, tokens, short = tower(*(x[k] for k in TOWER_INPUTS))
    side = (groups, x["g_mask"], tokens, x["e_id"], x["e_mask"], short, x["s_mask"])
    z = head(*side, *(x[k] for k in HEAD_INPUTS))
    torch.testing.assert_close(z[..., 0], MODEL.network(x)["ctr"], rtol=0, atol=2e-6)
