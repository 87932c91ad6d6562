"""Group maps on the control topic: a record under the key `groups` names the active one, its content lies under
`groups/ID/NNNNN` in parts, the bytes of its Parquet file. So every worker can have it, on whatever machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from stream_dmgin.control import MAP_PARTS
from stream_dmgin.errors import InputError, StreamDmginError
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import Log
from stream_dmgin.log.scan import scan

KEY = "groups"
PARTS = MAP_PARTS.encode()
PART_BYTES = 512 << 10
BYTES_MAX = 256 << 20


def records(groups: GroupMap, scratch: Path) -> tuple[dict[str, Any], list[tuple[bytes, bytes]]]:
    """(the record of a map, key and value of each of its parts). `scratch`: a file to be written and removed. Raises InputError
    for a map that can't be sent."""
    if not (groups.id.isascii() and all(c.isalnum() or c in "-_." for c in groups.id)):
        raise InputError(f"map id {groups.id!r} is to be the name of a file: letters, digits, -, _ and . only")
    try:
        groups.save(scratch)
        data = scratch.read_bytes()
    finally:
        scratch.unlink(missing_ok=True)
    if len(data) > BYTES_MAX:
        raise InputError(f"map {groups.id} takes {len(data):,} bytes: at most {BYTES_MAX:,} go on the control topic")
    cut = [data[k : k + PART_BYTES] for k in range(0, len(data), PART_BYTES)]
    record = {
        "id": groups.id, "items": len(groups), "parts": len(cut), "bytes": len(data),
        "blake2b": hashlib.blake2b(data, digest_size=16).hexdigest(),
    }  # fmt: skip
    return record, [(part_key(groups.id, n), msgspec.msgpack.encode(part)) for n, part in enumerate(cut)]


def part_key(map_id: str, n: int) -> bytes:
    """Key of a part."""
    return PARTS + f"{map_id}/{n:05d}".encode()


def control_records(log: Log, topic: str) -> dict[bytes, bytes | None]:
    """What the control topic holds now: key -> newest value, None where it was taken back. Raises LogUnavailable."""
    found: dict[bytes, bytes | None] = {}
    for batch, inside in scan(log, {(topic, 0): (log.begins(topic)[0], log.ends(topic)[0])}):
        for i in range(len(batch)):
            if inside[i] and (key := batch.key(i)) is not None:
                found[key] = batch.value(i)
    return found


def active(held: Mapping[bytes, bytes | None]) -> Mapping[str, Any] | None:
    """The record that names the active map, if one was published."""
    value = held.get(KEY.encode())
    try:
        record = msgspec.msgpack.decode(value) if value else None
    except msgspec.MsgspecError:
        return None
    return record if isinstance(record, Mapping) else None


def fetch(held: Mapping[bytes, bytes | None], record: Mapping[str, Any], to: Path) -> GroupMap:
    """The map that a record names, from its parts, written to the file `to`. Raises StreamDmginError where they are not whole."""
    try:
        map_id, parts, digest = str(record["id"]), int(record["parts"]), str(record["blake2b"])
        values = [held.get(part_key(map_id, n)) for n in range(parts)]
        data = b"".join(msgspec.msgpack.decode(v, type=bytes) for v in values if v is not None)
    except (KeyError, TypeError, ValueError) as e:
        raise StreamDmginError(
            f"the record `{KEY}` of the control topic can't be understood ({e!r}): publish the map again"
        ) from None
    if None in values or hashlib.blake2b(data, digest_size=16).hexdigest() != digest:
        raise StreamDmginError(f"the content of group map {map_id} is not whole on the control topic: publish it again")
    tmp = to.with_name(f"{to.name}.part")
    tmp.write_bytes(data)
    groups = GroupMap.load(tmp)
    if groups.id != map_id:
        raise StreamDmginError(
            f"the content of group map {map_id} on the control topic is that of {groups.id}: publish it again"
        )
    tmp.replace(to)
    return groups
