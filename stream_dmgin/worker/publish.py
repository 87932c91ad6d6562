"""Records of the control topic, written by people: which model is active, and which group map."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec

from stream_dmgin import topics
from stream_dmgin.groups import wire
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import open_log
from stream_dmgin.settings import Settings
from stream_dmgin.worker.releases import KEY


def publish_model(settings: Settings, model_id: str) -> None:
    """Make a model the active one. Raises LogUnavailable."""
    with open_log(settings.log, settings.kafka) as log:
        writer = log.writer()
        record = msgspec.msgpack.encode({"id": model_id})
        writer.append(settings.topic(topics.CONTROL), KEY.encode(), record, partition=0)
        writer.close()


def published_model(settings: Settings) -> str | None:
    """Id of the model that was published last; None where none was. Raises LogUnavailable."""
    topic = settings.topic(topics.CONTROL)
    with open_log(settings.log, settings.kafka) as log:
        value = wire.control_records(log, topic).get(KEY.encode()) if topic in log.topics() else None
    try:
        record = msgspec.msgpack.decode(value) if value else None
    except msgspec.MsgspecError:
        return None
    found = record.get("id") if isinstance(record, dict) else None
    return found if isinstance(found, str) else None


def compare_groups(settings: Settings, groups: GroupMap) -> dict[str, Any]:
    """What publishing a map would change, held against the active one: ids, items `moved` (in another group, or in none any
    more) and `added`. Without an active map `active` is nil. Raises LogUnavailable, StreamDmginError."""
    topic = settings.topic(topics.CONTROL)
    with open_log(settings.log, settings.kafka) as log:
        held = wire.control_records(log, topic)
    record = wire.active(held)
    out: dict[str, Any] = {"id": groups.id, "items": len(groups), "active": None}
    if record is None:
        return out
    with tempfile.TemporaryDirectory() as scratch:
        before = wire.fetch(held, record, Path(scratch) / "map.parquet")
    moved = sum(groups.lookup(item) != g for item, g in before.items.items())
    return {**out, "active": before.id, "moved": moved, "added": sum(item not in before.items for item in groups.items)}


def publish_groups(settings: Settings, groups: GroupMap) -> None:
    """Make a group map the one to go by: its content first, then the record that names it; contents of other maps are taken
    back. Raises LogUnavailable, InputError."""
    topic = settings.topic(topics.CONTROL)
    with tempfile.TemporaryDirectory() as scratch:
        record, parts = wire.records(groups, Path(scratch) / "map.parquet")
    with open_log(settings.log, settings.kafka) as log:
        held = wire.control_records(log, topic)
        writer = log.writer()
        for key, value in parts:
            if held.get(key) != value:
                writer.append(topic, key, value, partition=0)
        writer.flush()
        writer.append(topic, wire.KEY.encode(), msgspec.msgpack.encode(record), partition=0)
        writer.flush()
        keep = {key for key, _ in parts}
        for key, old in held.items():
            if key.startswith(wire.PARTS) and key not in keep and old:
                writer.append(topic, key, None, partition=0)
        writer.close()
