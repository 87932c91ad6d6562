"""Embeddings of a log's items from their words, for logs that bring none: of any encoder, and bent to what users read together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_dmgin.datasets.form import Dataset
from stream_dmgin.errors import InputError
from stream_dmgin.features.spec import InputSpec
from stream_dmgin.groups.coread import bent
from stream_dmgin.groups.encode import encode
from stream_dmgin.groups.items import Matrix, unit


@dataclass(frozen=True)
class Embedding:
    """How to make embeddings. Clicks that became visible at `until` (ms) or later teach nothing; None: where the log's own training
    part begins, and in a log without parts, no click does."""

    encoder: str
    width: int = 64
    until: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Embedded:
    """`vectors` [items of the log,width]: rows of zeros have no words. `taught`: users whose clicks bent them."""

    vectors: Matrix
    taught: int


def embed(data: Dataset, how: Embedding, seen: Callable[[int, int], None] | None = None) -> Embedded:
    """Embeddings of all items that have words (`name`, else `text`). Raises InputError where none has, UsageError for the encoder."""
    words = pc.coalesce(data.items["name"], data.items["text"]).to_pylist()
    rows = np.array([i for i, t in enumerate(words) if t and t.strip()], np.int64)
    distinct = sorted({words[i] for i in rows})
    if not distinct:
        raise InputError("no item of the log has a name or a text: there is nothing to make embeddings of")
    number = {t: k for k, t in enumerate(distinct)}
    made = unit(encode(distinct, how.encoder, how.seed, seen))
    vectors = made[[number[words[i]] for i in rows]]
    user, item = _read(data, rows, how.until)
    out = np.zeros((len(words), how.width), np.float32)
    out[rows], taught = bent(vectors, user, item, how.width)
    return Embedded(out, taught)


def with_embeddings(data: Dataset, vectors: Matrix) -> Dataset:
    """The log with these embeddings of its items."""
    column = pa.array([x.tolist() if x.any() else None for x in vectors], pa.list_(pa.float32()))
    items = data.items.set_column(data.items.column_names.index("embedding"), "embedding", column)
    return replace(data, items=items)


def check_embeddings(data: Dataset, spec: InputSpec) -> None:
    """InputError where the inputs `content` are to be learnt from a log without embeddings of that width."""
    if spec.reads_embeddings:
        widths = pc.list_value_length(data.items["embedding"])
        if not pc.any(pc.equal(widths, spec.embedding)).as_py():
            raise InputError(
                f"the inputs `content` need items with embeddings of {spec.embedding} numbers, and the log has none: make them from the "
                "items' words (--embed of `data import` and of `evaluate`), give the table's own, or name --blocks without content"
            )


def _read(data: Dataset, rows: np.ndarray, until: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(user, which of `rows`) of the clicks that may teach."""
    end = until if until is not None else data.meta.splits.get("train", [0])[0]
    early = (data.events["visible_at"].to_numpy() < end) & pc.equal(data.events["topic"], "clicks").to_numpy()
    clicks = data.events.filter(pa.array(early))
    place = pc.index_in(clicks["item_id"], data.items["item_id"].combine_chunks().take(pa.array(rows)))
    known = place.is_valid().to_numpy()
    user = clicks["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    return user[known].astype(np.int64), place.fill_null(-1).to_numpy()[known].astype(np.int64)
