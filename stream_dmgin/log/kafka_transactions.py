"""Records and a group's offsets in Kafka transactions: a writer whose records appear together, or not at all."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from stream_dmgin.errors import Fenced, LogUnavailable
from stream_dmgin.log.base import TP, Delivered, Headers
from stream_dmgin.log.kafka_writer import KafkaWriter

logger = logging.getLogger(__name__)

TIMEOUT_MS = 10_000  # the broker aborts a transaction that its producer left open, after this and up to 10 s more
STEP_S = 5.0  # one attempt at a request of a transaction
PATIENCE_S = 60.0  # until a broker that is away is an error


class KafkaTransactions(KafkaWriter):
    """See base.Transactions. One thread. `transactional_id`: one process at a time; a successor with the same ends what this
    one left open."""

    def __init__(self, settings: Mapping[str, str], limit_of: Callable[[str], int], transactional_id: str) -> None:
        """Blocks until the broker has ended what was left open. Raises LogUnavailable."""
        own = {"transaction.timeout.ms": str(TIMEOUT_MS), **settings, "transactional.id": transactional_id}
        self.open = False
        super().__init__(own, limit_of, linger_ms=0)
        self._patiently(self._producer.init_transactions)

    def append(
        self, topic: str, key: bytes | None, value: bytes | None, *, timestamp: int | None = None,
        headers: Headers = (), partition: int | None = None, on_delivery: Delivered | None = None,
    ) -> None:  # fmt: skip
        """See base.Writer."""
        self._begin()
        super().append(
            topic, key, value, timestamp=timestamp, headers=headers, partition=partition, on_delivery=on_delivery
        )

    def commit(self, offsets: Mapping[TP, int], group_metadata: bytes) -> None:
        """See base.Transactions."""
        if not offsets:
            raise ValueError("a transaction without offsets has no fence")
        self._begin()
        positions = [TopicPartition(t, p, o) for (t, p), o in offsets.items()]
        try:
            self._patiently(lambda s: self._producer.send_offsets_to_transaction(positions, group_metadata, s))
            self._patiently(self._producer.commit_transaction)
        except KafkaException as e:
            self.abort()
            raise Fenced(f"a transaction was refused ({e.args[0].name()}: {e.args[0].str()}) and taken back") from None
        self.open = False
        self._failure, self._failed = None, 0

    def abort(self) -> None:
        """See base.Transactions. Where even that is refused, a new producer begins anew, which aborts as well."""
        if not self.open:
            return
        self.open = False
        try:
            self._patiently(self._producer.abort_transaction)
        except KafkaException as e:
            logger.warning("a transaction could not be aborted (%s): beginning anew", e.args[0].str())
            self._producer = self._make()
            self._patiently(self._producer.init_transactions)
        self._failure, self._failed = None, 0

    def flush(self, timeout: float = 30.0) -> None:
        """Nothing is durable before `commit`."""

    def close(self) -> None:
        """Take back what is open."""
        self.abort()

    def _begin(self) -> None:
        if self.open:
            return
        try:
            self._producer.begin_transaction()
        except KafkaException as e:  # fenced by a successor, or the broker has lost patience with the last one
            logger.warning("no transaction can be begun (%s): beginning anew", e.args[0].str())
            self._producer = self._make()
            self._patiently(self._producer.init_transactions)
            self._producer.begin_transaction()
        self.open = True

    def _patiently(self, request: Callable[[float], Any]) -> None:
        """Ask again while the broker is away. Raises LogUnavailable, and KafkaException for what doesn't mend itself."""
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                request(STEP_S)
                return
            except KafkaException as e:
                error: KafkaError = e.args[0]
                if not error.retriable() or error.txn_requires_abort() or error.fatal():
                    raise
                if time.monotonic() > end:
                    raise LogUnavailable(
                        f"no transaction in {PATIENCE_S:g} s: does the broker answer? {error.str()}"
                    ) from None
                time.sleep(0.05)
