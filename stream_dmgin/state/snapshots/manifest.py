"""What a snapshot of one partition is made of: the manifest, written last, so that a snapshot without one does not exist.

ID.json   {"snapshot_format": 1, "state_format": 1, "id": ..., "partition": 3, "partitions": 8, "prefix": "dmgin.",
           "created_ms": ..., "groups": {"id": ..., "sha256": ..., "size": ...},
           "offsets": {topic: next offset}, "requests": next request or null, "users": n, "size": n,
           "free_of": {digits of a digest: sum of offsets} (erasures of which the files hold nothing),
           "files": [{"name": ..., "sha256": ..., "size": ...}], "checksum": sha256 of all the rest}
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from datetime import UTC, datetime
from typing import Any

import msgspec

from stream_dmgin.errors import FormatError
from stream_dmgin.state.layout import OLDEST_FORMAT, STATE_FORMAT

SNAPSHOT_FORMAT = 1


class File(msgspec.Struct, frozen=True):
    """One file of a store: its name there, and the content that is kept under its hash."""

    name: str
    sha256: str
    size: int


class GroupsFile(msgspec.Struct, frozen=True):
    """The group map that the store was folded with: id, and the saved map (Parquet; nothing for the empty one, "none")."""

    id: str
    sha256: str
    size: int


class Manifest(msgspec.Struct, frozen=True):
    """A snapshot of one partition; sizes are bytes. `offsets`: full topic name -> next offset to fold."""

    id: str
    partition: int
    partitions: int
    prefix: str
    created_ms: int
    groups: GroupsFile
    offsets: dict[str, int]
    requests: int | None
    users: int
    size: int
    files: tuple[File, ...]
    free_of: dict[str, int] = {}
    snapshot_format: int = SNAPSHOT_FORMAT
    state_format: int = STATE_FORMAT

    @property
    def folded(self) -> int:
        """Records that it has folded; the more, the shorter the tail."""
        return sum(self.offsets.values())

    def encode(self) -> bytes:
        """As JSON, with the checksum of the rest."""
        body = msgspec.to_builtins(self)
        return _canonical({**body, "checksum": _checksum(body)})

    @classmethod
    def decode(cls, raw: bytes, where: str) -> Manifest:
        """Raises FormatError for what is torn, was changed, or is newer than this version knows."""
        try:
            body: dict[str, Any] = json.loads(raw)
            version, state = body.get("snapshot_format"), body.get("state_format")
            checksum = body.pop("checksum")
        except (ValueError, AttributeError, KeyError, TypeError):
            raise FormatError(f"{where}: this is not the manifest of a snapshot, or it is torn") from None
        if not isinstance(version, int) or not isinstance(state, int):
            raise FormatError(f"{where}: the manifest has no format version: it was damaged or isn't ours")
        for name, found, oldest, known in (
            ("snapshot", version, SNAPSHOT_FORMAT, SNAPSHOT_FORMAT), ("state", state, OLDEST_FORMAT, STATE_FORMAT)
        ):  # fmt: skip
            if found > known:
                raise FormatError(
                    f"{where}: the {name} has format {found}, this version reads up to {known}: upgrade stream-dmgin, "
                    "or take an older snapshot with --id"
                )
            if found < oldest:
                raise FormatError(f"{where}: the {name} has format {found}, older than {oldest}: rebuild from the log")
        if checksum != _checksum(body):
            raise FormatError(f"{where}: the manifest's checksum is wrong: it is damaged")
        try:
            m = msgspec.convert(body, cls)
        except msgspec.ValidationError as e:
            raise FormatError(f"{where}: the manifest can't be understood: {e}") from None
        if any("/" in name or name in ("", ".", "..") for name in (m.groups.id, *(f.name for f in m.files))):
            raise FormatError(f"{where}: the manifest names files outside of a store: it isn't ours")
        return m


def new_id() -> str:
    """Sorts by time: 20261122T184512123Z-3fa2b1."""
    now = time.time_ns() // 1_000_000
    at = datetime.fromtimestamp(now // 1000, UTC).strftime("%Y%m%dT%H%M%S")
    return f"{at}{now % 1000:03d}Z-{secrets.token_hex(3)}"


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, indent=1).encode()


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(body)).hexdigest()
