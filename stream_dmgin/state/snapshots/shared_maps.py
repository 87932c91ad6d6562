"""Group maps at a location: the only thing that partitions, and so workers, share there.

Whoever deletes one can't know that nobody is about to name it. So both look again: who has written a manifest, whether its map is still
there (and puts it there again); who has deleted a map, whether a manifest names it by now (and puts it back). Whichever comes
last sees the other.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from stream_dmgin.errors import FormatError
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.state.ops.places import Maps
from stream_dmgin.state.snapshots.hashes import sha256_of
from stream_dmgin.state.snapshots.manifest import GroupsFile
from stream_dmgin.state.snapshots.place import Missing, Place

SUFFIX = ".parquet"


def put_map(place: Place, maps: Maps, map_id: str) -> tuple[GroupsFile, int]:
    """Keep the group map of a store there too; and the bytes it cost. To be called before the manifest is written, and after."""
    if map_id == GroupMap.empty().id:
        return GroupsFile(map_id, "", 0), 0
    path = maps.file(map_id)
    if not path.is_file():
        maps.load(map_id)  # says so
    file = GroupsFile(map_id, sha256_of(path), path.stat().st_size)
    if place.group_maps().get(file.sha256 + SUFFIX) == file.size:
        return file, 0
    place.put_groups(file.sha256, path)
    return file, file.size


def sweep_maps(place: Place, named: set[str]) -> list[str]:
    """Delete the group maps that no manifest names; SHA-256 of each. `named`: hashes that are known to be named, which saves reading
    manifests where there are no others. Nothing while there is a manifest that can't be read."""
    there = {n.removesuffix(SUFFIX) for n in place.group_maps() if n.endswith(SUFFIX)}
    if there <= named:
        return []
    used = _named(place)
    if used is None:
        return []
    gone = []
    with tempfile.TemporaryDirectory(prefix="stream-dmgin-maps-") as temporary:
        for sha256 in sorted(there - used - named):
            copy = Path(temporary) / sha256
            try:
                place.get_groups(sha256, copy)
            except Missing:  # another one was faster
                continue
            place.delete_groups(sha256)
            now = _named(place)
            if now is None or sha256 in now:
                place.put_groups(sha256, copy)
            else:
                gone.append(sha256)
            copy.unlink()
    return gone


def _named(place: Place) -> set[str] | None:
    """Hashes of the maps that manifests name; None where one can't be read: it might name any."""
    out = set()
    for p in place.partitions():
        for id_ in place.ids(p):
            try:
                out.add(place.manifest(p, id_).groups.sha256)
            except Missing:  # expired meanwhile
                continue
            except FormatError:
                return None
    return out
