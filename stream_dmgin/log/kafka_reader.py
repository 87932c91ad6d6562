"""Reads assigned partitions of a real Kafka over librdkafka; `kafka_group.py` has the member of a consumer group.

HOT PATH. `poll` blocks only for the first record; `release` gives the messages back. Per record (one core): librdkafka's
threads 0.3 us, this file 0.05 us.
"""

from __future__ import annotations

import ctypes as C
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.errors import LogUnavailable, UnavailableError
from stream_dmgin.log import rdkafka
from stream_dmgin.log.base import TP, Batch

logger = logging.getLogger(__name__)

CLOSE_S = 5.0
_ABANDONED: list[Any] = []  # callbacks of handles that are still going down


class KafkaReader:
    """Reads assigned partitions, in no group."""

    def __init__(
        self, settings: Mapping[str, str], topics: Sequence[str], rebalance: Callable[..., None] | None = None
    ) -> None:
        self._lib = lib = rdkafka.library()
        rdkafka.warm()
        self.topics = tuple(topics)
        self._number = {t: i for i, t in enumerate(self.topics)}
        self._log = rdkafka.RateLimitedLog(logger)
        self._callbacks: list[Any] = [rdkafka.LogCb(self._on_log)]  # ctypes callbacks must outlive the handle
        conf = rdkafka.make_conf({"log.queue": "true", **settings})
        lib.conf_set_log_cb(conf, self._callbacks[0])
        if rebalance is not None:
            self._callbacks.append(rdkafka.RebalanceCb(rebalance))
            lib.conf_set_rebalance_cb(conf, self._callbacks[1])
        error = C.create_string_buffer(512)
        self._rk = lib.new(1, conf, error, 512)
        if not self._rk:
            lib.conf_destroy(conf)
            raise UnavailableError(f"librdkafka: {error.value.decode(errors='replace')}")
        lib.poll_set_consumer(self._rk)
        lib.set_log_queue(self._rk, None)  # log lines come through poll, on our thread
        self._queue = lib.queue_get_consumer(self._rk)
        self._timestamp_fn = rdkafka.address_of(lib.message_timestamp)
        self._destroy_fn = rdkafka.address_of(lib.message_destroy)
        self._buffer: NDArray[np.uint64] = np.empty(1024, np.uint64)
        self._rkts: NDArray[np.uint64] = np.empty(rdkafka.TOPICS_MAX, np.uint64)
        self._out: Callable[[], None] | None = None  # releases the batch that is out
        self._paused: set[TP] = set()  # librdkafka remembers pauses, of partitions that went away as well
        self._assigned: dict[TP, int] = {}  # and the offset where each began
        self._ended: dict[TP, int] = {}

    # -- what the protocol asks ---------------------------------------------------------------------------------------

    def assign(self, offsets: Mapping[TP, int]) -> None:
        """Read these partitions from these offsets, replacing what was assigned."""
        self._assigned, self._ended = dict(offsets), {}
        self._check(self._with_list(offsets, lambda parts: self._lib.assign(self._rk, parts)), "assigning partitions")
        self._forget_pauses()

    def poll(self, max_records: int, timeout: float) -> Batch | None:
        """See base.Reader. Waits for the first record only, then takes what librdkafka holds already."""
        if self._out is not None:
            self._out()
        if len(self._buffer) < max_records:
            self._buffer = np.empty(max_records, np.uint64)
        end = time.monotonic() + timeout
        while True:
            self._serve()
            wait = max(0, round((end - time.monotonic()) * 1000))
            first = self._lib.consumer_poll(self._rk, wait)
            if first:
                batch = self._collect(first, max_records)
                if batch is not None:
                    return batch
            elif not self._waiting() and time.monotonic() >= end:
                return None

    def pause(self, partitions: Iterable[TP]) -> None:
        """Deliver nothing of these until `resume`. A new assignment forgets it."""
        parts = list(partitions)
        self._paused.update(parts)
        self._check(self._with_list(parts, lambda p: self._lib.pause_partitions(self._rk, p)), "pausing")

    def resume(self, partitions: Iterable[TP]) -> None:
        """Deliver again."""
        parts = list(partitions)
        self._paused.difference_update(parts)
        self._check(self._with_list(parts, lambda p: self._lib.resume_partitions(self._rk, p)), "resuming")

    def ended(self) -> Mapping[TP, int]:
        """See base.Reader. librdkafka says it in its place among the messages, once for each end that is reached."""
        return self._ended

    def close(self) -> None:
        """Release what is out and close. Idempotent."""
        if not self._rk:
            return
        if self._out is not None:
            self._out()
        self._lib.assign(self._rk, None)
        queue = self._lib.queue_new(self._rk)  # consumer_close() itself may block for a minute while no broker answers
        error = self._lib.consumer_close_queue(self._rk, queue)
        end = time.monotonic() + CLOSE_S
        while not error and not self._lib.consumer_closed(self._rk) and time.monotonic() < end:
            self._serve_queue(queue, 20)
        if error:
            self._lib.error_destroy(error)
        for q in (queue, self._queue):
            self._lib.queue_destroy(q)
        if self._lib.consumer_closed(self._rk):
            self._lib.destroy_flags(self._rk, 0)
        else:  # no broker answers: librdkafka waits for its requests to time out, we don't
            own = (self._rk, rdkafka.DESTROY_AT_ONCE)
            threading.Thread(target=self._lib.destroy_flags, args=own, name="librdkafka-destroy", daemon=True).start()
            _ABANDONED.append(self._callbacks)
        self._rk = None

    # -- within -------------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Before each wait: what callbacks noted."""

    def _waiting(self) -> bool:
        """Whether callbacks noted something that `_serve` must see first."""
        return False

    def _collect(self, first: int, max_records: int) -> Batch | None:
        """The batch that begins with `first`; None when all of it were errors that need no answer."""
        self._buffer[0] = first
        n = 1
        if max_records > 1:
            more = self._lib.consume_batch_queue(self._queue, 0, self._buffer.ctypes.data + 8, max_records - 1)
            n += max(0, more)
        messages = self._buffer[:n].copy()
        i32, i64, u64 = np.empty((4, n), np.int32), np.empty((2, n), np.int64), np.empty((2, n), np.uint64)
        topic: NDArray[np.uint8] = np.empty(n, np.uint8)
        err, partition, key_len, value_len = i32
        offset, timestamp = i64
        key_addr, value_addr = u64
        n_topics, n_errors = rdkafka.columns(
            messages,
            self._timestamp_fn,
            err,
            self._rkts,
            topic,
            partition,
            offset,
            timestamp,
            key_addr,
            key_len,
            value_addr,
            value_len,
        )
        keep: NDArray[np.intp] | None = None
        try:
            if n_topics < 0:
                raise LogUnavailable(f"a batch holds more than {rdkafka.TOPICS_MAX} topics")
            if n_errors:
                n_errors -= self._note_ends(np.flatnonzero(err == rdkafka.ERR_PARTITION_EOF), topic, partition, offset)
                keep = np.flatnonzero(err == 0)
            if n_errors:
                self._on_errors(
                    [int(messages[i]) for i in np.flatnonzero((err != 0) & (err != rdkafka.ERR_PARTITION_EOF))]
                )
            topic = self._numbers(n_topics, topic, keep)
        except BaseException:
            rdkafka.destroy_all(messages, self._destroy_fn)
            raise
        released = False

        def release() -> None:
            nonlocal released
            if not released:
                released, self._out = True, None
                rdkafka.destroy_all(messages, self._destroy_fn)

        if keep is None:
            cols, at = (topic, partition, offset, timestamp, key_addr, key_len, value_addr, value_len), messages
        elif len(keep) == 0:
            release()
            return None
        else:
            cols = tuple(
                c[keep] for c in (topic, partition, offset, timestamp, key_addr, key_len, value_addr, value_len)
            )  # type: ignore[assignment]
            at = messages[keep]
        self._out = release
        return Batch(self.topics, *cols, headers_of=lambda i: rdkafka.headers(int(at[i])), on_release=release)

    def _note_ends(
        self, at: NDArray[np.intp], topic: NDArray[np.uint8], partition: NDArray[np.int32], offset: NDArray[np.int64]
    ) -> int:
        """Rows that say "no more": of each the end. Returns how many."""
        for k, p, o in zip(topic[at].tolist(), partition[at].tolist(), offset[at].tolist(), strict=True):
            tp = self._lib.topic_name(int(self._rkts[k])).decode(), p
            if tp in self._assigned:
                self._ended[tp] = o
        return len(at)

    def _numbers(self, n_topics: int, topic: NDArray[np.uint8], keep: NDArray[np.intp] | None) -> NDArray[np.uint8]:
        """Local topic numbers of one batch to indexes of `topics`. Addresses are only valid within a batch: a topic that went
        may leave its address to another."""
        numbers = np.zeros(max(1, n_topics), np.uint8)
        used = set(range(n_topics)) if keep is None else set(np.unique(topic[keep]).tolist())
        for k in used:
            numbers[k] = self._number[self._lib.topic_name(int(self._rkts[k])).decode()]
        return numbers[topic]

    def _on_errors(self, messages: list[int]) -> None:
        """Messages that are errors. Raises LogUnavailable for what can't mend itself."""
        gone: dict[TP, int] = {}
        for message in messages:
            m = C.cast(message, C.POINTER(rdkafka.Message)).contents
            code = int(m.err)
            text = C.string_at(m.payload, m.len).decode(errors="replace") if m.payload else ""
            if code in (rdkafka.ERR_AUTO_OFFSET_RESET, 1, rdkafka.ERR_NO_OFFSET) and m.rkt:
                gone[self._lib.topic_name(m.rkt).decode(), int(m.partition)] = int(m.offset)
            elif code == rdkafka.ERR_MAX_POLL:
                logger.warning(
                    "max.poll.interval.ms passed without a poll: the group takes this member's partitions away"
                )
            elif code in rdkafka.TRANSIENT or code in rdkafka.FENCING or code == 27:
                self._log(4, rdkafka.error_text(code).split(":")[0], text or rdkafka.error_text(code))
            else:
                raise rdkafka.unavailable(code, f"reading {', '.join(self.topics)}" + (f" ({text})" if text else ""))
        gone = {tp: offset for tp, offset in gone.items() if tp in self._assigned}
        if gone:
            self._restart({tp: self._first_kept(tp, offset) for tp, offset in gone.items()})

    def _first_kept(self, tp: TP, asked: int) -> int:
        """Where to go on when offset `asked` isn't in the log any more. Raises LogUnavailable when it lies past the end."""
        low, high = C.c_int64(), C.c_int64()
        code = self._lib.query_watermark_offsets(self._rk, tp[0].encode(), tp[1], C.byref(low), C.byref(high), 10_000)
        self._check(code, f"asking for the offsets of {tp[0]}/{tp[1]}")
        if asked > high.value:
            raise LogUnavailable(
                f"{tp[0]} partition {tp[1]} ends at offset {high.value}, but the store has read up to {asked}: the topic was "
                "created anew or the log lost its end. Give the old log, or rebuild the state from this one"
            )
        logger.warning("%s/%d: offset %d is no longer kept, going on at %d", *tp, asked, low.value)
        return int(low.value)

    def _restart(self, offsets: Mapping[TP, int]) -> None:
        """Fetch these from other offsets. An error stops a partition for good (seeking doesn't wake it), so all are assigned
        again, the others from where they were."""
        positions = {tp: o for tp, o in self._positions().items() if o >= 0}
        self._ended = {}
        self._assigned = {**self._assigned, **positions, **offsets}
        self._check(
            self._with_list(self._assigned, lambda p: self._lib.assign(self._rk, p)), "assigning partitions again"
        )

    def _serve_queue(self, queue: int, milliseconds: int) -> None:
        """Run the callbacks that wait in a queue of our own; messages that come with them aren't wanted any more.
        (rd_kafka_queue_poll_callback would abort the process on a message.)"""
        unwanted = (C.c_void_p * 16)()
        for i in range(max(0, self._lib.consume_batch_queue(queue, milliseconds, unwanted, 16))):
            self._lib.message_destroy(unwanted[i])

    def _forget_pauses(self) -> None:
        again = [tp for tp in self._paused if tp in self._assigned]
        if again:
            self.resume(again)

    def _positions(self) -> dict[TP, int]:
        def ask(parts: Any) -> dict[TP, int]:
            self._check(self._lib.position(self._rk, parts), "asking for positions")
            return {tp: offset for tp, offset, _ in rdkafka.read_list(parts)}

        found: dict[TP, int] = self._with_list(self._assigned, ask)
        return found

    def _with_list(self, offsets: Mapping[TP, int] | Iterable[TP], call: Callable[[Any], Any]) -> Any:
        parts = rdkafka.make_list(offsets)
        try:
            return call(parts)
        finally:
            self._lib.topic_partition_list_destroy(parts)

    def _check(self, code: int, doing: str) -> None:
        if code:
            raise rdkafka.unavailable(code, doing)

    def _check_error(self, error: int | None, doing: str) -> None:
        if error:
            text = self._lib.error_string(error).decode(errors="replace")
            self._lib.error_destroy(error)
            raise LogUnavailable(f"{doing}: {text}")

    def _on_log(self, rk: int, level: int, facility: bytes, text: bytes) -> None:
        self._log(level, facility.decode(errors="replace"), text.decode(errors="replace"))
