"""Where group maps are kept: `groups/ID.parquet`, with its report `ID.json`, under the data directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
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


def keep_report(path: Path, report: Mapping[str, Any]) -> Path:
    """Save what is known of how a map was made, and how good it is, beside the map as JSON."""
    where = path.with_suffix(".json")
    write_text(where, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return where


def write_text(path: Path, text: str) -> None:
    """Write a file in a directory that is made where it is missing. Raises InputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as e:
        raise InputError(f"{path} can't be written: {e.strerror or e}") from None


def report_of(path: Path) -> dict[str, Any] | None:
    """The report beside a map; None where there is none that can be read."""
    try:
        found = json.loads(path.with_suffix(".json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def where(data_dir: Path, name: str) -> Path:
    """The file of a map, by file name or id. Raises InputError."""
    for path in (Path(name), data_dir / "groups" / f"{name}.parquet"):
        if path.is_file():
            return path
    raise InputError(
        f"no group map {name!r}: neither a file nor an id under {data_dir / 'groups'} (see `stream-dmgin groups list`)"
    )


def find(data_dir: Path, name: str) -> GroupMap:
    """A map by file name, or by the id it is kept under. Raises InputError."""
    return GroupMap.load(where(data_dir, name))


def kept(data_dir: Path) -> list[dict[str, Any]]:
    """The maps of the data directory: id, items, groups, file."""
    out = []
    for path in sorted((data_dir / "groups").glob("*.parquet")):
        m = GroupMap.load(path)
        out.append({"id": m.id, "items": len(m), "groups": len(m.sizes()), "file": str(path)})
    return out
