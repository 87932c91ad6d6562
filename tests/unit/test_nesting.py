"""How deep a MessagePack value nests."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stream_dmgin.nesting import deeper_than
from tests.effort import examples
from tests.property.test_parser import anything, encode


def depth(x: Any) -> int:
    if isinstance(x, dict):
        return 1 + max([depth(v) for v in x.values()], default=0)
    if isinstance(x, list):
        return 1 + max(map(depth, x), default=0)
    return 0


@examples(300)
@given(anything, st.integers(0, 2**32))
def test_it_counts_as_recursion_would(x: Any, seed: int) -> None:
    b, n = encode(x, random.Random(seed)), depth(x)
    assert not deeper_than(b, n)
    if n:
        assert deeper_than(b, n - 1)


def test_every_kind_of_value_is_stepped_over() -> None:
    kinds = [b"\x00", b"\xff", b"\xc0", b"\xc2", b"\xca1234", b"\xcb12345678", b"\xcc1", b"\xcd12", b"\xce1234", b"\xcf12345678",
             b"\xd01", b"\xd112", b"\xd21234", b"\xd312345678", b"\xd4t1", b"\xd5t12", b"\xd6t1234", b"\xd7t12345678",
             b"\xd8t" + b"\x91" * 16, b"\xc7\x02t\x91\x91", b"\xc8\x00\x02t\x91\x91", b"\xc9\0\0\0\x02t\x91\x91",
             b"\xc4\x02\x91\x91", b"\xc5\x00\x02\x91\x91", b"\xc6\0\0\0\x02\x91\x91", b"\xa2\x91\x91", b"\xd9\x02\x91\x91",
             b"\xda\x00\x02\x91\x91", b"\xdb\0\0\0\x02\x91\x91", b"\x90", b"\x80", b"\xdc\0\0", b"\xdd\0\0\0\0", b"\xde\0\0",
             b"\xdf\0\0\0\0", b"\x81\xc0\x91\xc0"]  # fmt: skip
    for k in kinds:
        whole = b"\x9f" + k * 15
        deep = {0x90: 2, 0x80: 2, 0xDC: 2, 0xDD: 2, 0xDE: 2, 0xDF: 2, 0x81: 3}.get(k[0], 1)
        assert not deeper_than(whole, deep), k
        assert deeper_than(b"\x92" + k + b"\x91" * 20 + b"\xc0", 20), k  # nothing is skipped too far


def test_the_deepest_costs_no_stack() -> None:
    assert deeper_than(b"\x91" * 1_000_000 + b"\xc0", 64)
    assert not deeper_than(b"\x91" * 1_000_000 + b"\xc0", 1_000_000)
