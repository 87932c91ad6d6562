"""The writer to a real Kafka: confluent-kafka's idempotent producer, with Java's partitioner and bounded back-pressure."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from stream_dmgin.errors import LogUnavailable, RecordError
from stream_dmgin.log.base import Delivered, Headers
from stream_dmgin.log.rdkafka import RateLimitedLog

logger = logging.getLogger(__name__)

MESSAGE_MAX = 12 << 20  # bytes; the topic's own max.message.bytes is checked first
OVERHEAD = 128  # bytes of a batch around one record, at most
CLOSE_S = 10.0
FULL_S = 60.0  # how long `append` waits for room before it gives up


class LibraryLog:
    """What confluent-kafka takes as `logger`: librdkafka's lines, rate limited."""

    def __init__(self, target: logging.Logger) -> None:
        self._limited = RateLimitedLog(target)

    def log(self, level: int, text: str, *args: Any) -> None:
        """A line; Python's logging levels, and librdkafka's facility first among the arguments."""
        syslog = 3 if level >= logging.ERROR else 4 if level >= logging.WARNING else 6 if level >= logging.INFO else 7
        self._limited(syslog, str(args[0]) if args else "", str(args[-1]) if args else text)


class KafkaWriter:
    """See base.Writer. One thread."""

    def __init__(self, settings: Mapping[str, str], limit_of: Callable[[str], int], linger_ms: float = 5) -> None:
        """`limit_of`: the max.message.bytes of a topic; raises UsageError for one that doesn't exist."""
        self._limit_of = limit_of
        self._limits: dict[str, int] = {}
        self._failure: BaseException | None = None
        self._failed = 0
        base: dict[str, Any] = {
            "partitioner": "murmur2_random", "enable.idempotence": True, "linger.ms": linger_ms, "message.max.bytes": MESSAGE_MAX,
            "queue.buffering.max.messages": 500_000, "queue.buffering.max.kbytes": 131_072, "reconnect.backoff.max.ms": 1000,
            "socket.nagle.disable": True,
        }  # fmt: skip
        self._conf = {**base, **settings, "on_delivery": self._done}
        self._producer = self._make()

    def _make(self) -> Producer:
        return Producer(self._conf, logger=LibraryLog(logger))

    def append(
        self, topic: str, key: bytes | None, value: bytes | None, *, timestamp: int | None = None,
        headers: Headers = (), partition: int | None = None, on_delivery: Delivered | None = None,
    ) -> None:  # fmt: skip
        """See base.Writer. Raises LogUnavailable when the queue stays full for a minute."""
        limit = self._limits.get(topic)
        if limit is None:
            limit = self._limits[topic] = min(self._limit_of(topic), MESSAGE_MAX)
        size = OVERHEAD + len(key or b"") + len(value or b"") + sum(len(k) + len(v) + 8 for k, v in headers)
        if size > limit:
            raise RecordError(
                "too_large", f"{topic}: a record of {size} bytes; the topic's max.message.bytes is {limit}"
            )
        more: dict[str, Any] = {}
        if timestamp is not None:
            more["timestamp"] = timestamp
        if headers:
            more["headers"] = list(headers)
        if partition is not None:
            more["partition"] = partition
        if on_delivery is not None:
            more["on_delivery"] = _tell(on_delivery)
        end = 0.0
        while True:
            try:
                self._producer.produce(topic, value, key, **more)
                return
            except BufferError:
                end = end or time.monotonic() + FULL_S
                if time.monotonic() > end:
                    raise LogUnavailable(
                        f"{topic}: the queue to Kafka stayed full for {FULL_S:g} s: does the broker answer?"
                    ) from None
                self._producer.poll(0.05)
            except KafkaException as e:
                raise _error(e.args[0], topic) from None

    def poll(self) -> None:
        """Serve delivery callbacks."""
        self._producer.poll(0)

    def flush(self, timeout: float = 30.0) -> None:
        """See base.Writer. Raises also for records that failed since the last flush and had no callback of their own."""
        left = self._producer.flush(timeout)
        failure, failed, self._failure, self._failed = self._failure, self._failed, None, 0
        if failure is not None:
            raise LogUnavailable(f"{failed} records were not written: {failure}") from failure
        if left:
            raise LogUnavailable(f"{left} records were not written in {timeout:g} s: does the broker answer?")

    def close(self) -> None:
        """Flush (10 s at most) and close. Raises LogUnavailable for what could not be written."""
        try:
            self.flush(CLOSE_S)
        finally:
            self._producer.purge()
            self._producer.flush(1.0)

    def _done(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failed += 1
            self._failure = self._failure or _error(error, str(message.topic()))


def _tell(on_delivery: Delivered) -> Callable[[KafkaError | None, Message], None]:
    def done(error: KafkaError | None, message: Message) -> None:
        tp = (str(message.topic()), -1 if message.partition() is None else int(message.partition() or 0))
        offset = message.offset()
        on_delivery(None if error is None else _error(error, tp[0]), tp, -1 if offset is None else int(offset))

    return done


def _error(error: KafkaError, topic: str) -> RecordError | LogUnavailable:
    if error.code() in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE):
        return RecordError("too_large", f"{topic}: {error.str()}; raise the topic's max.message.bytes")
    return LogUnavailable(f"{topic}: {error.name()}: {error.str()}")
