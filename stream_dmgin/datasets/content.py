"""Embeddings of a log's items, for logs that bring none: from their words, by any encoder and bent to what users read together, or from
clicks alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_dmgin.datasets.form import Dataset
from stream_dmgin.errors import InputError
from stream_dmgin.features.spec import CLASS_OF_TYPE, InputSpec
from stream_dmgin.groups.coread import bent, by_readers
from stream_dmgin.groups.encode import encode
from stream_dmgin.groups.items import Matrix, unit
from stream_dmgin.groups.kmeans import kmeans

CLICKS = "clicks"  # the way that needs no words
GROUPS = 64


@dataclass(frozen=True)
class Embedding:
    """How to make embeddings: `encoder` is one of `groups/encode.py`, or CLICKS. Clicks that became visible at `until` (ms) or later
    teach nothing; None: where the log's own training part begins, and in a log without parts, no click does."""

    encoder: str
    width: int = 64
    until: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Embedded:
    """`vectors` [items of the log,width]: rows of zeros have no words (no clicks). `taught`: users whose clicks bent (made) them."""

    vectors: Matrix
    taught: int


def embed(data: Dataset, how: Embedding, seen: Callable[[int, int], None] | None = None) -> Embedded:
    """Embeddings of all items that have words (`name`, else `text`), or were clicked. Raises InputError where none has, UsageError for
    the encoder."""
    if how.encoder == CLICKS:
        return _by_clicks(data, how)
    words = pc.coalesce(data.items["name"], data.items["text"]).to_pylist()
    rows = np.array([i for i, t in enumerate(words) if t and t.strip()], np.int64)
    distinct = sorted({words[i] for i in rows})
    if not distinct:
        raise InputError("no item of the log has a name or a text: there is nothing to make embeddings of")
    number = {t: k for k, t in enumerate(distinct)}
    made = unit(encode(distinct, how.encoder, how.seed, seen))
    vectors = made[[number[words[i]] for i in rows]]
    user, item = _read(data, rows, how.until, ("clicks",))
    out = np.zeros((len(words), how.width), np.float32)
    out[rows], taught = bent(vectors, user, item, how.width)
    return Embedded(out, taught)


def _by_clicks(data: Dataset, how: Embedding) -> Embedded:
    user, item = _read(data, np.arange(data.items.num_rows), how.until, ("clicks", "post-clicks"))
    if not len(user):
        raise InputError(
            "embeddings by clicks need clicks that were visible before the first row that is to be learnt from: name a later time with "
            "--embed-until, or a later first day of training"
        )
    return Embedded(*by_readers(user, item, data.items.num_rows, how.width, how.seed))


def with_embeddings(data: Dataset, vectors: Matrix) -> Dataset:
    """The log with these embeddings of its items; and with groups of like ones, where it says neither groups nor categories."""
    column = pa.array([x.tolist() if x.any() else None for x in vectors], pa.list_(pa.float32()))
    items = data.items.set_column(data.items.column_names.index("embedding"), "embedding", column)
    if items["group"].null_count == items["category"].null_count == items.num_rows:
        items = items.set_column(items.column_names.index("group"), items.schema.field("group"), _groups(vectors))
    return replace(data, items=items)


def _groups(vectors: Matrix) -> pa.Array:
    """GROUPS groups by K-means of the items that have an embedding; none for the others."""
    some = np.flatnonzero(vectors.any(1))
    out: np.ndarray = np.zeros(len(vectors), np.int64)
    out[some] = kmeans(unit(vectors[some]), min(GROUPS, len(some)))[0]
    return pa.array(out, pa.int64(), mask=~vectors.any(1))


def check_embeddings(data: Dataset, spec: InputSpec) -> None:
    """InputError where inputs that read embeddings are to be learnt from a log without embeddings of that width."""
    if spec.reads_embeddings:
        widths = pc.list_value_length(data.items["embedding"])
        if not pc.any(pc.equal(widths, spec.embedding)).as_py():
            raise InputError(
                f"the inputs `content`, `passed`, `audience` and `readers` need items with embeddings of {spec.embedding} numbers, and "
                "the log has none: make them from words or clicks (--embed of `data import` and of `evaluate`), give the table's own, or "
                "name --blocks without these"
            )


def _read(data: Dataset, rows: np.ndarray, until: int | None, topics: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(user, which of `rows`) of the events of these topics, none of them negative, that may teach."""
    end = until if until is not None else data.meta.splits.get("train", [0])[0]
    negative = pa.array([t for t, c in CLASS_OF_TYPE.items() if c == "negative"])
    early = (data.events["visible_at"].to_numpy() < end) & pc.is_in(data.events["topic"], pa.array(topics)).to_numpy()
    liked = ~pc.is_in(data.events["type"], negative).to_numpy()
    events = data.events.filter(pa.array(early & liked))
    place = pc.index_in(events["item_id"], data.items["item_id"].combine_chunks().take(pa.array(rows)))
    known = place.is_valid().to_numpy()
    user = events["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    return user[known].astype(np.int64), place.fill_null(-1).to_numpy()[known].astype(np.int64)
