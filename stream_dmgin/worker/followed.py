"""What every worker shares: the counters of all users, the catalogue of items and the control records, followed from
their topics.

`follow` never blocks; `catch_up` blocks until what the topics held when it was called is folded. The counters are saved every
30 s (5 min with the online model), so that a restart reads the topic from there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rocksdict import AccessType, Options, Rdict, WriteBatch

from stream_dmgin import topics
from stream_dmgin.control import mask_skipped, read_control
from stream_dmgin.counters.chains import SharedCounters
from stream_dmgin.counters.table import CounterTable
from stream_dmgin.errors import LogUnavailable, RecordError
from stream_dmgin.features.catalogue import Catalogue
from stream_dmgin.features.spec import NOTHING, Reads
from stream_dmgin.log.base import TP, Log, Reader, Record
from stream_dmgin.worker.health import Health
from stream_dmgin.worker.limits import poisoned

log_ = logging.getLogger(__name__)

FOLLOW_S = 0.005  # the topics are looked at no more often
CHECKPOINT_S = 30.0
LEARNING_CHECKPOINT_S = 300.0  # the online model has pages of 20 MB to save where there is much traffic: 0.2 s
CATCH_UP_S = 600.0
Needs = Callable[[Mapping[str, Any]], Reads]  # what models need, by the records of the control topic
SAY_S = 10.0  # a worker that isn't ready for so long says what it waits for
QUIET_S = 5.0  # without a record, while the end isn't reached: is the log there at all?


def nothing(control: Mapping[str, Any]) -> Reads:
    """The counters are only counted."""
    return NOTHING


class Followed:
    """Counters and catalogue as far as their topics are folded. `needs`: whether the online model learns from them, which embeddings
    are kept. One thread."""

    def __init__(self, log: Log, prefix: str, directory: Path, health: Health, needs: Needs = nothing) -> None:
        self._log, self._health = log, health
        self._prefix = prefix
        self._counters_topic, self._items_topic = prefix + topics.COUNTERS, prefix + topics.ITEMS
        self._store = _open_checkpoints(directory / "counters")
        rows = [] if self._store is None else [(bytes(k), bytes(v)) for k, v in self._store.items()]
        items = log.begins(self._items_topic)
        self._items_next = dict(items)
        # What was ordered is known before anything is folded: erased users must not come back, poison must not be touched
        self.control, bad, following = read_control(log, prefix)
        self.reads = needs(self.control.others)
        self.catalogue = Catalogue(embedding=self.reads.embedding)
        self._shared = SharedCounters.restore(rows, self.reads.online, self.reads.rhythm)
        self._reader: Reader = log.reader([self._counters_topic, self._items_topic, prefix + topics.CONTROL])
        starts = {(self._items_topic, p): -2 for p in items} | {(prefix + topics.CONTROL, 0): following}
        self._reader.assign({(self._counters_topic, 0): self._shared.next_offset, **starts})
        self._looked = self._saved = time.monotonic()
        self._outcomes = {"applied": 0, "duplicate": 0, "gap": 0, "overlap": 0}
        # Malformed records of these topics; one worker sends them to the dead letters
        self.malformed: list[tuple[Record, RecordError]] = bad

    @property
    def counters(self) -> CounterTable:
        """The counters of all users, as far as the topic is folded."""
        return self._shared.table

    @property
    def counters_offset(self) -> int:
        """Next offset of the counters topic to fold."""
        return self._shared.next_offset

    # Following

    def follow(self) -> None:
        """Fold what has come on the topics of counters and items."""
        now = time.monotonic()
        if now - self._looked < FOLLOW_S:
            return
        self._looked = now
        self._take()
        every = LEARNING_CHECKPOINT_S if self.reads.online else CHECKPOINT_S
        if now - self._saved > every and not self._health.waiting:
            self._checkpoint(now)

    def catch_up(self) -> None:
        """Fold both topics up to the ends that they have now. Raises LogUnavailable after ten minutes without an end."""
        t0 = time.monotonic()
        self._read_to_end(self._counters_topic, self._items_topic)
        log_.info(
            "counters of %d entities, catalogue of %d items, after %.2f s",
            len(self.counters),
            len(self.catalogue),
            time.monotonic() - t0,
        )

    def catch_up_counters(self) -> None:
        """The same for the counters alone: what the last owner of a partition has published is known then."""
        self._read_to_end(self._counters_topic)

    def _read_to_end(self, *names: str) -> None:
        ends = {(t, p): end for t in names for p, end in self._log.ends(t).items()}
        t0 = heard = said = time.monotonic()
        while any(self._next(tp) < end for tp, end in ends.items()):
            now = time.monotonic()
            if now - said > SAY_S:
                said = now
                left = sum(max(0, end - self._next(tp)) for tp, end in ends.items())
                log_.info("reading %s: %d records left after %.0f s", " and ".join(names), left, now - t0)
            if self._take(0.1):
                heard = now
            elif now - t0 > CATCH_UP_S:
                raise LogUnavailable(f"{' and '.join(names)} could not be read to the end in {CATCH_UP_S:.0f} s")
            elif now - heard > QUIET_S:
                self._log.ends(names[0])
                self._health.step()
                heard = now

    def _next(self, tp: TP) -> int:
        read = self._shared.next_offset if tp[0] == self._counters_topic else self._items_next[tp[1]]
        return max(read, self._reader.ended().get(tp, 0))

    def _take(self, timeout: float = 0.0) -> int:
        batch = self._reader.poll(10_000, timeout)
        if batch is None:
            return 0
        try:
            skipped = mask_skipped(batch, self._prefix, self.control.skips) if self.control.skips else {}
            for i in range(len(batch)):
                offset = int(batch.offset[i])
                try:
                    if batch.topic[i] == 0:
                        self._shared.fold(batch.value(i), offset)
                    elif batch.topic[i] == 2:
                        self.control.take(batch.key(i), batch.value(i))
                    else:
                        self._items_next[int(batch.partition[i])] = offset + 1
                        if i in skipped:
                            raise skipped[i][1]
                        self.catalogue.fold(batch.key(i), batch.value(i))
                except RecordError as e:
                    log_.error("%s offset %d is malformed (%s): left out", batch.topics[batch.topic[i]], offset, e)
                    self.malformed.append(skipped.get(i) or (batch.record(i), e))
                except Exception as e:
                    raise poisoned(batch, [i], e) from e
            return len(batch)
        finally:
            batch.release()
            self._health.step()
            self._report()

    def _report(self) -> None:
        c = self._shared.chains
        for outcome, n in (
            ("applied", c.ranges),
            ("duplicate", c.duplicates),
            ("gap", c.gaps),
            ("overlap", c.overlaps),
        ):
            if more := n - self._outcomes[outcome]:
                self._health.metrics.counter_ranges.labels(outcome).inc(more)
                self._outcomes[outcome] = n

    def _checkpoint(self, now: float) -> None:
        self._saved = now
        if self._store is None:
            return
        batch = WriteBatch(raw_mode=True)
        for k in self._shared.stale:
            batch.delete(k)
        for k, v in self._shared.checkpoint():
            batch.put(k, v)
        self._store.write(batch)

    def close(self) -> None:
        """Save the counters and close the readers."""
        self._checkpoint(time.monotonic())
        if self._store is not None:
            self._store.close()
        self._reader.close()


def _open_checkpoints(path: Path) -> Rdict | None:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(4 << 20)
    try:
        return Rdict(str(path), options, access_type=AccessType.read_write())
    except Exception as e:
        if "lock" not in str(e).lower():
            raise
        log_.info(
            "another worker keeps the counters' checkpoint of this data directory: this one reads them from the topic"
        )
        return None
