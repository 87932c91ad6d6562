"""Where a replay gets its events and requests from: a directory of the normalised form, or the topics of a log.

Either way events arrive as MessagePack in chunks of raw addresses, ordered by when they became visible, and requests as one
table ordered by time; what decides between them is strict: an event counts for a request only if it was visible earlier.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stream_dmgin import topics
from stream_dmgin.datasets.form import Dataset, Meta
from stream_dmgin.log.base import Batch
from stream_dmgin.records import Item
from stream_dmgin.replay.guard import own_outcomes

CHUNK = 50_000
_encode = msgspec.msgpack.Encoder().encode


@dataclass(slots=True)
class EventChunk:
    """Events in the order in which they became visible. `at`: when; `shared`: false where the counters must not see it."""

    batch: Batch  # topics: topics.EVENTS with any prefix, by their index in topics.EVENTS
    at: NDArray[np.int64]
    shared: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.at)


@dataclass
class Requests:
    """Requests in time order. Candidates are flat: those of request i are `first[i]:first[i + 1]`."""

    id: list[str]
    user: list[str]
    ts: NDArray[np.int64]  # the request's own time
    at: NDArray[np.int64]  # what was visible strictly before this counts
    partition: NDArray[np.int32]
    first: NDArray[np.int64]  # [n + 1]
    item: list[str]
    label: NDArray[np.int8]  # -1 unknown
    lat: NDArray[np.float64]  # nan unknown
    lon: NDArray[np.float64]
    surface: list[str | None]
    page: list[str | None]
    heads: dict[str, NDArray[np.int8]] = field(default_factory=dict)
    impression: list[str | None] | None = None

    def __len__(self) -> int:
        return len(self.id)

    def candidates(self, i: int) -> list[str]:
        """Item ids of request i."""
        return self.item[self.first[i] : self.first[i + 1]]

    def request_of_rows(self) -> NDArray[np.int64]:
        """Number of the request of each candidate."""
        return np.repeat(np.arange(len(self)), np.diff(self.first))

    def between(self, low: int, high: int) -> tuple[int, int]:
        """Numbers [from, to) of the requests with low <= ts < high; all of a replay's requests are in time order."""
        return int(np.searchsorted(self.ts, low)), int(np.searchsorted(self.ts, high))


class Source(Protocol):
    """What a replay runs over."""

    meta: Meta
    requests: Requests
    partitions: Sequence[int]

    def items(self) -> Iterator[Item]:
        """The catalogue."""
        ...

    def events(self) -> Iterator[EventChunk]:
        """All events, in the order in which they became visible; a chunk lives until the next is asked for."""
        ...

    @property
    def count(self) -> int:
        """Events in all."""
        ...


class DatasetSource:
    """A log in the normalised form; one partition."""

    partitions: Sequence[int] = (0,)

    def __init__(self, data: Dataset) -> None:
        self.data, self.meta = data, data.meta
        self.requests = _requests(data.rows, data.meta.heads)
        own_outcomes(data.events, pa.array(self.requests.id, pa.string()), self.requests.at)

    @property
    def count(self) -> int:
        """Events in all."""
        return int(self.data.events.num_rows)

    def items(self) -> Iterator[Item]:
        """The catalogue."""
        for r in self.data.items.to_pylist():
            yield item_of(r)

    def events(self) -> Iterator[EventChunk]:
        """Events as the records a log would hold, their offsets counted by topic."""
        table = self.data.events
        seen = np.zeros(len(topics.EVENTS), np.int64)
        for start in range(0, table.num_rows, CHUNK):
            part = table.slice(start, CHUNK).combine_chunks()
            topic = np.array([topics.EVENTS.index(t) for t in part["topic"].to_pylist()], np.uint8)
            offset = np.empty(len(topic), np.int64)
            for t in range(len(seen)):
                mine = np.flatnonzero(topic == t)
                offset[mine] = seen[t] + np.arange(len(mine))
                seen[t] += len(mine)
            at = part["visible_at"].to_numpy()
            yield EventChunk(_batch(part, topic, offset, at), at, _shared(part))


def item_of(row: Mapping[str, Any]) -> Item:
    """A row of `items.parquet` as the record it stands for."""
    fields = {k: v for k, v in row.items() if k in Item.__struct_fields__ and v is not None and k != "attrs"}
    attrs = msgspec.json.decode(row["attrs"]) if row.get("attrs") else None
    return Item(**fields, attrs=attrs)


def encode_events(table: pa.Table) -> tuple[list[bytes], list[bytes]]:
    """(keys, values) of rows of `events.parquet` as records; missing fields are left out."""
    names = [
        n
        for n in (
            "user_id",
            "item_id",
            "ts",
            "event_id",
            "type",
            "request_id",
            "position",
            "surface",
            "dwell_ms",
            "value",
        )
        if n in table.column_names
    ]
    present = [n for n in names if table[n].null_count < table.num_rows]
    columns = [table[n].to_pylist() for n in present]
    if any(table[n].null_count for n in present):
        values = [
            _encode({k: v for k, v in zip(present, row, strict=True) if v is not None})
            for row in zip(*columns, strict=True)
        ]
    else:
        values = [_encode(dict(zip(present, row, strict=True))) for row in zip(*columns, strict=True)]
    return [u.encode() for u in table["user_id"].to_pylist()], values


def _batch(part: pa.Table, topic: NDArray[np.uint8], offset: NDArray[np.int64], at: NDArray[np.int64]) -> Batch:
    keys, values = encode_events(part)
    n = len(keys)
    kl, vl = np.fromiter(map(len, keys), np.int32, n), np.fromiter(map(len, values), np.int32, n)
    memory = np.frombuffer(b"".join(keys) + b"".join(values) + b"\0", np.uint8)
    base = memory.ctypes.data
    ka = base + np.cumsum(kl, dtype=np.int64) - kl
    va = base + int(kl.sum()) + np.cumsum(vl, dtype=np.int64) - vl
    return Batch(
        topics.EVENTS,
        topic,
        np.zeros(n, np.int32),
        offset,
        at,
        ka.astype(np.uint64),
        kl,
        va.astype(np.uint64),
        vl,
        owner=memory,
    )


def _shared(part: pa.Table) -> NDArray[np.bool_]:
    if "shared" not in part.column_names:
        return np.ones(part.num_rows, bool)
    values: NDArray[np.bool_] = part["shared"].combine_chunks().fill_null(True).to_numpy(zero_copy_only=False)
    return values


def _requests(rows: pa.Table, heads: Sequence[str]) -> Requests:
    ids = rows["request_id"].combine_chunks().dictionary_encode()
    code = ids.indices.to_numpy() if rows.num_rows else np.zeros(0, np.int32)
    start = np.flatnonzero(np.r_[True, code[1:] != code[:-1]]) if len(code) else np.zeros(0, np.int64)
    at = pa.array(start)

    def taken(name: str) -> list[Any]:
        return rows[name].take(at).to_pylist() if name in rows.column_names else [None] * len(start)

    def number(name: str) -> NDArray[np.float64]:
        return np.array([np.nan if x is None else x for x in taken(name)], np.float64)

    ts = rows["ts"].take(at).to_numpy() if len(start) else np.zeros(0, np.int64)
    known = {
        h: rows[f"label_{h}"].combine_chunks().fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int8)
        for h in heads
        if f"label_{h}" in rows.column_names
    }
    impression = taken("impression_id")
    return Requests(
        id=taken("request_id"), user=taken("user_id"), ts=ts, at=ts, partition=np.zeros(len(start), np.int32),
        first=np.r_[start, len(code)].astype(np.int64), item=rows["item_id"].to_pylist(),
        label=rows["label"].to_numpy().astype(np.int8), lat=number("lat"), lon=number("lon"), surface=taken("surface"), page=taken("page"),
        heads=known, impression=impression if any(x is not None for x in impression) else None,
    )  # fmt: skip
