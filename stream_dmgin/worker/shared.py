"""This worker's contribution to the shared counters, published from an outbox.

The increments of a folded range of events go into the same write batch as the state that folded them (rows `c+`), are then
published, and deleted once they are durable on the topic. A crash in between publishes the same bytes again, which every
reader knows as a repetition: nothing counts twice, nothing is lost. A store rebuilt from an empty directory contributes
nothing for events that the topic says are counted.
"""

from __future__ import annotations

import uuid
from pathlib import Path

import msgspec

from stream_dmgin import topics
from stream_dmgin.counters.increments import Increments, decode
from stream_dmgin.features.profile import Profiles
from stream_dmgin.log.base import TP, Log, Writer
from stream_dmgin.worker.followed import Followed, Needs, nothing
from stream_dmgin.worker.health import Health
from stream_dmgin.worker.partitions import Owned

OUTBOX, SINCE_ROW = b"c+", b"c/since"
UNCOUNTED = 10_000  # records that count nowhere (malformed, repeated) after which their range is published all the same
_pack, _unpack = msgspec.msgpack.encode, msgspec.msgpack.decode


class Outbox:
    """Increments of one partition on their way to the topic."""

    def __init__(self, since: dict[int, int], rows: dict[bytes, bytes]) -> None:
        self.since = since  # the last range published ended here
        self.waiting = dict(rows)  # committed with the state, not handed to the writer yet
        self.delivered: list[bytes] = []  # durable on the topic: their rows go with the next commit
        self.sequence = 1 + max((int.from_bytes(k[len(OUTBOX) :], "big") for k in rows), default=-1)


class Shared(Followed):
    """Counters and catalogue, and the outboxes of the owned partitions. One thread."""

    def __init__(
        self, log: Log, prefix: str, directory: Path, writer: Writer, health: Health, needs: Needs = nothing
    ) -> None:  # fmt: skip
        super().__init__(log, prefix, directory, health, needs)
        self._writer = writer
        self._profiles = Profiles(self.catalogue) if self.reads.audience else None
        self._outboxes: dict[int, Outbox] = {}
        self.failure: BaseException | None = None  # increments that could not be written to the log

    def opened(self, o: Owned) -> None:
        """A partition's store was opened: where its increments go on, and what of them was not published yet. The store may
        be behind what another worker has published since (its own directory, another machine): that is left out."""
        row = o.engine.get(SINCE_ROW)
        published = self._shared.published(o.partition)
        since = {t: max(n, published.get(t, 0)) for t, n in enumerate(_unpack(row))} if row is not None else published
        rows = {bytes(k): bytes(v) for k, v in o.engine.scan(OUTBOX)}
        outbox = Outbox(since, rows)
        for k, v in rows.items():
            if all(to <= published[t] for t, to in enumerate(decode(v).to)):  # durable already, or another's work
                del outbox.waiting[k]
                outbox.delivered.append(k)
        o.engine.published = dict(since)
        self._outboxes[o.partition] = outbox
        self.publish(o)

    def published(self, partition: int) -> dict[int, int]:
        """How far a partition's events are in the counters, as far as this worker has followed them: by event topic number."""
        return self._shared.published(partition)

    def delivered(self, o: Owned) -> list[bytes]:
        """Rows whose increments have become durable: to be deleted."""
        box = self._outboxes[o.partition]
        rows, box.delivered = box.delivered, []
        return rows

    def outgoing(self, o: Owned) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
        """(rows to put, rows to delete) in the commit of this partition that is about to be written."""
        box = self._outboxes[o.partition]
        raw = o.engine.take_increments()
        deletes = self.delivered(o)
        offsets = o.engine.offsets
        if len(raw.count) == 0 and sum(n - box.since.get(t, 0) for t, n in offsets.items()) < UNCOUNTED:
            return [], deletes
        to = {n: max(box.since.get(n, 0), offsets[n]) for n in range(len(topics.EVENTS))}
        audience = None if self._profiles is None else self._profiles.audience(o.engine)
        values = Increments.from_raw(raw, self.catalogue, audience).encode(o.partition, box.since, to, uuid.uuid4().hex)
        puts = []
        for value in values:
            puts.append((OUTBOX + box.sequence.to_bytes(8, "big"), value))
            box.sequence += 1
        box.waiting |= puts
        box.since = to
        return [*puts, (SINCE_ROW, _pack([to[n] for n in range(len(topics.EVENTS))]))], deletes

    def publish(self, o: Owned) -> None:
        """Hand what is committed to the writer; rows go once it is durable."""
        box = self._outboxes[o.partition]
        waiting, box.waiting = box.waiting, {}
        key = b"%d" % o.partition
        for row, value in waiting.items():

            def delivered(error: BaseException | None, tp: TP, offset: int, row: bytes = row) -> None:
                if error is None:
                    box.delivered.append(row)
                else:
                    self.failure = (
                        error  # the order of ranges matters: the worker ends, its successor publishes them again
                    )

            self._writer.append(self._counters_topic, key, value, partition=0, on_delivery=delivered)
