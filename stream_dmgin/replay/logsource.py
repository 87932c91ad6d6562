"""A log's topics as the source of a replay: events and requests merged by record timestamp over all partitions.

Everything is read into memory (about 150 bytes a record). Labels come from the log itself: of a request's candidates, those
with a click that names the request are 1, those shown without one are 0, all others unknown.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_dmgin import topics
from stream_dmgin.control import Control, digest_of, read_control
from stream_dmgin.datasets.form import DAY_MS, Meta
from stream_dmgin.errors import InputError, RecordError
from stream_dmgin.log.base import TP, Batch, Log, Record, batch_of
from stream_dmgin.log.scan import scan
from stream_dmgin.records import Item, decode_item, decode_request
from stream_dmgin.replay.source import CHUNK, EventChunk, Requests
from stream_dmgin.scoring.context import read_context

_peek = msgspec.msgpack.Decoder().decode


@dataclass
class Columns:
    """Records of some topics with their bytes copied out, in the order read."""

    topic: NDArray[np.uint8]
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    timestamp: NDArray[np.int64]
    keys: list[bytes | None]
    values: list[bytes | None]

    def __len__(self) -> int:
        return len(self.keys)


def read_all(log: Log, names: Sequence[str], partitions: Sequence[int] | None = None) -> Columns:
    """All records that the topics hold now (of these partitions). Raises InputError where a topic is missing."""
    known = log.topics()
    missing = [n for n in names if n not in known]
    if missing:
        raise InputError(
            f"{log.url} has no topic {', '.join(missing)}: create the topics with `topics apply`, or mend --prefix"
        )
    ranges: dict[TP, tuple[int, int]] = {}
    for name in names:
        first = log.begins(name)
        for p, end in log.ends(name).items():
            if partitions is None or p in partitions:
                ranges[name, p] = first.get(p, 0), end
    parts: list[tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]] = []
    keys: list[bytes | None] = []
    values: list[bytes | None] = []
    for batch, inside in scan(log, ranges):
        at = np.flatnonzero(inside)
        number = np.array([names.index(t) for t in batch.topics], np.uint8)
        keys += _copy(batch.key_addr[at], batch.key_len[at])
        values += _copy(batch.value_addr[at], batch.value_len[at])
        parts.append((number[batch.topic[at]], batch.partition[at], batch.offset[at], batch.timestamp[at]))
    topic, partition, offset, timestamp = (
        np.concatenate([x[k] for x in parts]) if parts else np.zeros(0, d)
        for k, d in enumerate((np.uint8, np.int32, np.int64, np.int64))
    )
    return Columns(topic, partition, offset, timestamp, keys, values)


def _copy(address: NDArray[np.uint64], length: NDArray[np.int32]) -> list[bytes | None]:
    return [None if n < 0 else ctypes.string_at(a, n) for a, n in zip(address.tolist(), length.tolist(), strict=True)]


class LogSource:
    """The user-keyed topics of a log, as a replay sees them."""

    def __init__(self, log: Log, prefix: str = topics.PREFIX) -> None:
        self._log, self._prefix = log, prefix
        self._control, _, _ = read_control(log, prefix)
        events = without_ordered(read_all(log, [prefix + t for t in topics.EVENTS]), self._control)
        order = np.lexsort((events.offset, events.partition, events.topic, events.timestamp))
        self.recorded, self._order = events, order
        self.partitions: Sequence[int] = sorted(log.ends(prefix + topics.REQUESTS))
        self.requests = self._requests()
        start = int(events.timestamp[order[0]]) if len(events) else 0
        self.meta = Meta("log", start // DAY_MS * DAY_MS)

    @property
    def count(self) -> int:
        """Events in all."""
        return len(self.recorded)

    def items(self) -> Iterator[Item]:
        """The newest record of each item."""
        records = read_all(self._log, [self._prefix + topics.ITEMS])
        newest = {records.keys[i]: i for i in np.lexsort((records.offset, records.partition)).tolist()}
        for key, i in newest.items():
            if records.values[i] is not None:
                try:
                    yield decode_item(key, records.values[i])
                except RecordError:
                    continue  # the worker left it out, too

    def events(self) -> Iterator[EventChunk]:
        """Events by record timestamp; ties by topic, partition, offset."""
        e = self.recorded
        for start in range(0, len(e), CHUNK):
            at = self._order[start : start + CHUNK]
            batch = _batch(e, at)
            yield EventChunk(batch, e.timestamp[at], np.ones(len(at), bool))

    def _requests(self) -> Requests:
        asked = read_all(self._log, [self._prefix + topics.REQUESTS])
        erased = erased_users(asked, self._control)
        shown, clicked = feedback(self.recorded)
        out = Requests([], [], *(np.zeros(0, np.int64),) * 2, np.zeros(0, np.int32), np.zeros(1, np.int64), [], np.zeros(0, np.int8),
                       np.zeros(0), np.zeros(0), [], [])  # fmt: skip
        nothing: set[str] = set()
        ts: list[int] = []
        at: list[int] = []
        partition: list[int] = []
        first = [0]
        label: list[int] = []
        place: list[tuple[float, float]] = []
        for i in np.lexsort((asked.offset, asked.partition, asked.timestamp)).tolist():
            if erased and int(asked.timestamp[i]) <= erased.get(asked.keys[i], -1):
                continue
            if (topics.REQUESTS, int(asked.partition[i]), int(asked.offset[i])) in self._control.skips:
                continue
            try:
                r = decode_request(asked.keys[i], asked.values[i], int(asked.timestamp[i]))
            except RecordError:
                continue  # rejected by the worker, too
            context = read_context(r.context)
            out.id.append(r.request_id)
            out.user.append(r.user_id)
            out.item += r.candidates
            out.surface.append(context.surface)
            out.page.append(context.page)
            ts.append(r.ts)
            at.append(int(asked.timestamp[i]))
            partition.append(int(asked.partition[i]))
            first.append(len(out.item))
            place.append((_or_nan(context.lat), _or_nan(context.lon)))
            seen, hit = shown.get(r.request_id, nothing), clicked.get(r.request_id, nothing)
            label += [1 if x in hit else 0 if x in seen else -1 for x in r.candidates]
        out.ts, out.at = np.array(ts, np.int64), np.array(at, np.int64)
        out.partition, out.first, out.label = (
            np.array(partition, np.int32),
            np.array(first, np.int64),
            np.array(label, np.int8),
        )
        out.lat, out.lon = np.array([p[0] for p in place], np.float64), np.array([p[1] for p in place], np.float64)
        return out


def erased_users(records: Columns, control: Control) -> dict[bytes | None, int]:
    """Key -> when its user was erased (ms), of those keys among the records whose users were."""
    at: dict[str, int] = {}
    for of in control.erasures.values():
        for digest, e in of.items():
            at[digest] = max(e.at, at.get(digest, 0))
    if not at:
        return {}
    return {k: at[d] for k in set(records.keys) if k is not None and (d := digest_of(k)) in at}


def without_ordered(events: Columns, control: Control) -> Columns:
    """The events (topics in the order of `topics.EVENTS`) without those that erasures and skips take."""
    erased = erased_users(events, control)
    if not erased and not control.skips:
        return events
    keep = np.ones(len(events), bool)
    for i, key in enumerate(events.keys):
        p, offset = int(events.partition[i]), int(events.offset[i])
        if key in erased:
            e = control.erasures.get(p, {}).get(digest_of(key or b""))
            keep[i] = e is None or offset >= e.ends[events.topic[i]]
        if (topics.EVENTS[events.topic[i]], p, offset) in control.skips:
            keep[i] = False
    at = np.flatnonzero(keep)
    return Columns(
        events.topic[at], events.partition[at], events.offset[at], events.timestamp[at],
        [events.keys[i] for i in at.tolist()], [events.values[i] for i in at.tolist()],
    )  # fmt: skip


def feedback(events: Columns) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Items shown and clicked by request id, from the events (topics in the order of `topics.EVENTS`) that name their request."""
    found: tuple[dict[str, set[str]], dict[str, set[str]]] = ({}, {})
    for topic, value in zip(events.topic.tolist(), events.values, strict=True):
        if topic > 1 or value is None or b"request_id" not in value:
            continue
        try:
            m = _peek(value)
        except (msgspec.MsgspecError, ValueError):
            continue
        if isinstance(m, dict) and isinstance(m.get("request_id"), str) and isinstance(m.get("item_id"), str):
            found[topic].setdefault(m["request_id"], set()).add(m["item_id"])
    return found


def _batch(e: Columns, at: NDArray[np.int64]) -> Batch:
    t, p, o, s = (x[at].tolist() for x in (e.topic, e.partition, e.offset, e.timestamp))
    records = [Record(topics.EVENTS[t[k]], p[k], o[k], s[k], e.keys[i], e.values[i]) for k, i in enumerate(at.tolist())]
    return batch_of(topics.EVENTS, records)


def _or_nan(x: float | None) -> float:
    return float("nan") if x is None else x
