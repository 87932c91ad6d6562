"""One snapshot of several partitions: their checkpoints go up one after another, each with its manifest and its retention."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stream_dmgin.state.ops.stores import Stores
from stream_dmgin.state.snapshots.checkpoint import facts_of, files_of
from stream_dmgin.state.snapshots.hashes import Hashes
from stream_dmgin.state.snapshots.manifest import Manifest
from stream_dmgin.state.snapshots.place import Place
from stream_dmgin.state.snapshots.restore import candidates
from stream_dmgin.state.snapshots.shared_maps import sweep_maps
from stream_dmgin.state.snapshots.upload import Told, expire, surplus, upload
from stream_dmgin.state.store import forget_names

ToldPartition = Callable[[int, int], Told]  # (partition, bytes in all) -> hears of bytes taken care of
HASHES = "hashes.json"


def silent(partition: int, total: int) -> Told:
    """Nobody hears of progress."""
    return lambda n: None


def upload_all(
    place: Place, stores: Stores, directory: Path, id_: str, keep: int | None, told: ToldPartition = silent,
    wanted: Callable[[int], bool] = lambda p: True,
) -> dict[str, Any]:  # fmt: skip
    """Upload the checkpoints in `directory` (`p00003` and so on) as snapshot `id_`; what `state snapshot -o json` prints.
    `keep`: snapshots to keep of each of these partitions. Raises SnapshotsUnavailable, Stopped."""
    t0 = time.monotonic()
    hashes = Hashes(directory.parent / HASHES)
    out: dict[str, Any] = {
        "id": id_, "to": place.url, "partitions": [], "users": 0, "bytes": 0, "bytes_uploaded": 0, "offsets": {},
        "nothing_committed": [], "deleted": [], "groups_deleted": [],
    }  # fmt: skip
    named: set[str] = set()
    for path in sorted(directory.glob("p*")):
        p = int(path.name[1:])
        facts = facts_of(path, p)
        if facts is None:
            out["nothing_committed"].append(p)
            continue
        if facts.erased:
            forget_names(path)
        done = upload(
            place, stores, p, path, facts, id_, hashes,
            told=lambda total, p=p: told(p, total), wanted=lambda p=p: wanted(p),  # type: ignore[misc]
        )  # fmt: skip
        out["partitions"].append(p)
        out["users"] += facts.users
        out["bytes"] += done.manifest.size
        out["bytes_uploaded"] += done.bytes_uploaded
        out["offsets"][str(p)] = done.manifest.offsets
        if keep is not None:
            out["deleted"] += [{"partition": p, "id": i} for i in expire(place, p, keep, spare=(id_,))]
        named.add(done.manifest.groups.sha256)
    if keep is not None:
        out["groups_deleted"] = sweep_maps(place, named)
    hashes.save(path.name for path in directory.glob("p*"))
    return {**out, "seconds": round(time.monotonic() - t0, 3)}


def plan(place: Place, stores: Stores, keep: int | None) -> dict[str, Any]:
    """What a snapshot taken now would upload and delete, about: a running worker goes on writing."""
    hashes = Hashes(stores.directory.parent / "snapshots" / HASHES)
    out: dict[str, Any] = {
        "to": place.url,
        "dry_run": True,
        "partitions": [],
        "bytes": 0,
        "bytes_uploaded": 0,
        "deleted": [],
    }
    for p in stores.present():
        there = place.blobs(p)
        out["partitions"].append(p)
        for f in files_of(stores.path(p)):
            try:
                size = f.stat().st_size
                out["bytes_uploaded"] += 0 if there.get(hashes.of(f)) == size else size
                out["bytes"] += size
            except FileNotFoundError:  # compacted away meanwhile
                continue
        if keep is not None:  # the one that would be taken is among those kept
            out["deleted"] += [{"partition": p, "id": i} for i in surplus(place, p, keep - 1)]
    return out


def listing(place: Place) -> dict[str, Any]:
    """The snapshots at a location, newest first: `snapshots` (by id) and what is `damaged`."""
    by_id: dict[str, list[Manifest]] = {}
    damaged: list[str] = []
    for p in place.partitions():
        found, problems = candidates(place, p)
        damaged += problems
        for m in found:
            by_id.setdefault(m.id, []).append(m)
    return {
        "from": place.url,
        "snapshots": [_summary(id_, by_id[id_]) for id_ in sorted(by_id, reverse=True)],
        "damaged": damaged,
    }


def _summary(id_: str, manifests: list[Manifest]) -> dict[str, Any]:
    first = manifests[0]
    have = sorted(m.partition for m in manifests)
    return {
        "id": id_, "created_ms": max(m.created_ms for m in manifests), "partitions": have, "partitions_in_topics": first.partitions,
        "whole": len(have) == first.partitions, "prefix": first.prefix, "groups": first.groups.id, "format": first.snapshot_format,
        "state_format": first.state_format, "users": sum(m.users for m in manifests), "records": sum(m.folded for m in manifests),
        "bytes": sum(m.size for m in manifests), "offsets": {str(m.partition): m.offsets for m in manifests},
    }  # fmt: skip
