"""Stores that no partition is served from any more: those of other group maps."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stream_dmgin.errors import StoreBusy
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.ops.places import other_stores
from stream_dmgin.state.ops.stores import Stores


def prunable(data_dir: Path) -> list[dict[str, Any]]:
    """`partition`, `groups` (id of the map), `bytes`, `path` of each; without those that a worker is building."""
    stores = Stores.of(data_dir)
    found = []
    for p in range(stores.partitions):
        for path in other_stores(stores.directory, p):
            try:
                engine = StateEngine.open(path, p, GroupMap.empty())
            except StoreBusy:
                continue
            map_id = engine.map_id
            engine.close()
            size = sum(f.stat().st_size for f in path.iterdir() if f.is_file())
            found.append({"partition": p, "groups": map_id, "bytes": size, "path": str(path)})
    return found


def remove(stores: Iterable[Mapping[str, Any]]) -> None:
    """Remove what `prunable` found."""
    for store in stores:
        shutil.rmtree(store["path"])
