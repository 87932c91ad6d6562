"""Where group maps are kept: `groups/ID.parquet` under the data directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stream_dmgin.errors import InputError
from stream_dmgin.groups.map import GroupMap


def keep(data_dir: Path, groups: GroupMap, out: str | None) -> Path:
    """Save a map to `out`, or under its id in the data directory; returns where."""
    path = Path(out) if out else data_dir / "groups" / f"{groups.id}.parquet"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        groups.save(path)
    except OSError as e:
        raise InputError(f"{path} can't be written: {e.strerror or e}") from None
    return path


def find(data_dir: Path, name: str) -> GroupMap:
    """A map by file name, or by the id it is kept under. Raises InputError."""
    for path in (Path(name), data_dir / "groups" / f"{name}.parquet"):
        if path.is_file():
            return GroupMap.load(path)
    raise InputError(
        f"no group map {name!r}: neither a file nor an id under {data_dir / 'groups'} (see `stream-dmgin groups list`)"
    )


def kept(data_dir: Path) -> list[dict[str, Any]]:
    """The maps of the data directory: id, items, groups, file."""
    out = []
    for path in sorted((data_dir / "groups").glob("*.parquet")):
        m = GroupMap.load(path)
        out.append({"id": m.id, "items": len(m), "groups": len(m.sizes()), "file": str(path)})
    return out
