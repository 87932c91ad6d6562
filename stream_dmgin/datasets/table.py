"""Any CSV or Parquet file, by column mapping.

    data import table clicks.csv --map user_id=uid,item_id=iid,ts=time,type=action --ts-unit s --out DIR

Each line is one event; its topic comes from its type (impression, click and the like, all others post-clicks) or is given
for all lines. With a `label` column each line is an impression with a known outcome instead: a row to score, an
impression and, where the label is 1, a click, both visible `visible_after_ms` later unless `visible_at` is mapped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stream_dmgin.datasets import form
from stream_dmgin.errors import InputError
from stream_dmgin.features.spec import CLASS_OF_TYPE
from stream_dmgin.records import TS_MIN

UNITS = {"s": 1000.0, "ms": 1.0, "us": 0.001}
ITEM_COLUMNS = ("name", "text", "category", "advertiser", "price")
MAPPABLE = (
    "user_id",
    "item_id",
    "ts",
    "visible_at",
    "type",
    "event_id",
    "request_id",
    "position",
    "dwell_ms",
    "value",
    "label",
    "surface",
    "page",
    "lat",
    "lon",
    *ITEM_COLUMNS,
)


def parse_map(text: str) -> dict[str, str]:
    """`user_id=uid,item_id=iid,ts=time` as {field: column}. Raises InputError."""
    out: dict[str, str] = {}
    for part in text.split(","):
        field, eq, column = (x.strip() for x in part.partition("="))
        if not eq or not column or field not in MAPPABLE:
            raise InputError(f"--map {part!r} can't be used: write FIELD=COLUMN with a field of {', '.join(MAPPABLE)}")
        out[field] = column
    missing = [f for f in ("user_id", "item_id", "ts") if f not in out]
    if missing:
        raise InputError(f"--map lacks {', '.join(missing)}: user_id, item_id and ts are needed")
    return out


def load(
    path: Path, columns: Mapping[str, str], ts_unit: str = "ms", topic: str | None = None, visible_after_ms: int = 0
) -> form.Dataset:
    """The file in the normalised form. `columns`: field -> column of the file. Raises InputError."""
    t = _read(path)
    absent = [c for c in columns.values() if c not in t.column_names]
    if absent:
        raise InputError(f"{path} has no column {', '.join(absent)}; it has {', '.join(t.column_names)}")
    c: dict[str, Any] = {f: t[name].combine_chunks() for f, name in columns.items()}
    ts = _times(c["ts"], ts_unit, f"{path}, column {columns['ts']}")
    user, item = c["user_id"].cast(pa.string()), c["item_id"].cast(pa.string())
    named = pc.and_(
        pc.greater(pc.fill_null(pc.utf8_length(user), 0), 0), pc.greater(pc.fill_null(pc.utf8_length(item), 0), 0)
    )
    good = named.to_numpy(zero_copy_only=False)
    dated = ts >= TS_MIN
    keep = np.flatnonzero(good & dated)
    if not len(keep):
        raise InputError(
            f"{path} has no line with a user, an item and a time after 2000: is --ts-unit {ts_unit} right?"
        )
    keep = keep[np.argsort(ts[keep], kind="stable")]
    k = pa.array(keep)
    c = {f: x.take(k) for f, x in c.items()} | {"user_id": user.take(k), "item_id": item.take(k), "ts": ts[keep]}
    if "visible_at" in c:
        c["visible_at"] = np.maximum(_times(c["visible_at"], ts_unit, str(path)), ts[keep])
    else:
        c["visible_at"] = ts[keep] + visible_after_ms
    if "request_id" not in c:
        c["request_id"] = form.strings(np.arange(len(keep)), "t")
    events, rows = _labelled(c) if "label" in c else (_events(c, topic), form.no_rows())
    meta = form.Meta("table", int(c["ts"][0]) // form.DAY_MS * form.DAY_MS)
    meta.dropped = {"no_user_or_item": int((~good).sum()), "no_time": int((good & ~dated).sum())}
    return form.Dataset(form.in_visible_order(events), rows, _items(c), meta)


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path) if path.suffix == ".parquet" else pacsv.read_csv(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except (OSError, pa.ArrowException) as e:
        kind = "Parquet" if path.suffix == ".parquet" else "CSV with a header"
        raise InputError(f"{path} can't be read as {kind}: {e}") from None


def _times(x: pa.Array, unit: str, where: str) -> NDArray[np.int64]:
    """Milliseconds; -1 where there is no time."""
    try:
        if unit == "iso" or pa.types.is_timestamp(x.type):
            if pa.types.is_string(x.type):  # a zone at the end counts, none means UTC
                x = pc.cast(x, pa.timestamp("ms", "UTC")) if _zoned(x) else pc.cast(x, pa.timestamp("ms"))
            ms = x.cast(pa.timestamp("ms", x.type.tz), safe=False).cast(pa.int64())
            out: NDArray[np.int64] = pc.fill_null(ms, -1).to_numpy()
            return out
        number = pc.fill_null(x.cast(pa.float64()), -1.0).to_numpy()
    except pa.ArrowException as e:
        raise InputError(f"{where} holds no times in unit {unit}: {e}") from None
    if not np.isfinite(number).all():
        raise InputError(f"{where} holds times that are not finite")
    if pa.types.is_integer(x.type) and unit in ("s", "ms"):
        whole: NDArray[np.int64] = pc.fill_null(x.cast(pa.int64()), -1).to_numpy() * int(UNITS[unit])
        return whole
    scaled: NDArray[np.int64] = np.floor(number * UNITS[unit]).astype(np.int64)
    return scaled


def _zoned(x: pa.Array) -> bool:
    return bool(pc.any(pc.match_substring_regex(x, r"(Z|[+-]\d\d:?\d\d)$")).as_py())


def _optional(c: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {n: c[n] for n in names if n in c}


def _events(c: Mapping[str, Any], topic: str | None) -> pa.Table:
    n = len(c["ts"])
    kind = c["type"].cast(pa.string()) if "type" in c else None
    if topic is None and kind is None:
        raise InputError(
            "the file's events have no topic: map a type column, or give --topic impressions, clicks or post-clicks"
        )
    if topic is not None:
        if topic == "post-clicks" and kind is None:
            raise InputError("events of post-clicks need a type: map a type column")
        topics = pa.repeat(topic, n)
    else:
        assert kind is not None
        of = {"impression": "impressions", **{t: "clicks" for t, cls in CLASS_OF_TYPE.items() if cls == "click"}}
        topics = pa.array([of.get(t, "post-clicks") for t in kind.to_pylist()], pa.string())
    optional = _optional(c, ("event_id", "dwell_ms", "value", "position", "surface"))
    columns = {
        "topic": topics,
        "user_id": c["user_id"],
        "item_id": c["item_id"],
        "ts": c["ts"],
        "visible_at": c["visible_at"],
        **optional,
    }
    if kind is not None:
        columns["type"] = kind
    if "request_id" in c:
        columns["request_id"] = c["request_id"]
    try:
        return form.table(form.EVENTS, columns)
    except pa.ArrowException as e:
        raise InputError(f"a mapped column holds values of another type: {e}") from None


def _labelled(c: Mapping[str, Any]) -> tuple[pa.Table, pa.Table]:
    try:
        label = c["label"].cast(pa.int8())
        rows = form.table(
            form.ROWS,
            {
                **_optional(c, ("request_id", "user_id", "item_id", "ts", "surface", "page", "lat", "lon")),
                "label": label,
            },
        )
    except pa.ArrowException as e:
        raise InputError(f"a mapped column holds values of another type: {e}") from None
    if not set(pc.unique(label).to_pylist()) <= {0, 1}:
        raise InputError("the label column must hold 0 and 1")
    # rows of a request stay together: by the first time of the request, then in the file's order
    code = rows["request_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    first = np.full(int(code.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, code, c["ts"])
    if (first[code] != c["ts"]).any():
        raise InputError("rows of one request have different times: map another request_id, or none")
    order = np.lexsort((code, c["ts"]))
    shown = {n: c[n] for n in ("user_id", "item_id", "ts", "visible_at", "request_id", "position", "surface") if n in c}
    n = len(c["ts"])
    seen = form.table(form.EVENTS, {**shown, "topic": pa.repeat("impressions", n), "type": pa.repeat("impression", n)})
    click = form.table(form.EVENTS, {**shown, "topic": pa.repeat("clicks", n), "type": pa.repeat("click", n)}).filter(
        pc.equal(label, 1)
    )
    return pa.concat_tables([seen, click.select(seen.column_names)]), rows.take(pa.array(order))


def _items(c: Mapping[str, Any]) -> pa.Table:
    """The catalogue as each item's first line shows it."""
    names = [n for n in ITEM_COLUMNS if n in c]
    t = (
        pa.table({n: c[n] for n in ("item_id", *names)})
        .group_by("item_id", use_threads=False)
        .aggregate([(n, "first") for n in names])
    )
    return form.table(form.ITEMS, {"item_id": t["item_id"], **{n: t[f"{n}_first"] for n in names}})
