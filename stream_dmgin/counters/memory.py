"""Arrays by address, for numba code that works on many arrays at once.

numba spends about 0.25 us on each array argument of a call from Python, more than the work itself when a request touches
sixty arrays. Callers hand over one int64 array of addresses and keep the arrays behind it alive and in place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.extending import intrinsic


def _pointer(typing_context: Any, address: Any) -> Any:
    """An integer address as a void pointer, for `numba.carray`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


pointer: Any = intrinsic(_pointer)


@njit(cache=True, inline="always")
def f32(address: Any, shape: Any) -> Any:
    """float32 array of `shape` (a tuple) at `address`."""
    return carray(pointer(address), shape, np.float32)


@njit(cache=True, inline="always")
def f64(address: Any, shape: Any) -> Any:
    """float64 array of `shape` (a tuple) at `address`."""
    return carray(pointer(address), shape, np.float64)


@njit(cache=True, inline="always")
def i32(address: Any, shape: Any) -> Any:
    """int32 array of `shape` (a tuple) at `address`."""
    return carray(pointer(address), shape, np.int32)


@njit(cache=True, inline="always")
def i64(address: Any, shape: Any) -> Any:
    """int64 array of `shape` (a tuple) at `address`."""
    return carray(pointer(address), shape, np.int64)


@njit(cache=True, inline="always")
def u64(address: Any, shape: Any) -> Any:
    """uint64 array of `shape` (a tuple) at `address`."""
    return carray(pointer(address), shape, np.uint64)


@njit(cache=True, inline="always")
def u8(address: Any, shape: Any) -> Any:
    """uint8 array of `shape` (a tuple) at `address`."""
    return carray(pointer(address), shape, np.uint8)
