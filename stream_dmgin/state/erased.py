"""Erased users in a partition's fold: their records below the erasure's offsets change nothing, whoever folds them and when.

A table of a few hashes beside the engine. Without erasures the fold doesn't look at it; with some, a batch costs one search of
its user hashes, until the engine has passed all of their offsets: from then on nothing again.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_dmgin.control import Erasure, digest_of
from stream_dmgin.state.parse import MALFORMED, OK, EventColumns

MARK = b"e/"  # side row of a store: this erasure is in it
FREE = MARK + b"free"  # side row: the erasures of which its files hold nothing any more, since they were compacted
DIGITS = 16  # of a digest, hexadecimal: among the erasures of a partition no two are alike


class Erased:
    """The erasures of one partition, as its fold needs them."""

    def __init__(self, erasures: Iterable[Erasure]) -> None:
        orders = sorted(erasures, key=lambda e: e.hash)
        self._digests = [e.digest for e in orders]
        self._hashes = np.array([e.hash for e in orders], np.uint64)
        self._ends = np.array([e.ends for e in orders], np.int64).reshape(-1, 3)
        self._last = self._ends.max(0) if orders else np.zeros(3, np.int64)

    def passed(self, offsets: NDArray[np.int64]) -> bool:
        """Whether an engine at these next offsets (by topic number) meets no record of theirs any more."""
        return bool((offsets[:3] >= self._last).all())

    def hide(self, cols: EventColumns, rows: NDArray[np.int32]) -> int:
        """Mark the erased ones among these rows so that the fold only moves over their offsets; how many there were."""
        of = cols.user_hash[rows]
        at = np.searchsorted(self._hashes, of)
        at[at == len(self._hashes)] = 0
        hidden = 0
        for j in np.flatnonzero(self._hashes[at] == of).tolist():
            r = int(rows[j])
            k = self._find(int(at[j]), cols, r) if cols.status[r] == OK else -1
            if k >= 0 and cols.offset[r] < self._ends[k, cols.topic[r]]:
                cols.status[r] = MALFORMED
                hidden += 1
        return hidden

    def _find(self, k: int, cols: EventColumns, r: int) -> int:
        """The erasure of this row's very user, from the first one with its hash on; -1: none."""
        digest = digest_of(user_of(cols, r))
        while k < len(self._digests) and self._hashes[k] == cols.user_hash[r]:
            if self._digests[k] == digest:
                return k
            k += 1
        return -1


def user_of(cols: EventColumns, r: int) -> bytes:
    """The user id of a row."""
    return ctypes.string_at(int(cols.user_addr[r]), int(cols.user_len[r]))


def mark_of(e: Erasure) -> tuple[bytes, bytes]:
    """The side row that says that a store has this erasure in it."""
    return MARK + bytes.fromhex(e.digest), msgspec.msgpack.encode(e.ends)


def is_marked(row: bytes | None, e: Erasure) -> bool:
    """Whether a store with this side row has it in it, or a later one of the same user."""
    return row is not None and all(a >= b for a, b in zip(msgspec.msgpack.decode(row), e.ends, strict=True))


def free_row(marks: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, bytes] | None:
    """The side row to commit once a compaction is through that began with these side rows (key, value) under MARK in the store."""
    free = {k[len(MARK) :].hex()[:DIGITS]: sum(msgspec.msgpack.decode(v)) for k, v in marks if k != FREE}
    return (FREE, msgspec.msgpack.encode(free)) if free else None


def free_of(row: bytes | None) -> dict[str, int]:
    """What the side row FREE says: first digits of a user's digest -> sum of the offsets of the erasure."""
    return msgspec.msgpack.decode(row, type=dict[str, int]) if row else {}


def is_free(free: Mapping[str, int], e: Erasure) -> bool:
    """Whether files that are free of these hold nothing of this erasure."""
    return free.get(e.digest[:DIGITS], -1) >= sum(e.ends)
