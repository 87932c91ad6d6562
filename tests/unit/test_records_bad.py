"""Bad input, kind by kind: what the authority (`records`) refuses and accepts, and that the bulk parser decides alike."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgpack
import pytest

from stream_dmgin import records
from stream_dmgin.errors import RecordError
from stream_dmgin.log.base import Record, batch_of
from tests.parsed import NAMES, expected, parse_many, parse_one

T = 1_760_000_000_000
GOOD: dict[str, Any] = {"user_id": "u", "item_id": "i", "ts": T}
ACCEPTED = ""


class Case(NamedTuple):
    """One record of an event topic and the reason for which it is refused (`ACCEPTED`: it is well formed)."""

    name: str
    value: bytes | None
    reason: str = ACCEPTED
    topic: str = "clicks"
    key: bytes | None = b"u"
    timestamp: int = T


def pack(**fields: Any) -> bytes:
    return msgpack.packb({**GOOD, **fields})


def without(*names: str) -> bytes:
    return msgpack.packb({k: v for k, v in GOOD.items() if k not in names})


def raw(token: bytes, **fields: Any) -> bytes:
    """A good event with one more field `x` whose value is these bytes, whatever they are."""
    return pack(x=None, **fields).replace(b"\xa1x\xc0", b"\xa1x" + token)


def field(name: str, token: bytes) -> bytes:
    """A good event whose field `name` holds these bytes."""
    mark = msgpack.packb(name)
    return pack(**{name: None}).replace(mark + b"\xc0", mark + token)


NAN, INF = float("nan"), float("inf")
TWICE = b"\x84\xa7user_id\xa1a" + msgpack.packb(GOOD)[1:]  # user_id twice: the last one counts
DEEP_ARRAYS, DEEP_MAPS = b"\x91" * 100_000 + b"\xc0", b"\x81\xa1a" * 100_000 + b"\xc0"

CASES = [
    # not MessagePack, or not a map
    Case("null value", None, "empty"),
    Case("empty value", b"", "empty"),
    Case("reserved byte", b"\xc1\xff\x00garbage", "decode"),
    Case("json text", b'{"user_id":"u","item_id":"i","ts":1}', "schema"),
    Case("a list", msgpack.packb(["u", "i", T]), "schema"),
    Case("nil", b"\xc0", "schema"),
    Case("a string", msgpack.packb("u"), "schema"),
    Case("ext type", msgpack.packb(msgpack.ExtType(5, b"abc")), "schema"),
    Case("truncated", pack()[:-3], "decode"),
    Case("truncated to one byte", pack()[:1], "decode"),
    Case("trailing byte", pack() + b"\0", "decode"),
    Case("two maps", pack() + pack(), "decode"),
    Case("map32 without an end", b"\xdf\xff\xff\xff\xff", "decode"),
    Case("str32 without an end", b"\x81\xdb\xff\xff\xff\xff", "decode"),
    Case("array32 without an end", raw(b"\xdd\xff\xff\xff\xff"), "decode"),
    Case("bin32 without an end", raw(b"\xc6\xff\xff\xff\xff"), "decode"),
    Case("ten MB of zeros", b"\0" * 10_000_000, "schema"),
    Case("ten MB of nested arrays", b"\x91" * 10_000_000, "schema"),
    Case("nested 65 deep, unknown field", raw(b"\x91" * 64 + b"\xc0"), "decode"),
    Case("nested 65 deep, attrs", field("attrs", b"\x81\xa1a" * 64 + b"\xc0"), "decode"),
    Case("nested 100,000 deep, unknown field", raw(DEEP_ARRAYS), "decode"),
    Case("nested 100,000 deep, attrs", field("attrs", DEEP_MAPS), "decode"),
    # missing fields
    Case("empty map", b"\x80", "schema"),
    Case("no user_id", without("user_id"), "schema"),
    Case("no item_id", without("item_id"), "schema"),
    Case("no ts", without("ts"), "schema"),
    Case("field in another case", msgpack.packb({"User_id": "u", "item_id": "i", "ts": T}), "schema"),
    Case("post-click without type", pack(), "type", topic="post-clicks"),
    Case("post-click with nil type", pack(type=None), "type", topic="post-clicks"),
    Case("post-click with empty type", pack(type=""), "type", topic="post-clicks"),
    # wrong types
    Case("user_id a number", pack(user_id=17), "schema"),
    Case("user_id nil", pack(user_id=None), "schema"),
    Case("user_id bytes", pack(user_id=b"u"), "schema"),
    Case("item_id a list", pack(item_id=["i"]), "schema"),
    Case("event_id a number", pack(event_id=7), "schema"),
    Case("event_id bytes", pack(event_id=b"e"), "schema"),
    Case("request_id a number", pack(request_id=7), "schema"),
    Case("type a number", pack(type=1), "schema"),
    Case("ts text", pack(ts="yesterday"), "schema"),
    Case("ts nil", pack(ts=None), "schema"),
    Case("ts a whole float", pack(ts=float(T)), "schema"),
    Case("ts true", pack(ts=True), "schema"),
    Case("ts a timestamp ext", pack(ts=msgpack.Timestamp(T // 1000)), "schema"),
    Case("dwell_ms true", pack(dwell_ms=True), "schema"),
    Case("dwell_ms a whole float", pack(dwell_ms=5.0), "schema"),
    Case("dwell_ms text", pack(dwell_ms="5"), "schema"),
    Case("value true", pack(value=True), "schema"),
    Case("value text", pack(value="1.5"), "schema"),
    Case("position a float", pack(position=1.5), "schema"),
    Case("position true", pack(position=True), "schema"),
    Case("lat text", pack(lat="48"), "schema"),
    Case("attrs a list", pack(attrs=[1]), "schema"),
    Case("attrs with a number as key", pack(attrs={1: 2}), "schema"),
    Case("v text", pack(v="1"), "schema"),
    Case("key of the map a number", msgpack.packb({**GOOD, 1: 2}), "schema"),
    Case("key of the map bytes", msgpack.packb({**GOOD, b"x": 2}), "schema"),
    Case("key of the map nil", msgpack.packb({**GOOD, None: 2}), "schema"),
    # ranges
    Case("dwell_ms negative", pack(dwell_ms=-5), "range"),
    Case("dwell_ms 2^32", pack(dwell_ms=1 << 32), "range"),
    Case("dwell_ms 2^64-1", pack(dwell_ms=(1 << 64) - 1), "range"),
    Case("value NaN", pack(value=NAN), "range"),
    Case("value NaN in float32", field("value", b"\xca\x7f\xc0\x00\x00"), "range"),
    Case("value infinite", pack(value=INF), "range"),
    Case("value negative", pack(value=-0.01), "range"),
    Case("value negative whole", pack(value=-1), "range"),
    Case("value just over 1e12", pack(value=1_000_000_000_000.0002), "range"),
    Case("value a huge whole number", pack(value=(1 << 64) - 1), "range"),
    Case("lat NaN", pack(lat=NAN), "range"),
    Case("lat NaN in float32", field("lat", b"\xca\x7f\xc0\x00\x00"), "range"),
    Case("lon infinite", pack(lon=-INF), "range"),
    Case("type of 65 bytes", pack(type="t" * 65), "type"),
    Case("type of 33 letters in 66 bytes", pack(type="é" * 33), "type"),
    Case("surface of 65 bytes", pack(surface="s" * 65), "surface"),
    Case("surface of 33 letters in 66 bytes", pack(surface="é" * 33), "surface"),
    Case("surface a number", pack(surface=3), "schema"),
    Case("surface not UTF-8", field("surface", b"\xa1\xfe"), "decode"),
    # times
    Case("before 2000", pack(ts=records.TS_MIN - 1), "ts"),
    Case("ts zero", pack(ts=0), "ts"),
    Case("ts negative", pack(ts=-T), "ts"),
    Case("year 3000", pack(ts=32_503_680_000_000), "ts"),
    Case("ts 2^63", pack(ts=1 << 63), "ts"),
    Case("ts 2^64-1", pack(ts=(1 << 64) - 1), "ts"),
    Case("ts -2^63", pack(ts=-(1 << 63)), "ts"),
    Case("24 h and 1 ms ahead of the record", pack(ts=T + records.TS_AHEAD + 1), "ts"),
    Case("record without a timestamp", pack(), "ts", timestamp=-1),
    # ids and keys
    Case("user_id empty", pack(user_id=""), "id", key=b""),
    Case("item_id empty", pack(item_id=""), "id"),
    Case("event_id empty", pack(event_id=""), "id"),
    Case("item_id of 1,025 bytes", pack(item_id="i" * 1025), "id"),
    Case("item_id of 513 letters in 1,026 bytes", pack(item_id="é" * 513), "id"),
    Case("event_id of 1,025 bytes", pack(event_id="e" * 1025), "id"),
    Case("user_id of 10 MB", pack(user_id="u" * 10_000_000), "id", key=b"u" * 10_000_000),
    Case("null key", pack(), "key", key=None),
    Case("empty key", pack(), "key", key=b""),
    Case("key of another user", pack(), "key", key=b"v"),
    Case("key a prefix of the user", pack(user_id="uu"), "key"),
    Case("key longer than the user", pack(), "key", key=b"u\0"),
    # UTF-8
    Case("user_id not UTF-8", field("user_id", b"\xa1\xff"), "decode", key=b"\xff"),
    Case("item_id not UTF-8", field("item_id", b"\xa2\xc3\x28"), "decode"),
    Case("item_id an encoded surrogate", field("item_id", b"\xa3\xed\xa0\x80"), "decode"),
    Case("item_id an overlong slash", field("item_id", b"\xa2\xc0\xaf"), "decode"),
    Case("item_id beyond U+10FFFF", field("item_id", b"\xa4\xf4\x90\x80\x80"), "decode"),
    Case("item_id cut inside a letter", field("item_id", b"\xa2a\xc3"), "decode"),
    Case("event_id not UTF-8", field("event_id", b"\xa1\x80"), "decode"),
    Case("type not UTF-8", field("type", b"\xa1\xfe"), "decode"),
    Case("request_id not UTF-8", field("request_id", b"\xa1\xfe"), "decode"),
    Case("attrs not UTF-8", field("attrs", b"\x81\xa1a\xa1\xff"), "decode"),
    # well formed, though they look strange
    Case("plain", pack()),
    Case("everything", pack(event_id="e", type="order", request_id="r", position=3, dwell_ms=9, value=1.5, lat=1.0, lon=-2.5, surface="feed",
                            attrs={"a": [1, {"b": None}]}, v=1), topic="post-clicks"),
    Case("optional fields nil", pack(event_id=None, type=None, request_id=None, position=None, dwell_ms=None, value=None,
                                     lat=None, lon=None, surface=None, attrs=None, v=None)),
    Case("surface of 64 bytes", pack(surface="s" * 64)),
    Case("surface empty", pack(surface="")),
    Case("unknown fields", pack(x=1, y=[1, 2, {"z": b"\0"}], z={"a": {"b": 1.5}}, w="x" * 300, q=True)),
    Case("unknown ext", pack(x=msgpack.ExtType(42, b"abc"))),
    Case("unknown NaN", pack(x=NAN)),
    Case("unknown bytes that are not UTF-8", raw(b"\xa2\xff\xfe")),
    Case("unknown map with numbers as keys", raw(b"\x81\x01\x02")),
    Case("user_id twice, the last one right", TWICE),
    Case("user_id twice, the last one wrong", TWICE, "key", key=b"a"),
    Case("dwell_ms twice, the last one nil", field("x", b"\x05").replace(b"\xa1x\x05", b"\xa8dwell_ms\x05\xa8dwell_ms\xc0")
         .replace(b"\x84", b"\x85", 1)),
    Case("map16 and str8 in place of the short forms", b"\xde\x00\x03\xd9\x07user_id\xd9\x01u" + msgpack.packb(GOOD)[11:]),
    Case("map32", b"\xdf\x00\x00\x00\x03" + pack()[1:]),
    Case("ts as int64", pack().replace(b"\xcf", b"\xd3")),
    Case("dwell_ms as int8", field("dwell_ms", b"\xd0\x05")),
    Case("dwell_ms zero", pack(dwell_ms=0)),
    Case("dwell_ms 2^32-1", pack(dwell_ms=(1 << 32) - 1)),
    Case("value a whole number", pack(value=3)),
    Case("value zero", pack(value=0)),
    Case("value minus zero", pack(value=-0.0)),
    Case("value 1e12", pack(value=1e12)),
    Case("value of a float32", field("value", b"\xca\x3d\xcc\xcc\xcd")),
    Case("value half a millionth", pack(value=0.0000005)),
    Case("value one and a half millionths", pack(value=0.0000015)),
    Case("value tiny", pack(value=5e-324)),
    Case("position negative", pack(position=-1)),
    Case("position huge", pack(position=(1 << 64) - 1)),
    Case("lat whole", pack(lat=48, lon=-11)),
    Case("v of a later version", pack(v=2)),
    Case("type of 64 bytes", pack(type="é" * 32)),
    Case("empty type means the topic's", pack(type="")),
    Case("another type among clicks", pack(type="view")),
    Case("another type among impressions", pack(type="order", value=2.5), topic="impressions"),
    Case("item_id of 1,024 bytes", pack(item_id="é" * 512)),
    Case("event_id of 1,024 bytes", pack(event_id="e" * 1024)),
    Case("ids with zero bytes", pack(user_id="u\0", item_id="\0", event_id="\0\0"), key=b"u\0"),
    Case("ids of every width", pack(user_id="aé漢😀", item_id="😀" * 9, event_id="\U0010ffff"), key="aé漢😀".encode()),
    Case("request_id empty", pack(request_id="")),
    Case("first moment of 2000", pack(ts=records.TS_MIN)),
    Case("24 h ahead of the record", pack(ts=T + records.TS_AHEAD)),
    Case("nested 64 deep", raw(b"\x91" * 63 + b"\xc0")),
    Case("nested 64 deep in attrs", field("attrs", b"\x81\xa1a" * 63 + b"\xc0")),
    Case("bytes that could open containers, but don't", pack(x=bytes(range(0x80, 0xA0)) * 50, item_id="\u0080\u0090" * 200)),
    Case("a value of 10 MB in an unknown field", pack(x="x" * 10_000_000)),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
def test_the_authority_on_events(case: Case) -> None:
    if case.reason == ACCEPTED:
        records.decode_event(case.topic, case.key, case.value, case.timestamp)
        return
    with pytest.raises(RecordError) as e:
        records.decode_event(case.topic, case.key, case.value, case.timestamp)
    assert e.value.reason == case.reason
    assert str(e.value)


@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
def test_the_bulk_parser_on_events(case: Case) -> None:
    got = parse_one(case.topic, case.key, case.value, case.timestamp)
    if case.reason == ACCEPTED:
        assert got == expected(records.decode_event(case.topic, case.key, case.value, case.timestamp), case.topic)
    else:
        assert isinstance(got, RecordError) and got.reason == case.reason


def test_the_bulk_parser_on_all_of_them_in_one_batch() -> None:
    """One bad record spoils none of its neighbours."""
    batch = [Record(f"dmgin.{c.topic}", 3, k, c.timestamp, c.key, c.value) for k, c in enumerate(CASES)]
    got = parse_many(batch_of([f"dmgin.{n}" for n in NAMES], batch))
    for k, (case, g) in enumerate(zip(CASES, got, strict=True)):
        if case.reason == ACCEPTED:
            want = expected(records.decode_event(case.topic, case.key, case.value, case.timestamp), case.topic, 3, k)
            assert g == want, case.name
        else:
            assert isinstance(g, RecordError) and g.reason == case.reason, case.name


def test_the_callers_stack_does_not_decide() -> None:
    """A decoder that recurses gives up earlier when it is called from deep down."""
    values = [raw(b"\x91" * k + b"\xc0") for k in (60, 63, 64, 400, 700, 950, 990)]

    def decide(frames: int) -> list[str]:
        if frames:
            return decide(frames - 1)
        out = []
        for v in values:
            try:
                records.decode_event("clicks", b"u", v, T)
                out.append("")
            except RecordError as e:
                out.append(e.reason)
        return out

    assert decide(0) == decide(400) == ["", "", *["decode"] * 5]


REQUEST: dict[str, Any] = {"request_id": "r", "user_id": "u", "ts": T, "candidates": ["i", "j"]}

REQUESTS = [
    ("plain", {}, ACCEPTED),
    ("1,000 candidates", {"candidates": [f"i{k}" for k in range(1000)]}, ACCEPTED),
    ("the same candidate twice", {"candidates": ["i", "i"]}, ACCEPTED),
    ("context and expiry", {"context": {"lat": 1.5, "surface": "map"}, "expires_at": T}, ACCEPTED),
    ("context nil", {"context": None, "expires_at": None}, ACCEPTED),
    ("unknown field", {"x": [1, {}]}, ACCEPTED),
    ("no candidates", {"candidates": []}, "candidates"),
    ("1,001 candidates", {"candidates": ["i"] * 1001}, "candidates"),
    ("5,000 candidates", {"candidates": [f"i{k}" for k in range(5000)]}, "candidates"),
    ("candidates nil", {"candidates": None}, "schema"),
    ("candidates a string", {"candidates": "i"}, "schema"),
    ("candidate a number", {"candidates": ["i", 7]}, "schema"),
    ("candidate empty", {"candidates": ["i", ""]}, "id"),
    ("candidate too long", {"candidates": ["i" * 1025]}, "id"),
    ("request_id empty", {"request_id": ""}, "id"),
    ("request_id a number", {"request_id": 7}, "schema"),
    ("user_id empty", {"user_id": ""}, "id"),
    ("ts float", {"ts": 1.5}, "schema"),
    ("ts of year 3000", {"ts": 32_503_680_000_000}, "ts"),
    ("ts before 2000", {"ts": 0}, "ts"),
    ("context a list", {"context": []}, "schema"),
    ("expires_at text", {"expires_at": "soon"}, "schema"),
]


@pytest.mark.parametrize(("fields", "reason"), [r[1:] for r in REQUESTS], ids=[r[0] for r in REQUESTS])
def test_requests(fields: dict[str, Any], reason: str) -> None:
    m = {**REQUEST, **fields}
    key = m["user_id"].encode()
    if reason == ACCEPTED:
        assert records.decode_request(key, msgpack.packb(m), T).candidates == m["candidates"]
        return
    with pytest.raises(RecordError) as e:
        records.decode_request(key, msgpack.packb(m), T)
    assert e.value.reason == reason


@pytest.mark.parametrize("missing", ["request_id", "user_id", "ts", "candidates"])
def test_requests_missing_a_field(missing: str) -> None:
    value = msgpack.packb({k: v for k, v in REQUEST.items() if k != missing})
    with pytest.raises(RecordError) as e:
        records.decode_request(b"u", value, T)
    assert e.value.reason == "schema" and missing in str(e.value)
    known = records.request_identity(value)
    assert known == (None if missing in ("request_id", "user_id") else ("r", "u"))


@pytest.mark.parametrize(
    "value", [None, b"", b"\xc1", b"\x91" * 100_000 + b"\xc0", msgpack.packb([1]), msgpack.packb({"request_id": "r"}),
              msgpack.packb({"request_id": "", "user_id": "u"}), msgpack.packb({"request_id": 1, "user_id": "u"}),
              b"\x81\x91\x01\x02", b"\x81\xa1\xff\x01", msgpack.packb({"request_id": "r" * 1025, "user_id": "u"}),
              msgpack.packb({"request_id": "r", "user_id": "é" * 513})],
)  # fmt: skip
def test_requests_that_cannot_be_identified(value: bytes | None) -> None:
    assert records.request_identity(value) is None
    with pytest.raises(RecordError):
        records.decode_request(b"u", value, T)


def test_requests_under_another_key() -> None:
    for key in (None, b"", b"v"):
        with pytest.raises(RecordError) as e:
            records.decode_request(key, msgpack.packb(REQUEST), T)
        assert e.value.reason == "key"


ITEMS = [
    ("plain", {}, ACCEPTED),
    ("everything", {"name": "n", "text": "t", "category": "c", "advertiser": "a", "lat": 1, "lon": 2.5, "price": 3, "image": "x",
                    "embedding": [1, 2.5], "attrs": {"a": 1}}, ACCEPTED),
    ("unknown field", {"x": 1}, ACCEPTED),
    ("item_id empty", {"item_id": ""}, "id"),
    ("item_id a number", {"item_id": 5}, "schema"),
    ("price NaN", {"price": NAN}, "range"),
    ("price text", {"price": "5"}, "schema"),
    ("lat infinite", {"lat": INF}, "range"),
    ("embedding with NaN", {"embedding": [1.0, NAN]}, "range"),
    ("embedding of text", {"embedding": ["a"]}, "schema"),
    ("category a number", {"category": 5}, "schema"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "reason"), [r[1:] for r in ITEMS], ids=[r[0] for r in ITEMS])
def test_items(fields: dict[str, Any], reason: str) -> None:
    value = msgpack.packb({"item_id": "i", **fields})
    if reason == ACCEPTED:
        assert records.decode_item(b"i", value).item_id == "i"
        return
    with pytest.raises(RecordError) as e:
        records.decode_item(b"i", value)
    assert e.value.reason == reason


def test_items_that_are_no_records() -> None:
    for value in (None, b"", b"\xc1", msgpack.packb({"name": "n"}), msgpack.packb([])):
        with pytest.raises(RecordError):
            records.decode_item(b"i", value)
