"""Compiling the kernels of the state with numba, once a machine.

`kernel` is numba's njit with the on-disk cache. Numba looks only at a function's own file to see whether its cached code is
stale, but kernels inline functions and constants of other files here: the cache is stamped with the content of all files
that hold kernels.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from stream_dmgin.features.spec import N_CLS
from stream_dmgin.records import DWELL_MAX, ID_BYTES, TS_AHEAD, TS_MIN, TYPE_BYTES, VALUE_MAX

Kernel = Callable[..., Any]


KERNEL_FILES = (
    "jit.py", "hash.py", "layout.py", "msgpack.py", "parse.py", "mem.py", "fold.py", "resolve.py", "load.py", "encode.py",
    "readout.py", "entry.py",
)  # fmt: skip
CONSTANTS = (TS_MIN, TS_AHEAD, DWELL_MAX, VALUE_MAX, TYPE_BYTES, ID_BYTES, N_CLS)  # of other rooms, used in kernels


def _stamp() -> tuple[int, int]:
    """Sizes and checksum of the files, and the constants, whose content may be inside a compiled kernel."""
    contents = [repr(CONSTANTS).encode(), *((Path(__file__).parent / f).read_bytes() for f in KERNEL_FILES)]
    return sum(map(len, contents)), zlib.crc32(b"".join(contents))


_STAMP = _stamp()


def kernel(f: Callable[..., Any]) -> Kernel:
    """Compile `f` on first use, or take it from the cache on disk."""
    compiled = numba.njit(cache=True, nogil=True, error_model="numpy")(f)
    cache: Any = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if hasattr(cache, "_source_stamp"):
        cache._source_stamp = _STAMP
    return compiled  # type: ignore[no-any-return]


@intrinsic  # type: ignore[untyped-decorator]
def ld8(typingctx: Any, address: Any) -> Any:
    """Byte at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        p = builder.inttoptr(args[0], cgutils.ir.IntType(8).as_pointer())
        return builder.zext(builder.load(p), cgutils.ir.IntType(64))

    return types.int64(types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def ld64(typingctx: Any, address: Any) -> Any:
    """Eight bytes at an address (any alignment) as a little-endian int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        p = builder.inttoptr(args[0], cgutils.ir.IntType(64).as_pointer())
        v = builder.load(p)
        v.align = 1
        return v

    return types.int64(types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def st8(typingctx: Any, address: Any, value: Any) -> Any:
    """Store the low byte of `value` at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        p = builder.inttoptr(args[0], cgutils.ir.IntType(8).as_pointer())
        builder.store(builder.trunc(args[1], cgutils.ir.IntType(8)), p)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def pointer(typingctx: Any, address: Any) -> Any:
    """The address as a pointer, for `numba.carray`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def words(typingctx: Any, address: Any) -> Any:
    """The address as a pointer to int64 words, to be indexed. Unlike an array it has no length and no owner: it passes through
    calls in one register, and indexing is one instruction."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.int64)(types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def bits_f64(typingctx: Any, bits: Any) -> Any:
    """The double with these bits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], cgutils.ir.DoubleType())

    return types.float64(types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def bits_f32(typingctx: Any, bits: Any) -> Any:
    """The float with these low 32 bits, as a double."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        ir = cgutils.ir
        return builder.fpext(builder.bitcast(builder.trunc(args[0], ir.IntType(32)), ir.FloatType()), ir.DoubleType())

    return types.float64(types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def bswap(typingctx: Any, v: Any) -> Any:
    """The eight bytes in opposite order."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bswap(args[0])

    return types.int64(types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typingctx: Any, address: Any) -> Any:
    """Ask the processor to bring the cache line of an address; harmless whatever the address is."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        ir = cgutils.ir
        p = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
        i32 = ir.IntType(32)
        fnty = ir.FunctionType(ir.VoidType(), [p.type, i32, i32, i32])
        f = cgutils.get_or_insert_function(builder.module, fnty, "llvm.prefetch.p0")
        builder.call(f, [p, i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen
