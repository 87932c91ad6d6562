"""The bulk parser against the authority: whatever the bytes, both accept or both refuse, for the same reason and with the
same values. Records are made by an encoder that picks among all the forms MessagePack allows, then damaged at random."""

from __future__ import annotations

import math
import random
import struct
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from stream_dmgin import records
from stream_dmgin.errors import RecordError
from stream_dmgin.log.base import Record, batch_of
from tests.effort import examples
from tests.parsed import NAMES, Parsed, expected, parse_many

T = 1_760_000_000_000
KNOWN = (
    "user_id",
    "item_id",
    "ts",
    "event_id",
    "type",
    "request_id",
    "position",
    "dwell_ms",
    "value",
    "lat",
    "lon",
    "surface",
    "attrs",
    "v",
)
NEAR_MISSES = ("surfacf", "Surface", "user_ie", "item_i", "tS", "event_idd", "request_ie", "request_i", "positiom", "dwell_mz", "valu", "values", "w", "la",
               "latt", "", "x" * 40, "é", "漢字漢字", "user_id\0")  # fmt: skip


def encode(x: Any, r: random.Random) -> bytes:
    """One of the encodings of `x`; floats may lose precision in float32, which is then what the record says."""
    if x is None:
        return b"\xc0"
    if isinstance(x, bool):
        return b"\xc3" if x else b"\xc2"
    if isinstance(x, int):
        forms = [f for f, low, high in INTS if low <= x <= high]
        return r.choice(forms)(x) if forms else b"\xcb" + struct.pack(">d", x)
    if isinstance(x, float):
        if r.random() < 0.3 and (math.isnan(x) or math.isinf(x) or abs(x) < 1e38):
            return b"\xca" + struct.pack(">f", x)
        return b"\xcb" + struct.pack(">d", x)
    if isinstance(x, str):
        b = x.encode()
        return _head(len(b), r, ((31, lambda n: bytes([0xA0 | n])), *_widths(0xD9))) + b
    if isinstance(x, bytes):
        return _head(len(x), r, _widths(0xC4)) + x
    if isinstance(x, (list, tuple)):
        return _head(len(x), r, ((15, lambda n: bytes([0x90 | n])), *_widths(0xDC)[1:])) + b"".join(
            encode(y, r) for y in x
        )
    pairs = list(x.items()) if isinstance(x, dict) else x.pairs
    return _head(len(pairs), r, ((15, lambda n: bytes([0x80 | n])), *_widths(0xDE)[1:])) + b"".join(
        encode(k, r) + encode(v, r) for k, v in pairs
    )


INTS = [
    (lambda x: struct.pack("b", x), -32, 127), (lambda x: b"\xcc" + struct.pack(">B", x), 0, 2**8 - 1),
    (lambda x: b"\xcd" + struct.pack(">H", x), 0, 2**16 - 1), (lambda x: b"\xce" + struct.pack(">I", x), 0, 2**32 - 1),
    (lambda x: b"\xcf" + struct.pack(">Q", x), 0, 2**64 - 1), (lambda x: b"\xd0" + struct.pack(">b", x), -(2**7), 2**7 - 1),
    (lambda x: b"\xd1" + struct.pack(">h", x), -(2**15), 2**15 - 1), (lambda x: b"\xd2" + struct.pack(">i", x), -(2**31), 2**31 - 1),
    (lambda x: b"\xd3" + struct.pack(">q", x), -(2**63), 2**63 - 1),
]  # fmt: skip


def _widths(first: int) -> tuple[tuple[int, Any], ...]:
    """Heads with a length of 8, 16 and 32 bits; where the format has no 8-bit form, `first` is the 16-bit one's byte."""
    if first in (0xDC, 0xDE):
        return ((0, None), (2**16 - 1, lambda n: bytes([first]) + struct.pack(">H", n)),
                (2**32 - 1, lambda n: bytes([first + 1]) + struct.pack(">I", n)))  # fmt: skip
    return ((255, lambda n: bytes([first, n])), (2**16 - 1, lambda n: bytes([first + 1]) + struct.pack(">H", n)),
            (2**32 - 1, lambda n: bytes([first + 2]) + struct.pack(">I", n)))  # fmt: skip


def _head(n: int, r: random.Random, forms: tuple[tuple[int, Any], ...]) -> bytes:
    fits = [f for most, f in forms if n <= most]
    return (fits[0] if r.random() < 0.7 else r.choice(fits))(n)


class Pairs:
    """A map that may hold a key twice."""

    def __init__(self, pairs: list[tuple[Any, Any]]) -> None:
        self.pairs = pairs


texts = st.one_of(
    st.sampled_from(["", "u", "i", "order", "é", "漢" * 22, "t" * 64, "t" * 65, "x" * 300, "\0"]), st.text(max_size=8)
)
numbers = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([0, -1, 5, 2**32 - 1, 2**32, 10**12, 10**12 + 1, T, T + records.TS_AHEAD, T + records.TS_AHEAD + 1, records.TS_MIN,
                     records.TS_MIN - 1, 2**47 - 1, 2**47, 2**63 - 1, 2**63]),
    st.floats(), st.floats(0, 1e12), st.sampled_from([1e12, 1.0000000000000002e12, 0.0000005, 0.0000015, 0.0000025, -0.0, 5.0]),
)  # fmt: skip
scalars = st.one_of(st.none(), st.booleans(), numbers, texts, st.binary(max_size=4))
anything = st.recursive(
    scalars,
    lambda x: st.one_of(st.lists(x, max_size=3), st.dictionaries(st.one_of(texts, st.integers(0, 9)), x, max_size=3)),
    max_leaves=8,
)
likely = {
    "user_id": st.just("u"), "item_id": texts, "ts": st.integers(T - 10, T + 10), "event_id": st.one_of(st.none(), texts),
    "type": st.one_of(st.none(), texts), "request_id": st.one_of(st.none(), texts), "position": st.one_of(st.none(), st.integers(-5, 300)),
    "dwell_ms": st.one_of(st.none(), st.integers(-1, 2**33)), "value": st.one_of(st.none(), numbers),
    "lat": st.one_of(st.none(), st.floats(-90, 90), st.integers(-90, 90)), "lon": st.one_of(st.none(), numbers),
    "surface": st.one_of(st.none(), texts),
    "attrs": st.one_of(st.none(), st.dictionaries(texts, anything, max_size=3)), "v": st.one_of(st.none(), st.integers(0, 3)),
}  # fmt: skip


@st.composite
def events(draw: st.DrawFn) -> Any:
    """Something like an event: mostly right, with a few fields wrong, missing, unknown, doubled or in another order."""
    if draw(st.integers(0, 19)) == 0:
        return draw(anything)
    names = ["user_id", "item_id", "ts", *draw(st.lists(st.sampled_from(KNOWN[3:]), unique=True, max_size=6))]
    wrong = draw(st.sets(st.integers(0, 30), max_size=1))
    pairs: list[tuple[Any, Any]] = [(n, draw(anything if k in wrong else likely[n])) for k, n in enumerate(names)]
    pairs += draw(st.lists(st.tuples(st.one_of(st.sampled_from(NEAR_MISSES), texts), anything), max_size=2))
    if draw(st.integers(0, 9)) == 0:
        pairs += draw(st.lists(st.tuples(st.one_of(st.sampled_from(KNOWN), scalars), anything), max_size=2))
    if draw(st.integers(0, 9)) == 0 and pairs:
        del pairs[draw(st.integers(0, len(pairs) - 1))]
    return Pairs(draw(st.permutations(pairs)))


def damage(b: bytes, r: random.Random) -> bytes:
    """The bytes with a few of them changed, gone, or doubled."""
    out = bytearray(b)
    for _ in range(r.randrange(1, 4)):
        at = r.randrange(len(out) + 1)
        how = r.randrange(6)
        if how == 0 and at < len(out):
            out[at] = r.randrange(256)
        elif how == 1 and at < len(out):
            out[at] ^= 1 << r.randrange(8)
        elif how == 2:
            out[at:at] = bytes(r.choices(b"\x00\x80\x81\x91\xa1\xc0\xc1\xc4\xca\xcf\xd9\xdf\xff", k=r.randrange(1, 3)))
        elif how == 3:
            del out[at : at + r.randrange(1, 9)]
        elif how == 4:
            del out[at:]
        else:
            out[at:at] = out[max(0, at - r.randrange(1, 9)) : at]
    return bytes(out)


def agree(values: list[bytes], r: random.Random) -> None:
    """Both see the same in each of these records; keys and timestamps vary too."""
    rows = []
    for k, v in enumerate(values):
        key = b"u" if r.random() < 0.95 else r.choice((None, b"", b"v", b"uu"))
        timestamp = T if r.random() < 0.9 else r.choice((-1, 0, T - records.TS_AHEAD - 5, T * 100, 2**62))
        rows.append(
            Record(f"dmgin.{r.choice(NAMES)}", r.choice((0, 7, 12345)), r.choice((k, 10**15 + k)), timestamp, key, v)
        )
    for row, got in zip(rows, parse_many(batch_of([f"dmgin.{n}" for n in NAMES], rows)), strict=True):
        topic = row.topic.removeprefix("dmgin.")
        want: Parsed | RecordError
        try:
            want = expected(
                records.decode_event(topic, row.key, row.value, row.timestamp), topic, row.partition, row.offset
            )
        except RecordError as e:
            want = e
        if isinstance(want, RecordError):
            assert isinstance(got, RecordError), (row, got)
            assert got.reason == want.reason
        elif want.ts < 2**47:
            assert got == want, row
        else:
            assert isinstance(got, RecordError) and got.reason == "ts", row


@examples(300)
@given(st.lists(events(), min_size=1, max_size=12), st.integers(0, 2**32 - 1))
@example([{"user_id": "u", "item_id": "i", "ts": 2**47}], 5)
def test_well_formed_bytes(values: list[Any], seed: int) -> None:
    r = random.Random(seed)
    agree([encode(v, r) for v in values], r)


@examples(150)
@given(st.lists(events(), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_damaged_bytes(values: list[Any], seed: int) -> None:
    r = random.Random(seed)
    whole = [encode(v, r) for v in values]
    agree([damage(r.choice(whole), r) for _ in range(60)], r)


@examples(100)
@given(st.lists(st.binary(max_size=40), max_size=50), st.integers(0, 2**32 - 1))
def test_noise(values: list[bytes], seed: int) -> None:
    agree(values, random.Random(seed))


def test_each_prefix_of_a_record() -> None:
    r = random.Random(7)
    whole = encode({"user_id": "u", "item_id": "é漢", "ts": T, "event_id": "e", "type": "order", "dwell_ms": 7, "value": 1.5,
                    "attrs": {"a": [1, {"b": None}], "c": b"x"}, "x": {"y": {"z": [1, [2, [3]]]}}}, r)  # fmt: skip
    agree([whole[:k] for k in range(len(whole) + 1)], r)
