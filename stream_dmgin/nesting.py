"""How deep a MessagePack value nests, without recursion.

A decoder that recurses stops where the interpreter's stack ends, which depends on who calls it and on the version of Python.
Whether a record counts must not: a limit of our own, far below any stack, decides the same in a worker, a replay and a test.
"""

from __future__ import annotations

OPENERS = bytes(
    [*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF]
)  # first bytes of arrays and maps (and bytes of other things)
_SIZES = {0xC0: 1, 0xC2: 1, 0xC3: 1, 0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9,
          0xD4: 3, 0xD5: 4, 0xD6: 6, 0xD7: 10, 0xD8: 18}  # fmt: skip
_LENGTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # bytes of the length
_COUNTS = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}  # bytes of the count, values an entry


def deeper_than(value: bytes, limit: int) -> bool:
    """Whether arrays and maps nest more than `limit` deep in `value`, one well-formed MessagePack value."""
    if len(value) - len(value.translate(None, OPENERS)) <= limit:
        return False  # nearly always: there are not even so many bytes that could open one
    at, left = 0, [1]  # values still to come in each open container
    while left:
        if not left[-1]:
            left.pop()
            continue
        left[-1] -= 1
        b = value[at]
        if b < 0x80 or b >= 0xE0:
            at += 1
        elif b < 0xA0 or b in _COUNTS:
            size, each = _COUNTS.get(b, (0, 2 if b < 0x90 else 1))
            count = int.from_bytes(value[at + 1 : at + 1 + size], "big") if size else b & 15
            at += 1 + size
            left.append(count * each)
            if len(left) > limit + 1:
                return True
        elif b < 0xC0:
            at += 1 + (b & 31)
        elif b in _SIZES:
            at += _SIZES[b]
        else:
            size = _LENGTHS[b]
            at += 1 + size + (b in (0xC7, 0xC8, 0xC9)) + int.from_bytes(value[at + 1 : at + 1 + size], "big")
    return False
