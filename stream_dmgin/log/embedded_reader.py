"""Readers of the embedded log: files mapped into memory, records read in place.

HOT PATH. An idle reader looks at one commit word a partition (a shared mapping) every 0.5 to 2 ms: under 1 % of a core.
Per record about 15 ns of this file.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.errors import LogUnavailable
from stream_dmgin.log import frames
from stream_dmgin.log.base import TP, Batch, GroupListener, Headers
from stream_dmgin.log.embedded_files import TopicFiles, write_json

WINDOW_BYTES = 64 << 20  # of a file, mapped at once
FRAME_MAX = 16 << 20  # bytes of the largest frame
NAPS = ((0.05, 0.0005), (2.0, 0.001), (float("inf"), 0.002))  # idle for less than so long: sleep so long
GROUP_NAP = 0.05
END = -1


class EmbeddedReader:
    """Reads assigned partitions."""

    def __init__(self, topics: Mapping[str, TopicFiles]) -> None:
        self.topics = tuple(topics)
        self._files = dict(topics)
        self._rows: list[TP] = []
        self._set_rows([])

    def assign(self, offsets: Mapping[TP, int]) -> None:
        """See base.Reader. Raises LogUnavailable for an offset past the end."""
        self._set_rows(sorted(offsets, key=lambda tp: (self.topics.index(tp[0]), tp[1])))
        for row, (topic, partition) in enumerate(self._rows):
            files, offset = self._files[topic], max(0, offsets[topic, partition])
            end = files.tail(partition)[0]
            if offsets[topic, partition] == END:
                offset = end
            if offset > end:
                raise LogUnavailable(
                    f"{topic} partition {partition} ends at offset {end}, but the store has read up to {offset}: the log was "
                    "created anew or lost its end. Give the old log, or rebuild the state from this one"
                )
            at, first = files.position(partition, offset)
            c = self._cursors[row]
            c[frames.POS] = c[frames.FRAME_END] = at - frames.TAIL_BYTES if at else 0
            c[frames.NEXT] = max(offset, first)
            self._heads[row] = files.head_address(partition)

    def poll(self, max_records: int, timeout: float) -> Batch | None:
        """See base.Reader."""
        start = time.monotonic()
        while True:
            ready = frames.refresh(self._cursors, self._heads, self._paused, self._order)
            if ready:
                batch = self._read(self._order[:ready], max_records)
                if batch is not None:
                    return batch
            idle = time.monotonic() - start
            if idle >= timeout:
                return None
            idle_long = start + idle - self._last
            nap = next(nap for below, nap in NAPS if idle_long < below)
            time.sleep(min(nap, timeout - idle))

    def pause(self, partitions: Iterable[TP]) -> None:
        """Deliver nothing of these until `resume`. A new assignment forgets it."""
        for tp in partitions:
            self._paused[self._rows.index(tp)] = True

    def ended(self) -> Mapping[TP, int]:
        """Nothing to tell: offsets have no gaps."""
        return {}

    def resume(self, partitions: Iterable[TP]) -> None:
        """Deliver again."""
        for tp in partitions:
            self._paused[self._rows.index(tp)] = False

    def close(self) -> None:
        """Let the mappings go."""
        self._set_rows([])

    def _set_rows(self, rows: list[TP]) -> None:
        n = len(rows)
        self._rows = rows
        self._cursors: NDArray[np.int64] = np.zeros((n, frames.CURSOR), np.int64)
        self._heads: NDArray[np.uint64] = np.zeros(n, np.uint64)
        self._paused: NDArray[np.bool_] = np.zeros(n, np.bool_)
        self._order: NDArray[np.int64] = np.zeros(n, np.int64)
        self._windows: list[NDArray[np.uint8] | None] = [None] * n
        self._topic_of: NDArray[np.uint8] = np.array([self.topics.index(t) for t, _ in rows], np.uint8)
        self._partition_of: NDArray[np.int32] = np.array([p for _, p in rows], np.int32)
        self._last = time.monotonic()

    def _read(self, order: NDArray[np.int64], max_records: int) -> Batch | None:
        """What is there; None when all of it lay before the offsets asked for."""
        for row in order:
            self._map(int(row))
        before = int(self._cursors[order, frames.POS].sum())
        source, key_len, value_len, head_len = np.empty((4, max_records), np.int32)
        offset, timestamp = np.empty((2, max_records), np.int64)
        key_addr, value_addr = np.empty((2, max_records), np.uint64)
        n = frames.read(
            self._cursors, order, max_records, source, offset, timestamp, key_addr, key_len, value_addr, value_len, head_len
        )  # fmt: skip
        if n <= 0:
            if n == 0 and before < int(self._cursors[order, frames.POS].sum()):
                return None
            row = -1 - n if n < 0 else int(order[0])
            topic, partition = self._rows[row]
            raise self._files[topic].corrupt(partition, int(self._cursors[row, frames.POS]))
        self._last = time.monotonic()
        rows = source[:n]
        return Batch(
            self.topics, self._topic_of[rows], self._partition_of[rows], offset[:n], timestamp[:n],
            key_addr[:n], key_len[:n], value_addr[:n], value_len[:n],
            headers_of=_headers_of(value_addr, value_len, head_len),
            owner=tuple(self._windows),
        )  # fmt: skip

    def _map(self, row: int) -> None:
        """Make sure that the next frames of a row are mapped."""
        c = self._cursors[row]
        at, limit = int(c[frames.POS]), int(c[frames.LIMIT])
        if c[frames.WINDOW] >= min(limit, at + FRAME_MAX + frames.TAIL_BYTES):
            return
        topic, partition = self._rows[row]
        fd = self._files[topic].fd(partition)
        begin = at // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        length = min(os.fstat(fd).st_size - begin, WINDOW_BYTES)
        if begin + length < min(limit, at + FRAME_MAX):
            raise self._files[topic].corrupt(partition, begin + max(0, length))
        window = np.frombuffer(mmap.mmap(fd, length, access=mmap.ACCESS_READ, offset=begin), np.uint8)
        self._windows[row] = window
        c[frames.BASE], c[frames.WINDOW] = window.ctypes.data - begin, begin + length


def _headers_of(
    value_addr: NDArray[np.uint64], value_len: NDArray[np.int32], head_len: NDArray[np.int32]
) -> Callable[[int], Headers]:
    def headers_of(i: int) -> Headers:
        n = int(head_len[i])
        return frames.unpack_headers(ctypes.string_at(int(value_addr[i]) + max(0, int(value_len[i])), n)) if n else ()

    return headers_of


class EmbeddedGroupReader(EmbeddedReader):
    """A member of a group: whoever holds the group's lock file owns all partitions, the others wait their turn.

    The lock goes with the process however it ends, and can't be taken away from a living one: `commit` never finds itself
    fenced.
    """

    def __init__(self, topics: Mapping[str, TopicFiles], group: Path, listener: GroupListener) -> None:
        super().__init__(topics)
        self._listener = listener
        self._state = group.with_name(group.name + ".json")
        self._lock: IO[str] | None = open(group.with_name(group.name + ".lock"), "a+")  # noqa: SIM115 - held for life
        self._owner = False
        self._committed: dict[str, dict[str, int]] = {}

    def poll(self, max_records: int, timeout: float) -> Batch | None:
        """See base.Reader; while another member owns the partitions: waits `timeout` for its turn and returns None."""
        end = time.monotonic() + timeout
        while not self._owner:
            if self._take():
                partitions = [(t, p) for t, files in self._files.items() for p in range(files.info.partitions)]
                offsets = self._listener.assigned(partitions)
                super().assign({tp: offsets.get(tp, 0) for tp in partitions})
                break
            left = end - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(GROUP_NAP, left))
        return super().poll(max_records, max(0.0, end - time.monotonic()))

    def assign(self, offsets: Mapping[TP, int]) -> None:
        """Not for a member: the group assigns."""
        raise TypeError("a group member's partitions come from the group")

    @property
    def eager(self) -> bool:
        """See base.GroupReader: what goes, goes for good."""
        return False

    def confirm(self) -> None:
        """See base.GroupReader: the lock can't be lost."""

    def group_metadata(self) -> bytes:
        """See base.GroupReader: no transactions here."""
        return b""

    def member(self) -> str:
        """See base.GroupReader: members have no names here."""
        return ""

    def reread(self, offsets: Mapping[TP, int]) -> None:
        """See base.GroupReader."""
        paused = [tp for tp, p in zip(self._rows, self._paused.tolist(), strict=True) if p]
        now = dict(zip(self._rows, self._cursors[:, frames.NEXT].tolist(), strict=True))
        super().assign({**now, **offsets})
        self.pause(paused)

    def rejoin(self) -> None:
        """See base.GroupReader: never fenced."""

    def commit(self, offsets: Mapping[TP, int]) -> None:
        """See base.GroupReader: replaces a small file."""
        for (topic, partition), offset in offsets.items():
            self._committed.setdefault(topic, {})[str(partition)] = offset
        write_json(self._state, self._committed)

    def committed(self, partitions: Iterable[TP]) -> dict[TP, int]:
        """See base.GroupReader."""
        return {(t, p): self._committed.get(t, {}).get(str(p), -1) for t, p in partitions}

    def close(self) -> None:
        """Revoke (through the listener) and let the next member have its turn."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        try:
            if self._owner:
                self._listener.revoked(list(self._rows))
        finally:
            self._owner = False
            super().close()
            lock.close()

    def _take(self) -> bool:
        assert self._lock is not None, "closed"
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self._owner = True
        if self._state.exists():
            self._committed = json.loads(self._state.read_text())
        return True
