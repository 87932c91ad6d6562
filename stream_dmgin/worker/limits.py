"""When the worker stops rather than go on: too many dead letters, and a record on which the processing itself fails."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from stream_dmgin.errors import StreamDmginError
from stream_dmgin.log.base import Batch


class TooManyDeadLetters(StreamDmginError):
    """So many records are malformed that diverting them would empty the topics into the dead letters."""


class Poison(StreamDmginError):
    """The processing fails on a record: a defect of the product. Only an order of an operator skips it."""


class DeadLetterLimit:
    """Counts records and dead letters over a window of the last records."""

    def __init__(self, share: float, count: int, window: int) -> None:
        """More than `share` of the last `window` records, but at least `count` of them. `share` 1 or more: no limit."""
        self._share, self._count, self._window = share, count, window
        self._blocks: deque[tuple[int, int]] = deque()
        self._records = self._letters = 0

    def take(self, records: int, letters: int) -> None:
        """So many records were read, so many of them are malformed. Raises TooManyDeadLetters: before they are diverted."""
        if self._share >= 1 or not records:
            return
        self._blocks.append((records, letters))
        self._records += records
        self._letters += letters
        while self._records - self._blocks[0][0] >= self._window:
            n, bad = self._blocks.popleft()
            self._records -= n
            self._letters -= bad
        if letters and self._letters >= self._count and self._letters > self._share * self._records:
            raise TooManyDeadLetters(
                f"{self._letters:,} of the last {self._records:,} records are malformed: the worker stops rather than divert them "
                "all. Nothing is lost. `stream-dmgin dead-letters list` shows those diverted before, `topics export` any; mend the "
                "producer. If they are to be diverted, raise worker.dead_letter_share (1: no limit) and start the worker again"
            )


def poison(topic: str, partition: int, offset: int, error: BaseException) -> Poison:
    """The error that names one record and what to do."""
    place = f"{topic}/{partition}/{offset}"
    return Poison(
        f"{place}: the processing fails on this record ({type(error).__name__}: {error}). The worker stops, nothing is lost. Upgrade "
        f"stream-dmgin and report this; or divert the record with `stream-dmgin dead-letters skip {place} --reason WHY`"
    )


def poisoned(batch: Batch, rows: Sequence[int], error: BaseException) -> Poison:
    """The same where one of some rows of a batch is it."""
    if len(rows) == 1:
        i = rows[0]
        return poison(batch.topics[batch.topic[i]], int(batch.partition[i]), int(batch.offset[i]), error)
    ranges = []
    for t in sorted({int(batch.topic[i]) for i in rows}):
        offsets = [int(batch.offset[i]) for i in rows if batch.topic[i] == t]
        ranges.append(f"{batch.topics[t]}/{int(batch.partition[rows[0]])} {min(offsets)} to {max(offsets)}")
    return Poison(
        f"the processing fails on one of the records {', '.join(ranges)} ({type(error).__name__}: {error}). The worker stops, nothing "
        "is lost. To find which one, start the worker with STREAM_DMGIN_WORKER_MAX_BATCH=1: it then stops at the very record"
    )
