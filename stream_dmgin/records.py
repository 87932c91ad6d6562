"""What crosses the wire: Event, Request, Score, Item. MessagePack maps with string keys, and nothing else.

These types are the authority on what is well formed. The bulk parser of the hot path (`state/parse.py`) accepts
only records of which it is sure; all others come here, and are decoded or refused with a reason.
Times are integer milliseconds since the epoch, UTC.
"""

from __future__ import annotations

import math
from typing import Any, TypeGuard

import msgspec

from stream_dmgin.errors import RecordError
from stream_dmgin.nesting import deeper_than

TS_MIN = 946_684_800_000  # 2000-01-01
TS_AHEAD = 86_400_000  # a ts may lie this far after the record's timestamp
DWELL_MAX = (1 << 32) - 1  # dwell_ms lies below 2^32
VALUE_MAX = 1e12
TYPE_BYTES = 64
SURFACE_BYTES = 64
ID_BYTES = 1024  # bytes of a user, item or event id
CANDIDATES_MAX = 1000
NESTING_MAX = 64  # arrays and maps within each other, the record's own map included

IMPRESSION, CLICK = "impression", "click"
DEFAULT_TYPE = {"impressions": IMPRESSION, "clicks": CLICK}


class Event(msgspec.Struct, omit_defaults=True):
    """One impression, click or post-click event (topics impressions, clicks, post-clicks)."""

    user_id: str
    item_id: str
    ts: int
    event_id: str | None = None
    type: str | None = None
    request_id: str | None = None
    position: int | None = None
    dwell_ms: int | None = None
    value: float | None = None
    lat: float | None = None
    lon: float | None = None
    surface: str | None = None
    attrs: dict[str, Any] | None = None
    v: int | None = 1


class Request(msgspec.Struct, omit_defaults=True):
    """A request for scores: 1 to 1,000 candidates for one user."""

    request_id: str
    user_id: str
    ts: int
    candidates: list[str]
    context: dict[str, Any] | None = None
    expires_at: int | None = None
    v: int | None = 1


class Provenance(msgspec.Struct):
    """What a score was computed from. `offsets` and `counters`: topic name -> next offset to read of this partition."""

    offsets: dict[str, int]
    counters: dict[str, int]
    state: int  # format version of the state
    digest: str | None = None  # hash of the user's state as the model saw it; `replay --verify` compares it


class Score(msgspec.Struct):
    """The answer to one request. `ctr` and each list of `heads` are in the order of `candidates`."""

    request_id: str
    user_id: str
    ts: int
    scored_at: int
    status: str  # ok, expired, fallback, rejected
    candidates: list[str]
    ctr: list[float]
    heads: dict[str, list[float]]
    model: str
    groups: str
    reason: str | None
    provenance: Provenance
    v: int = 1


class Item(msgspec.Struct, omit_defaults=True):
    """One item of the catalogue (a shop, a video, an article)."""

    item_id: str
    name: str | None = None
    text: str | None = None
    category: str | None = None
    advertiser: str | None = None
    lat: float | None = None
    lon: float | None = None
    price: float | None = None
    image: str | None = None
    embedding: list[float] | None = None
    attrs: dict[str, Any] | None = None


encode = msgspec.msgpack.Encoder().encode
_event = msgspec.msgpack.Decoder(Event).decode
_request = msgspec.msgpack.Decoder(Request).decode
_item = msgspec.msgpack.Decoder(Item).decode
decode_score = msgspec.msgpack.Decoder(Score).decode


def decode_event(topic: str, key: bytes | None, value: bytes | None, timestamp: int) -> Event:
    """Decode and check one record of impressions, clicks or post-clicks (`topic` without its prefix).

    The event returned has its `type` filled in. Raises RecordError.
    """
    e: Event = _decode(_event, value)
    _check_id("user_id", e.user_id)
    _check_id("item_id", e.item_id)
    if e.event_id is not None:
        _check_id("event_id", e.event_id)
    _check_key(key, e.user_id)
    _check_ts(e.ts, timestamp)
    if not e.type:
        if topic not in DEFAULT_TYPE:
            raise RecordError("type", "type is required in post-clicks")
        e.type = DEFAULT_TYPE[topic]
    if len(e.type.encode()) > TYPE_BYTES:
        raise RecordError("type", f"type is longer than {TYPE_BYTES} bytes")
    if e.surface is not None and len(e.surface.encode()) > SURFACE_BYTES:
        raise RecordError("surface", f"surface is longer than {SURFACE_BYTES} bytes")
    if e.dwell_ms is not None and not 0 <= e.dwell_ms <= DWELL_MAX:
        raise RecordError("range", f"dwell_ms {e.dwell_ms} is not in 0..{DWELL_MAX}")
    if e.value is not None and not 0 <= e.value <= VALUE_MAX:  # NaN fails this too
        raise RecordError("range", f"value {e.value} is not in 0..{VALUE_MAX:g}")
    for name, x in (("lat", e.lat), ("lon", e.lon)):
        if x is not None and not math.isfinite(x):
            raise RecordError("range", f"{name} {x} is not a finite number")
    return e


def decode_request(key: bytes | None, value: bytes | None, timestamp: int) -> Request:
    """Decode and check one score request. Raises RecordError."""
    r: Request = _decode(_request, value)
    _check_id("request_id", r.request_id)
    _check_id("user_id", r.user_id)
    _check_key(key, r.user_id)
    _check_ts(r.ts, timestamp)
    if not 1 <= len(r.candidates) <= CANDIDATES_MAX:
        raise RecordError("candidates", f"{len(r.candidates)} candidates: 1 to {CANDIDATES_MAX} are allowed")
    for c in r.candidates:
        _check_id("candidate", c)
    return r


def decode_item(key: bytes | None, value: bytes | None) -> Item:
    """Decode and check one catalogue record. Raises RecordError."""
    i: Item = _decode(_item, value)
    _check_id("item_id", i.item_id)
    for name, x in (("lat", i.lat), ("lon", i.lon), ("price", i.price)):
        if x is not None and not math.isfinite(x):
            raise RecordError("range", f"{name} {x} is not a finite number")
    if i.embedding is not None and not all(map(math.isfinite, i.embedding)):
        raise RecordError("range", "embedding holds a number that is not finite")
    return i


def request_identity(value: bytes | None) -> tuple[str, str] | None:
    """(request_id, user_id) of a request that is malformed otherwise, so that it can be answered; None if it has none."""
    try:
        m = msgspec.msgpack.decode(value or b"")
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if not isinstance(m, dict):
        return None
    r, u = m.get("request_id"), m.get("user_id")
    return (r, u) if _is_id(r) and _is_id(u) else None


def _is_id(x: Any) -> TypeGuard[str]:
    return isinstance(x, str) and 0 < len(x.encode()) <= ID_BYTES


def _decode(decoder: Any, value: bytes | None) -> Any:
    if not value:
        raise RecordError("empty", "the value is empty")
    try:
        out = decoder(value)
    except msgspec.ValidationError as e:
        raise RecordError("schema", str(e)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as e:
        raise RecordError("decode", f"not a MessagePack map: {e}") from None
    if deeper_than(value, NESTING_MAX):
        raise RecordError("decode", f"nested more than {NESTING_MAX} deep")
    return out


def _check_id(name: str, x: str) -> None:
    if not x:
        raise RecordError("id", f"{name} is empty")
    if len(x) > ID_BYTES or len(x.encode()) > ID_BYTES:
        raise RecordError("id", f"{name} is longer than {ID_BYTES} bytes")


def _check_key(key: bytes | None, user_id: str) -> None:
    """A record under another key lies in another partition than its user's state: folding it would split the user."""
    if key != user_id.encode():
        raise RecordError("key", "the record's key is not its user_id")


def _check_ts(ts: int, timestamp: int) -> None:
    if not TS_MIN <= ts <= timestamp + TS_AHEAD:
        raise RecordError(
            "ts", f"ts {ts} is not between 2000-01-01 and 24 hours after the record's timestamp {timestamp}"
        )
