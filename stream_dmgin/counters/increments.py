"""Increments of the shared counters, and their records on the topic `counters`.

What one partition's folded events add up to, as parallel columns. A published range of events, [from, to) by event topic,
is cut into records of at most 512 KB:

    {"v": 1, "partition": 3, "from": {"impressions": 10, "clicks": 2, "post-clicks": 0}, "to": {...}, "attempt": "...",
     "chunk": 0, "chunks": 2, "kind": bin, "hash": bin, "bucket": bin, "metric": bin, "count": bin, "surface": bin,
     "audience_hash": bin, "audience_metric": bin, "audience_count": bin, "audience_sum": bin}

The columns are little-endian: kind u1 (index of COUNTER_KINDS), hash u8 (XXH64 of the name), bucket i4 (number of the 15
minutes since the epoch), metric u1 (index of COUNTER_METRICS), count i8 (1 or more), and, only where one isn't 0, surface u1 (its
number; 0 for none): impressions and clicks of an item come in a row a surface, which is what the online model learns from
(counters/online.py). Who doesn't know that column adds the rows up, to the same sums. Category and advertiser are worked out by the
publisher, so that the topic alone says what the counters are, whatever catalogue a reader has.

Where the publisher has a model that reads it, the columns of the audience (counters/audience.py), of another length: hash u8 of an
item, metric u1, count i4, and sum of the users' profiles, WIDTH x i4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_dmgin.counters.audience import SCALE, WIDTH, Audience
from stream_dmgin.counters.layout import N_KINDS, N_METRICS
from stream_dmgin.errors import RecordError
from stream_dmgin.native import kernel
from stream_dmgin.topics import EVENTS

FORMAT = 1
RECORD_BYTES = 512 * 1024
_ROW_BYTES = 1 + 8 + 4 + 1 + 8 + 1
_AUDIENCE_BYTES = 8 + 1 + 4 + 4 * WIDTH
_HEADER_BYTES = 1024
_CHUNKS_MAX = 1 << 16
_MIX = np.uint64(0x9E3779B97F4A7C15)

Offsets = tuple[int, ...]  # next offset by number of the event topic


@kernel
def _sum_up(
    names: Any,
    bucket: Any,
    metric: Any,
    count: Any,
    surface: Any,
    slots: Any,
    kinds: Any,
    hashes: Any,
    buckets: Any,
    metrics: Any,
    counts: Any,
    surfaces: Any,
) -> Any:
    """Add the counts of each row to those of its item on its surface, its category and advertiser (`names`: their hashes, 0 is
    none) in the last six columns, found by the table `slots` (zeros, a power of two, with room). Returns the rows used."""
    used = 0
    mask = np.uint64(slots.shape[0] - 1)
    for kind in range(N_KINDS):
        for i in range(bucket.shape[0]):
            h = names[kind][i]
            if h == 0:
                continue
            s = surface[i] if kind == 0 else np.uint8(0)
            key = (h ^ (np.uint64(bucket[i]) * _MIX) ^ np.uint64((s * N_METRICS + metric[i]) * N_KINDS + kind)) * _MIX
            at = (key >> np.uint64(32)) & mask
            while True:
                row = slots[at] - 1
                if row < 0:
                    slots[at] = used + 1
                    kinds[used], hashes[used], buckets[used], metrics[used] = kind, h, bucket[i], metric[i]
                    counts[used], surfaces[used] = count[i], s
                    used += 1
                    break
                same = hashes[row] == h and kinds[row] == kind and surfaces[row] == s
                if same and buckets[row] == bucket[i] and metrics[row] == metric[i]:
                    counts[row] += count[i]
                    break
                at = (at + np.uint64(1)) & mask
    return used


class RawIncrements(Protocol):
    """What `StateEngine.take_increments` gives: item-level columns, each (item, bucket, surface, metric) at most once."""

    @property
    def item_hash(self) -> NDArray[np.uint64]: ...  # noqa: D102
    @property
    def bucket(self) -> NDArray[np.int64]: ...  # noqa: D102
    @property
    def metric(self) -> NDArray[np.uint8]: ...  # noqa: D102
    @property
    def count(self) -> NDArray[np.int64]: ...  # noqa: D102
    @property
    def surface(self) -> NDArray[np.uint8]: ...  # noqa: D102


class Owners(Protocol):
    """Who knows the category and the advertiser of an item (the catalogue)."""

    def owners(self, item_hash: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Hashes of the category and the advertiser of each item, 0 where there is none."""


@dataclass(frozen=True, slots=True)
class Increments:
    """Increments of entities: columns of equal length. `surface`: None where it is 0 throughout; `audience`: None where nobody wants it."""

    kind: NDArray[np.uint8]
    hash: NDArray[np.uint64]
    bucket: NDArray[np.int64]
    metric: NDArray[np.uint8]
    count: NDArray[np.int64]
    surface: NDArray[np.uint8] | None = None
    audience: Audience | None = None

    def __len__(self) -> int:
        return len(self.kind)

    @classmethod
    def from_raw(cls, raw: RawIncrements, catalogue: Owners, audience: Audience | None = None) -> Increments:
        """Item increments and what they add to the items' categories and advertisers; each (entity, bucket, surface, metric)
        once, in the order of their first appearance."""
        item = raw.item_hash
        n = N_KINDS * len(item)
        category, advertiser = catalogue.owners(item)
        out = cls(
            np.empty(n, np.uint8), np.empty(n, np.uint64), np.empty(n, np.int64), np.empty(n, np.uint8), np.empty(n, np.int64),
        )  # fmt: skip
        surfaces = np.empty(n, np.uint8)
        slots = np.zeros(1 << (2 * n + 1).bit_length(), np.int32)
        names = item, category, advertiser
        used = _sum_up(names, raw.bucket, raw.metric, raw.count, raw.surface, slots, *out.columns(), surfaces)
        return cls(
            out.kind[:used], out.hash[:used], out.bucket[:used], out.metric[:used], out.count[:used],
            surfaces[:used] if surfaces[:used].any() else None, audience,
        )  # fmt: skip

    def columns(
        self,
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
        """The arguments of `CounterTable.apply`."""
        return self.kind, self.hash, self.bucket, self.metric, self.count

    @classmethod
    def joined(cls, parts: Sequence[Increments]) -> Increments:
        """The rows of all parts, one after the other."""
        if len(parts) == 1:
            return parts[0]
        surface = None
        if any(p.surface is not None for p in parts):
            surface = np.concatenate([np.zeros(len(p), np.uint8) if p.surface is None else p.surface for p in parts])
        kind, metric = (np.concatenate(c) for c in ([p.kind for p in parts], [p.metric for p in parts]))
        bucket, count = (np.concatenate(c) for c in ([p.bucket for p in parts], [p.count for p in parts]))
        taught = [p.audience for p in parts if p.audience is not None]
        audience = Audience.joined(taught) if taught else None
        return cls(kind, np.concatenate([p.hash for p in parts]), bucket, metric, count, surface, audience)

    def encode(
        self, partition: int, since: Mapping[int, int], to: Mapping[int, int], attempt: str, limit: int = RECORD_BYTES
    ) -> list[bytes]:
        """Values of the records for the events [since, to) of a partition, both by event topic number; at least one record,
        none over `limit` bytes. `attempt` names this publication: records with another never complete it."""
        room = (limit - _HEADER_BYTES) // (1 if self.audience is None else 2)
        rows, users = max(1, room // _ROW_BYTES), max(1, room // _AUDIENCE_BYTES)
        chunks = max(1, -(-len(self) // rows), 0 if self.audience is None else -(-len(self.audience) // users))
        a, b = _named(since), _named(to)
        out = []
        for chunk in range(chunks):
            s = slice(chunk * rows, (chunk + 1) * rows)
            record = _Record(
                partition=partition, since=a, to=b, attempt=attempt, chunk=chunk, chunks=chunks,
                kind=self.kind[s].tobytes(), hash=self.hash[s].astype("<u8").tobytes(),
                bucket=self.bucket[s].astype("<i4").tobytes(), metric=self.metric[s].tobytes(),
                count=self.count[s].astype("<i8").tobytes(),
                surface=msgspec.UNSET if self.surface is None else self.surface[s].tobytes(),
            )  # fmt: skip
            if self.audience is not None:
                of = self.audience.part(slice(chunk * users, (chunk + 1) * users))
                record.audience_hash, record.audience_metric = of.hash.astype("<u8").tobytes(), of.metric.tobytes()
                record.audience_count, record.audience_sum = (
                    of.count.astype("<i4").tobytes(),
                    of.sum.astype("<i4").tobytes(),
                )
            out.append(_encode(record))
        return out


class _Record(msgspec.Struct, rename={"since": "from"}):
    partition: int
    since: dict[str, int]
    to: dict[str, int]
    attempt: str
    chunk: int
    chunks: int
    kind: bytes
    hash: bytes
    bucket: bytes
    metric: bytes
    count: bytes
    surface: bytes | msgspec.UnsetType = msgspec.UNSET
    audience_hash: bytes | msgspec.UnsetType = msgspec.UNSET
    audience_metric: bytes | msgspec.UnsetType = msgspec.UNSET
    audience_count: bytes | msgspec.UnsetType = msgspec.UNSET
    audience_sum: bytes | msgspec.UnsetType = msgspec.UNSET
    v: int = FORMAT


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Record).decode


@dataclass(frozen=True, slots=True)
class CounterRecord:
    """One decoded record of the topic: a chunk of a partition's range [since, to)."""

    partition: int
    since: Offsets
    to: Offsets
    attempt: str
    chunk: int
    chunks: int
    increments: Increments


def decode(value: bytes | None) -> CounterRecord:
    """Decode and check a record of the topic. Raises RecordError."""
    try:
        r = _decode(value or b"")
    except msgspec.ValidationError as e:
        raise RecordError("schema", str(e)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as e:
        raise RecordError("decode", f"not a MessagePack map: {e}") from None
    if r.v != FORMAT:
        raise RecordError("format", f"counter records of format {r.v} are not known here: upgrade this worker")
    n = len(r.kind)
    surface = None if isinstance(r.surface, msgspec.UnsetType) else np.frombuffer(r.surface, np.uint8)
    lengths = len(r.metric), len(r.hash), len(r.bucket), len(r.count), n if surface is None else len(surface)
    if lengths != (n, 8 * n, 4 * n, 8 * n, n):
        raise RecordError("schema", "the columns of a counter record differ in length")
    since, to = _numbered(r.since), _numbered(r.to)
    if (
        r.partition < 0
        or not 0 <= r.chunk < r.chunks <= _CHUNKS_MAX
        or any(a > b for a, b in zip(since, to, strict=True))
    ):
        raise RecordError("range", "a counter record's partition, chunk or range of offsets can't be right")
    x = Increments(
        np.frombuffer(r.kind, np.uint8),
        np.frombuffer(r.hash, "<u8").astype(np.uint64),
        np.frombuffer(r.bucket, "<i4").astype(np.int64),
        np.frombuffer(r.metric, np.uint8),
        np.frombuffer(r.count, "<i8").astype(np.int64),
        surface,
        _audience(r),
    )
    if n and not (
        x.kind.max() < N_KINDS
        and x.metric.max() < N_METRICS
        and x.hash.min() > 0
        and x.bucket.min() >= 0
        and x.count.min() > 0
    ):
        raise RecordError("range", "a counter record holds a kind, metric, hash, bucket or count out of range")
    return CounterRecord(r.partition, since, to, r.attempt, r.chunk, r.chunks, x)


def _audience(r: _Record) -> Audience | None:
    """The columns of a record's audience. Raises RecordError."""
    columns = [
        c for c in (r.audience_hash, r.audience_metric, r.audience_count, r.audience_sum) if isinstance(c, bytes)
    ]
    if not columns:
        return None
    n = len(columns[0]) // 8
    if [len(c) for c in columns] != [8 * n, n, 4 * n, 4 * WIDTH * n]:
        raise RecordError("schema", "the columns of a counter record's audience differ in length, or some are missing")
    hashes, metric, count, total = (
        np.frombuffer(c, t) for c, t in zip(columns, ("<u8", "u1", "<i4", "<i4"), strict=True)
    )
    x = Audience(hashes.astype(np.uint64), metric, count.astype(np.int32), total.astype(np.int32).reshape(n, WIDTH))
    if n and not (x.hash.min() > 0 and x.metric.max() <= 1 and x.count.min() > 0 and _within(x)):
        raise RecordError("range", "a counter record's audience holds a hash, metric, count or sum out of range")
    return x


def _within(x: Audience) -> bool:
    """Whether no sum is more than that many profiles can add up to (rounded numbers of vectors of length 1)."""
    return bool((np.abs(x.sum.astype(np.int64)) <= (SCALE + 1) * x.count[:, None]).all())


def _named(offsets: Mapping[int, int]) -> dict[str, int]:
    return {t: offsets.get(n, 0) for n, t in enumerate(EVENTS)}


def _numbered(offsets: Mapping[str, int]) -> Offsets:
    if any(not 0 <= offsets.get(t, -1) < 1 << 63 for t in EVENTS):
        raise RecordError("range", f"a counter record needs offsets of 0 or more for each of {', '.join(EVENTS)}")
    return tuple(offsets[t] for t in EVENTS)
