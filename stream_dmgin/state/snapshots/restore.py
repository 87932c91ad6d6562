"""From a snapshot to a store. Files come under their own names into `restoring-p00003` beside the stores, are checked against
their hashes, and the folder gets the store's name when it is whole: a store that is half there is never opened. What was
fetched before an interruption is used.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from stream_dmgin import topics
from stream_dmgin.errors import FormatError, StreamDmginError, UsageError
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.state.ops.places import Maps, store_path
from stream_dmgin.state.snapshots.alone import alone
from stream_dmgin.state.snapshots.checkpoint import facts_of
from stream_dmgin.state.snapshots.hashes import sha256_of
from stream_dmgin.state.snapshots.manifest import File, Manifest
from stream_dmgin.state.snapshots.place import Missing, Place
from stream_dmgin.state.store import holds_a_store

AT_ONCE = 4  # files on their way
LOCK_S = 600.0
Told = Callable[[int], None]  # bytes that are there since it was last called


class Damaged(StreamDmginError):
    """A content is not what its hash says, or the files don't make the store that the manifest tells of."""


@dataclass
class Restored:
    """What became of one partition: the snapshot it was filled from (None: none was good), and why not from others."""

    partition: int
    manifest: Manifest | None = None
    problems: list[str] = field(default_factory=list)


def candidates(place: Place, partition: int, id_: str | None = None) -> tuple[list[Manifest], list[str]]:
    """Snapshots of a partition with readable manifests, the most folded first, and what is wrong with the others."""
    found: list[Manifest] = []
    problems: list[str] = []
    for i in place.ids(partition) if id_ is None else [id_]:
        try:
            found.append(place.manifest(partition, i))
        except (FormatError, Missing) as e:
            problems.append(str(e))
    return sorted(found, key=lambda m: (m.folded, m.created_ms), reverse=True), problems


def restore_partition(
    place: Place, partition: int, directory: Path, *, id_: str | None = None, fits: Callable[[Manifest], str] = lambda m: "",
    told: Callable[[int], Told] = lambda total: lambda n: None, target: Path | None = None,
) -> Restored:  # fmt: skip
    """Fill the store of a partition under `directory` from the newest good snapshot, or from the one named.

    `fits` says what is wrong with a snapshot ("" nothing); `target`: another folder than the partition's store, which must
    not exist. Raises SnapshotsUnavailable when the location can't be read at all.
    """
    manifests, problems = candidates(place, partition, id_)
    out = Restored(partition, None, problems)
    if not manifests:
        return out
    target = target or store_path(directory, partition)
    lock = directory / f"restoring-p{partition:05d}.lock"
    with alone(lock, LOCK_S, f"{directory}: another process restores partition {partition}"):
        if holds_a_store(target):
            problems.append(f"{target} is there already: another process has restored it")
            return out
        _from_first_good(place, manifests, directory, target, fits, told, out)
    return out


def _from_first_good(
    place: Place, manifests: list[Manifest], directory: Path, target: Path, fits: Callable[[Manifest], str],
    told: Callable[[int], Told], out: Restored,
) -> None:  # fmt: skip
    partition, problems = out.partition, out.problems
    for m in manifests:
        try:
            if wrong := fits(m):
                problems.append(f"snapshot {m.id} of partition {partition}: {wrong}")
                continue
            _fill(place, m, directory, target, told(m.size))
        except (Damaged, Missing, UsageError) as e:
            problems.append(f"snapshot {m.id} of partition {partition} is not good: {e}")
            continue
        out.manifest = m
        return
    shutil.rmtree(restoring_path(directory, partition), ignore_errors=True)


def restoring_path(directory: Path, partition: int) -> Path:
    """Where a store is put together."""
    return directory / f"restoring-p{partition:05d}"


def fetch_groups(place: Place, m: Manifest, directory: Path) -> GroupMap:
    """The group map of a snapshot, kept among the stores of a directory. Raises Damaged, Missing, InputError."""
    maps = Maps(directory)
    path = maps.file(m.groups.id)
    if m.groups.id != GroupMap.empty().id and not path.is_file():
        directory.mkdir(parents=True, exist_ok=True)
        temporary = directory / f"{path.name}.{uuid.uuid4().hex}"
        try:
            place.get_groups(m.groups.sha256, temporary)
            if sha256_of(temporary) != m.groups.sha256:
                raise Damaged(f"the group map {m.groups.id} at {place.url} is damaged")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return maps.load(m.groups.id)


def _fill(place: Place, m: Manifest, directory: Path, target: Path, told: Told) -> None:
    fetch_groups(place, m, directory)
    building = restoring_path(directory, m.partition)
    building.mkdir(parents=True, exist_ok=True)
    names = {f.name for f in m.files}
    for left in building.iterdir():  # of another snapshot, or of an opening
        if left.name not in names:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="restore") as pool:
        jobs = [pool.submit(_fetch, place, m.partition, f, building, told) for f in m.files]
        try:
            for j in jobs:
                j.result()
        finally:
            for j in jobs:
                j.cancel()
    try:
        facts = facts_of(building, m.partition)
    except FormatError:
        raise
    except StreamDmginError as e:  # RocksDB's own opinion
        raise Damaged(str(e)) from None
    offsets = tuple(m.offsets.get(m.prefix + t) for t in topics.EVENTS)
    if facts is None or facts.offsets != offsets or facts.users != m.users:
        raise Damaged(f"its store says {facts}, its manifest offsets {offsets} and {m.users} users")
    if holds_a_store(target):
        raise Damaged(f"{target} was begun from the log meanwhile")
    if target.exists():  # leavings of one that was never begun
        shutil.rmtree(target)
    building.rename(target)
    _sync(target.parent)


def _fetch(place: Place, partition: int, file: File, building: Path, told: Told) -> None:
    path = building / file.name
    if not (path.is_file() and path.stat().st_size == file.size and sha256_of(path) == file.sha256):
        temporary = building / f"{file.name}.part"
        place.get_blob(partition, file.sha256, temporary)
        if (found := temporary.stat().st_size) != file.size:
            raise Damaged(f"{file.name} has {found} bytes instead of {file.size}")
        if sha256_of(temporary) != file.sha256:
            raise Damaged(f"the content of {file.name} is not what its hash says")
        _sync(temporary)
        temporary.replace(path)
    told(file.size)


def _sync(path: Path) -> None:
    """Durable: a store that has its name must survive a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
