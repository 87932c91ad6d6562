"""A checkpoint: a partition's store as it was at one commit, by hard links, under DATA_DIR/snapshots/ID/p00003."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rocksdict import Checkpoint, Rdict

from stream_dmgin.errors import UsageError
from stream_dmgin.state.erased import FREE, MARK, free_of
from stream_dmgin.state.layout import ROW_GROUPS, ROW_OFFSETS
from stream_dmgin.state.rows import rows_of
from stream_dmgin.state.snapshots.alone import alone
from stream_dmgin.state.store import OFFSETS, REQUESTS_ROW, SIDE, open_store

ID = re.compile(r"[0-9A-Za-z-]{1,64}")
LOCK_S = 5.0


@dataclass(frozen=True)
class Facts:
    """What a store says of itself. `offsets`: next offset by event topic number; `requests`: next request to answer;
    `map_id`: the group map it is folded with, None where it doesn't say; `erased`: whether users were erased from it; `free_of`: of which
    its files hold nothing any more (state/erased.py)."""

    offsets: tuple[int, ...]
    users: int
    requests: int | None
    map_id: str | None
    erased: bool = False
    free_of: dict[str, int] = field(default_factory=dict)


def facts_of(store: Path, partition: int) -> Facts | None:
    """Read a store that nobody writes to; None when nothing was ever committed to it. Raises FormatError, StreamDmginError."""
    db = open_store(store, partition, read_only=True)
    try:
        return facts_in(db)
    finally:
        db.close()


def facts_in(db: Rdict) -> Facts | None:
    """The same of a store that is open."""
    row = db.get(ROW_OFFSETS)
    if row is None:
        return None
    *offsets, users, _ = OFFSETS.unpack(row)
    requests, map_id = db.get(SIDE + REQUESTS_ROW), db.get(ROW_GROUPS)
    return Facts(
        tuple(offsets),
        users,
        None if requests is None else int.from_bytes(requests, "big"),
        map_id.decode() if map_id else None,
        erased=next(rows_of(db, SIDE + MARK), None) is not None,
        free_of=free_of(db.get(SIDE + FREE)),
    )


def files_of(store: Path) -> list[Path]:
    """The files that make a store; not RocksDB's own log files and its lock."""
    return sorted(f for f in store.iterdir() if f.is_file() and f.name != "LOCK" and not f.name.startswith("LOG"))


def of_stopped(store: Path, partition: int, target: Path) -> None:
    """Checkpoint of a store that no worker has open. Raises StoreBusy."""
    db = open_store(store, partition, read_only=False)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        Checkpoint(db).create_checkpoint(str(target))
    finally:
        db.close()


def directory_of(data_dir: Path, id_: str) -> Path:
    """Where the checkpoints of one snapshot lie while it is made. Raises UsageError for what is no id."""
    if not ID.fullmatch(id_):
        raise UsageError(f"{id_!r} is no id of a snapshot")
    return (Path(data_dir) / "snapshots" / id_).absolute()


@contextlib.contextmanager
def workshop(data_dir: Path, id_: str, patience_s: float = LOCK_S) -> Iterator[Path]:
    """The folder for the checkpoints of one snapshot, gone afterwards. One snapshot of a data directory at a time, so what
    others left there is of crashed ones, and goes too. Raises StoreBusy."""
    root = Path(data_dir) / "snapshots"
    with alone(root / "lock", patience_s, f"{data_dir}: another snapshot is being made: wait until it is done"):
        for left in root.iterdir():
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
        directory = directory_of(data_dir, id_)
        directory.mkdir()
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)
