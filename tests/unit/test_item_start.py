"""What a network's table of items begins with: the embeddings of a log's items, where a recipe asks for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from stream_dmgin.datasets import form
from stream_dmgin.features.spec import InputSpec
from stream_dmgin.models.dmgin import DMGIN
from stream_dmgin.models.trunk import DMGINConfig
from stream_dmgin.training.items import ItemStart, buckets_of, item_start
from stream_dmgin.training.loop import Run
from stream_dmgin.training.options import Options
from tests.unit.test_training import SPEC as SMALL
from tests.unit.test_training import make

SPEC = InputSpec(blocks=("passed",), embedding=6, item_buckets=512)
CONFIG = DMGINConfig(SPEC, item_width=4)
OPTIONS = Options(item_start=2.0)


def row(name: str) -> int:
    """As features/scales.py says it: by the upper half of the hash."""
    return 1 + ((xxhash.xxh64_intdigest(name.encode()) >> 32) * 511 >> 32)


def table(vectors: list[list[float] | None]) -> pa.Table:
    return form.table(form.ITEMS, {"item_id": [f"i{k}" for k in range(len(vectors))], "embedding": vectors})


def test_items_that_are_alike_begin_near_each_other() -> None:
    r = np.random.default_rng(1)
    kinds = r.normal(size=(3, 6))
    x = kinds[np.arange(30) % 3] + 0.05 * r.normal(size=(30, 6))
    found = item_start(table(x.tolist()), CONFIG, OPTIONS)
    assert found is not None and found.vector.shape == (30, 4) and found.vector.dtype == np.float32
    assert np.allclose(np.linalg.norm(found.vector, axis=1), 2.0, atol=1e-5)
    near, unit = found.vector @ found.vector.T / 4.0, x / np.linalg.norm(x, axis=1, keepdims=True)
    assert np.abs(near - unit @ unit.T).max() < 0.05  # three kinds lie in three directions: four lose next to nothing
    assert (
        found.bucket.tolist()
        == [row(f"i{k}") for k in range(30)]
        == buckets_of([f"i{k}" for k in range(30)], 512).tolist()
    )
    assert buckets_of(["", None], 512).tolist() == [0, 0]


def test_what_is_no_embedding_begins_by_lot() -> None:
    fine = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    found = item_start(table([None, [1.0] * 5, [0.0] * 6, [float("nan")] * 6, fine]), CONFIG, OPTIONS)
    assert found is not None and found.bucket.tolist() == [row("i4")]
    assert item_start(table([fine]), replace(CONFIG, item_width=16), OPTIONS).vector.shape == (1, 16)  # type: ignore[union-attr]
    assert item_start(table([None, [1.0] * 5]), CONFIG, OPTIONS) is None
    assert item_start(table([fine]), CONFIG, Options()) is None
    assert item_start(table([fine]), replace(CONFIG, spec=InputSpec(embedding=6)), OPTIONS) is None


@pytest.mark.parametrize("begun", [False, True])
def test_a_run_begins_with_them_unless_with_another_network(begun: bool) -> None:
    rows, _ = make(blocks=2)
    config = DMGINConfig(SMALL)
    start = DMGIN(config) if begun else None
    items = ItemStart(np.array([3, 5]), np.full((2, config.item_width), 0.5, np.float32))
    run = Run(config, rows, np.arange(rows.requests), Options(), DMGIN, start=start, items=items)
    got = run.network.item.weight.detach().numpy()
    assert (got[[3, 5]] == 0.5).all() != begun and not (got[4] == 0.5).any()
    assert np.array_equal(got, run.mean.item.weight.numpy())
