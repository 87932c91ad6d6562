"""Reading MessagePack at raw addresses (numba): just what an event needs, and never past the end.

Positions are int64 addresses; a function that meets anything it isn't sure of returns -1, and the caller leaves the record
to `records.decode_event`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stream_dmgin.state.jit import bits_f32, bits_f64, bswap, kernel, ld8, ld64

NIL = np.int64(-2)  # length of a string that is nil
UNSURE = np.int64(-1)
HIGH_BITS = np.int64(-0x7F7F7F7F7F7F7F80)  # 0x80 in each byte
K_INT, K_NIL, K_FLOAT, K_BAD = 0, 1, 2, 3


@kernel
def utf8_ok(p: Any, n: Any) -> Any:
    """Whether n bytes are well-formed UTF-8 (no surrogates, nothing overlong)."""
    end = p + n
    while p < end:
        if p + 8 <= end and ld64(p) & HIGH_BITS == 0:
            p += 8
            continue
        b = ld8(p)
        if b < 0x80:
            p += 1
            continue
        if 0xC2 <= b <= 0xDF:
            more, low, high = 1, 0x80, 0xBF
        elif 0xE0 <= b <= 0xEF:
            more, low, high = 2, 0xA0 if b == 0xE0 else 0x80, 0x9F if b == 0xED else 0xBF
        elif 0xF0 <= b <= 0xF4:
            more, low, high = 3, 0x90 if b == 0xF0 else 0x80, 0x8F if b == 0xF4 else 0xBF
        else:
            return False
        if p + more >= end or not low <= ld8(p + 1) <= high:
            return False
        for k in range(2, more + 1):
            if not 0x80 <= ld8(p + k) <= 0xBF:
                return False
        p += more + 1
    return True


@kernel
def be(p: Any, n: Any) -> Any:
    """n (1, 2, 4) big-endian bytes, unsigned."""
    v = np.int64(0)
    for k in range(n):
        v = (v << 8) | ld8(p + k)
    return v


@kernel
def read_str(p: Any, end: Any) -> Any:
    """(address, length, next) of a string; length NIL for nil, UNSURE for anything else. UTF-8 is not checked."""
    if p >= end:
        return p, UNSURE, p
    b = ld8(p)
    if 0xA0 <= b <= 0xBF:
        n, p = b & 31, p + 1
    elif b == 0xD9 and p + 2 <= end:
        n, p = ld8(p + 1), p + 2
    elif b == 0xDA and p + 3 <= end:
        n, p = be(p + 1, 2), p + 3
    elif b == 0xC0:
        return p, NIL, p + 1
    else:
        return p, UNSURE, p
    if p + n > end:
        return p, UNSURE, p
    return p, n, p + n


@kernel
def read_number(p: Any, end: Any) -> Any:
    """(kind, int64, float64, next): an integer below 2^63, a float, nil; K_BAD for anything else."""
    zero, none = np.int64(0), 0.0
    if p >= end:
        return K_BAD, zero, none, p
    b = ld8(p)
    if b <= 0x7F:
        return K_INT, b, none, p + 1
    if b >= 0xE0:
        return K_INT, b - 256, none, p + 1
    if b == 0xC0:
        return K_NIL, zero, none, p + 1
    if 0xCC <= b <= 0xCE:
        n = 1 << (b - 0xCC)
        if p + 1 + n <= end:
            return K_INT, be(p + 1, n), none, p + 1 + n
    elif b == 0xCF or b == 0xD3:
        if p + 9 <= end:
            v = bswap(ld64(p + 1))
            if b == 0xD3 or v >= 0:
                return K_INT, v, none, p + 9
    elif 0xD0 <= b <= 0xD2:
        n = 1 << (b - 0xD0)
        if p + 1 + n <= end:
            v = be(p + 1, n)
            return K_INT, v - ((v >> (8 * n - 1)) << (8 * n)), none, p + 1 + n
    elif b == 0xCB:
        if p + 9 <= end:
            return K_FLOAT, zero, bits_f64(bswap(ld64(p + 1))), p + 9
    elif b == 0xCA and p + 5 <= end:
        return K_FLOAT, zero, bits_f32(be(p + 1, 4)), p + 5
    return K_BAD, zero, none, p


@kernel
def skip_scalar(p: Any, end: Any) -> Any:
    """Position after nil, a boolean, a number, a well-formed string or binary; -1 otherwise."""
    if p >= end:
        return UNSURE
    b = ld8(p)
    if b == 0xC2 or b == 0xC3:
        return p + 1
    if b == 0xC4 and p + 2 <= end:
        q = p + 2 + ld8(p + 1)
        return q if q <= end else UNSURE
    if 0xA0 <= b <= 0xBF or b == 0xD9 or b == 0xDA:
        a, n, q = read_str(p, end)
        return q if n >= 0 and utf8_ok(a, n) else UNSURE
    kind, _, _, q = read_number(p, end)
    return UNSURE if kind == K_BAD else q


@kernel
def container(p: Any, end: Any) -> Any:
    """(entries, is map, position of the first) of an array or map; entries -1 if it is neither."""
    if p >= end:
        return UNSURE, False, p
    b = ld8(p)
    if 0x80 <= b <= 0x8F:
        return b & 15, True, p + 1
    if 0x90 <= b <= 0x9F:
        return b & 15, False, p + 1
    if (b == 0xDC or b == 0xDE) and p + 3 <= end:
        return be(p + 1, 2), b == 0xDE, p + 3
    return UNSURE, False, p


@kernel
def skip_flat(p: Any, end: Any) -> Any:
    """Position after a scalar or a container of scalars (keys of maps are strings); -1 otherwise."""
    n, is_map, q = container(p, end)
    if n < 0:
        return skip_scalar(p, end)
    for _ in range(n):
        if is_map:
            a, k, q = read_str(q, end)
            if k < 0 or not utf8_ok(a, k):
                return UNSURE
        q = skip_scalar(q, end)
        if q < 0:
            return UNSURE
    return q


@kernel
def skip_value(p: Any, end: Any) -> Any:
    """Position after any value nested at most two deep (deeper ones are rare: the caller leaves them to Python); -1 otherwise."""
    n, is_map, q = container(p, end)
    if n < 0:
        return skip_scalar(p, end)
    for _ in range(n):
        if is_map:
            a, k, q = read_str(q, end)
            if k < 0 or not utf8_ok(a, k):
                return UNSURE
        q = skip_flat(q, end)
        if q < 0:
            return UNSURE
    return q
