"""Events to topics of another prefix with another number of partitions, so that they remain the same events. Control path.

An event without an id is known by `TOPIC/PARTITION/OFFSET` of its record, which a copy changes: the copy gets exactly that
text as its `event_id`, whose hash is the same. All else of key, value, headers and timestamp stays. A header says where each
copy comes from, so that copying again goes on where it stopped, also after a SIGKILL: what lies in the target is looked
through, and each record of the source is copied once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec
import numpy as np

from stream_dmgin import topics
from stream_dmgin.control import Control, Erasure, mask_skipped
from stream_dmgin.errors import InputError, RecordError
from stream_dmgin.log.base import TP, Batch, Log
from stream_dmgin.log.murmur2 import partition_of
from stream_dmgin.log.scan import scan
from stream_dmgin.state.erased import Erased
from stream_dmgin.state.parse import OK, parse_events

ORIGIN = "dmgin.copied-from"  # header: TOPIC/PARTITION/OFFSET, topic without prefix
_KEY = msgspec.msgpack.encode("event_id")
Told = Callable[[int], None]  # records read since it was last called


class _Id(msgspec.Struct):
    event_id: Any = msgspec.UNSET


@dataclass
class Copied:
    """What a copy did. `ends`: topic without prefix -> offset of each source partition up to which everything is copied."""

    copied: int = 0
    before: int = 0  # were there already
    given_id: int = 0  # of the copied ones: events that had no id
    malformed: int = 0  # of the copied ones: no events; their copies become dead letters again
    erased: int = 0  # left out: of erased users
    skipped: int = 0  # left out: records that were ordered to be skipped
    ends: dict[str, list[int]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def records_of(log: Log, prefix: str) -> int:
    """How many records a copy has to read: those of the source's event topics."""
    return sum(sum(log.ends(prefix + t).values()) - sum(log.begins(prefix + t).values()) for t in topics.EVENTS)


def copy_events(log: Log, prefix: str, to_prefix: str, control: Control, told: Told = lambda n: None) -> Copied:
    """Copy what the event topics hold now and the target lacks. `control`: erasures and skips of the source.

    Records of one source partition keep their order. Raises LogUnavailable, and InputError for a record too large for the
    target's topic.
    """
    out = Copied()
    for n, topic in enumerate(topics.EVENTS):
        source, target = prefix + topic, to_prefix + topic
        partitions = len(log.ends(target))
        there = _origins(log, target, topic)
        begins, ends = log.begins(source), log.ends(source)
        writer = log.writer(linger_ms=20)
        try:
            for batch, inside in scan(log, {(source, p): (begins[p], ends[p]) for p in ends}):
                _copy(batch, inside, n, prefix, target, partitions, there, control, writer.append, out)
                writer.poll()
                told(int(np.count_nonzero(inside)))
            writer.flush(120.0)
        finally:
            writer.close()
        out.ends[topic] = [ends[p] for p in sorted(ends)]
    return out


def _origins(log: Log, target: str, topic: str) -> dict[tuple[int, int], int]:
    """(source partition, target partition) -> the last offset of the source that lies there."""
    begins, ends = log.begins(target), log.ends(target)
    found: dict[tuple[int, int], int] = {}
    for batch, inside in scan(log, {(target, p): (begins[p], ends[p]) for p in ends}):
        for i in np.flatnonzero(inside).tolist():
            for name, value in batch.headers_of(i):
                if name == ORIGIN:
                    of, partition, offset = value.decode().rsplit("/", 2)
                    at = int(partition), int(batch.partition[i])
                    if of == topic:
                        found[at] = max(found.get(at, -1), int(offset))
    return found


def _copy(
    batch: Batch, inside: Any, n: int, prefix: str, target: str, partitions: int, there: Mapping[tuple[int, int], int],
    control: Control, append: Callable[..., None], out: Copied,
) -> None:  # fmt: skip
    topic = topics.EVENTS[n]
    skipped = mask_skipped(batch, prefix, control.skips)
    columns, _ = parse_events(batch, np.full(len(batch.topics), n, np.uint8))
    well_formed = columns.status == OK
    rows = np.flatnonzero(inside)
    for p in np.unique(batch.partition[rows]).tolist():
        if orders := control.erasures.get(p):
            _hide(orders.values(), columns, rows[batch.partition[rows] == p].astype(np.int32))
    for i in rows.tolist():
        partition, offset = int(batch.partition[i]), int(batch.offset[i])
        place = f"{topic}/{partition}/{offset}"
        key, value = batch.key(i), batch.value(i)
        to = partition % partitions if key is None else partition_of(key, partitions)
        if offset <= there.get((partition, to), -1):
            out.before += 1
        elif i in skipped:
            out.skipped += 1
        elif well_formed[i] and columns.status[i] != OK:
            out.erased += 1
        else:
            if well_formed[i]:
                named = with_event_id(value or b"", place)
                out.given_id += named is not value
                value = named
            headers = (*batch.headers_of(i), (ORIGIN, place.encode()))
            try:
                append(target, key, value, timestamp=int(batch.timestamp[i]), headers=headers, partition=to)
            except RecordError as e:
                raise InputError(f"{place} can't be copied: {e}. Raise max.message.bytes of {target}") from None
            out.copied += 1
            out.malformed += not well_formed[i]


def _hide(orders: Iterable[Erasure], columns: Any, rows: Any) -> None:
    Erased(orders).hide(columns, rows)


def with_event_id(value: bytes, event_id: str) -> bytes:
    """A well-formed event with this id if it has none; `value` itself if it has one. All other bytes stay where it lacks
    the field; a field that is nil is filled in."""
    found = msgspec.msgpack.decode(value, type=_Id).event_id
    if found is None:
        fields = msgspec.msgpack.decode(value)
        return msgspec.msgpack.encode({**fields, "event_id": event_id})
    if found is not msgspec.UNSET:
        return value
    first = value[0]
    if first & 0xF0 == 0x80:
        n, rest = first & 0x0F, value[1:]
    elif first == 0xDE:
        n, rest = int.from_bytes(value[1:3], "big"), value[3:]
    else:  # 0xDF: a well-formed event is a map
        n, rest = int.from_bytes(value[1:5], "big"), value[5:]
    n += 1
    head = (
        bytes([0x80 | n])
        if n < 16
        else b"\xde" + n.to_bytes(2, "big")
        if n < 1 << 16
        else b"\xdf" + n.to_bytes(4, "big")
    )
    return head + rest + _KEY + msgspec.msgpack.encode(event_id)


def ends_of(copied: Copied, prefix: str) -> dict[TP, int]:
    """(full topic, source partition) -> the offset up to which it is copied."""
    return {(prefix + t, p): end for t, ends in copied.ends.items() for p, end in enumerate(ends)}
