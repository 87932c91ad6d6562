"""Where snapshots are kept: a directory, S3-compatible objects, or any other location that fsspec knows, and what lies where in it.

    p00003/ID.json              manifest of one snapshot of one partition
    p00003/blobs/SHA256         one file of a store; each content once, shared by the snapshots of the partition
    groups/SHA256.parquet       a group map

Partitions share nothing but group maps, and a partition has one owner: whoever deletes what no manifest refers to can't
hurt another's upload. All errors of the location become `SnapshotsUnavailable`, with its URL and without its options.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stream_dmgin.errors import ConfigError, UnavailableError
from stream_dmgin.state.snapshots.manifest import Manifest
from stream_dmgin.state.snapshots.s3 import S3, SCHEMES

GROUPS = "groups"
BLOBS = "blobs"


class SnapshotsUnavailable(UnavailableError):
    """The location of the snapshots can't be read or written."""


class Missing(SnapshotsUnavailable):
    """A file that should lie there does not."""


class Place:
    """One location of snapshots. Its methods may be called from several threads."""

    def __init__(self, url: str, setting: str = "snapshot.to") -> None:
        """Raises ConfigError for a location that can't be named so, or whose package is missing."""
        from fsspec.asyn import AsyncFileSystem
        from fsspec.core import url_to_fs
        from fsspec.implementations.local import LocalFileSystem

        self.url = url
        self._fs: Any
        self._base: str
        try:
            self._fs, self._base = (S3(url), "") if url.startswith(SCHEMES) else url_to_fs(url)
        except ImportError as e:
            raise ConfigError(
                setting, url, f"{e}. For s3://: pip install 'stream-dmgin[s3]'; others: see fsspec"
            ) from None
        except ValueError as e:
            raise ConfigError(
                setting, url, f"give a directory or a URL that fsspec knows, as s3://BUCKET/PATH: {e}"
            ) from None
        self._base = str(self._base).rstrip("/")
        self._local = isinstance(self._fs, LocalFileSystem)
        self._has_folders = not isinstance(
            self._fs, (S3, AsyncFileSystem)
        )  # some would make a bucket of a mistyped name

    # Manifests

    def partitions(self) -> list[int]:
        """Partitions that have a folder here."""
        names = [name for name, _ in self._list("")]
        return sorted(int(n[1:]) for n in names if len(n) == 6 and n[0] == "p" and n[1:].isdigit())

    def ids(self, partition: int) -> list[str]:
        """Ids of the snapshots of a partition, newest first; good or not."""
        names = [name for name, _ in self._list(_folder(partition))]
        return sorted((n.removesuffix(".json") for n in names if n.endswith(".json")), reverse=True)

    def manifest(self, partition: int, id_: str) -> Manifest:
        """Raises FormatError when it is damaged or newer than this version, Missing."""
        path = f"{_folder(partition)}/{id_}.json"
        with self._told(path):
            raw = self._fs.cat_file(self._at(path))
        return Manifest.decode(raw, f"{self.url}/{path}")

    def write_manifest(self, m: Manifest) -> None:
        """The last step of a snapshot: from now on it exists."""
        path = f"{_folder(m.partition)}/{m.id}.json"
        with self._told(path):
            if self._local:
                temporary = Path(self._at(f"{path}.{uuid.uuid4().hex}"))
                temporary.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_bytes(m.encode())
                temporary.replace(self._at(path))
            else:
                self._fs.pipe_file(self._at(path), m.encode())

    def delete_manifest(self, partition: int, id_: str) -> None:
        """The first step of a snapshot's end: from now on it doesn't exist. Its blobs go by `sweep`."""
        self._delete(f"{_folder(partition)}/{id_}.json")

    # Contents

    def blobs(self, partition: int) -> dict[str, int]:
        """Contents that lie here for a partition: name -> bytes."""
        return dict(self._list(f"{_folder(partition)}/{BLOBS}"))

    def put_blob(self, partition: int, sha256: str, source: Path) -> None:
        """Keep a file under the hash of its content."""
        self._put(f"{_folder(partition)}/{BLOBS}/{sha256}", source)

    def get_blob(self, partition: int, sha256: str, target: Path) -> None:
        """Fetch a content into a file. Not checked here. Raises Missing."""
        self._get(f"{_folder(partition)}/{BLOBS}/{sha256}", target)

    def delete_blob(self, partition: int, sha256: str) -> None:
        """Delete a content."""
        self._delete(f"{_folder(partition)}/{BLOBS}/{sha256}")

    def group_maps(self) -> dict[str, int]:
        """Group maps that lie here: name -> bytes."""
        return dict(self._list(GROUPS))

    def put_groups(self, sha256: str, source: Path) -> None:
        """Keep a group map."""
        self._put(f"{GROUPS}/{sha256}.parquet", source)

    def get_groups(self, sha256: str, target: Path) -> None:
        """Fetch a group map. Not checked here. Raises Missing."""
        self._get(f"{GROUPS}/{sha256}.parquet", target)

    def delete_groups(self, sha256: str) -> None:
        """Delete a group map."""
        self._delete(f"{GROUPS}/{sha256}.parquet")

    def probe(self) -> bool:
        """Write and delete a small file, to see whether that is allowed; False for a directory that isn't there yet, which is left so.
        Raises SnapshotsUnavailable."""
        name = f"probe-{uuid.uuid4().hex}"
        with self._told(name):
            if self._local and not Path(self._base).exists():
                return False
            self._fs.pipe_file(self._at(name), b"written by `stream-dmgin doctor`, to be deleted at once")
            self._fs.rm_file(self._at(name))
        return True

    # Inside

    def _at(self, path: str) -> str:
        return f"{self._base}/{path}".lstrip("/" if isinstance(self._fs, S3) else "") if path else self._base

    def _list(self, path: str) -> list[tuple[str, int]]:
        """(name, bytes) of what lies in a folder; nothing where it doesn't exist."""
        with self._told(path or "/"):
            self._fs.invalidate_cache()
            try:
                found: list[dict[str, Any]] = self._fs.ls(self._at(path), detail=True)
            except FileNotFoundError:
                return []
            if self._local and len(found) == 1 and str(found[0]["name"]) == self._at(path):
                raise NotADirectoryError(f"{path or self.url} is a file")
            return [(str(f["name"]).rstrip("/").rpartition("/")[2], int(f.get("size") or 0)) for f in found]

    def _put(self, path: str, source: Path) -> None:
        with self._told(path):
            target = self._at(path)
            if self._has_folders:
                self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            if not self._local:  # object stores show an object when it is whole
                self._fs.put_file(str(source), target)
                return
            temporary = f"{target}.{uuid.uuid4().hex}"
            try:
                self._fs.put_file(str(source), temporary)
                os.replace(temporary, target)
            finally:
                Path(temporary).unlink(missing_ok=True)

    def _get(self, path: str, target: Path) -> None:
        with self._told(path):
            self._fs.get_file(self._at(path), str(target))

    def _delete(self, path: str) -> None:
        with self._told(path), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._at(path))

    @contextlib.contextmanager
    def _told(self, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise Missing(f"{self.url}/{path.lstrip('/')} is missing") from None
        except Exception as e:  # each location has errors of its own
            reason = str(e).partition("\n\nDebug source")[0]  # obstore's errors go on for a page
            raise SnapshotsUnavailable(f"{self.url}/{path.lstrip('/')}: {type(e).__name__}: {reason}") from e


def _folder(partition: int) -> str:
    return f"p{partition:05d}"
