"""What people order on the topic `dmgin.control`: erasures of users, records to skip, and the ids of what is active.

The topic is compacted by key. `erase/PARTITION/DIGEST` is an erasure, `skip/TOPIC/PARTITION/OFFSET` a record to skip, any other
key (`model`, ...) a record that the one whom it concerns reads. A null value takes a key back. Topics are named without prefix.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from stream_dmgin import topics
from stream_dmgin.errors import RecordError
from stream_dmgin.log.base import Batch, Log, Record
from stream_dmgin.log.scan import scan

ERASE, SKIP = "erase/", "skip/"
MAP_PARTS = "groups/"  # keys that begin so hold the content of group maps (groups/wire.py), read when it is needed
Place = tuple[str, int, int]  # topic without prefix, partition, offset
_ERASE_KEY = re.compile(r"erase/(\d+)/([0-9a-f]{64})")
_SKIP_KEY = re.compile(r"skip/([a-z-]+)/(\d+)/(\d+)")


class Erasure(msgspec.Struct, frozen=True):
    """What is known of one user in one partition, from records below `offsets`, is to be forgotten. Never the id itself."""

    partition: int
    digest: str  # SHA-256 of the user id, hexadecimal
    hash: int  # XXH64 of the user id: finds candidates, which the digest then confirms
    offsets: dict[str, int]  # event topic -> end of the partition when the order was given
    at: int  # ms UTC
    v: int = 1

    @property
    def key(self) -> str:
        """Its key on the topic: a later erasure of the same user replaces it."""
        return f"{ERASE}{self.partition}/{self.digest}"

    @property
    def ends(self) -> tuple[int, ...]:
        """`offsets` by topic number."""
        return tuple(self.offsets.get(t, 0) for t in topics.EVENTS)


class Skip(msgspec.Struct, frozen=True):
    """One record is not to be processed: it goes to the dead letters as it is."""

    topic: str
    partition: int
    offset: int
    reason: str
    at: int
    v: int = 1

    @property
    def place(self) -> Place:
        """Where the record lies."""
        return self.topic, self.partition, self.offset

    @property
    def key(self) -> str:
        """Its key on the topic."""
        return f"{SKIP}{self.topic}/{self.partition}/{self.offset}"


def digest_of(user_id: bytes) -> str:
    """SHA-256 of a user id, hexadecimal."""
    return hashlib.sha256(user_id).hexdigest()


class Control:
    """The topic as far as it is read. `version` changes with each order taken."""

    def __init__(self) -> None:
        self.others: dict[str, Any] = {}  # key -> newest record, of all keys that are no orders
        self.erasures: dict[int, dict[str, Erasure]] = {}  # partition -> digest -> order
        self.skips: dict[Place, str] = {}  # -> reason
        self.version = 0

    def take(self, key: bytes | None, value: bytes | None) -> None:
        """One record of the topic. Raises RecordError."""
        name = (key or b"").decode("utf-8", "replace")
        if name.startswith(ERASE):
            self._erasure(name, value)
        elif name.startswith(SKIP):
            self._skip(name, value)
        elif name.startswith(MAP_PARTS):
            return
        else:
            record = _decode(value, Any)
            if record is None:
                self.others.pop(name, None)
            else:
                self.others[name] = record
            return
        self.version += 1

    def _erasure(self, name: str, value: bytes | None) -> None:
        found = _ERASE_KEY.fullmatch(name)
        if not found:
            raise RecordError("key", f"{name!r} is not {ERASE}PARTITION/DIGEST")
        of = self.erasures.setdefault(int(found[1]), {})
        if not value:
            of.pop(found[2], None)
            return
        order: Erasure = _decode(value, Erasure)
        if order.key != name:
            raise RecordError("key", f"the record under {name!r} names another user or partition")
        of[order.digest] = order

    def _skip(self, name: str, value: bytes | None) -> None:
        found = _SKIP_KEY.fullmatch(name)
        if not found:
            raise RecordError("key", f"{name!r} is not {SKIP}TOPIC/PARTITION/OFFSET")
        place = found[1], int(found[2]), int(found[3])
        if not value:
            self.skips.pop(place, None)
            return
        order: Skip = _decode(value, Skip)
        if order.place != place:
            raise RecordError("key", f"the record under {name!r} names another one")
        self.skips[place] = order.reason


def encode(order: Erasure | Skip) -> bytes:
    """As it is written to the topic."""
    return msgspec.msgpack.encode(order)


def read_control(log: Log, prefix: str) -> tuple[Control, list[tuple[Record, RecordError]], int]:
    """The whole topic as it is now, its malformed records, and the offset after it. A log without the topic has no orders.

    Raises LogUnavailable.
    """
    topic = prefix + topics.CONTROL
    out = Control()
    bad: list[tuple[Record, RecordError]] = []
    if topic not in log.topics():
        return out, bad, 0
    begin, end = log.begins(topic).get(0, 0), log.ends(topic).get(0, 0)
    for batch, inside in scan(log, {(topic, 0): (begin, end)}):
        for i in range(len(batch)):
            if not inside[i]:
                continue
            try:
                out.take(batch.key(i), batch.value(i))
            except RecordError as e:
                bad.append((batch.record(i), e))
    return out, bad, end


def give(log: Log, prefix: str, orders: Mapping[str, bytes]) -> None:
    """Append records by key and wait until they are durable. Raises LogUnavailable."""
    writer = log.writer()
    try:
        for key, value in orders.items():
            writer.append(prefix + topics.CONTROL, key.encode(), value, partition=0)
        writer.flush()
    finally:
        writer.close()


def mask_skipped(batch: Batch, prefix: str, skips: Mapping[Place, str]) -> dict[int, tuple[Record, RecordError]]:
    """Take the values of records that are to be skipped out of a batch, so that nothing looks into them: row -> the record as
    it was, and why it is skipped."""
    out: dict[int, tuple[Record, RecordError]] = {}
    for (topic, partition, offset), reason in skips.items():
        if prefix + topic not in batch.topics:
            continue
        here = (
            (batch.offset == offset)
            & (batch.partition == partition)
            & (batch.topic == batch.topics.index(prefix + topic))
        )
        for i in np.flatnonzero(here).tolist():
            out[i] = batch.record(i), RecordError("skipped", reason)
    if out:
        batch.value_len = batch.value_len.copy()
        batch.value_len[list(out)] = -1
    return out


def _decode(value: bytes | None, kind: Any) -> Any:
    if not value:
        return None
    try:
        return msgspec.msgpack.decode(value, type=kind)
    except msgspec.ValidationError as e:
        raise RecordError("schema", str(e)) from None
    except msgspec.MsgspecError as e:
        raise RecordError("decode", f"not MessagePack: {e}") from None
