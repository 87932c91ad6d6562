"""Every worker folds the whole counters topic, each published range of events exactly once.

The ranges of one source partition form a chain: each begins where the last one ended. `applied[p]` says how far the chain
of partition p has been folded, as offsets by event topic.

- A range that begins exactly there is applied, once all its chunks have come.
- A range that ends there or before is a repetition (a publisher that crashed publishes the same bytes again): left out.
- One that begins later leaves a gap (records lost, or gone by retention): applied, and counted in `gaps`.
- Anything else overlaps what is applied (two owners at once): left out, and counted in `overlaps`. Nothing counts twice.

All readers see the topic in the same order and so decide alike. Chunks of another attempt discard an unfinished one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from stream_dmgin.counters.increments import CounterRecord, Increments, Offsets, decode
from stream_dmgin.counters.learner import PREFIX, OnlineModel
from stream_dmgin.counters.table import CounterTable
from stream_dmgin.errors import FormatError
from stream_dmgin.topics import EVENTS

CHECKPOINT_FORMAT = 1
_META = b"m"


@dataclass(slots=True)
class _Unfinished:
    attempt: str
    since: Offsets
    to: Offsets
    chunks: int
    offset: int  # of its first record
    parts: dict[int, Increments] = field(default_factory=dict)


class Chains:
    """How far each partition's chain has been folded, and the ranges of which chunks are still to come."""

    def __init__(self) -> None:
        self.applied: dict[int, Offsets] = {}
        self.ranges = self.duplicates = self.gaps = self.overlaps = 0  # ranges, once each
        self._open: dict[int, _Unfinished] = {}

    def take(self, r: CounterRecord, offset: int) -> Increments | None:
        """One record, read at `offset` of the topic: the increments to apply now, None while there is nothing to apply."""
        applied = self.applied.get(r.partition)
        verdict = _compare(r.since, r.to, applied)
        if verdict in ("duplicate", "overlap"):
            if r.chunk == 0:
                self.duplicates += verdict == "duplicate"
                self.overlaps += verdict == "overlap"
            return None
        pending = self._open.get(r.partition)
        if pending is None or (pending.attempt, pending.since, pending.to, pending.chunks) != (
            r.attempt,
            r.since,
            r.to,
            r.chunks,
        ):
            pending = self._open[r.partition] = _Unfinished(r.attempt, r.since, r.to, r.chunks, offset)
        pending.parts[r.chunk] = r.increments
        if len(pending.parts) < r.chunks:
            return None
        del self._open[r.partition]
        self.applied[r.partition] = r.to
        self.ranges += 1
        self.gaps += verdict == "gap"
        return Increments.joined([pending.parts[i] for i in range(r.chunks)])

    def safe(self, next_offset: int) -> int:
        """The offset from which the topic must be read again after a restart, having read up to `next_offset`: ranges whose
        chunks are not all there begin anew; what is read twice then is known as a repetition."""
        return min((u.offset for u in self._open.values()), default=next_offset)


class SharedCounters:
    """The counters of this process: the table, the chains, and the way from records of the topic into both. `online`: whether the
    model of the block of that name learns from them (20 MiB, 0.8 us an event), and everything else that is learnt; `rhythm`: whether at
    least that of the categories is."""

    def __init__(self, online: bool = False, rhythm: bool = False) -> None:
        self.table = CounterTable(OnlineModel.of(online, rhythm))
        self.chains = Chains()
        self.next_offset = 0  # of the counters topic
        self.stale: list[bytes] = []  # keys of the store it was restored from that the next checkpoint must delete

    def fold(self, value: bytes | None, offset: int) -> bool:
        """Fold the record at `offset`; True where the counters changed. Records below `next_offset` are left out.
        Raises RecordError for a malformed one, which is then behind us all the same."""
        if offset < self.next_offset:
            return False
        self.next_offset = offset + 1
        x = self.chains.take(decode(value), offset)
        if x is None:
            return False
        self.table.take(x)
        return True

    def published(self, partition: int) -> dict[int, int]:
        """How far a partition's events are in the counters already, by event topic number."""
        return dict(enumerate(self.chains.applied.get(partition, (0,) * len(EVENTS))))

    def checkpoint(self) -> Iterator[tuple[bytes, bytes]]:
        """Rows to put into a store in one write batch, after deleting `stale`: what changed since the last checkpoint, and how far
        the topic is folded. Consume it whole before the next `fold`."""
        self.stale = []
        point = _encode(_Meta(self.chains.safe(self.next_offset), self.chains.applied))
        yield _META, point
        yield from self.table.to_rows()
        if self.table.online is not None:
            yield from self.table.online.to_rows(point)

    @classmethod
    def restore(cls, rows: Iterable[tuple[bytes, bytes]], online: bool = False, rhythm: bool = False) -> SharedCounters:
        """From all rows of a store of checkpoints; from none, and where it must learn but the store has no weights of the same
        moment: empty counters, for which the topic is read from its beginning. Raises FormatError."""
        entities: list[tuple[bytes, bytes]] = []
        learnt: list[tuple[bytes, bytes]] = []
        point = None
        for key, value in rows:
            if key == _META:
                point = value
            else:
                (learnt if key.startswith(PREFIX) else entities).append((key, value))
        learns = online or rhythm
        model = OnlineModel.from_rows(learnt, point, online) if learns else None
        out = cls()
        if learns and model is None:
            out = cls(online, rhythm)
            out.stale = [k for k, _ in (*entities, *learnt)]
            return out
        out.stale = [] if learns else [k for k, _ in learnt]
        out.table = CounterTable(model)
        if point is not None:
            meta = _meta(point)
            out.next_offset, out.chains.applied = meta.next_offset, {p: tuple(v) for p, v in meta.applied.items()}
        out.table.from_rows(entities)
        return out


class _Meta(msgspec.Struct, array_like=True):
    next_offset: int
    applied: dict[int, Offsets]
    v: int = CHECKPOINT_FORMAT


_encode = msgspec.msgpack.Encoder().encode


def _meta(value: bytes) -> _Meta:
    try:
        meta = msgspec.msgpack.decode(value, type=_Meta)
    except msgspec.MsgspecError:
        meta = None
    if meta is None or meta.v != CHECKPOINT_FORMAT:
        raise FormatError(
            "the counters' checkpoint has another format: remove its directory, the counters are read again from the log"
        )
    return meta


def _compare(since: Offsets, to: Offsets, applied: Offsets | None) -> str:
    if applied is None:
        return "next" if not any(since) else "gap"
    if since == applied:
        return "next" if to != since else "duplicate"
    if all(t <= a for t, a in zip(to, applied, strict=True)):
        return "duplicate"
    if all(s >= a for s, a in zip(since, applied, strict=True)):
        return "gap"
    return "overlap"
