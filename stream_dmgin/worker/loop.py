"""The hot path, readable top to bottom: poll, parse, fold, answer, commit. The same loop serves Kafka and the embedded log.

What may block: `poll` (up to its time-out, for the first record only), `commit` (a RocksDB write per dirty partition),
appending while the producer's queue is full (back-pressure). What allocates: requests, per request. Events cost no Python
object: a batch is parsed and folded in a few numba calls a partition.

Order within a turn: events of the batch are folded before its requests are scored; dead letters and answers are durable
before the offsets that say so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_dmgin import topics
from stream_dmgin.control import mask_skipped
from stream_dmgin.errors import Fenced, LogUnavailable, RecordError, StreamDmginError
from stream_dmgin.log.base import TP, Batch, GroupReader, Headers, Record, Writer, batch_of
from stream_dmgin.records import decode_request, request_identity
from stream_dmgin.state.parse import EventColumns, parse_events
from stream_dmgin.state.store import REQUESTS_ROW, shared_usage
from stream_dmgin.worker.answers import Answers, Asked
from stream_dmgin.worker.between import Between
from stream_dmgin.worker.dead_letters import dead_letter, without_value
from stream_dmgin.worker.delivery import Delivery
from stream_dmgin.worker.health import Health
from stream_dmgin.worker.limits import DeadLetterLimit, poisoned
from stream_dmgin.worker.partitions import Owned, Partitions
from stream_dmgin.worker.shared import Shared

log_ = logging.getLogger(__name__)

N_EVENT_TOPICS = len(topics.EVENTS)
REQUESTS_INDEX = N_EVENT_TOPICS
REPORT_S = 0.5
DIVERTING_PARTITION = 0  # its owner diverts the malformed records of topics that every worker reads
DIVERTED_ROW = b"r/diverted"  # how far it has


@dataclass
class Totals:
    """What a run did; printed by --until-end."""

    events: int = 0  # event records read, duplicates included
    requests: int = 0
    scores: int = 0
    dead_letters: int = 0


@dataclass(frozen=True, slots=True)
class Rejected:
    """A malformed request on its way to the dead letters."""

    record: Record
    owned: Owned
    error: RecordError


class Loop:
    """One worker's data path. One thread calls everything."""

    def __init__(
        self, reader: GroupReader, writer: Writer, partitions: Partitions, shared: Shared, answers: Answers | None,
        health: Health, prefix: str, delivery: Delivery, *, commit_interval_s: float, max_batch: int, max_requests: int,
        limit: DeadLetterLimit,
    ) -> None:  # fmt: skip
        self._reader, self._writer, self._partitions, self._delivery = reader, writer, partitions, delivery
        self._shared, self._answers, self._health = shared, answers, health
        self._prefix, self._limit = prefix, limit
        self._dead_topic = prefix + topics.DEAD_LETTERS
        self._requests_topic = prefix + topics.REQUESTS
        self._topics = [*partitions.names, *((self._requests_topic,) if answers is not None else ())]
        self._interval, self._max_batch, self._max_requests = commit_interval_s, max_batch, max_requests
        self._numbers = np.array([*range(N_EVENT_TOPICS), 255], np.uint8)
        self._waiting: list[Asked | Rejected] = []  # requests of partitions whose state is not fresh yet
        self._paused: set[TP] = set()
        self._generation = 0  # of the assignment that `_paused` belongs to
        self._due: dict[int, float] = {}  # partition -> when it is to be committed next
        self._last_report = time.monotonic()
        self.between = Between()  # for other threads: what must not run while a batch is open
        self.chores: list[Callable[[], None]] = []  # control path: called once a turn, when no batch is open
        self.before_answers: Callable[[], None] = lambda: None  # of a batch's requests, its events being folded
        self.totals = Totals()

    # A turn

    def turn(self, timeout: float) -> int:
        """Take what is there and answer what is due; waits up to `timeout` seconds for a first record. Returns records read.
        A member that finds itself fenced writes nothing more, drops its partitions and joins anew."""
        try:
            return self._turn(timeout)
        except Fenced as e:
            log_.warning("%s: nothing more is written", e)
            self._partitions.lost_all()
            self._reader.rejoin()
            return 0

    def _turn(self, timeout: float) -> int:
        batch = self._reader.poll(self._max_batch, timeout)
        n = 0
        if batch is not None:
            try:
                n = len(batch)
                self._handle(batch)
            finally:
                batch.release()
        for chore in self.chores:
            chore()
        if self._waiting or self._paused or self._health.waiting or self._partitions.coming:
            self._regulate()
        self._shared.follow()
        self._partitions.tend()
        if self._shared.malformed and DIVERTING_PARTITION in self._partitions.owned:
            self._divert_shared(self._partitions.owned[DIVERTING_PARTITION])
        self._writer.poll()
        self._check_increments()
        now = time.monotonic()
        self._delivery.turn(now)
        self._commit_due(now)
        self.between.run()
        if now - self._last_report >= REPORT_S:
            self._report(now)
        self._health.turn(now, n)
        return n

    def _handle(self, batch: Batch) -> None:
        observe = self._health.metrics.stage.labels
        t0 = time.perf_counter()
        skips = self._shared.control.skips
        skipped = mask_skipped(batch, self._prefix, skips) if skips else {}
        columns, malformed = self._parse(batch)
        t1 = time.perf_counter()
        for t, n in enumerate(np.bincount(batch.topic, minlength=len(batch.topics)).tolist()):
            self._health.metrics.records.labels(batch.topics[t]).inc(n)
        is_event = batch.topic < N_EVENT_TOPICS
        n_events = int(is_event.sum())
        if n_events:
            self._limit.take(n_events, sum(i not in skipped for i, _ in malformed))
            bad = {i: skipped.get(i) or (batch.record(i), error) for i, error in malformed}
            rows = np.flatnonzero(is_event).astype(np.int32)  # malformed ones too: the fold moves over their offsets
            of = batch.partition[rows]
            for p in np.unique(of):
                owned = self._partitions.owned.get(int(p))
                if owned is not None:
                    self.totals.events += int((of == p).sum())
                    counted = self._fold(owned, batch, columns, rows[of == p], bad)
                    self._health.metrics.events.inc(counted)
        observe("parse").observe(t1 - t0)
        observe("fold").observe(time.perf_counter() - t1)
        if n_events < len(batch) and self._answers is not None:
            self.before_answers()
            self._take_requests(batch, np.flatnonzero(~is_event), skipped)

    def _parse(self, batch: Batch) -> tuple[EventColumns, list[tuple[int, RecordError]]]:
        """The columns and the malformed rows of a batch. Raises Poison, naming the record on which the parser itself fails."""
        try:
            return parse_events(batch, self._numbers)
        except Exception as e:
            for i in range(len(batch)):
                try:
                    parse_events(batch_of(batch.topics, [batch.record(i)]), self._numbers)
                except Exception as alone:
                    raise poisoned(batch, [i], alone) from e
            raise

    def _fold(
        self, owned: Owned, batch: Batch, columns: EventColumns, rows: NDArray[np.int32], bad: dict[int, tuple[Record, RecordError]]
    ) -> int:  # fmt: skip
        """Fold rows of one partition, and divert the malformed ones among them: so many at a time that the cache stays under its
        cap. Raises Poison where the fold itself fails; the engine is of no use then."""
        engine, counted = owned.engine, 0
        malformed = np.fromiter(bad, np.int32, len(bad))
        while len(rows):
            some, rows = np.split(rows, [engine.room()])
            for i in some[np.isin(some, malformed)].tolist() if bad else ():
                if int(batch.offset[i]) >= owned.diverted[int(batch.topic[i])]:
                    self._divert(*bad[i])
            try:
                counted += engine.fold(columns, some)
            except StreamDmginError:
                raise
            except Exception as e:
                raise poisoned(batch, some.tolist(), e) from e
            owned.dirty = True
            self._health.step()
            self._make_room(owned)
        return counted

    def _make_room(self, owned: Owned) -> None:
        """Bring a cache under its cap: clean users leave, and where that isn't enough, the others are committed first."""
        if owned.engine.pressure > 1:
            owned.engine.evict()
            if owned.engine.pressure > 1:
                self.commit_one(owned)

    # Requests

    def _take_requests(self, batch: Batch, rows: np.ndarray, skipped: dict[int, tuple[Record, RecordError]]) -> None:
        due: list[Asked | Rejected] = []
        good = 0
        for i in rows.tolist():
            owned = self._partitions.owned.get(int(batch.partition[i]))
            if owned is None:
                continue
            offset, timestamp = int(batch.offset[i]), int(batch.timestamp[i])
            owned.answered.took(offset)
            self.totals.requests += 1
            asked: Asked | Rejected
            try:
                if i in skipped:
                    record, error = skipped[i]
                    asked = Rejected(record, owned, error)
                else:
                    request = decode_request(batch.key(i), batch.value(i), timestamp)
                    asked = Asked(request, owned, offset, timestamp, batch.headers_of(i))
                    good += 1
            except RecordError as e:
                self._limit.take(1, 1)
                asked = Rejected(batch.record(i), owned, e)
            except Exception as e:
                raise poisoned(batch, [i], e) from e
            # Rejections wait as well: what the group is told as answered has no holes
            (self._waiting if owned.restoring else due).append(asked)
        self._limit.take(good, 0)
        if due:
            self._answer_all(due)

    def _answer_all(self, asked: Sequence[Asked | Rejected]) -> None:
        for a in asked:
            if isinstance(a, Rejected):
                self._reject(a)
        self._answer([a for a in asked if isinstance(a, Asked)])

    def _answer(self, asked: list[Asked]) -> None:
        assert self._answers is not None
        for k in range(0, len(asked), self._max_requests):
            part = asked[k : k + self._max_requests]
            self._health.step()
            answers = self._answers.answer(part)
            self._reader.confirm()
            for a, (key, value, headers) in answers:
                try:
                    self._send_score(key, value, headers, a.owned, a.offset)
                except RecordError as e:  # the topic takes requests of this size, but not their answers
                    log_.error("an answer is too large for its topic, the request is rejected: %s", e)
                    identity = a.request.request_id, a.request.user_id
                    self._send_score(
                        *self._answers.rejection(identity, a.owned, str(e), a.timestamp), a.owned, a.offset
                    )
            for o in {a.owned for a in part}:  # reading loads users, too
                o.engine.evict()

    def _send_score(self, key: bytes, value: bytes, headers: Headers, owned: Owned, offset: int) -> None:
        answered = owned.answered
        # The answer goes to the request's own partition number: scores are co-partitioned with requests.
        self._delivery.send(
            self._partitions.scores_topic, key, value, headers, owned.partition, None, lambda: answered.done(offset)
        )
        self.totals.scores += 1

    def _reject(self, r: Rejected) -> None:
        assert self._answers is not None
        self._reader.confirm()
        self._divert(r.record, r.error)
        try:
            identity = request_identity(r.record.value)
        except Exception:  # poison, skipped by an order: whoever asked gets no answer
            identity = None
        if identity is None:
            r.owned.answered.done(r.record.offset)
            return
        key, value, headers = self._answers.rejection(identity, r.owned, str(r.error), r.record.timestamp)
        self._send_score(key, value, headers, r.owned, r.record.offset)

    def _regulate(self) -> None:
        """Requests wait while their partition's state is behind what the log held when it was assigned; everything of a partition
        waits while its store is fetched, and everything at all while the worker takes nothing on purpose."""
        owned = self._partitions.owned
        if self._generation != self._partitions.generation:
            self._generation, self._paused = self._partitions.generation, set()  # a new assignment forgets pauses
        for o in owned.values():
            if o.restoring:
                o.remaining()
        asked = owned if self._answers is not None else {}
        want = {(self._requests_topic, p) for p, o in asked.items() if o.restoring}
        stopped = self._partitions.coming | (owned.keys() if self._health.waiting else set())
        want |= {(t, p) for p in stopped for t in self._topics}
        if new := want - self._paused:
            self._reader.pause(new)
        if ready := {tp for tp in self._paused - want if tp[1] in owned}:
            self._reader.resume(ready)
        self._paused = want
        still: list[Asked | Rejected] = []
        due: list[Asked | Rejected] = []
        for a in self._waiting:
            if owned.get(a.owned.partition) is a.owned:
                (still if a.owned.restoring else due).append(a)
        self._waiting = still
        if due:
            self._answer_all(due)

    # Out

    def _divert_shared(self, owned: Owned) -> None:
        """Malformed items and increments: every worker meets them, at each start again; they are diverted once."""
        row = owned.engine.get(DIVERTED_ROW)
        diverted: dict[str, int] = msgspec.msgpack.decode(row) if row else {}
        malformed, self._shared.malformed = self._shared.malformed, []
        for record, error in malformed:
            place = f"{record.topic}/{record.partition}"
            if record.offset >= diverted.get(place, 0):
                diverted[place] = record.offset + 1
                self._divert(record, error)
        self.settle()
        self.commit_one(owned, [(DIVERTED_ROW, msgspec.msgpack.encode(diverted))])

    def _divert(self, record: Record, error: RecordError) -> None:
        d = dead_letter(record, error)
        self.totals.dead_letters += 1
        self._health.metrics.dead_letters.labels(error.reason).inc()
        log_.debug("dead letter: %s/%d offset %d: %s", record.topic, record.partition, record.offset, error)

        try:
            self._delivery.send(self._dead_topic, d.key, d.value, d.headers, None, d.timestamp, None)
        except RecordError as e:  # its own topic took it, but with the headers it is too large for this one
            log_.error("a dead letter goes without its value, which stays at the offset in its headers: %s", e)
            d = without_value(record, error)
            self._delivery.send(self._dead_topic, d.key, d.value, d.headers, None, d.timestamp, None)

    # Commit

    def _commit_due(self, now: float) -> None:
        """Each partition at its own time, spread over the interval: a request waits for one commit at most, not for all."""
        owned = self._partitions.owned
        if self._due.keys() != owned.keys():
            n = self._partitions.total
            self._due = {p: self._due.get(p, now + self._interval * (p + 1) / n) for p in owned}
        due = [p for p, at in self._due.items() if at <= now]
        if due:
            for p in due:
                self._due[p] = now + self._interval
            self._commit([owned[p] for p in due])

    def commit(self) -> None:
        """Commit every dirty partition; dead letters are durable first. Raises LogUnavailable, Fenced."""
        self._commit(list(self._partitions.owned.values()))

    def _commit(self, partitions: list[Owned]) -> None:
        t0 = time.perf_counter()
        done: dict[TP, int] = {}
        for o in partitions:
            if o.dirty or o.answered.safe != o.saved_requests:
                self.commit_one(o)
                self._health.step()
                done |= self._told(o, o.saved_requests)
        if done:
            self._delivery.tell(done)
            self._health.metrics.commits.inc()
            self._health.metrics.stage.labels("commit").observe(time.perf_counter() - t0)
        self._health.metrics.commit_time.set(time.time())

    def end(self) -> None:
        """The last commit. A member that was fenced meanwhile leaves it to the next owner. Raises LogUnavailable."""
        try:
            self.commit()
            self.settle()
        except Fenced as e:
            log_.warning("%s: nothing more is written", e)
            self._partitions.lost_all()

    def settle(self) -> None:
        """Wait until every answer and dead letter handed out is durable. Raises LogUnavailable, Fenced."""
        self._delivery.settle()

    def flush(self) -> None:
        """Wait until everything handed out, increments of counters included, is durable. Raises LogUnavailable, Fenced."""
        self._delivery.settle()
        self._writer.flush()
        self._check_increments()

    def _check_increments(self) -> None:
        if self._shared.failure is not None:
            raise LogUnavailable(f"a record could not be written to the log: {self._shared.failure}")

    def commit_one(self, o: Owned, rows: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """One partition: state, offsets, answered requests and outgoing increments in one write batch."""
        self._delivery.before_commit()
        self._reader.confirm()
        safe = o.answered.safe
        puts, deletes = self._shared.outgoing(o)
        o.engine.commit([(REQUESTS_ROW, safe.to_bytes(8, "big")), *rows, *puts], deletes)
        o.saved_requests, o.dirty = safe, False
        self._shared.publish(o)

    def release(self, partitions: Sequence[Owned]) -> None:
        """These go to other owners: everything of theirs is durable, and the group knows it, before this returns."""
        self.settle()  # answers and dead letters: the commit says that they are
        done: dict[TP, int] = {}
        for o in partitions:
            self.commit_one(o)
            done |= self._told(o, o.saved_requests)
        if done:
            self._delivery.tell(done)
        self.flush()  # increments: the next owner goes on where the counters say
        for o in partitions:
            if rows := self._shared.delivered(o):
                o.engine.commit((), rows)

    def lost(self) -> None:
        """Partitions were lost. Raises Fenced where others are hurt by it."""
        self._delivery.lost()

    def done(self) -> dict[TP, int]:
        """What the group may be told of everything owned, once all that was sent is durable."""
        return {tp: n for o in self._partitions.owned.values() for tp, n in self._told(o, o.answered.safe).items()}

    def offsets_of(self, o: Owned) -> dict[TP, int]:
        """Next offsets that the store has, of the topics that this worker reads."""
        offsets = o.engine.offsets
        out = {(t, o.partition): offsets[n] for t, n in self._partitions.names.items()}
        if self._answers is not None:
            out[self._requests_topic, o.partition] = o.saved_requests
        return out

    def _told(self, o: Owned, answered: int) -> dict[TP, int]:
        """What the group is told: what is answered and dead-lettered, by whomever. A store that folds again what others have
        folded before must not take that back."""
        offsets = o.engine.offsets
        out = {(t, o.partition): max(offsets[n], o.diverted[n]) for t, n in self._partitions.names.items()}
        if self._answers is not None:
            out[self._requests_topic, o.partition] = answered
        return out

    def _report(self, now: float) -> None:
        self._last_report = now
        h, m = self._health, self._health.metrics
        if self._answers is not None:
            self._answers.look()
        h.restore_remaining = sum(o.remaining() for o in self._partitions.owned.values())
        m.restoring.set(h.restore_remaining)
        owned = tuple(self._partitions.owned.values())
        ended = self._partitions.ended  # past markers of transactions, which no record follows
        h.offsets = {tp: max(offset, ended(*tp)) for o in owned for tp, offset in self.offsets_of(o).items()}
        stats = [o.engine.stats() for o in owned]
        m.users_cached.set(sum(s["users_cached"] for s in stats))
        m.rocksdb_bytes.set(shared_usage())
        m.cache_bytes.set(sum(s["cache_bytes"] for s in stats))
