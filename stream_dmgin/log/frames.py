"""The file format of the embedded log: frames of records, written whole, read in place.

A partition is one append-only file of frames; the first `committed` bytes of it count (see `embedded.py`).
All numbers are little-endian; times are milliseconds UTC.

    frame:  magic u32 | crc32 u32 of what follows | bytes u64 (whole frame) | first offset u64 | records u32 | 0 u32
            record*
            next offset u64 | greatest timestamp of the partition so far i64 | bytes u64 (whole frame, again)
    record: timestamp i64 | key bytes i32 (-1 null) | value bytes i32 (-1 null) | header bytes u32 | key | value | headers
    headers: (name bytes u16 | value bytes u32 | name | value)*

The trailer lets a writer and `ends` learn the next offset from the last 24 committed bytes, whoever wrote them.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from stream_dmgin.log.base import Headers
from stream_dmgin.log.native import load_i32, load_i64, load_u32, load_u64

FORMAT = 1
MAGIC = 0x31464453  # "SDF1"
HEAD = struct.Struct("<IIQQII")  # 32 bytes
TAIL = struct.Struct("<QqQ")  # 24 bytes
RECORD = struct.Struct("<qiiI")  # 20 bytes
HEADER = struct.Struct("<HI")
HEAD_BYTES, TAIL_BYTES, RECORD_BYTES = 32, 24, 20
NO_TS = -(1 << 63)


def pack_record(key: bytes | None, value: bytes | None, timestamp: int, headers: Headers) -> bytes:
    """One record of a frame."""
    h = b"".join(HEADER.pack(len(k.encode()), len(v)) + k.encode() + v for k, v in headers) if headers else b""
    n_key, n_value = -1 if key is None else len(key), -1 if value is None else len(value)
    return RECORD.pack(timestamp, n_key, n_value, len(h)) + (key or b"") + (value or b"") + h


def pack_frame(records: list[bytes], first: int, max_ts: int) -> bytearray:
    """A frame of `records` (at least one), the first of which gets offset `first`. `max_ts`: with these records."""
    size = HEAD_BYTES + sum(map(len, records)) + TAIL_BYTES
    head = HEAD.pack(MAGIC, 0, size, first, len(records), 0)
    frame = bytearray().join([head, *records, TAIL.pack(first + len(records), max_ts, size)])  # the only copy
    struct.pack_into("<I", frame, 4, zlib.crc32(memoryview(frame)[8:]))
    return frame


def unpack_headers(raw: bytes) -> Headers:
    """The headers of one record."""
    out, at = [], 0
    while at < len(raw):
        n_name, n_value = HEADER.unpack_from(raw, at)
        at += HEADER.size
        out.append((raw[at : at + n_name].decode("utf-8", "replace"), raw[at + n_name : at + n_name + n_value]))
        at += n_name + n_value
    return tuple(out)


# The cursor of one partition, a row of int64: what `read` advances.
POS, FRAME_END, NEXT, LIMIT, BASE, WINDOW = 0, 1, 2, 3, 4, 5
CURSOR = 6
# POS: file position of the next record, or of the next frame when it equals FRAME_END (end of the current frame's records)
# NEXT: offset of the next record to deliver; LIMIT: committed bytes; BASE: address of file position 0 in the window
# (may lie before the mapping); WINDOW: file position where the mapping ends


@numba.njit(cache=True, nogil=True)
def refresh(
    cursors: NDArray[np.int64], heads: NDArray[np.uint64], paused: NDArray[np.bool_], order: NDArray[np.int64]
) -> int:
    """Look at the commit words (addresses `heads`, one a row); fills `order` with the rows that have something to read and
    aren't paused, and returns how many. Under a microsecond: this is what an idle reader does."""
    n = 0
    for row in range(len(cursors)):
        c = cursors[row]
        c[LIMIT] = np.int64(load_u64(heads[row]))
        if not paused[row] and (c[POS] < c[FRAME_END] or c[LIMIT] > c[POS] + (TAIL_BYTES if c[FRAME_END] > 0 else 0)):
            order[n] = row
            n += 1
    return n


@numba.njit(cache=True, nogil=True)
def read(
    cursors: NDArray[np.int64], order: NDArray[np.int64], capacity: int, source: NDArray[np.int32], offset: NDArray[np.int64],
    timestamp: NDArray[np.int64], key_addr: NDArray[np.uint64], key_len: NDArray[np.int32], value_addr: NDArray[np.uint64],
    value_len: NDArray[np.int32], head_len: NDArray[np.int32],
) -> Any:  # fmt: skip
    """Fill up to `capacity` rows from the partitions `order` (rows of `cursors`), in turn; advances the cursors.

    `source` gets the row number. Records below NEXT are passed over (a seek into a frame). Returns how many rows were
    filled, or -1 - row when the file of that row is corrupt. About 10 ns a record.
    """
    n = 0
    share = max(1, capacity // max(1, len(order)))
    for turn in range(2):  # first a fair share each, then whatever fits
        for j in range(len(order)):
            row = order[j]
            c = cursors[row]
            stop = min(capacity, n + share) if turn == 0 else capacity
            base = c[BASE]
            while n < stop:
                if c[POS] == c[FRAME_END]:
                    at = c[POS] + (TAIL_BYTES if c[FRAME_END] > 0 else 0)
                    if at >= c[LIMIT] or at + HEAD_BYTES > c[WINDOW]:
                        break
                    a = np.uint64(base + at)
                    size = np.int64(load_u64(a + np.uint64(8)))
                    if load_u32(a) != MAGIC or size < HEAD_BYTES + TAIL_BYTES or at + size > c[LIMIT]:
                        return -1 - row
                    if at + size > c[WINDOW]:
                        break
                    first = np.int64(load_u64(a + np.uint64(16)))
                    count = np.int64(load_u32(a + np.uint64(24)))
                    if first > c[NEXT]:
                        return -1 - row
                    if first + count <= c[NEXT]:  # wholly before the offset asked for
                        c[POS] = c[FRAME_END] = at + size - TAIL_BYTES
                        continue
                    c[POS] = at + HEAD_BYTES
                    c[FRAME_END] = at + size - TAIL_BYTES
                    for _ in range(c[NEXT] - first):
                        p = np.uint64(base + c[POS])
                        c[POS] += _size(p)
                        if c[POS] >= c[FRAME_END]:
                            return -1 - row
                a = np.uint64(base + c[POS])
                length = _size(a)
                if c[POS] + length > c[FRAME_END]:
                    return -1 - row
                source[n] = row
                offset[n] = c[NEXT]
                timestamp[n] = load_i64(a)
                n_key, n_value = load_i32(a + np.uint64(8)), load_i32(a + np.uint64(12))
                key_len[n], value_len[n] = n_key, n_value
                key_addr[n] = a + np.uint64(RECORD_BYTES)
                value_addr[n] = key_addr[n] + np.uint64(max(0, n_key))
                head_len[n] = np.int32(load_u32(a + np.uint64(16)))
                c[POS] += length
                c[NEXT] += 1
                n += 1
    return n


@numba.njit(cache=True, nogil=True)
def _size(a: Any) -> Any:
    """Bytes of the record at address a."""
    size = RECORD_BYTES + np.int64(load_u32(a + np.uint64(16)))
    n_key, n_value = np.int64(load_i32(a + np.uint64(8))), np.int64(load_i32(a + np.uint64(12)))
    if n_key > 0:
        size += n_key
    if n_value > 0:
        size += n_value
    return size
