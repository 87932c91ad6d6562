"""XXH64 (seed 0) in numba: the hash of ids that is part of the state's format.

Users, items, events and type names are known by the XXH64 of their UTF-8 bytes. A hash is only an index: where two ids could
meet in a table, the bytes are compared. Item hashes are never 0, so that 0 can mean an empty slot (0 counts as 1).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stream_dmgin.state.jit import kernel, ld8, ld64

P1 = np.uint64(0x9E3779B185EBCA87)
P2 = np.uint64(0xC2B2AE3D27D4EB4F)
P3 = np.uint64(0x165667B19E3779F9)
P4 = np.uint64(0x85EBCA77C2B2AE63)
P5 = np.uint64(0x27D4EB2F165667C5)
U = np.uint64
SURFACES = 31  # numbers of surfaces that an event in the state can have
ADDRESS_OF_BYTES = bytes.__basicsize__ - 1  # where CPython keeps the content of a bytes object, from id()


@kernel
def rotl(x: Any, r: Any) -> Any:
    """Rotate an unsigned word left by r (1..63) bits."""
    return (x << U(r)) | (x >> U(64 - r))


@kernel
def xxh64(address: Any, n: Any) -> Any:
    """XXH64 with seed 0 of n bytes at an address, as int64 bits."""
    p = address
    end = address + n
    if n >= 32:
        v1 = P1 + P2
        v2 = P2
        v3 = U(0)
        v4 = U(0) - P1
        while p + 32 <= end:
            v1 = rotl(v1 + U(ld64(p)) * P2, 31) * P1
            v2 = rotl(v2 + U(ld64(p + 8)) * P2, 31) * P1
            v3 = rotl(v3 + U(ld64(p + 16)) * P2, 31) * P1
            v4 = rotl(v4 + U(ld64(p + 24)) * P2, 31) * P1
            p += 32
        h = rotl(v1, 1) + rotl(v2, 7) + rotl(v3, 12) + rotl(v4, 18)
        h = (h ^ (rotl(v1 * P2, 31) * P1)) * P1 + P4
        h = (h ^ (rotl(v2 * P2, 31) * P1)) * P1 + P4
        h = (h ^ (rotl(v3 * P2, 31) * P1)) * P1 + P4
        h = (h ^ (rotl(v4 * P2, 31) * P1)) * P1 + P4
    else:
        h = P5
    h = h + U(n)
    while p + 8 <= end:
        h = rotl(h ^ (rotl(U(ld64(p)) * P2, 31) * P1), 27) * P1 + P4
        p += 8
    if p + 4 <= end:
        w = U(ld8(p) | (ld8(p + 1) << 8) | (ld8(p + 2) << 16) | (ld8(p + 3) << 24))
        h = rotl(h ^ (w * P1), 23) * P2 + P3
        p += 4
    while p < end:
        h = rotl(h ^ (U(ld8(p)) * P5), 11) * P1
        p += 1
    h = (h ^ (h >> U(33))) * P2
    h = (h ^ (h >> U(29))) * P3
    return np.int64(h ^ (h >> U(32)))


@kernel
def mix(h: Any, w: Any) -> Any:
    """One step of the digest: fold the word `w` (int64) into `h` (uint64)."""
    return rotl(h ^ (U(w) * P2), 31) * P1 + P4


@kernel
def finish(h: Any) -> Any:
    """Avalanche of a digest (uint64)."""
    h = (h ^ (h >> U(33))) * P2
    h = (h ^ (h >> U(29))) * P3
    return h ^ (h >> U(32))


@kernel
def same_bytes(a: Any, b: Any, n: Any) -> Any:
    """Whether n bytes at two addresses are equal."""
    i = 0
    while i + 8 <= n:
        if ld64(a + i) != ld64(b + i):
            return False
        i += 8
    while i < n:
        if ld8(a + i) != ld8(b + i):
            return False
        i += 1
    return True


def hash64(data: bytes) -> int:
    """XXH64 with seed 0 of some bytes: 0..2^64-1.

    >>> hex(hash64(b"a"))
    '0xd24ec4f1a98c6e5b'
    """
    return int(xxh64(id(data) + ADDRESS_OF_BYTES, len(data))) & 0xFFFF_FFFF_FFFF_FFFF


@kernel
def surface_number(h: Any) -> Any:
    """1..SURFACES for the hash of a surface's name: what the state keeps of it."""
    return np.int64(1 + U(h) % U(SURFACES))


def surface_of(name: str | None) -> int:
    """`surface_number` of a name; 0 for none."""
    return 1 + hash64(name.encode()) % SURFACES if name else 0


def item_hash(item_id: str) -> int:
    """The hash by which an item is known everywhere (never 0)."""
    return hash64(item_id.encode()) or 1
