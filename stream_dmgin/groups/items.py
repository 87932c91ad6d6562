"""What is known of items before they are grouped: views (embeddings from any encoder), texts, categories; read from Parquet.

A view is one embedding of an item: of its name, its picture, ... Not every item has every view. Each view stands on one side,
text or image, and the sides have a tower each (`towers.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.errors import InputError

Matrix = NDArray[np.float32]

# view -> (column of the Parquet file, side)
VIEWS: dict[str, tuple[str, str]] = {
    "embedding": ("embedding", "text"),
    "text": ("text_embedding", "text"),
    "category": ("category_embedding", "text"),
    "description": ("description_embedding", "text"),
    "keyword": ("keyword_embedding", "text"),
    "image": ("image_embedding", "image"),
    "scene": ("scene_embedding", "image"),
}
LABELS = ("category", "keyword")  # views of a class of items rather than of one: they teach, they don't describe
TEXTS = {
    "text": "name",
    "description": "text",
    "category": "category",
    "keyword": "keyword",
}  # view -> column of its words


class View(NamedTuple):
    """`rows`: int64[M], which items have it, ascending. `vectors`: float32[M,width], finite."""

    rows: NDArray[np.int64]
    vectors: Matrix


@dataclass(frozen=True)
class Items:
    """Items sorted by id. `texts`: view -> words of each item, None where it has none. `vectors` of a single embedding and
    `covered` say what can be clustered as it is."""

    ids: list[str]
    views: dict[str, View] = field(default_factory=dict)
    texts: dict[str, list[str | None]] = field(default_factory=dict)
    category: list[str | None] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def names(self) -> list[str | None]:
        """What a person would call each item: its name, else None."""
        return self.texts.get("text") or [None] * len(self.ids)

    def described(self) -> dict[str, View]:
        """Views that describe single items (all but categories and keywords); those too where there is nothing else."""
        own = {k: v for k, v in self.views.items() if k not in LABELS}
        return own or self.views


def unit(x: Matrix) -> Matrix:
    """Rows scaled to length 1; a row of zeros stays."""
    norms = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(x / np.maximum(norms, 1e-12), np.float32)


def read_items(path: str | Path) -> Items:
    """Read a Parquet file with `item_id` and any of the columns of VIEWS (or `vector`), `name`, `text`, `category`, `keyword`;
    or the `items.parquet` of a log in the normalised form, given its directory. Raises InputError naming the row and the fix."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    if path.is_dir():
        path = path / "items.parquet"
    if not path.exists():
        raise InputError(f"{path} does not exist: --items is a Parquet file, or the directory of a log")
    try:
        names = pq.read_schema(path).names
        columns = {c: v for v, (c, _) in VIEWS.items() if c in names}
        if "embedding" not in names and "vector" in names:
            columns["vector"] = "embedding"
        words = [c for c in TEXTS.values() if c in names]
        if "item_id" not in names or not (columns or words):
            wanted = ", ".join(c for c, _ in VIEWS.values())
            raise InputError(
                f"{path} needs the column item_id, and embeddings ({wanted}) or words ({', '.join(TEXTS.values())});"
                f" it has {', '.join(names)}"
            )
        table = pq.read_table(path, columns=["item_id", *columns, *words]).combine_chunks()
    except (OSError, pa.ArrowException) as e:
        raise InputError(f"{path} can't be read as Parquet: {e}") from None
    ids = table.column("item_id").cast(pa.string()).to_pylist()
    row_of: dict[str, int] = {}
    for i, name in enumerate(ids):
        if not name:
            raise InputError(f"{path}, row {i}: item_id is empty")
        if row_of.setdefault(name, i) != i:
            raise InputError(f"{path}: item {name!r} is in rows {row_of[name]} and {i}: keep one of them")
    order = np.array(sorted(range(len(ids)), key=ids.__getitem__), np.int64)
    place = np.empty(len(ids), np.int64)
    place[order] = np.arange(len(ids))
    views = {}
    for column, view in columns.items():
        if (found := _view(path, column, table.column(column), place)) is not None:
            views[view] = found
    texts = {}
    for view, column in TEXTS.items():
        if column in words:
            said = [_words(t) for t in _strings(path, table, column)]
            if any(t is not None for t in said):
                texts[view] = [said[i] for i in order]
    if not views and not texts:
        raise InputError(f"{path}: no item has an embedding or words, so there is nothing to group by")
    return Items([ids[i] for i in order], views, texts, texts.get("category"))


def _strings(path: Path, table: Any, column: str) -> list[str | None]:
    import pyarrow as pa

    try:
        out: list[str | None] = table.column(column).cast(pa.string()).to_pylist()
    except pa.ArrowException as e:
        raise InputError(f"{path}: column {column} must hold text: {e}") from None
    return out


def _words(text: str | None) -> str | None:
    return (text.strip() or None) if text is not None else None


def _view(path: Path, column: str, data: Any, place: NDArray[np.int64]) -> View | None:
    import pyarrow as pa

    there = np.flatnonzero(np.asarray(data.is_valid().to_pylist(), bool))
    if not len(there):
        return None
    lists = data.take(pa.array(there))
    vectors = _matrix(path, column, lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists, there)
    says = vectors.any(1)  # a vector of zeros has no direction: it is what many encoders give for nothing
    there, vectors = there[says], vectors[says]
    if not len(there):
        return None
    order = np.argsort(place[there])
    return View(place[there][order], vectors[order])


def _matrix(path: Path, column: str, lists: Any, rows: NDArray[np.int64]) -> Matrix:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not any(f(lists.type) for f in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)):
        raise InputError(f"{path}: column {column} must hold lists of numbers, not {lists.type}")
    try:
        widths = np.asarray(pc.list_value_length(lists).to_numpy(zero_copy_only=False), np.int64)
        flat = np.asarray(pc.list_flatten(lists).cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False))
    except pa.ArrowException as e:
        raise InputError(f"{path}: column {column} must hold lists of numbers: {e}") from None
    odd = np.flatnonzero(widths != widths[0])
    if len(odd):
        i = int(odd[0])
        raise InputError(
            f"{path}, row {rows[i]}: {column} has {widths[i]} numbers, where the first has {widths[0]}:"
            " all must come from one encoder"
        )
    if widths[0] == 0:
        raise InputError(f"{path}: {column} holds embeddings of no numbers: they can't be grouped")
    out: Matrix = flat.reshape(len(rows), int(widths[0]))
    bad = np.flatnonzero(~np.isfinite(out).all(1))
    if len(bad):
        raise InputError(
            f"{path}, row {rows[int(bad[0])]}: {column} holds a number that is not finite (or a null):"
            " mend what the encoder gave, or make the whole embedding null, which means that the item has none"
        )
    return out


def write_items(items: Items, path: str | Path, embedding: View | None = None) -> None:
    """Write what `read_items` reads: every view and the words; with `embedding`, that one in place of the views."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"item_id": pa.array(items.ids, pa.string())}
    for view, words in items.texts.items():
        columns[TEXTS[view]] = pa.array(words, pa.string())
    if items.category is not None:
        columns["category"] = pa.array(items.category, pa.string())
    for view, found in items.views.items() if embedding is None else [("embedding", embedding)]:
        columns[VIEWS[view][0]] = _lists(found, len(items))
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path, compression="zstd")
    except OSError as e:
        raise InputError(f"{path} can't be written: {e.strerror or e}") from None


def _lists(view: View, n: int) -> Any:
    import pyarrow as pa

    width = view.vectors.shape[1]
    have = np.zeros(n, bool)
    have[view.rows] = True
    ends = np.r_[0, np.cumsum(np.where(have, width, 0))].astype(np.int32)
    offsets = pa.array(ends, pa.int32(), mask=np.r_[~have, False])
    return pa.ListArray.from_arrays(offsets, pa.array(view.vectors.reshape(-1), pa.float32()))
