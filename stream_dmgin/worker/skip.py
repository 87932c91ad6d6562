"""Order the workers to skip one record on which the processing fails. Control path."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from stream_dmgin import audit, topics
from stream_dmgin.control import Skip, encode, give
from stream_dmgin.errors import InputError, UsageError
from stream_dmgin.log.base import Log, Record
from stream_dmgin.log.scan import scan
from stream_dmgin.settings import Settings
from stream_dmgin.state.ops.stores import Stores

_PLACE = re.compile(r"(.+)/(\d+)/(\d+)")
SKIPPABLE = (*topics.EVENTS, topics.REQUESTS, topics.ITEMS, topics.COUNTERS)


def order_skip(log: Log, settings: Settings, place: str, reason: str) -> tuple[Callable[[], None], dict[str, Any]]:
    """A function that gives the order, and what there is at this place. Raises UsageError, and InputError where there is no such
    record, or a store here has it folded already: leaving it out of a rebuild would make another state."""
    found = _PLACE.fullmatch(place)
    if not found:
        raise UsageError(f"{place!r} is no record: give TOPIC/PARTITION/OFFSET, as the worker's message does")
    topic, partition, offset = found[1].removeprefix(settings.prefix), int(found[2]), int(found[3])
    if topic not in SKIPPABLE:
        raise UsageError(f"{topic}: records of {', '.join(SKIPPABLE)} can be skipped")
    record = _record(log, settings.topic(topic), partition, offset)
    _refuse_folded(settings, topic, partition, offset)
    order = Skip(topic, partition, offset, reason, int(time.time() * 1000))

    def give_it() -> None:
        give(log, settings.prefix, {order.key: encode(order)})
        audit.record(settings.data_dir, "skip ordered", topic=topic, partition=partition, offset=offset, reason=reason)

    key = None if record.key is None else record.key.decode("utf-8", "backslashreplace")
    what = {"topic": record.topic, "partition": partition, "offset": offset, "timestamp": record.timestamp, "key": key}
    return give_it, {**what, "bytes": len(record.value or b"")}


def _record(log: Log, topic: str, partition: int, offset: int) -> Record:
    begin, end = log.begins(topic).get(partition, 0), log.ends(topic).get(partition, 0)
    if begin <= offset < end:
        for batch, inside in scan(log, {(topic, partition): (offset, offset + 1)}):
            for i in range(len(batch)):
                if inside[i] and batch.offset[i] == offset:
                    return batch.record(i)
    raise InputError(f"{topic}/{partition} has no record at offset {offset}: it holds offsets {begin} to {end - 1}")


def _refuse_folded(settings: Settings, topic: str, partition: int, offset: int) -> None:
    try:
        stores = Stores.of(settings.data_dir)
    except InputError:
        return
    if topic not in topics.EVENTS or partition not in stores.present():
        return
    engine = stores.open(partition)
    try:
        following = engine.offsets[topics.EVENTS.index(topic)]
    finally:
        engine.close()
    if following > offset:
        raise InputError(
            f"{topic}/{partition}/{offset} is folded: the store here is at offset {following}. Only a record on which the worker "
            "stops can be skipped"
        )
