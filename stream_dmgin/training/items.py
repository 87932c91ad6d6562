"""What a network's table of items begins with, where the log's items have embeddings: these, so that items which few rows tell of are
already near those they are like. Seconds before training; what is served does not change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stream_dmgin.groups.items import unit
from stream_dmgin.models.trunk import DMGINConfig
from stream_dmgin.native import hash_ids
from stream_dmgin.training.options import Options


class ItemStart(NamedTuple):
    """`bucket` int64[N]: rows of the table; `vector` float32[N,item_width]: what they begin with."""

    bucket: NDArray[np.int64]
    vector: NDArray[np.float32]


def item_start(items: pa.Table, config: DMGINConfig, options: Options) -> ItemStart | None:
    """The first directions of the items' embeddings, each vector `options.item_start` long; None where that is 0, or where no item has an
    embedding of `InputSpec.embedding` numbers that the inputs read. Of items that share a row of the table the last counts."""
    spec = config.spec
    if not options.item_start or not spec.reads_embeddings:
        return None
    fits = pc.fill_null(pc.equal(pc.list_value_length(items["embedding"]), spec.embedding), False)
    some = items.filter(fits)
    flat = pc.list_flatten(some["embedding"]).to_numpy().astype(np.float64).reshape(-1, spec.embedding)
    fine = np.isfinite(flat).all(1) & flat.any(1)
    if not fine.any():
        return None
    x = unit(flat[fine])
    value, turn = np.linalg.eigh(x.T @ x)
    first = turn[:, np.argsort(-value, kind="stable")[: config.item_width]]
    vector = np.zeros((len(x), config.item_width), np.float32)
    vector[:, : first.shape[1]] = options.item_start * unit(x @ first)
    ids = some["item_id"].filter(pa.array(fine)).to_pylist()
    return ItemStart(buckets_of(ids, spec.item_buckets), vector)


def buckets_of(names: Sequence[str | None], n: int) -> NDArray[np.int64]:
    """Rows of a table of n for names, as `features/scales.py` gives them to kernels; 0 for none."""
    upper = hash_ids([x or "" for x in names]) >> np.uint64(32)
    there = np.fromiter((bool(x) for x in names), bool, len(names))
    return np.where(there, 1 + ((upper * np.uint64(n - 1)) >> np.uint64(32)).astype(np.int64), 0)
