"""A directory of the normalised form (datasets/form.py) onto a log, in time order.

Events get the time at which they became visible as their record's timestamp, requests their own `ts`. At equal times the
request goes first: what becomes visible at that very time must not count for it.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow as pa

from stream_dmgin import topics
from stream_dmgin.datasets.form import Dataset
from stream_dmgin.log.base import Log
from stream_dmgin.log.manage import keep_dated
from stream_dmgin.records import CANDIDATES_MAX, Event, Item, Request, encode

logger = logging.getLogger(__name__)

CHUNK = 20_000  # rows turned into Python objects at once
_EVENT_FIELDS = tuple(f for f in Event.__struct_fields__ if f not in ("attrs", "v"))


@dataclass(frozen=True)
class Days:
    """Days of the data, both included; None is open. What lies before day 0 counts as before any `first`."""

    first: int | None = None
    last: int | None = None

    def limits(self, data: Dataset) -> tuple[int, int]:
        """[low, high) in ms."""
        zero, day = data.meta.day0_ms, data.meta.day_ms
        low = -(1 << 62) if self.first is None else zero + self.first * day
        return low, 1 << 62 if self.last is None else zero + (self.last + 1) * day


@dataclass(frozen=True)
class Selection:
    """What is written: which kinds, which days of each, how many events and requests together at most."""

    events: bool = True
    requests: bool = True
    items: bool = True
    event_days: Days = Days()
    request_days: Days = Days()
    limit: int | None = None


_Out = tuple[int, int, str, str, bytes]  # time, 0 request | 1 event, topic, key, value


def import_dataset(
    log: Log, data: Dataset, prefix: str, what: Selection | None = None, progress: Callable[[int], None] | None = None
) -> dict[str, int]:
    """Write it. Returns how many records of each topic (names without prefix) were written. Raises LogUnavailable.

    `progress` gets the number of records of each step.
    """
    what = what or Selection()
    counts: dict[str, int] = {}
    for names, table, time_of, days in (
        (topics.EVENTS, data.events, "visible_at", what.event_days if what.events else None),
        ((topics.REQUESTS,), data.rows, "ts", what.request_days if what.requests else None),
    ):
        if days is not None and table.num_rows:
            oldest = max(table[time_of][0].as_py(), days.limits(data)[0])
            for changed in keep_dated(log, [prefix + n for n in names], oldest):
                logger.warning(
                    "%s is kept for ever from now on: its retention would take such old records away at once", changed
                )
    writer = log.writer(linger_ms=50)
    try:
        if what.items:
            for row in _dicts(data.items, tuple(f for f in Item.__struct_fields__ if f in data.items.column_names)):
                item = _item(row)
                writer.append(prefix + topics.ITEMS, item.item_id.encode(), encode(item))
                counts[topics.ITEMS] = counts.get(topics.ITEMS, 0) + 1
        step = written = 0
        for time, _, topic, user, value in heapq.merge(*_streams(data, what), key=lambda o: o[:2]):
            if written == what.limit:
                break
            writer.append(prefix + topic, user.encode(), value, timestamp=time)
            counts[topic] = counts.get(topic, 0) + 1
            written, step = written + 1, step + 1
            if step == 5000:
                writer.poll()
                if progress:
                    progress(step)
                step = 0
        writer.flush(120.0)
        if progress:
            progress(step)
    finally:
        writer.close()
    return counts


def total(data: Dataset, what: Selection) -> int:
    """About how many events and requests there are to write, for a progress bar."""
    n = data.events.num_rows if what.events else 0
    if what.requests:
        n += data.meta.counts.get("requests", 0)
    return n if what.limit is None else min(n, what.limit)


def _streams(data: Dataset, what: Selection) -> Iterator[Iterator[_Out]]:
    if what.requests:
        yield _requests(data, *what.request_days.limits(data))
    if what.events:
        yield _events(data, *what.event_days.limits(data))


def _events(data: Dataset, low: int, high: int) -> Iterator[_Out]:
    names = [f for f in _EVENT_FIELDS if f in data.events.column_names]
    for row in _dicts(data.events, ("topic", "visible_at", *names)):
        topic, time = row.pop("topic"), row.pop("visible_at")
        if time >= high:
            return
        if time >= low:
            yield time, 1, topic, row["user_id"], encode(Event(**row))


def _requests(data: Dataset, low: int, high: int) -> Iterator[_Out]:
    names = [
        f
        for f in ("request_id", "user_id", "item_id", "ts", "surface", "page", "lat", "lon")
        if f in data.rows.column_names
    ]
    first: dict[str, Any] | None = None
    candidates: list[str] = []
    for row in _dicts(data.rows, names):
        if first is not None and (row.get("request_id"), row["user_id"], row["ts"]) != (
            first.get("request_id"), first["user_id"], first["ts"]
        ):  # fmt: skip
            yield from _request(first, candidates, low, high)
            first, candidates = None, []
        if first is None:
            if row["ts"] >= high:
                return
            first = row
        candidates.append(row["item_id"])
    if first is not None:
        yield from _request(first, candidates, low, high)


def _request(row: dict[str, Any], candidates: list[str], low: int, high: int) -> Iterator[_Out]:
    if not low <= row["ts"] < high:
        return
    user, ts = row["user_id"], row["ts"]
    name = row.get("request_id") or "r" + hashlib.blake2b(f"{user}/{ts}".encode(), digest_size=10).hexdigest()
    context = {k: row[k] for k in ("surface", "page", "lat", "lon") if row.get(k) is not None}
    for part, at in enumerate(range(0, len(candidates), CANDIDATES_MAX)):  # longer lists become several requests
        own = name if part == 0 else f"{name}/{part + 1}"
        some = candidates[at : at + CANDIDATES_MAX]
        yield ts, 0, topics.REQUESTS, user, encode(Request(own, user, ts, some, context or None))


def _item(row: dict[str, Any]) -> Item:
    attrs = row.pop("attrs", None)
    return Item(**row, attrs=msgspec.json.decode(attrs) if attrs else None)


def _dicts(table: pa.Table, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows as dicts of `names`, a chunk at a time."""
    for batch in table.select(list(names)).to_batches(max_chunksize=CHUNK):
        columns = [c.to_pylist() for c in batch.columns]
        for values in zip(*columns, strict=True):
            yield dict(zip(names, values, strict=True))
