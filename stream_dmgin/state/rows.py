"""Keys of the rows of a store, and how they are gone through."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from rocksdict import Rdict

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
    for key, value in db.items(from_key=start or prefix):
        if not key.startswith(prefix):
            break
        yield key, value
