"""The normalised form of a log: a directory that every importer writes and every replay reads.

- `events.parquet`: what became known and when; sorted by `visible_at` (stable).
- `rows.parquet`: one row per (request, candidate) with a known label; sorted by `ts`, rows of a request together.
- `items.parquet`: the catalogue, one row an item; `attrs` is a JSON object as text.
- `meta.json`: name, first day, heads, whether an event may count only when strictly earlier than the request.

All ids are strings, all times integer milliseconds UTC. Columns beyond those below are kept and ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stream_dmgin.errors import InputError

DAY_MS = 86_400_000

# name -> (type, required). A column that is not required may be absent: it reads as all null.
EVENTS: dict[str, tuple[pa.DataType, bool]] = {
    "topic": (pa.string(), True),  # impressions, clicks or post-clicks, without prefix
    "user_id": (pa.string(), True),
    "item_id": (pa.string(), True),
    "ts": (pa.int64(), True),  # when it happened
    "visible_at": (pa.int64(), True),  # when the system got to know of it: the record's timestamp in a log
    "event_id": (pa.string(), False),
    "type": (pa.string(), False),
    "dwell_ms": (pa.int64(), False),
    "value": (pa.float64(), False),
    "request_id": (pa.string(), False),
    "position": (pa.int64(), False),
    "surface": (pa.string(), False),  # where it was shown
    "shared": (pa.bool_(), False),  # false: counts in the user's state, not in the counters shared by all users
}
ROWS: dict[str, tuple[pa.DataType, bool]] = {
    "request_id": (pa.string(), True),
    "user_id": (pa.string(), True),
    "item_id": (pa.string(), True),
    "ts": (pa.int64(), True),
    "label": (pa.int8(), True),
    "surface": (pa.string(), False),
    "page": (pa.string(), False),  # the item on whose page it is asked for
    "lat": (pa.float64(), False),
    "lon": (pa.float64(), False),
    "impression_id": (pa.string(), False),
}  # and label_<head>: int8, null where unknown; label_<head>_at: int64, when a label of 1 became visible, where that can be late
ITEMS: dict[str, tuple[pa.DataType, bool]] = {
    "item_id": (pa.string(), True),
    "name": (pa.string(), False),
    "text": (pa.string(), False),
    "category": (pa.string(), False),
    "advertiser": (pa.string(), False),
    "lat": (pa.float64(), False),
    "lon": (pa.float64(), False),
    "price": (pa.float64(), False),
    "image": (pa.string(), False),
    "embedding": (pa.list_(pa.float32()), False),
    "attrs": (pa.string(), False),
    "group": (pa.int64(), False),
}
TOPICS = ("impressions", "clicks", "post-clicks")


@dataclass
class Meta:
    """What `meta.json` says of a log."""

    dataset: str
    day0_ms: int
    day_ms: int = DAY_MS
    strict_visibility: bool = True
    heads: list[str] = field(default_factory=list)
    gauc: str = "user"  # what GAUC groups by: user or impression
    item_numbers: list[str] = field(default_factory=list)  # numeric attrs of items a model may use
    splits: dict[str, list[int]] = field(default_factory=dict)  # name -> [from, to) in ms, where days don't fit
    counts: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass
class Dataset:
    """A log in the normalised form, in memory. Optional columns that are not given are added, all null."""

    events: pa.Table
    rows: pa.Table
    items: pa.Table
    meta: Meta

    def __post_init__(self) -> None:
        for name, schema in (("events", EVENTS), ("rows", ROWS), ("items", ITEMS)):
            t = getattr(self, name)
            for column, (kind, required) in schema.items():
                if not required and column not in t.column_names:
                    t = t.append_column(column, pa.nulls(t.num_rows, kind))
            setattr(self, name, t)

    def day(self, ts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Day numbers of times; day 0 begins at `day0_ms`."""
        return (ts - self.meta.day0_ms) // self.meta.day_ms


def table(
    schema: Mapping[str, tuple[pa.DataType, bool]],
    columns: Mapping[str, Any],
    extra: Mapping[str, pa.DataType] | None = None,
) -> pa.Table:
    """A table with the columns of `schema` that are given, cast to its types; `extra` names further ones (heads)."""
    types = {k: t for k, (t, _) in schema.items()} | dict(extra or {})
    return pa.table({k: _cast(columns[k], t) for k, t in types.items() if k in columns})


def no_rows() -> pa.Table:
    """The rows of a log that has events only."""
    return table(ROWS, {k: pa.nulls(0, t) for k, (t, _) in ROWS.items()})


def _cast(x: Any, t: pa.DataType) -> Any:
    if isinstance(x, (pa.Array, pa.ChunkedArray)):
        return x.cast(t)
    return pa.array(x, t) if isinstance(x, list) else pa.array(x).cast(t)


def strings(x: NDArray[Any], prefix: str = "") -> pa.Array:
    """Numbers as text, with a prefix."""
    s = pa.array(x).cast(pa.string())
    return pc.binary_join_element_wise(pa.scalar(prefix), s, "") if prefix else s


def in_visible_order(events: pa.Table) -> pa.Table:
    """Events sorted by `visible_at`; what is visible at the same time keeps its order."""
    return events.take(pa.array(np.argsort(events["visible_at"].to_numpy(), kind="stable")))


def write(data: Dataset, out: str | Path) -> None:
    """Write the directory (made where it is missing). Fills `meta.counts`."""
    path = Path(out)
    path.mkdir(parents=True, exist_ok=True)
    rows = data.rows
    data.meta.counts |= {
        "events": data.events.num_rows,
        **{t: int(pc.sum(pc.equal(data.events["topic"], t)).as_py() or 0) for t in TOPICS},
        "requests": len(pc.unique(rows["request_id"])),
        "rows": rows.num_rows,
        "items": data.items.num_rows,
        "users": len(
            pc.unique(pa.chunked_array([*data.events["user_id"].chunks, *rows["user_id"].chunks], pa.string()))
        ),
    }
    for name in ("events", "rows", "items"):
        pq.write_table(getattr(data, name), path / f"{name}.parquet", compression="zstd")
    (path / "meta.json").write_text(json.dumps(asdict(data.meta), indent=1) + "\n")


def read(directory: str | Path) -> Dataset:
    """Read and check a directory of the normalised form. Raises InputError naming the file and the column."""
    path = Path(directory)
    try:
        known = json.loads((path / "meta.json").read_text())
        meta = Meta(**{k: known[k] for k in Meta.__dataclass_fields__ if k in known})
    except FileNotFoundError:
        raise InputError(
            f"{path} has no meta.json: no log in the normalised form: make one with `data import`"
        ) from None
    except (ValueError, TypeError) as e:
        raise InputError(f"{path / 'meta.json'} can't be used: {e}") from None
    events = _read(path / "events.parquet", EVENTS, {})
    late = {f"label_{h}_at": pa.int64() for h in meta.heads}
    rows = _read(path / "rows.parquet", ROWS, {f"label_{h}": pa.int8() for h in meta.heads} | late)
    items = _read(path / "items.parquet", ITEMS, {})
    data = Dataset(events, rows, items, meta)
    validate(data, str(path))
    return data


def _read(path: Path, schema: Mapping[str, tuple[pa.DataType, bool]], heads: Mapping[str, pa.DataType]) -> pa.Table:
    try:
        t = pq.read_table(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except (OSError, pa.ArrowException) as e:
        raise InputError(f"{path} can't be read as Parquet: {e}") from None
    out = {}
    for name, (kind, required) in {**schema, **{h: (k, False) for h, k in heads.items()}}.items():
        if name in t.column_names:
            try:
                out[name] = t[name].cast(kind)
            except pa.ArrowException as e:
                raise InputError(f"{path}: column {name} is {t[name].type}, not {kind}: {e}") from None
            if required and t[name].null_count:
                raise InputError(f"{path}: column {name} has {t[name].null_count} nulls; every row needs one")
        elif required:
            raise InputError(f"{path} has no column {name}; it has {', '.join(t.column_names)}")
        elif not name.endswith("_at"):
            out[name] = pa.nulls(t.num_rows, kind)
    return pa.table(out)


def validate(data: Dataset, where: str = "the log") -> None:
    """Order, labels, topics, and one row an item. Raises InputError."""
    visible = data.events["visible_at"].to_numpy()
    if (np.diff(visible) < 0).any():
        raise InputError(f"{where}: events.parquet is not sorted by visible_at")
    if (data.events["ts"].to_numpy() > visible).any():
        raise InputError(f"{where}: an event of events.parquet is visible before it happened (visible_at < ts)")
    ts = data.rows["ts"].to_numpy()
    if (np.diff(ts) < 0).any():
        raise InputError(f"{where}: rows.parquet is not sorted by ts")
    request = data.rows["request_id"].combine_chunks().dictionary_encode()
    code = request.indices.to_numpy() if data.rows.num_rows else np.zeros(0, np.int32)
    if data.rows.num_rows and int((np.diff(code) != 0).sum()) + 1 != len(request.dictionary):
        raise InputError(f"{where}: the rows of a request of rows.parquet are not together")
    unknown = set(pc.unique(data.events["topic"]).to_pylist()) - set(TOPICS)
    if unknown:
        names = ", ".join(map(str, sorted(unknown)))
        raise InputError(f"{where}: unknown topics in events.parquet: {names}; use {', '.join(TOPICS)}")
    if not set(pc.unique(data.rows["label"]).to_pylist()) <= {0, 1}:
        raise InputError(f"{where}: label of rows.parquet must be 0 or 1")
    for head in data.meta.heads:
        _head(data.rows, head, where)
    counts = pc.value_counts(data.items["item_id"])
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()
    if twice:
        raise InputError(
            f"{where}: {len(twice)} items have more than one row of items.parquet, such as {twice[0]!r}: keep one row an item"
        )


def _head(rows: pa.Table, head: str, where: str) -> None:
    name = f"label_{head}"
    if name in rows.column_names and not set(pc.unique(rows[name]).to_pylist()) <= {0, 1, None}:
        raise InputError(f"{where}: {name} of rows.parquet must be 0, 1 or null (unknown)")
    if f"{name}_at" in rows.column_names:
        early = pc.sum(pc.less(rows[f"{name}_at"], rows["ts"])).as_py() or 0
        if early:
            raise InputError(
                f"{where}: {name}_at of {early} rows of rows.parquet is before the request (ts): a label can't be known before what"
                f" it is of; mend the clocks, or leave {name}_at null where the time isn't known"
            )
