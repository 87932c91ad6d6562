"""The writer of the embedded log: records gather for `linger_ms`, then go out as one frame a partition."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from stream_dmgin.errors import LogUnavailable, RecordError
from stream_dmgin.log import frames
from stream_dmgin.log.base import TP, Delivered, Headers
from stream_dmgin.log.embedded_files import TopicFiles
from stream_dmgin.log.murmur2 import partition_of

FRAME_BYTES = 1 << 20  # a partition's records go out once there are so many bytes
PLACES_MAX = 200_000  # remembered partitions of keys


class _Buffer:
    """What waits for one partition."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.bytes = 0
        self.max_ts = frames.NO_TS
        self.told: list[tuple[int, Delivered]] = []  # (index in records, callback)


class EmbeddedWriter:
    """See base.Writer. A thread of its own writes what has lingered, so that nobody needs to poll."""

    def __init__(self, files_of: Callable[[str], TopicFiles], linger_ms: float = 5) -> None:
        self._files_of = files_of
        self._linger = linger_ms / 1000
        self._topics: dict[str, tuple[TopicFiles, int]] = {}  # and max.message.bytes
        self._buffers: dict[TP, _Buffer] = {}
        self._places: dict[tuple[bytes, int], int] = {}
        self._turn = 0
        self._done: deque[tuple[Delivered, BaseException | None, TP, int]] = deque()
        self._failure: BaseException | None = None
        self._lock = threading.Lock()  # buffers
        self._io = threading.Lock()  # files; taken before _lock
        self._dirty, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def append(
        self, topic: str, key: bytes | None, value: bytes | None, *, timestamp: int | None = None,
        headers: Headers = (), partition: int | None = None, on_delivery: Delivered | None = None,
    ) -> None:  # fmt: skip
        """See base.Writer."""
        if topic not in self._topics:
            files = self._files_of(topic)
            self._topics[topic] = files, int(files.info.config["max.message.bytes"])
        files, limit = self._topics[topic]
        ts = int(time.time() * 1000) if timestamp is None else timestamp
        record = frames.pack_record(key, value, ts, headers)
        if len(record) + 128 > limit:
            raise RecordError(
                "too_large", f"{topic}: a record of {len(record)} bytes; the topic's max.message.bytes is {limit}"
            )
        if partition is None:
            partition = self._place(key, files.info.partitions)
        elif not 0 <= partition < files.info.partitions:
            raise ValueError(f"{topic} has no partition {partition}")
        tp = (topic, partition)
        with self._lock:
            b = self._buffers.get(tp)
            if b is None:
                b = self._buffers[tp] = _Buffer()
            if on_delivery is not None:
                b.told.append((len(b.records), on_delivery))
            b.records.append(record)
            b.bytes += len(record)
            b.max_ts = max(b.max_ts, ts)
            full = b.bytes >= FRAME_BYTES
        if full or self._linger <= 0:
            self._write([tp])
        elif not self._dirty.is_set():
            self._dirty.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="embedded-log-writer", daemon=True)
                self._thread.start()

    def poll(self) -> None:
        """Serve delivery callbacks."""
        while self._done:
            told, error, tp, offset = self._done.popleft()
            told(error, tp, offset)

    def flush(self, timeout: float = 30.0) -> None:
        """See base.Writer. Raises also for records that failed since the last flush and had no callback of their own."""
        self._write(None)
        self.poll()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise LogUnavailable(str(failure)) from failure

    def close(self) -> None:
        """Flush and close."""
        self._stop.set()
        self._dirty.set()
        if self._thread is not None:
            self._thread.join()
        self.flush()

    def _place(self, key: bytes | None, partitions: int) -> int:
        if key is None:
            self._turn += 1
            return self._turn % partitions
        place = self._places.get((key, partitions))
        if place is None:
            if len(self._places) >= PLACES_MAX:
                self._places.clear()
            place = self._places[key, partitions] = partition_of(key, partitions)
        return place

    def _run(self) -> None:
        while not self._stop.is_set():
            self._dirty.wait()
            self._stop.wait(self._linger)
            self._dirty.clear()
            self._write(None)

    def _write(self, only: list[TP] | None) -> None:
        with self._io:
            with self._lock:
                out = {
                    tp: self._buffers.pop(tp)
                    for tp in (list(self._buffers) if only is None else only)
                    if tp in self._buffers
                }
            for tp, b in out.items():
                first, error = -1, None
                try:
                    first = self._topics[tp[0]][0].append(tp[1], b.records, b.max_ts)
                except (
                    Exception
                ) as e:  # told to whoever asked for delivery, or raised by flush: never lost in the thread
                    error = e
                    if len(b.told) < len(b.records):
                        self._failure = self._failure or e
                self._done.extend((told, error, tp, -1 if error else first + i) for i, told in b.told)
