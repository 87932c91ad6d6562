"""Counter rows as bytes, for a store: key = b"e", kind (1 byte), hash (8 bytes, big-endian); value, all numbers LEB128 varints:

    1 (format), first bucket, totals for life by metric, then for each level: used slots, and for each of these in order of
    slot: stamp, counts of the level's metrics

Most slots of most entities are empty or small: a row takes 50 to 300 bytes instead of the 2.2 KB in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.counters.layout import (
    KEPT,
    LEVEL_AT,
    LIFE_AT,
    METRICS_OF,
    N_COUNTS,
    N_LEVELS,
    N_METRICS,
    N_SLOTS,
    SLOT_AT,
)
from stream_dmgin.errors import FormatError
from stream_dmgin.native import kernel

FORMAT = 1
_AT_MOST = 16 + 10 * N_COUNTS + 5 * N_SLOTS  # bytes of one row
_BATCH = 1024
_KEY = np.dtype([("e", "S1"), ("kind", "u1"), ("hash", ">u8")])


@kernel
def _put(out: Any, at: int, x: int) -> int:
    while x >= 128:
        out[at] = (x & 127) | 128
        x >>= 7
        at += 1
    out[at] = x
    return at + 1


@kernel
def _encode(counts: Any, stamps: Any, first: Any, which: Any, out: Any, ends: Any) -> None:
    at = 0
    for i in range(which.shape[0]):
        row = which[i]
        at = _put(out, at, FORMAT)
        at = _put(out, at, first[row])
        for metric in range(N_METRICS):
            at = _put(out, at, counts[row, LIFE_AT + metric])
        for level in range(N_LEVELS):
            used = 0
            for slot in range(KEPT[level]):
                used += stamps[row, SLOT_AT[level] + slot] >= 0
            at = _put(out, at, used)
            for slot in range(KEPT[level]):
                stamp = stamps[row, SLOT_AT[level] + slot]
                if stamp >= 0:
                    at = _put(out, at, stamp)
                    for metric in range(METRICS_OF[level]):
                        at = _put(out, at, counts[row, LEVEL_AT[level] + metric * KEPT[level] + slot])
        ends[i] = at


@kernel
def _take(data: Any, at: int) -> tuple[int, int]:
    """(number, next position); position -1 where the data ends too early."""
    x, shift = 0, 0
    while at < data.shape[0] and shift < 63:
        x |= (int(data[at]) & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return x, at
        shift += 7
    return 0, -1


@kernel
def decode(data: Any, counts: Any, stamps: Any) -> Any:
    """Fill one row of counts and stamps from the bytes of a value; returns the first bucket, -1 where it is no row."""
    counts[:] = 0
    stamps[:] = -1
    x, at = _take(data, 0)
    if at < 0 or x != FORMAT:
        return -1
    first, at = _take(data, at)
    for metric in range(N_METRICS):
        if at >= 0:
            counts[LIFE_AT + metric], at = _take(data, at)
    for level in range(N_LEVELS):
        if at < 0:
            return -1
        used, at = _take(data, at)
        for _ in range(used):
            if at < 0:
                return -1
            stamp, at = _take(data, at)
            slot = stamp % KEPT[level]
            stamps[SLOT_AT[level] + slot] = stamp
            for metric in range(METRICS_OF[level]):
                if at < 0:
                    return -1
                counts[LEVEL_AT[level] + metric * KEPT[level] + slot], at = _take(data, at)
    return first if at == data.shape[0] else -1


def encode(
    kinds: NDArray[np.uint8], hashes: NDArray[np.uint64], counts: NDArray[np.int64], stamps: NDArray[np.int32],
    first: NDArray[np.int32], which: NDArray[np.int64],
) -> Iterator[tuple[bytes, bytes]]:  # fmt: skip
    """Key and value of the rows `which` of the table's arrays."""
    out = np.empty(min(len(which), _BATCH) * _AT_MOST, np.uint8)
    for start in range(0, len(which), _BATCH):
        part = which[start : start + _BATCH]
        ends = np.empty(len(part), np.int64)
        _encode(counts, stamps, first, part, out, ends)
        data = out[: ends[-1]].tobytes()
        at = 0
        for row, end in zip(part.tolist(), ends.tolist(), strict=True):
            yield b"e" + bytes([kinds[row]]) + int(hashes[row]).to_bytes(8, "big"), data[at:end]
            at = end


def split(
    rows: Iterable[tuple[bytes, bytes]],
) -> tuple[NDArray[np.uint8], NDArray[np.uint64], NDArray[np.uint8], NDArray[np.int64]]:
    """(kinds, hashes, all values in one piece, where each value ends) of rows. Raises FormatError."""
    pairs = list(rows)
    for key, _ in pairs:
        if len(key) != _KEY.itemsize or key[:1] != b"e":
            raise unreadable(f"{key!r} is not the key of a counter row")
    keys = np.frombuffer(b"".join(k for k, _ in pairs), _KEY)
    ends = np.cumsum(np.fromiter((len(v) for _, v in pairs), np.int64, len(pairs)))
    data = np.frombuffer(b"".join(v for _, v in pairs), np.uint8)
    return keys["kind"].copy(), keys["hash"].astype(np.uint64), data, ends


def unreadable(what: str) -> FormatError:
    """The error for rows that this version can't read."""
    return FormatError(f"{what}: remove the counters' directory, they are read again from the log")
