"""A dead letter carries the record untouched, and gives it back."""

from __future__ import annotations

import pytest

from stream_dmgin.errors import RecordError
from stream_dmgin.log.base import Delivered, Headers, Record
from stream_dmgin.worker.dead_letters import HEADER, OURS, dead_letter, read, send_back, without_value

RECORD = Record(
    "dmgin.clicks", 3, 42, 1_760_000_000_000, b"u\xff", b"\xc1\x00", (("traceparent", b"00-a"), ("x", b"\xff"))
)
ERROR = RecordError("decode", "not a MessagePack map")


def stored(letter: Record, offset: int = 7) -> Record:
    """The letter as it lies in the dead-letters topic."""
    return Record("dmgin.dead-letters", 0, offset, letter.timestamp, letter.key, letter.value, letter.headers)


def test_the_record_is_untouched_and_the_reason_is_in_the_headers() -> None:
    d = dead_letter(RECORD, ERROR)
    assert (d.key, d.value, d.timestamp) == (RECORD.key, RECORD.value, RECORD.timestamp)
    assert d.headers[:2] == RECORD.headers
    assert dict(d.headers[2:]) == {
        HEADER + "exception": b"RecordError",
        HEADER + "message": b"not a MessagePack map",
        HEADER + "topic": b"dmgin.clicks",
        HEADER + "partition": b"3",
        HEADER + "offset": b"42",
        HEADER + "reason": b"decode",
    }


def test_reading_gives_the_original_back() -> None:
    letter = read(stored(dead_letter(RECORD, ERROR)))
    assert letter.original == RECORD
    assert (letter.offset, letter.reason, letter.exception) == (7, "decode", "RecordError")
    assert letter.place == ("dmgin.clicks", 3, 42)


@pytest.mark.parametrize("key", [None, b""])
@pytest.mark.parametrize("value", [None, b""])
def test_null_and_empty_stay_apart(key: bytes | None, value: bytes | None) -> None:
    r = Record("dmgin.clicks", 0, 0, 0, key, value)
    assert read(stored(dead_letter(r, ERROR))).original == r


def test_a_replayed_record_that_dies_again_keeps_the_headers_it_came_with() -> None:
    """Error headers that the record brought from elsewhere are its own; only the last ones are ours."""
    brought = Record("dmgin.clicks", 1, 2, 3, b"u", b"v", dead_letter(RECORD, ERROR).headers)
    assert read(stored(dead_letter(brought, RecordError("ts", "too late")))).original == brought


def test_long_messages_are_cut_between_letters() -> None:
    d = dead_letter(RECORD, RecordError("id", "é" * 5000 + "\ud800"))
    message = dict(d.headers)[HEADER + "message"]
    assert len(message) <= 1003
    assert message.decode().endswith("é…")


def test_a_value_that_does_not_fit_stays_where_the_headers_point() -> None:
    big = Record("dmgin.clicks", 3, 42, 5, b"k" * 2000, b"x" * 1_000_000, (("h", b"1" * 500_000),))
    letter = read(stored(without_value(big, ERROR)))
    assert letter.original.value is None and letter.original.key is None and letter.original.headers == ()
    assert "1000000 bytes" in letter.message and "not a MessagePack map" in letter.message
    assert letter.place == ("dmgin.clicks", 3, 42)


@pytest.mark.parametrize(
    "headers", [(), (("a", b"b"),), tuple((k, b"x") for k in OURS), tuple((k, b"1") for k in OURS[1:])]
)
def test_dead_letters_of_others_are_shown_not_understood(headers: Headers) -> None:
    letter = read(Record("dmgin.dead-letters", 0, 9, 1, b"k", b"v", headers))
    assert letter.original.topic == "" and letter.original.headers == headers and letter.offset == 9


class Writer:
    """Remembers what was appended."""

    def __init__(self) -> None:
        self.got: list[tuple[object, ...]] = []

    def append(
        self, topic: str, key: bytes | None, value: bytes | None, *, timestamp: int | None = None, headers: Headers = (),
        partition: int | None = None, on_delivery: Delivered | None = None,
    ) -> None:  # fmt: skip
        self.got.append((topic, key, value, timestamp, headers, partition))

    def poll(self) -> None: ...

    def flush(self, timeout: float = 30.0) -> None: ...

    def close(self) -> None: ...


def test_replay_sends_the_original_back() -> None:
    w = Writer()
    letter = read(stored(dead_letter(RECORD, ERROR)))
    send_back(w, letter)
    send_back(w, letter, keep_timestamp=True)
    assert w.got[0] == ("dmgin.clicks", RECORD.key, RECORD.value, None, RECORD.headers, None)
    assert w.got[1] == ("dmgin.clicks", RECORD.key, RECORD.value, RECORD.timestamp, RECORD.headers, None)


def test_replay_of_a_record_without_key_goes_to_its_partition() -> None:
    w = Writer()
    send_back(w, read(stored(dead_letter(Record("dmgin.clicks", 3, 42, 1, None, b"v"), ERROR))))
    assert w.got == [("dmgin.clicks", None, b"v", None, (), 3)]
