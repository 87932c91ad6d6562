"""A topic to a Parquet file: one row a record, MessagePack maps as columns.

Known fields of the contract's records have their types; further and nested ones are JSON text (`more` holds the unknown).
Each row also has partition, offset, timestamp, key and headers (JSON); `raw` holds values that are no such map, untouched.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stream_dmgin import topics
from stream_dmgin.log.base import Batch, Log
from stream_dmgin.log.scan import scan

_JSON = pa.string()  # marks: encode as JSON text
_TEXT = pa.large_string()  # marks: plain text; written as string
_EVENT = {
    "user_id": _TEXT, "item_id": _TEXT, "ts": pa.int64(), "event_id": _TEXT, "type": _TEXT, "request_id": _TEXT,
    "position": pa.int64(), "dwell_ms": pa.int64(), "value": pa.float64(), "lat": pa.float64(), "lon": pa.float64(),
    "surface": _TEXT, "attrs": _JSON, "v": pa.int64(),
}  # fmt: skip
FIELDS: dict[str, dict[str, pa.DataType]] = {
    **dict.fromkeys(topics.EVENTS, _EVENT),
    topics.REQUESTS: {
        "request_id": _TEXT, "user_id": _TEXT, "ts": pa.int64(), "candidates": pa.list_(pa.string()), "context": _JSON,
        "expires_at": pa.int64(), "v": pa.int64(),
    },
    topics.SCORES: {
        "request_id": _TEXT, "user_id": _TEXT, "ts": pa.int64(), "scored_at": pa.int64(), "status": _TEXT,
        "candidates": pa.list_(pa.string()), "ctr": pa.list_(pa.float64()), "heads": _JSON, "model": _TEXT, "groups": _TEXT,
        "reason": _TEXT, "provenance": _JSON, "v": pa.int64(),
    },
    topics.ITEMS: {
        "item_id": _TEXT, "name": _TEXT, "text": _TEXT, "category": _TEXT, "advertiser": _TEXT, "lat": pa.float64(),
        "lon": pa.float64(), "price": pa.float64(), "image": _TEXT, "embedding": pa.list_(pa.float32()), "attrs": _JSON,
    },
}  # fmt: skip
_unpack = msgspec.msgpack.Decoder().decode
_json = msgspec.json.Encoder(enc_hook=str).encode


def export_topic(
    log: Log, topic: str, prefix: str, out: Path, progress: Callable[[int], None] | None = None
) -> dict[str, int]:
    """Write what `topic` (full name) holds up to its ends now. Returns {"records", "raw"}: all, and those kept as raw bytes.

    The file appears whole or not at all. `progress` gets the number of records of each batch.
    """
    fields = FIELDS.get(topic.removeprefix(prefix), {})
    schema = _schema(fields)
    begins, ends = log.begins(topic), log.ends(topic)
    ranges = {(topic, p): (begins[p], ends[p]) for p in ends}
    out.parent.mkdir(parents=True, exist_ok=True)
    tmp = out.with_name(out.name + ".part")
    records = raw = 0
    try:
        with pq.ParquetWriter(tmp, schema, compression="zstd") as writer:
            for batch, inside in scan(log, ranges):
                rows = [_row(batch, int(i), fields) for i in np.flatnonzero(inside)]
                writer.write_table(pa.Table.from_pylist(rows, schema))
                records, raw = records + len(rows), raw + sum(r["raw"] is not None for r in rows)
                if progress:
                    progress(len(rows))
        tmp.rename(out)
    finally:
        tmp.unlink(missing_ok=True)
    return {"records": records, "raw": raw}


def _schema(fields: Mapping[str, pa.DataType]) -> pa.Schema:
    own = {
        "partition": pa.int32(),
        "offset": pa.int64(),
        "timestamp": pa.int64(),
        "key": pa.string(),
        "headers": pa.string(),
    }
    known = {k: pa.string() if t == _TEXT else t for k, t in fields.items()}
    return pa.schema(list({**own, **known, "more": pa.string(), "raw": pa.binary()}.items()))


def _row(batch: Batch, i: int, fields: Mapping[str, pa.DataType]) -> dict[str, Any]:
    key, headers = batch.key(i), batch.headers_of(i)
    row: dict[str, Any] = {
        "partition": int(batch.partition[i]), "offset": int(batch.offset[i]), "timestamp": int(batch.timestamp[i]),
        "key": None if key is None else key.decode("utf-8", "backslashreplace"),
        "headers": _json({k: v.decode("utf-8", "backslashreplace") for k, v in headers}).decode() if headers else None,
        "more": None, "raw": None,
    }  # fmt: skip
    value = batch.value(i)
    if value is None:
        return row
    try:
        found = _unpack(value)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(k, str) for k in found):
        row["raw"] = value
        return row
    more: dict[str, Any] = {}
    for k, v in found.items():
        if v is None:
            continue
        if k not in fields:
            more[k] = _plain(v)
        elif fields[k] == _JSON:
            row[k] = _json(_plain(v)).decode()
        elif _fits(v, fields[k]):
            row[k] = v
        else:  # malformed: kept whole
            row["raw"], more[k] = value, _plain(v)
    if more:
        row["more"] = _json(more).decode()
    return row


def _fits(v: Any, kind: pa.DataType) -> bool:
    if isinstance(v, bool):
        return False
    if kind == _TEXT:
        return isinstance(v, str)
    if pa.types.is_integer(kind):
        return isinstance(v, int) and -(1 << 63) <= v < 1 << 63
    if pa.types.is_floating(kind):
        return isinstance(v, (int, float)) and (isinstance(v, float) or abs(v) < 1 << 53)
    inner = _TEXT if kind.value_type == pa.string() else kind.value_type
    return isinstance(v, list) and all(_fits(x, inner) for x in v)


def _plain(v: Any) -> Any:
    """What JSON can hold: bytes as base64, keys as text, numbers that are none as text."""
    if isinstance(v, bytes):
        return base64.b64encode(v).decode()
    if isinstance(v, dict):
        return {str(k): _plain(x) for k, x in v.items()}
    if isinstance(v, (list, tuple)):
        return [_plain(x) for x in v]
    return str(v) if isinstance(v, float) and (v != v or v in (float("inf"), float("-inf"))) else v
