"""A backlog in the order of record timestamps: for logs that were imported, where request and events of one time lie in
different topics and a plain reader would run ahead in one of them.

A request sees the events with a smaller timestamp, strictly (the rule of docs/quality.md); of equal timestamps, requests
come first. All owned partitions are merged, so that the shared counters move with the stream's time as well. Bounded runs
only: the merge needs to know where each partition ends. Copies each record once; about 10 us a record.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Iterable, Mapping

from stream_dmgin.log.base import TP, Batch, GroupReader, Record, batch_of
from stream_dmgin.worker.partitions import Partitions

FETCH = 5_000


class OrderedReader:
    """A GroupReader whose batches are runs of events followed by the requests that see exactly these and all before."""

    def __init__(self, inner: GroupReader, topics: tuple[str, ...], partitions: Partitions) -> None:
        self._inner, self._topics, self._partitions = inner, topics, partitions
        self._requests = partitions.requests_topic
        self._ends = partitions.ends()
        self._buffers: dict[TP, deque[Record]] = {}
        self._generation = -1
        self.stream_time = 0  # timestamp of the newest record given out
        self.at_once: int | None = None  # records of a run at most; None: as many as are asked for

    def poll(self, max_records: int, timeout: float) -> Batch | None:
        """The next run; None when the ends are reached or the log gave nothing for `timeout` seconds."""
        until = time.monotonic() + timeout
        while not self._filled():
            batch = self._inner.poll(FETCH, max(0.0, until - time.monotonic()))
            self._check_generation()
            if batch is not None:
                self._keep(batch)
            elif time.monotonic() >= until:
                return None
        out = self._merge(max_records if self.at_once is None else min(max_records, self.at_once))
        if not out:
            self._inner.poll(1, min(timeout, 0.01))  # nothing is left: only keep the membership alive
            return None
        self.stream_time = max(self.stream_time, out[-1].timestamp)
        return batch_of(self._topics, out)

    def _check_generation(self) -> None:
        if self._generation != self._partitions.generation:
            self._generation = self._partitions.generation
            self._buffers.clear()  # what was not given out comes again from the stores' offsets

    def _keep(self, batch: Batch) -> None:
        try:
            for i in range(len(batch)):
                r = batch.record(i)
                tp = (r.topic, r.partition)
                if r.offset < self._ends.get(tp, 0):
                    self._buffers.setdefault(tp, deque()).append(r)
        finally:
            batch.release()

    def _live(self) -> Iterable[TP]:
        """Partitions of which something is still to be given out, by what is folded and answered."""
        for (t, p), end in self._ends.items():
            o = self._partitions.owned.get(p)
            if o is not None and max(self._partitions.next_offset(o, t), self._partitions.ended(t, p)) < end:
                yield t, p

    def _filled(self) -> bool:
        return bool(self._partitions.owned) and all(self._buffers.get(tp) for tp in self._live())

    def _key(self, r: Record) -> tuple[int, bool]:
        return r.timestamp, r.topic != self._requests

    def _merge(self, limit: int) -> list[Record]:
        heads = [(*self._key(b[0]), tp) for tp, b in self._buffers.items() if b]
        heapq.heapify(heads)
        out: list[Record] = []
        asked = False
        while heads and len(out) < limit:
            _, is_event, tp = heads[0]
            if asked and is_event:
                break  # a batch's events are folded before its requests: this one comes after them
            buffer = self._buffers[tp]
            record = buffer.popleft()
            out.append(record)
            asked = asked or not is_event
            if buffer:
                heapq.heapreplace(heads, (*self._key(buffer[0]), tp))
            elif record.offset + 1 < self._ends[tp]:
                break  # more of it is to come, and may belong before the others
            else:
                heapq.heappop(heads)
        return out

    # The rest is the inner reader's

    def assign(self, offsets: Mapping[TP, int]) -> None:
        """Assignments are the group's business."""
        self._inner.assign(offsets)

    def pause(self, partitions: Iterable[TP]) -> None:
        """See GroupReader."""
        self._inner.pause(partitions)

    def resume(self, partitions: Iterable[TP]) -> None:
        """See GroupReader."""
        self._inner.resume(partitions)

    def ended(self) -> Mapping[TP, int]:
        """See GroupReader."""
        return self._inner.ended()

    @property
    def eager(self) -> bool:
        """See GroupReader."""
        return self._inner.eager

    def confirm(self) -> None:
        """See GroupReader."""
        self._inner.confirm()

    def group_metadata(self) -> bytes:
        """See GroupReader."""
        return self._inner.group_metadata()

    def member(self) -> str:
        """See GroupReader."""
        return self._inner.member()

    def reread(self, offsets: Mapping[TP, int]) -> None:
        """See GroupReader."""
        self._inner.reread(offsets)

    def rejoin(self) -> None:
        """See GroupReader."""
        self._buffers.clear()
        self._inner.rejoin()

    def commit(self, offsets: Mapping[TP, int]) -> None:
        """See GroupReader."""
        self._inner.commit(offsets)

    def committed(self, partitions: Iterable[TP]) -> dict[TP, int]:
        """See GroupReader."""
        return self._inner.committed(partitions)

    def close(self) -> None:
        """See GroupReader."""
        self._buffers.clear()
        self._inner.close()
