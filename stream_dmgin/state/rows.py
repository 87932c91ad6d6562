"""Keys of the rows of a store, and how they are gone through."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from rocksdict import Rdict, RdictIter

from stream_dmgin.errors import StoreDamaged, StreamDmginError
from stream_dmgin.state import layout


def base_key(user_id: bytes) -> bytes:
    """Of a user's base row."""
    return layout.ROW_BASE + user_id


def delta_keys(user_id: bytes) -> list[bytes]:
    """Of all delta rows that a user may have."""
    return [layout.ROW_DELTA + user_id + bytes((0, k)) for k in range(layout.DELTA_ROWS)]


def spill_keys(user_id: bytes, pages: int) -> list[bytes]:
    """Of the pages of a user's spilled groups."""
    return [layout.ROW_SPILL + user_id + b"\0" + struct.pack(">H", p) for p in range(pages)]


def rows_of(db: Rdict | None, prefix: bytes, start: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
    """Rows with this prefix, from the key `start` on, none of no store; RocksDB's iterator is gone when the generator is."""
    if db is None:
        return
    last = start or prefix
    for key, value in db.items(from_key=last):
        if not key.startswith(prefix):
            return
        yield key, value
        last = key
    rows = db.iter()  # `items` doesn't tell why it ended
    rows.seek(last)
    if rows.valid():
        rows.next()
    check_end(rows, db)


def get_rows(db: Rdict, keys: list[bytes]) -> list[bytes | None]:
    """Rows by key. Raises StoreDamaged."""
    try:
        found: list[bytes | None] = db.get(keys)
    except Exception as e:  # rocksdict raises Exception itself
        raise _unreadable(db, e) from e
    return found


def check_end(rows: RdictIter, db: Rdict) -> None:
    """To be called where an iterator may have no more rows: it ends at damage as if there were nothing more. Raises StoreDamaged."""
    if not rows.valid():
        try:
            rows.status()
        except Exception as e:
            raise _unreadable(db, e) from e


def _unreadable(db: Rdict, why: Exception) -> StreamDmginError:
    path, text = Path(db.path()), str(why)
    if not text.startswith("Corruption"):
        return StreamDmginError(f"{path}: the store can't be read: {text}")
    return StoreDamaged(
        f"{path}: the store is damaged, not the record that needed it: {text}. Nothing is lost: stop the worker, "
        f"`stream-dmgin state rebuild --partition {int(path.name[1:6])}`, start it again; look after the disk"
    )
