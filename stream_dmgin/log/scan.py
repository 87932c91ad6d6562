"""Read a stretch of a log from offset to offset, outside any group: verification, replay, export. Control path."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.errors import LogUnavailable
from stream_dmgin.log.base import TP, Batch, Log

POLL_S = 0.5
SILENCE_S = 10.0  # silence after which the log is asked whether it is still there


def scan(
    log: Log, ranges: Mapping[TP, tuple[int, int]], max_records: int = 20_000, patience_s: float = 60.0
) -> Iterator[tuple[Batch, NDArray[np.bool_]]]:
    """Batches of the records from first to next offset (exclusive) of each (topic, partition), and a mask of those inside
    the range. A batch is valid until the next one is asked for. Records of one partition come in order, partitions
    interleave in any way. Raises LogUnavailable when nothing comes for `patience_s` although records are missing."""
    left = {tp: end for tp, (start, end) in ranges.items() if start < end}
    if not left:
        return
    topics = tuple(sorted({t for t, _ in left}))
    number = {t: k for k, t in enumerate(topics)}
    ends = np.zeros((len(topics), 1 + max(p for _, p in left)), np.int64)
    for (t, p), end in left.items():
        ends[number[t], p] = end
    reader = log.reader(topics)
    try:
        reader.assign({tp: ranges[tp][0] for tp in left})
        heard = asked = time.monotonic()
        while left:
            batch = reader.poll(max_records, POLL_S)
            now = time.monotonic()
            if batch is None:
                ended = reader.ended()
                left = {tp: end for tp, end in left.items() if ended.get(tp, 0) < end}
                if now - asked > SILENCE_S:
                    asked = now
                    left = _still_to_come(log, ranges, left)
                if left and now - heard > patience_s:
                    raise LogUnavailable(
                        f"{log.url}: nothing came for {patience_s:.0f} s, though {_first(left)} was to come"
                    )
                continue
            heard = asked = now
            try:
                inside = batch.offset < ends[batch.topic, batch.partition]
                yield batch, inside
                done = batch.offset >= ends[batch.topic, batch.partition] - 1
                for i in np.flatnonzero(done).tolist():
                    tp = topics[batch.topic[i]], int(batch.partition[i])
                    if left.pop(tp, None) is not None:
                        reader.pause([tp])
            finally:
                batch.release()
    finally:
        reader.close()


def _still_to_come(log: Log, ranges: Mapping[TP, tuple[int, int]], left: Mapping[TP, int]) -> dict[TP, int]:
    """What is left, without partitions whose tail holds no record any more (compacted away, deleted). Raises LogUnavailable."""
    begins = {t: log.begins(t) for t in {t for t, _ in left}}
    return {tp: end for tp, end in left.items() if begins[tp[0]].get(tp[1], 0) < end}


def _first(left: Mapping[TP, int]) -> str:
    (topic, partition), end = next(iter(left.items()))
    return f"{topic}/{partition} up to offset {end}"
