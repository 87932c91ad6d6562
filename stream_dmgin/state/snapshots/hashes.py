"""SHA-256 of a store's files. SST files never change, so what was hashed once is remembered by inode, size and time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path


def sha256_of(path: Path) -> str:
    """Hash of a file's content, hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


class Hashes:
    """Hashes remembered in a JSON file beside the stores. A lost or damaged one costs time only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            known = json.loads(path.read_text())
            self._known = {str(k): str(v) for k, v in known.items()}
        except (OSError, ValueError, AttributeError):
            self._known = {}
        self._used: dict[str, str] = {}

    def of(self, path: Path) -> str:
        """Hash of a file; remembered if it is an SST file."""
        if path.suffix != ".sst":
            return sha256_of(path)
        s = path.stat()  # a hard link has the inode of the file in the store
        key = f"{path.parent.name}/{path.name} {s.st_ino} {s.st_size} {s.st_mtime_ns}"
        found = self._used[key] = self._known.get(key) or sha256_of(path)
        return found

    def save(self, partitions: Iterable[str]) -> None:
        """Remember what was used, and forget other files of these partitions' stores: they are compacted away."""
        mine = tuple(f"{p}/" for p in partitions)
        self._known = {k: v for k, v in self._known.items() if not k.startswith(mine)} | self._used
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps(self._known))
        temporary.replace(self._path)
