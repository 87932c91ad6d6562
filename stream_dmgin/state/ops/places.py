"""Where the stores of a data directory lie, and the group maps that they are folded with. Control path.

A partition's store is `DATA_DIR/state/p00003`, unless `p00003.json` names another directory beside it: that of another group
map, to which the partition has gone over (docs/adr/0009-regroup.md). The pointer is replaced in one step, so that whoever
looks finds a whole store. A store says itself with which map it is folded (`StateEngine.map_id`).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from stream_dmgin.errors import FormatError, InputError
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.state.engine import StateEngine

META = "meta.json"
META_FORMAT = 1  # of that file; one without a format is of format 1


def store_path(directory: Path, partition: int) -> Path:
    """Directory of a partition's store among the stores of a data directory."""
    try:
        return directory / str(json.loads(_pointer(directory, partition).read_text())["store"])
    except FileNotFoundError:
        return directory / _name(partition)


def other_stores(directory: Path, partition: int) -> list[Path]:
    """Further stores of the partition, of other group maps: kept for the way back, or still being built."""
    now = store_path(directory, partition)
    name = _name(partition)
    found = [directory / name, *sorted(directory.glob(f"{name}.*"))]
    return [path for path in found if path != now and path.is_dir()]


def new_store(directory: Path, partition: int, map_id: str) -> Path:
    """Where to build a store of another map: a directory that isn't there yet."""
    path = directory / f"{_name(partition)}.{map_id}"
    n = 1
    while path.exists():
        n += 1
        path = directory / f"{_name(partition)}.{map_id}.{n}"
    return path


def point(directory: Path, partition: int, store: Path) -> None:
    """From now on this is the partition's store. In one step, also for who is killed meanwhile."""
    write_json(_pointer(directory, partition), {"store": store.name})


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace a small file in one step."""
    tmp = path.with_name(f"{path.name}.{os.getpid()}")
    tmp.write_text(json.dumps(value))
    tmp.replace(path)


def check_meta(meta: dict[str, Any], directory: Path) -> None:
    """Raises FormatError when a newer version has written it."""
    if int(meta.get("format", 1)) > META_FORMAT:
        raise FormatError(
            f"{directory / META} has format {meta['format']}, this version reads up to {META_FORMAT}: upgrade stream-dmgin, "
            "or use another --data-dir: its state is rebuilt from the log"
        )


def _name(partition: int) -> str:
    return f"p{partition:05d}"


def _pointer(directory: Path, partition: int) -> Path:
    return directory / f"{_name(partition)}.json"


class Maps:
    """The group maps kept beside the stores, `groups-ID.parquet`, each loaded once. Several threads may ask."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._loaded: dict[str, GroupMap] = {GroupMap.empty().id: GroupMap.empty()}

    def file(self, map_id: str) -> Path:
        """Where a map is kept."""
        return self._directory / f"groups-{map_id}.parquet"

    def keep(self, groups: GroupMap) -> None:
        """Write a map beside the stores, if it isn't there."""
        path = self.file(groups.id)
        if not path.exists():
            tmp = path.with_name(f"{path.name}.{os.getpid()}")
            groups.save(tmp)
            tmp.replace(path)
        self._loaded[groups.id] = groups

    def load(self, map_id: str) -> GroupMap:
        """A map by its id. Raises InputError."""
        found = self._loaded.get(map_id)
        if found is None:
            path = self.file(map_id)
            if not path.is_file():
                raise InputError(f"{path} is missing: the stores beside it are folded with this group map. Put it back")
            found = self._loaded[map_id] = GroupMap.load(path)
        return found


def open_store_under_its_map(
    path: Path, partition: int, maps: Maps, unmarked: str, fresh: GroupMap | None = None, **options: Any
) -> StateEngine:
    """The engine of a store, with the group map that the store is folded with.

    `unmarked`: id of the map of stores that don't say it (written before they did); `fresh`: the map of a store without any
    event. `options` as in `StateEngine.open`. Raises what that raises, and InputError where the map is missing.
    """
    engine = StateEngine.open(path, partition, GroupMap.empty(), **options)
    try:
        if fresh is not None and not any(engine.offsets.values()):
            groups = fresh
        else:
            groups = maps.load(engine.map_id or unmarked)
        engine.regroup(groups)
    except BaseException:
        engine.close()
        raise
    return engine
