"""Raw memory in numba: loads at an address and calls through a function pointer, for log and hot path of this folder.

Nothing here checks anything: the caller must know that the address is alive and of that type. Loads need no alignment.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def _loader(result, bits: int):
    def load(typingctx, address):
        def codegen(context, builder, signature, args):
            pointer = builder.inttoptr(args[0], ir.IntType(bits).as_pointer())
            return builder.load(pointer, align=1)

        return result(types.uint64), codegen

    return load


load_u64: Any = intrinsic(_loader(types.uint64, 64))
load_i64: Any = intrinsic(_loader(types.int64, 64))
load_i32: Any = intrinsic(_loader(types.int32, 32))
load_u32: Any = intrinsic(_loader(types.uint32, 32))


def _call_i64(typingctx, function, a):
    """int64 function(void *a, NULL)."""

    def codegen(context, builder, signature, args):
        i64 = ir.IntType(64)
        f = builder.inttoptr(args[0], ir.FunctionType(i64, [i64, i64]).as_pointer())
        return builder.call(f, [args[1], i64(0)])

    return types.int64(types.uint64, types.uint64), codegen


def _call_void(typingctx, function, a):
    """A void function(void *a)."""

    def codegen(context, builder, signature, args):
        f = builder.inttoptr(args[0], ir.FunctionType(ir.VoidType(), [ir.IntType(64)]).as_pointer())
        builder.call(f, [args[1]])
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), codegen


call_i64: Any = intrinsic(_call_i64)
call_void: Any = intrinsic(_call_void)
