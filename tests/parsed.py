"""What the bulk parser makes of records, as plain Python values, to be held against `records.decode_event`."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

from stream_dmgin import records
from stream_dmgin.errors import RecordError
from stream_dmgin.log.base import Batch, Record, batch_of
from stream_dmgin.state.parse import EventColumns, parse_events
from stream_dmgin.topics import EVENTS
from tests.oracle import DEFAULT_TYPE, MICROS, hash64

NAMES = EVENTS


@dataclass(frozen=True)
class Parsed:
    """One row of EventColumns."""

    topic: str
    partition: int
    offset: int
    ts: int
    user_id: str
    item_id: str
    event_hash: int
    type: str
    dwell_ms: int  # -1: none
    value: int  # millionths, -1: none
    surface: int  # 1..31, 0: none


def expected(e: records.Event, topic: str = "clicks", partition: int = 0, offset: int = 0) -> Parsed:
    """The row that this event must give."""
    return Parsed(
        topic, partition, offset, e.ts, e.user_id, e.item_id,
        hash64(e.event_id if e.event_id is not None else f"{topic}/{partition}/{offset}"),
        e.type or DEFAULT_TYPE[topic],
        -1 if e.dwell_ms is None else e.dwell_ms,
        -1 if e.value is None else round(e.value * MICROS),
        1 + hash64(e.surface) % 31 if e.surface else 0,
    )  # fmt: skip


def parse_many(batch: Batch) -> list[Parsed | RecordError]:
    """One answer for each record of a batch over the event topics in the order of NAMES."""
    cols, bad = parse_events(batch, np.arange(len(NAMES), dtype=np.uint8))
    errors = dict(bad)
    out: list[Parsed | RecordError] = []
    for i in range(len(batch)):
        assert (cols.status[i] != 0) == (i in errors), f"row {i}: status {cols.status[i]}, error {errors.get(i)}"
        out.append(errors[i] if i in errors else _row(cols, i))
    return out


def parse_one(topic: str, key: bytes | None, value: bytes | None, timestamp: int) -> Parsed | RecordError:
    """The answer for one record at offset 0 of partition 0."""
    batch = batch_of([f"dmgin.{n}" for n in NAMES], [Record(f"dmgin.{topic}", 0, 0, timestamp, key, value)])
    return parse_many(batch)[0]


def _row(c: EventColumns, i: int) -> Parsed:
    item = _text(c.item_addr[i], c.item_len[i])
    user = _text(c.user_addr[i], c.user_len[i])
    kind = _text(c.type_addr[i], c.type_len[i])
    assert int(c.user_hash[i]) == hash64(user), "user_hash"
    assert int(c.item_hash[i]) == hash64(item), "item_hash"
    assert int(c.type_hash[i]) == hash64(kind), "type_hash"
    return Parsed(
        EVENTS[c.topic[i]], int(c.partition[i]), int(c.offset[i]), int(c.ts[i]), user, item, int(c.eid_hash[i]), kind,
        int(c.dwell[i]), int(c.value[i]), int(c.surface[i]),
    )  # fmt: skip


def _text(address: np.uint64, length: np.int32) -> str:
    return ctypes.string_at(int(address), int(length)).decode()
