"""From a checkpoint to a snapshot: what the location doesn't have yet is uploaded, then the manifest is written.

SST files never change and lie there under the hash of their content, so a snapshot costs what changed since the last one.
An upload that is interrupted leaves contents that no manifest refers to: the next one uses them, or `sweep` deletes them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from stream_dmgin import topics
from stream_dmgin.errors import FormatError, StreamDmginError
from stream_dmgin.state.ops.stores import Stores
from stream_dmgin.state.snapshots.checkpoint import Facts, files_of
from stream_dmgin.state.snapshots.hashes import Hashes
from stream_dmgin.state.snapshots.manifest import File, Manifest
from stream_dmgin.state.snapshots.place import Place
from stream_dmgin.state.snapshots.shared_maps import put_map

AT_ONCE = 4  # files on their way
Told = Callable[[int], None]  # bytes that are taken care of since it was last called


class Stopped(StreamDmginError):
    """Whoever wanted the snapshot doesn't any more."""


@dataclass(frozen=True)
class Uploaded:
    """A snapshot of one partition, and what it cost."""

    manifest: Manifest
    bytes_uploaded: int


def upload(
    place: Place, stores: Stores, partition: int, checkpoint: Path, facts: Facts, id_: str, hashes: Hashes, *,
    told: Callable[[int], Told] = lambda total: lambda n: None, wanted: Callable[[], bool] = lambda: True,
) -> Uploaded:  # fmt: skip
    """Upload one checkpoint. `told(bytes in all)` gives a function that hears of progress. `wanted` is asked before each file
    and before the manifest: Stopped when it says no. Raises SnapshotsUnavailable; older snapshots stay good whatever happens."""
    paths = files_of(checkpoint)
    files = tuple(File(f.name, hashes.of(f), f.stat().st_size) for f in paths)
    total = sum(f.size for f in files)
    tell = told(total)
    there = place.blobs(partition)
    uploaded = 0

    def put(file: File, path: Path) -> int:
        if not wanted():
            raise Stopped("the snapshot was given up")
        cost = 0
        if there.get(file.sha256) != file.size:  # absent, or torn
            place.put_blob(partition, file.sha256, path)
            cost = file.size
        tell(file.size)
        return cost

    unique = {f.sha256: (f, p) for f, p in zip(files, paths, strict=True)}
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="upload") as pool:
        jobs = [pool.submit(put, f, p) for f, p in unique.values()]
        try:
            uploaded = sum(j.result() for j in jobs)
        finally:
            for j in jobs:
                j.cancel()
    map_id = facts.map_id or stores.unmarked
    groups, cost = put_map(place, stores.maps, map_id)
    uploaded += cost
    names = [stores.prefix + t for t in topics.EVENTS]
    manifest = Manifest(
        id=id_, partition=partition, partitions=stores.partitions, prefix=stores.prefix, created_ms=time.time_ns() // 1_000_000,
        groups=groups,
        offsets=dict(zip(names, facts.offsets, strict=True)), requests=facts.requests, users=facts.users, size=total, files=files,
        free_of=facts.free_of,
    )  # fmt: skip
    if not wanted():
        raise Stopped("the snapshot was given up")
    place.write_manifest(manifest)
    put_map(place, stores.maps, map_id)  # somebody may have swept it meanwhile
    return Uploaded(manifest, uploaded)


def surplus(place: Place, partition: int, keep: int, spare: Collection[str] = ()) -> list[str]:
    """Ids of the snapshots beyond the newest `keep` readable ones of a partition; never those in `spare`."""
    kept = 0
    out: list[str] = []
    for id_ in place.ids(partition):
        if kept >= keep:
            out.append(id_)
            continue
        try:
            place.manifest(partition, id_)
            kept += 1
        except FormatError:  # damaged or of a newer version: not counted, kept while it is among the newest
            continue
    return [i for i in out if i not in spare]


def expire(place: Place, partition: int, keep: int, spare: Collection[str] = ()) -> list[str]:
    """Delete the snapshots of a partition beyond the newest `keep`, and the contents that no manifest refers to any more."""
    gone = surplus(place, partition, keep, spare)
    for id_ in gone:
        place.delete_manifest(partition, id_)
    sweep(place, partition)
    return gone


def sweep(place: Place, partition: int) -> int:
    """Delete contents that no manifest of the partition refers to; bytes freed. Nothing while there is a manifest that can't be
    read, since it might refer to anything. Not beside an upload of the same partition."""
    used: set[str] = set()
    for id_ in place.ids(partition):
        try:
            used |= {f.sha256 for f in place.manifest(partition, id_).files}
        except FormatError:
            return 0
    freed = 0
    for name, size in place.blobs(partition).items():
        if name not in used:
            place.delete_blob(partition, name)
            freed += size
    return freed
