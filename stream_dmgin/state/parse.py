"""Events in bulk: MessagePack records at raw addresses -> columns, one numba call a batch (about 0.1 us an event).

The kernel accepts only records of which it is sure. Everything else goes row by row to `records.decode_event`, which is the
authority on what is well formed: what it accepts is put into the columns, what it refuses is returned with its reason.
Nothing here blocks; the columns are allocated anew for each batch; addresses point into the batch.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.errors import RecordError
from stream_dmgin.log.base import Batch
from stream_dmgin.records import (
    CLICK,
    DWELL_MAX,
    ID_BYTES,
    IMPRESSION,
    SURFACE_BYTES,
    TS_AHEAD,
    TS_MIN,
    TYPE_BYTES,
    VALUE_MAX,
    decode_event,
)
from stream_dmgin.state.hash import ADDRESS_OF_BYTES, hash64, same_bytes, surface_number, surface_of, xxh64
from stream_dmgin.state.jit import kernel, ld8, ld64, st8
from stream_dmgin.state.msgpack import (
    K_BAD,
    K_FLOAT,
    K_INT,
    K_NIL,
    NIL,
    container,
    read_number,
    read_str,
    skip_value,
    utf8_ok,
)
from stream_dmgin.topics import EVENTS

OK, MALFORMED, OTHER_TOPIC = 0, 1, 2
NO_TOPIC = 255
TS_LIMIT = 1 << 47  # year 6429: ring entries keep a ts in 47 bits
MICROS = 1_000_000
DEFAULTS = (IMPRESSION.encode(), CLICK.encode())
PREFIXES = tuple(t.encode() + b"/" for t in EVENTS)  # of the stand-in for an event id
DEFAULT_HASHES = tuple(np.int64(np.uint64(hash64(t))) for t in DEFAULTS)


@dataclass(slots=True)
class EventColumns:
    """Events of one batch as columns [n]. `status`: 0 ok, 1 malformed, 2 not an event topic. Lengths in bytes, `dwell` in ms
    (-1: none), `value` in millionths (-1: none), `surface` its number (0: none), `topic` an index in `topics.EVENTS` (255: none)."""

    status: NDArray[np.uint8]
    topic: NDArray[np.uint8]
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    ts: NDArray[np.int64]
    user_hash: NDArray[np.uint64]
    user_addr: NDArray[np.uint64]
    user_len: NDArray[np.int32]
    item_hash: NDArray[np.uint64]
    item_addr: NDArray[np.uint64]
    item_len: NDArray[np.int32]
    eid_hash: NDArray[np.uint64]
    type_hash: NDArray[np.uint64]
    type_addr: NDArray[np.uint64]
    type_len: NDArray[np.int32]
    dwell: NDArray[np.int64]
    value: NDArray[np.int64]
    surface: NDArray[np.uint8]
    owner: list[Any] = field(default_factory=list)  # keeps the memory behind the addresses alive

    def __len__(self) -> int:
        return len(self.offset)

    def rows_by_partition(self) -> dict[int, NDArray[np.int32]]:
        """Rows of event topics (malformed ones too: their offsets count as done) of each partition, in batch order."""
        rows = np.flatnonzero(self.status != OTHER_TOPIC)
        if not len(rows):
            return {}
        order = rows[np.argsort(self.partition[rows], kind="stable")].astype(np.int32)
        of = self.partition[order]
        cuts = np.flatnonzero(np.diff(of)) + 1
        return {int(self.partition[part[0]]): part for part in np.split(order, cuts)}


def _word(name: str) -> int:
    return int.from_bytes(name.encode()[:8].ljust(8, b"\0"), "little")


F_USER, F_ITEM, F_TS, F_EVENT, F_TYPE, F_DWELL, F_VALUE = 1, 2, 4, 8, 16, 32, 64
F_REQUEST, F_POSITION, F_LAT, F_LON, F_ATTRS, F_V = 128, 256, 512, 1024, 2048, 4096
F_SURFACE = 8192
REQUIRED = F_USER | F_ITEM | F_TS
W_USER, W_ITEM, W_TS, W_EVENT, W_TYPE = (
    _word("user_id"),
    _word("item_id"),
    _word("ts"),
    _word("event_id"),
    _word("type"),
)
W_DWELL, W_VALUE, W_REQUEST, W_POSITION = _word("dwell_ms"), _word("value"), _word("request_id"), _word("position")
W_LAT, W_LON, W_ATTRS, W_V, W_SURFACE = (_word(n) for n in ("lat", "lon", "attrs", "v", "surface"))
REQUEST_TAIL = (ord("i"), ord("d"))


@kernel
def _field(a: Any, n: Any, end: Any) -> Any:
    """Which field a key names; 0: none of ours. `end` bounds what may be read."""
    if n > 10 or n == 0 or n == 9:
        return 0
    m = min(n, 8)
    if a + 8 <= end:
        w = ld64(a)
        if m < 8:
            w &= (np.int64(1) << (8 * m)) - 1
    else:
        w = np.int64(0)
        for k in range(m):
            w |= ld8(a + k) << (8 * k)
    if n == 7:
        return F_USER if w == W_USER else F_ITEM if w == W_ITEM else F_SURFACE if w == W_SURFACE else 0
    if n == 8:
        return F_EVENT if w == W_EVENT else F_DWELL if w == W_DWELL else F_POSITION if w == W_POSITION else 0
    if n == 2:
        return F_TS if w == W_TS else 0
    if n == 4:
        return F_TYPE if w == W_TYPE else 0
    if n == 1:
        return F_V if w == W_V else 0
    if n == 5:
        return F_VALUE if w == W_VALUE else F_ATTRS if w == W_ATTRS else 0
    if n == 3:
        return F_LAT if w == W_LAT else F_LON if w == W_LON else 0
    if n == 10:
        return F_REQUEST if w == W_REQUEST and ld8(a + 8) == REQUEST_TAIL[0] and ld8(a + 9) == REQUEST_TAIL[1] else 0
    return 0


@kernel
def _digits(p: Any, v: Any) -> Any:
    """Write a non-negative integer in decimal; position after it."""
    n, x = 1, v
    while x >= 10:
        x //= 10
        n += 1
    for k in range(n):
        st8(p + n - 1 - k, 48 + v % 10)
        v //= 10
    return p + n


@kernel
def _parse(
    topic_number: Any, topic: Any, partition: Any, offset: Any, timestamp: Any, key_addr: Any, key_len: Any, value_addr: Any,
    value_len: Any, names: Any, status: Any, tn: Any, ts_: Any, user_hash: Any, user_addr: Any, user_len: Any, item_hash: Any,
    item_addr: Any, item_len: Any, eid_hash: Any, type_hash: Any, type_addr: Any, type_len: Any, dwell_: Any, value_: Any,
    surface_: Any,
) -> Any:  # fmt: skip
    """Fill the columns; rows that aren't surely well formed get status MALFORMED. Returns how many those are.

    `names`: addresses and lengths of the default types (0..3) and of the topic prefixes (4..9), then a scratch address.
    """
    unsure = 0
    scratch = names[10]
    for i in range(len(offset)):
        t = np.int64(topic_number[topic[i]])
        tn[i] = t
        if t == NO_TOPIC:
            status[i] = OTHER_TOPIC
            continue
        status[i] = MALFORMED
        unsure += 1
        if value_len[i] <= 0:
            continue
        p = value_addr[i]
        end = p + np.int64(value_len[i])
        n, is_map, p = container(p, end)
        if n < 0 or not is_map:
            continue
        seen = 0
        ua = ul = ia = il = ea = np.int64(0)
        ta = tl = sa = sl = np.int64(0)
        el = NIL
        ts = np.int64(0)
        dwell = value = np.int64(-1)
        good = True
        for _ in range(n):
            ka, kl, p = read_str(p, end)
            if kl < 0 or p >= end:
                good = False
                break
            f = _field(ka, kl, end)
            if f == 0:
                if not utf8_ok(ka, kl):
                    good = False
                    break
                p = skip_value(p, end)
                if p < 0:
                    good = False
                    break
                continue
            if seen & f:
                good = False
                break
            seen |= f
            if f & (F_USER | F_ITEM | F_EVENT | F_TYPE | F_REQUEST | F_SURFACE):
                a, m, p = read_str(p, end)
                if m == -1 or (m >= 0 and not utf8_ok(a, m)):
                    good = False
                    break
                if f == F_USER:
                    ua, ul = a, m
                elif f == F_ITEM:
                    ia, il = a, m
                elif f == F_EVENT:
                    ea, el = a, m
                elif f == F_TYPE:
                    ta, tl = a, m if m > 0 else np.int64(0)
                elif f == F_SURFACE:
                    sa, sl = a, m if m > 0 else np.int64(0)
            elif f == F_ATTRS:
                if ld8(p) == 0xC0:
                    p += 1
                    continue
                m, is_map, a = container(p, end)
                p = skip_value(p, end)
                if not is_map or p < 0:
                    good = False
                    break
            else:
                kind, x, y, p = read_number(p, end)
                if kind == K_BAD:
                    good = False
                    break
                if f == F_TS:
                    if kind != K_INT:
                        good = False
                        break
                    ts = x
                elif kind == K_NIL:
                    continue
                elif f == F_DWELL:
                    if kind != K_INT or x < 0 or x > DWELL_MAX:
                        good = False
                        break
                    dwell = x
                elif f == F_VALUE:
                    y = y if kind == K_FLOAT else np.float64(x)
                    if not 0.0 <= y <= VALUE_MAX:
                        good = False
                        break
                    value = np.int64(np.rint(y * MICROS))
                elif f in (F_LAT, F_LON):
                    if kind == K_FLOAT and not np.isfinite(y):
                        good = False
                        break
                elif kind != K_INT:
                    good = False
                    break
        if not good or p != end or seen & REQUIRED != REQUIRED:
            continue
        if not (
            0 < ul <= ID_BYTES
            and 0 < il <= ID_BYTES
            and el != 0
            and el <= ID_BYTES
            and tl <= TYPE_BYTES
            and sl <= SURFACE_BYTES
        ):
            continue
        if ts < TS_MIN or ts >= TS_LIMIT or ts - TS_AHEAD > timestamp[i]:
            continue
        if key_len[i] != ul or not same_bytes(key_addr[i], ua, ul):
            continue
        if tl == 0:
            if t > 1:
                continue
            ta, tl = names[2 * t], names[2 * t + 1]
            type_hash[i] = DEFAULT_HASHES[0] if t == 0 else DEFAULT_HASHES[1]
        else:
            type_hash[i] = xxh64(ta, tl)
        if el > 0:
            eid_hash[i] = xxh64(ea, el)
        else:
            q = scratch
            a, m = names[4 + 2 * t], names[5 + 2 * t]
            for k in range(m):
                st8(q + k, ld8(a + k))
            q = _digits(q + m, np.int64(partition[i]))
            st8(q, 47)
            q = _digits(q + 1, offset[i])
            eid_hash[i] = xxh64(scratch, q - scratch)
        h = xxh64(ia, il)
        item_hash[i] = h if h != 0 else 1
        user_hash[i] = xxh64(ua, ul)
        ts_[i] = ts
        user_addr[i], user_len[i] = ua, ul
        item_addr[i], item_len[i] = ia, il
        type_addr[i], type_len[i] = ta, tl
        dwell_[i], value_[i] = dwell, value
        surface_[i] = surface_number(xxh64(sa, sl)) if sl > 0 else np.int64(0)
        status[i] = OK
        unsure -= 1
    return unsure


def _address(b: bytes) -> int:
    return id(b) + ADDRESS_OF_BYTES


class _Names(threading.local):
    """Addresses of the names that the kernel needs, and of a scratch of its own for each thread that parses."""

    def __init__(self) -> None:
        self.scratch = np.zeros(128, np.uint8)
        names = [x for b in (*DEFAULTS, *PREFIXES) for x in (_address(b), len(b))]
        self.addresses = np.array([*names, self.scratch.ctypes.data], np.int64)


_NAMES = _Names()


_PLAIN: Final = ("C", "W")  # requirements of np.require


def parse_events(batch: Batch, topic_number: NDArray[np.uint8]) -> tuple[EventColumns, list[tuple[int, RecordError]]]:
    """Columns of a batch, and its malformed rows with their errors (for the dead letters).

    `topic_number`: index of each of the batch's topics in `topics.EVENTS`, or 255 for a topic that holds no events. Several
    threads may parse at once.
    """
    n = len(batch)
    # whatever the log made them from: another kind of array would compile the kernel again
    partition, key_len, value_len = (
        np.require(x, np.int32, _PLAIN) for x in (batch.partition, batch.key_len, batch.value_len)
    )
    offset, timestamp = (np.require(x, np.int64, _PLAIN) for x in (batch.offset, batch.timestamp))
    key_addr, value_addr = (np.require(x, np.uint64, _PLAIN).view(np.int64) for x in (batch.key_addr, batch.value_addr))
    topics, topic_number = (np.require(x, np.uint8, _PLAIN) for x in (batch.topic, topic_number))
    i64 = np.zeros((9, n), np.int64)
    i32 = np.zeros((3, n), np.int32)
    status, topic, surface = np.zeros((3, n), np.uint8)
    ts, user_hash, user_addr, item_hash, item_addr, eid_hash, type_hash, type_addr, value = i64
    dwell = np.full(n, -1, np.int64)
    value[:] = -1
    unsure = _parse(
        topic_number, topics, partition, offset, timestamp, key_addr, key_len, value_addr, value_len, _NAMES.addresses, status, topic,
        ts, user_hash, user_addr, i32[0], item_hash, item_addr, i32[1], eid_hash, type_hash, type_addr, i32[2], dwell, value,
        surface,
    )  # fmt: skip
    u64 = i64.view(np.uint64)
    cols = EventColumns(
        status, topic, partition, offset, ts, u64[1], u64[2], i32[0], u64[3], u64[4], i32[1], u64[5], u64[6],
        u64[7], i32[2], dwell, value, surface, [batch.owner],
    )  # fmt: skip
    return cols, _decode_rest(batch, cols) if unsure else []


def _decode_rest(batch: Batch, cols: EventColumns) -> list[tuple[int, RecordError]]:
    """Give the rows that the kernel left to the authority; fill in those it accepts."""
    bad: list[tuple[int, RecordError]] = []
    for i in np.flatnonzero(cols.status == MALFORMED).tolist():
        name = EVENTS[cols.topic[i]]
        try:
            e = decode_event(name, batch.key(i), batch.value(i), int(batch.timestamp[i]))
            if e.ts >= TS_LIMIT:
                raise RecordError("ts", f"ts {e.ts} is beyond the year 6400")
        except RecordError as error:
            bad.append((i, error))
            continue
        event_id = e.event_id if e.event_id is not None else f"{name}/{batch.partition[i]}/{batch.offset[i]}"
        user, item, kind = e.user_id.encode(), e.item_id.encode(), (e.type or "").encode()
        cols.owner += [user, item, kind]
        cols.ts[i] = e.ts
        cols.user_hash[i], cols.user_addr[i], cols.user_len[i] = hash64(user), _address(user), len(user)
        cols.item_hash[i], cols.item_addr[i], cols.item_len[i] = hash64(item) or 1, _address(item), len(item)
        cols.type_hash[i], cols.type_addr[i], cols.type_len[i] = hash64(kind), _address(kind), len(kind)
        cols.eid_hash[i] = hash64(event_id.encode())
        cols.dwell[i] = -1 if e.dwell_ms is None else e.dwell_ms
        cols.value[i] = -1 if e.value is None else round(e.value * MICROS)
        cols.surface[i] = surface_of(e.surface)
        cols.status[i] = OK
    return bad
