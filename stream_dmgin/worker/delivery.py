"""How scores and dead letters leave the worker: at least once (the default), or in Kafka transactions (`--exactly-once`).

At least once: an answer counts as given when it is durable; the store's row of answered requests and the group's offset follow
it. A crash in between repeats answers. Exactly once: answers, dead letters and the group's offsets of what they answer are one
transaction, committed every few tens of milliseconds and before every commit of the state; a consumer that reads committed
records sees each once. The group's offset is then the truth about requests, the store's row never ahead of it
(docs/adr/0008-rebalance.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from stream_dmgin.errors import Fenced, LogUnavailable
from stream_dmgin.log.base import TP, GroupReader, Headers, Transactions, Writer

Done = Callable[[], None]


class Delivery(Protocol):
    """What the loop needs. One thread."""

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers, partition: int | None, timestamp: int | None,
        done: Done | None,
    ) -> None:  # fmt: skip
        """Queue a record; `done` is called once it counts as delivered, and without it (a dead letter) the next commit of
        state waits for it. Raises RecordError for one that is too large."""

    def turn(self, now: float) -> None:
        """Once a turn of the loop. Raises LogUnavailable for what could not be written, Fenced."""

    def before_commit(self) -> None:
        """What the offsets of the commit that follows say is done must be so. Blocks. Raises LogUnavailable, Fenced."""

    def settle(self) -> None:
        """Wait until everything sent is durable. Raises LogUnavailable, Fenced."""

    def tell(self, offsets: Mapping[TP, int]) -> None:
        """Tell the group the offsets of a commit."""

    def lost(self) -> None:
        """The partitions have gone to others: take back what can still be taken back."""


class AtLeastOnce:
    """Through the plain writer."""

    def __init__(self, writer: Writer, reader: GroupReader) -> None:
        self._writer, self._reader = writer, reader
        self._undelivered = self._urgent = 0  # handed to the writer, not durable yet; and dead letters among them
        self._failed: BaseException | None = None

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers, partition: int | None, timestamp: int | None,
        done: Done | None,
    ) -> None:  # fmt: skip
        """See Delivery."""
        urgent = done is None

        def delivered(error: BaseException | None, tp: TP, offset: int) -> None:
            self._undelivered -= 1
            self._urgent -= urgent
            if error is not None:
                self._failed = error
            elif done is not None:
                done()

        self._writer.append(
            topic, key, value, headers=headers, partition=partition, timestamp=timestamp, on_delivery=delivered
        )
        self._undelivered += 1
        self._urgent += urgent

    def turn(self, now: float) -> None:
        """See Delivery."""
        self._check()

    def before_commit(self) -> None:
        """See Delivery."""
        if self._urgent:
            self.settle()

    def settle(self) -> None:
        """See Delivery."""
        if self._undelivered:
            self._writer.flush()
        self._check()

    def tell(self, offsets: Mapping[TP, int]) -> None:
        """See Delivery. Advisory: doesn't block."""
        self._reader.commit(offsets)

    def lost(self) -> None:
        """See Delivery: what was sent before is sent; another attempt of the same answers does no harm."""

    def _check(self) -> None:
        if self._failed is not None:
            raise LogUnavailable(f"a record could not be written to the log: {self._failed}")


class ExactlyOnce:
    """In transactions. `offsets()` says how far everything owned is folded and answered, with what was sent until now."""

    def __init__(
        self, transactions: Transactions, reader: GroupReader, offsets: Callable[[], dict[TP, int]], owned: Callable[[], bool],
        interval_s: float,
    ) -> None:  # fmt: skip
        self._transactions, self._reader, self._offsets, self._owned = transactions, reader, offsets, owned
        self._interval = interval_s
        self._due = 0.0
        self._told: dict[TP, int] = {}

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers, partition: int | None, timestamp: int | None,
        done: Done | None,
    ) -> None:  # fmt: skip
        """See Delivery: in a transaction, sent is as good as done."""
        if not self._transactions.open:
            self._due = time.monotonic() + self._interval
        self._transactions.append(topic, key, value, headers=headers, partition=partition, timestamp=timestamp)
        if done is not None:
            done()

    def turn(self, now: float) -> None:
        """See Delivery. Blocks for some milliseconds when a transaction is due."""
        if self._transactions.open and now >= self._due:
            self.settle()

    def before_commit(self) -> None:
        """See Delivery."""
        self.settle()

    def settle(self) -> None:
        """See Delivery."""
        offsets = self._offsets()
        if not offsets:  # nothing is owned: what may be open was for partitions that have gone
            self._told = {}
            self._transactions.abort()
            return
        changed = {tp: o for tp, o in offsets.items() if self._told.get(tp) != o}
        if changed or self._transactions.open:
            self._reader.confirm()
            # The fence is in the offsets: the broker takes a transaction without any from anybody
            self._transactions.commit(changed or offsets, self._reader.group_metadata())
            self._told = offsets

    def tell(self, offsets: Mapping[TP, int]) -> None:
        """See Delivery: told in the transaction already."""

    def lost(self) -> None:
        """See Delivery. Raises Fenced where partitions are left whose answers were taken back as well."""
        self._told = {}
        if self._transactions.open:
            self._transactions.abort()
            if self._owned():
                raise Fenced("some partitions were lost, and a transaction with answers of others was aborted")
