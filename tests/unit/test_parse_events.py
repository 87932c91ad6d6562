"""The bulk parser: what it accepts itself, what it leaves to `records.decode_event`, what it hands back as malformed."""

import struct

import msgpack
import numpy as np
import pytest

from stream_dmgin.errors import RecordError
from stream_dmgin.log.base import Batch, Record, batch_of
from stream_dmgin.state import parse
from stream_dmgin.state.parse import parse_events
from tests.parsed import parse_one

T0 = 1_760_000_000_000
OK = {"user_id": "u1", "item_id": "i1", "ts": T0}


def one(event, topic="clicks", key=b"u1", timestamp=T0):
    return parse_one(topic, key, event if isinstance(event, bytes) else msgpack.packb(event), timestamp)


@pytest.fixture
def no_authority(monkeypatch):
    """Fails when a record is left to Python."""
    monkeypatch.setattr(parse, "decode_event", lambda *a: pytest.fail("left to decode_event"))


@pytest.mark.parametrize(
    "more",
    [
        {}, {"event_id": "e" * 1024}, {"event_id": None, "type": None, "dwell_ms": None, "value": None, "attrs": None, "v": None},
        {"type": "é" * 32}, {"dwell_ms": (1 << 32) - 1}, {"value": 1e12}, {"value": 3}, {"value": 0.1}, {"lat": 1.5, "lon": -3}, {"surface": "feed"}, {"surface": None},
        {"request_id": "r", "position": -4, "v": 7}, {"attrs": {"a": [1, "x"], "b": {"c": None}}},
        {"unknown": {"x": [1, 2.5, None, True, b"x", "é"]}, "other": [[1], {"k": "v"}]}, {"x" * 40: 1}, {"dwell": -1, "": 2},
    ],
)  # fmt: skip
def test_usual_records_never_reach_python(no_authority, more):
    got = one(OK | more)
    assert got.user_id == "u1" and got.item_id == "i1" and got.ts == T0
    value = more.get("value")
    assert got.value == (-1 if value is None else round(value * 1_000_000))
    assert got.type == (more.get("type") or "click")


def test_fields_in_any_order_and_integers_of_any_width(no_authority):
    for ts in (struct.pack(">Bq", 0xD3, T0), struct.pack(">BQ", 0xCF, T0)):
        value = b"\x84\xa2ts" + ts + b"\xa8dwell_ms\xcd\x00\x07\xa7item_id\xd9\x02i1\xa7user_id\xda\x00\x02u1"
        got = one(value)
        assert (got.ts, got.dwell_ms, got.item_id) == (T0, 7, "i1")


def test_a_float32_value_counts_as_its_double(no_authority):
    got = one(msgpack.packb(OK | {"value": 0.1}, use_single_float=True))
    assert got.value == round(struct.unpack("f", struct.pack("f", 0.1))[0] * 1_000_000)


@pytest.mark.parametrize(
    "event",
    [
        OK | {"attrs": {"deep": [[[[1]]]]}}, OK | {"unknown": {1: 2}}, OK | {"unknown": msgpack.Timestamp(5)},
        OK | {"x" * 70_000: 1}, OK | {"long": "x" * 70_000},
    ],
)  # fmt: skip
def test_unusual_records_are_decoded_all_the_same(event):
    assert one(event).user_id == "u1"


@pytest.mark.parametrize(
    ("event", "key"),
    [
        (b"", b"u1"), (b"\xc1", b"u1"), (msgpack.packb([1]), b"u1"), (msgpack.packb(OK)[:-1], b"u1"),
        (msgpack.packb(OK) + b"\0", b"u1"), (OK | {"ts": T0 + 86_400_001}, b"u1"), (OK | {"ts": 946_684_799_999}, b"u1"),
        (OK | {"ts": float(T0) + 0.5}, b"u1"), (OK | {"dwell_ms": -1}, b"u1"), (OK | {"dwell_ms": 1 << 32}, b"u1"),
        (OK | {"value": float("nan")}, b"u1"), (OK | {"value": -0.01}, b"u1"), (OK | {"value": 1.1e12}, b"u1"),
        (OK | {"lat": float("inf")}, b"u1"), (OK | {"type": "t" * 65}, b"u1"), (OK | {"user_id": ""}, b""),
        (OK | {"item_id": "i" * 1025}, b"u1"), (OK | {"event_id": ""}, b"u1"), (OK, b"u2"), (OK, None), (OK, b"u"),
        (OK | {"user_id": b"u1"}, b"u1"), (b"\x83\xa7user_id\xa2\xff\xfe\xa7item_id\xa1i\xa2ts\x01", b"\xff\xfe"),
    ],
)  # fmt: skip
def test_malformed(event, key):
    assert isinstance(one(event, key=key), RecordError)


def test_beyond_what_a_ring_can_keep():
    assert isinstance(one(OK | {"ts": 1 << 47}, timestamp=1 << 50), RecordError)
    assert one(OK | {"ts": (1 << 47) - 1}, timestamp=1 << 50).ts == (1 << 47) - 1


def test_type_is_required_after_the_click():
    assert isinstance(one(OK, topic="post-clicks"), RecordError)
    assert isinstance(one(OK | {"type": ""}, topic="post-clicks"), RecordError)
    assert one(OK | {"type": ""}, topic="impressions").type == "impression"


def test_offset_stands_in_for_an_event_id():
    assert one(OK).event_hash == parse.hash64(b"clicks/0/0")


def test_other_topics_are_skipped_and_partitions_keep_their_order():
    value = msgpack.packb(OK)
    records = [Record(t, k % 2, k, T0, b"u1", value) for k, t in enumerate(["req", "c", "c", "req", "c", "c"])]
    cols, bad = parse_events(batch_of(["req", "c"], records), np.array([255, 1], np.uint8))
    assert bad == [] and cols.status.tolist() == [2, 0, 0, 2, 0, 0]
    assert {p: rows.tolist() for p, rows in cols.rows_by_partition().items()} == {0: [2, 4], 1: [1, 5]}
    assert len(cols) == 6


def test_columns_that_are_read_only_or_strided_are_taken_too():
    b = batch_of(["c"], [Record("c", 0, k, T0, b"u1", msgpack.packb(OK)) for k in range(4)])
    wide = np.zeros((4, 2), np.int64)
    wide[:, 0] = b.offset
    b.offset = wide[:, 0]
    b.timestamp = np.frombuffer(b.timestamp.tobytes(), np.int64)
    before = len(parse._parse.signatures)
    cols, bad = parse_events(b, np.array([1], np.uint8))
    assert not bad and cols.offset.tolist() == [0, 1, 2, 3]
    assert len(parse._parse.signatures) <= max(before, 1)


def test_an_empty_batch():
    cols, bad = parse_events(batch_of(["c"], []), np.array([1], np.uint8))
    assert isinstance(batch_of(["c"], []), Batch) and len(cols) == 0 and bad == [] and cols.rows_by_partition() == {}
