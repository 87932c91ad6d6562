"""Snapshots that may hold rows of erased users are deleted, once a newer one is free of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from stream_dmgin.control import Erasure
from stream_dmgin.errors import FormatError
from stream_dmgin.state.erased import is_free
from stream_dmgin.state.snapshots.place import Missing, Place
from stream_dmgin.state.snapshots.upload import sweep


@dataclass
class Forgotten:
    """Of one partition: ids of the snapshots that went (or would), of those that can't go yet since no newer one is free, and of
    damaged ones that might hold anything."""

    deleted: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)


def forget(place: Place, partition: int, prefix: str, orders: Collection[Erasure], dry_run: bool = False) -> Forgotten:
    """Delete the snapshots of a partition that aren't free of all these erasures, and the contents that no manifest names any more.

    Damaged ones go as well, where they are older than one that is free. Not beside an upload of the same partition. Raises
    SnapshotsUnavailable."""
    out = Forgotten()
    if not orders:
        return out
    free_one = False  # newest first: a snapshot that is free, newer than those that follow
    for id_ in place.ids(partition):
        try:
            m = place.manifest(partition, id_)
        except Missing:
            continue
        except FormatError:
            (out.deleted if free_one else out.held).append(id_)
            continue
        if m.prefix != prefix:
            continue
        if all(is_free(m.free_of, e) for e in orders):
            free_one = True
        else:
            (out.deleted if free_one else out.held).append(id_)
    if not dry_run and out.deleted:
        for id_ in out.deleted:
            place.delete_manifest(partition, id_)
        sweep(place, partition)
    return out
