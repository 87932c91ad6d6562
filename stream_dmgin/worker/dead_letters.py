"""A record that could not be processed as a dead letter, and back: key, value, headers and timestamp untouched.

The reason travels in headers that are appended behind the original ones, with the names Kafka Streams users know. The
same record may be dead-lettered twice (a crash between the delivery and the next commit): topic, partition and offset in
the headers say that it is the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from stream_dmgin.errors import RecordError
from stream_dmgin.log.base import TP, Delivered, Headers, Record, Writer

HEADER = "__streams.errors."
EXCEPTION, MESSAGE, TOPIC, PARTITION, OFFSET, REASON = (
    HEADER + n for n in ("exception", "message", "topic", "partition", "offset", "reason")
)
OURS = (EXCEPTION, MESSAGE, TOPIC, PARTITION, OFFSET, REASON)  # in the order in which they are appended
LEFT_OUT = "(the value of %d bytes is too large for the dead letters)"
MESSAGE_BYTES = 1000  # a message may quote the value; the dead letter must not outgrow the record by much


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record of the dead-letters topic, read."""

    offset: int  # in the dead-letters topic
    original: Record  # as it lay in its topic; its topic is "" where the headers are not ours
    exception: str
    message: str
    reason: str

    @property
    def place(self) -> tuple[str, int, int]:
        """Topic, partition and offset where the original lies."""
        return self.original.topic, self.original.partition, self.original.offset

    @property
    def left_out(self) -> bool:
        """The value was too large for the dead letters; it lies at `place`."""
        return self.original.value is None and self.message.startswith(LEFT_OUT[:14])


def error_headers(record: Record, error: Exception) -> Headers:
    """The headers that say what was wrong with `record`, and where it lies."""
    message = str(error).encode("utf-8", "backslashreplace")
    if len(message) > MESSAGE_BYTES:
        message = message[:MESSAGE_BYTES].decode("utf-8", "ignore").encode() + "…".encode()
    reason = error.reason if isinstance(error, RecordError) else "error"
    values = (
        type(error).__name__.encode(), message, record.topic.encode(), b"%d" % record.partition, b"%d" % record.offset,
        reason.encode(),
    )  # fmt: skip
    return tuple(zip(OURS, values, strict=True))


def dead_letter(record: Record, error: Exception) -> Record:
    """What to append to the dead letters for `record`: the same, with our headers behind its own. Topic, partition and
    offset of the result are still those of the original."""
    return replace(record, headers=record.headers + error_headers(record, error))


def without_value(record: Record, error: Exception) -> Record:
    """The same for a record that, with the headers, exceeds the limit of the dead letters: its value stays where the
    headers point, and the message says so."""
    reason = error.reason if isinstance(error, RecordError) else "error"
    said = RecordError(reason, f"{LEFT_OUT % len(record.value or b'')}: {error}")
    key = record.key if len(record.key or b"") <= MESSAGE_BYTES else None
    return replace(record, key=key, value=None, headers=error_headers(record, said))


def read(dead: Record) -> DeadLetter:
    """Undo `dead_letter`. Dead letters of other programs keep all their headers and have an empty original topic."""
    n = len(OURS)
    own = dead.headers[-n:]
    try:
        if tuple(k for k, _ in own) != OURS:
            raise ValueError("other headers")
        exception, message, topic, partition, offset, reason = (v.decode("utf-8", "backslashreplace") for _, v in own)
        original = replace(
            dead, topic=topic, partition=int(partition), offset=int(offset), headers=tuple(dead.headers[:-n])
        )
    except ValueError:
        foreign = replace(dead, topic="", partition=-1, offset=-1)
        return DeadLetter(dead.offset, foreign, "", "its headers are not this product's", "")
    return DeadLetter(dead.offset, original, exception, message, reason)


def send_back(
    writer: Writer, letter: DeadLetter, *, keep_timestamp: bool = False, on_delivery: Delivered | None = None
) -> TP:
    """Append the original to its topic again; it becomes visible now unless `keep_timestamp`. Returns (topic, partition or
    -1 where the key decides)."""
    r = letter.original
    # A record without a key has no other way to find its partition again.
    partition = r.partition if r.key is None else None
    writer.append(
        r.topic, r.key, r.value, timestamp=r.timestamp if keep_timestamp else None, headers=r.headers, partition=partition,
        on_delivery=on_delivery,
    )  # fmt: skip
    return r.topic, -1 if partition is None else partition
