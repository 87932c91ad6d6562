"""A user's whole state for people (`state show`) and as canonical bytes. Off the hot path."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from stream_dmgin.state import layout as at_
from stream_dmgin.state.memory import Memory

LOW32 = (1 << 32) - 1
U64 = (1 << 64) - 1
MICROS = 1_000_000
CANONICAL = 1  # version of the canonical encoding
_encode = msgspec.msgpack.Encoder().encode


def document(mem: Memory, u: int, user_id: str, limit: int | None) -> dict[str, Any]:
    """The contract's document of the user in slot u, whose spilled groups are loaded."""
    b = u * at_.UW
    groups = _groups(mem, u)
    return {
        "user_id": user_id,
        "events": int(mem.S.U[b + at_.U_EVENTS]),
        "impressions": int(mem.S.U[b + at_.U_IMPRESSIONS]),
        "n_groups": len(groups),
        "groups": [_group_document(mem, g) for g in groups[:limit]],
    }


def canonical(mem: Memory, u: int) -> bytes:
    """MessagePack of the whole state, with names instead of local numbers, in an order that depends on content alone."""
    b = u * at_.UW
    U = mem.S.U
    head = [int(U[b + k]) for k in (at_.U_EVENTS, at_.U_IMPRESSIONS, at_.U_LASTEVENT, at_.U_LASTIMP)]
    rings = [
        [_event(mem, e, False) for e in _ring(mem, int(U[b + at]), int(U[b + ring]), 3)]
        for at, ring in ((at_.U_SHORT, at_.U_SHORTRING), (at_.U_IMP, at_.U_IMPRING))
    ]
    return _encode([CANONICAL, *head, *rings, [_group_content(mem, g) for g in _groups(mem, u)]])


def _groups(mem: Memory, u: int) -> list[int]:
    """Group rows of a user, newest first."""
    S, b = mem.S, u * at_.UW
    at, cap = int(S.U[b + at_.U_TABLE]), int(S.U[b + at_.U_TABLECAP])
    table = S.A[at : at + 2 * cap].reshape(-1, 2)
    rows = table[table[:, 1] != 0, 1] - 1
    last = S.G[rows * at_.GW + at_.G_LAST]
    key = S.G[rows * at_.GW + at_.G_KEY].view(np.uint64)
    return rows[np.lexsort((key, last))][::-1].tolist()  # type: ignore[no-any-return]


def _ring(mem: Memory, at: int, ring: int, planes: int) -> list[list[int]]:
    """Entries of a ring, newest first: event-id hash, ts/type/flags, item | dwell << 32, [value]."""
    n, cap, start = ring & 0xFF, ring >> 8 & 0xFF, ring >> 16 & 0xFF
    if n == 0:
        return []
    table = mem.S.A[at : at + planes * cap].reshape(planes, cap)
    order = (start + np.arange(n - 1, -1, -1)) & (cap - 1)
    return table[:, order].T.tolist()  # type: ignore[no-any-return]


def _event(mem: Memory, e: list[int], values: bool) -> list[Any]:
    """[ts, event-id hash, item, type, dwell or nil, (value or nil)] of a ring entry."""
    eid, tsf, item = e[:3]
    out: list[Any] = [
        tsf >> 16, eid & U64, mem.item_id(item & LOW32).decode(), mem.type_name(tsf >> 8 & 255),
        item >> 32 & LOW32 if tsf & at_.F_DWELL else None,
    ]  # fmt: skip
    if values:
        out.append(e[3] if tsf & at_.F_VALUE else None)
    return out


def _counts(mem: Memory, g: int) -> dict[str, int]:
    """Counts by type name, in order of names."""
    b = g * at_.GW
    n = int(mem.S.G[b + at_.G_META]) >> 24 & 0xFFFF
    words = mem.S.G[b + at_.G_COUNT0 : b + at_.G_COUNT0 + min(n, at_.G_INLINE)].tolist()
    more = int(mem.S.G[b + at_.G_MORE])
    words += mem.S.A[more : more + max(0, n - at_.G_INLINE)].tolist()
    out: dict[str, int] = {}
    for w in words:
        name = mem.type_name(w >> 56 & 255)
        out[name] = out.get(name, 0) + (w & ((1 << 56) - 1))
    return dict(sorted(out.items()))


def _numbers(mem: Memory, g: int) -> tuple[int | str, list[int]]:
    """(group number or item id, [dwell sum, dwell max, value sum in millionths, first ts, last ts])."""
    row = mem.S.G[g * at_.GW : (g + 1) * at_.GW].tolist()
    group = row[at_.G_KEY] if row[at_.G_KEY] >= 0 else mem.item_id(row[at_.G_ITEM]).decode()
    value = (row[at_.G_VALUEHI] << 64) + (row[at_.G_VALUE] & U64)
    return group, [row[at_.G_DWELL], row[at_.G_MAXDWELL], value, row[at_.G_FIRST], row[at_.G_LAST]]


def _group_ring(mem: Memory, g: int) -> list[list[int]]:
    b = g * at_.GW
    return _ring(mem, int(mem.S.G[b + at_.G_RING]), int(mem.S.G[b + at_.G_META]), 4)


def _group_document(mem: Memory, g: int) -> dict[str, Any]:
    group, (dwell, most, value, first, last) = _numbers(mem, g)
    return {
        "group": group,
        "counts": _counts(mem, g),
        "dwell_ms": {"sum": dwell, "max": most},
        "value_sum": value / MICROS,
        "first_ts": first,
        "last_ts": last,
        "recent": [
            {"item_id": e[2], "type": e[3], "ts": e[0], **({} if e[4] is None else {"dwell_ms": e[4]}),
             **({} if e[5] is None else {"value": e[5] / MICROS})}
            for e in (_event(mem, e, True) for e in _group_ring(mem, g))
        ],
    }  # fmt: skip


def _group_content(mem: Memory, g: int) -> list[Any]:
    group, (dwell, most, value, first, last) = _numbers(mem, g)
    events = [_event(mem, e, True) for e in _group_ring(mem, g)]
    return [group, _counts(mem, g), dwell, most, value.to_bytes(16, "big"), first, last, events]
