"""The log as the product sees it: append, read from offsets, ends, offsets for a time. Two backends keep this contract:
`log/kafka.py` (a real broker) and `log/embedded.py` (a directory on one machine, several processes at once).

Topic names here are full names (with prefix). Offsets are the next offset to read. Timestamps are milliseconds UTC.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

TP = tuple[str, int]  # topic, partition
Headers = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class Record:
    """One record, copied out of a batch or about to be appended."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


@dataclass(slots=True)
class Batch:
    """Records of one poll as columns. Keys and values are raw addresses, valid until `release()`; -1 as length is null.

    Records of one (topic, partition) are in offset order. `topic` indexes `topics`, the tuple the reader was opened with.
    """

    topics: tuple[str, ...]
    topic: NDArray[np.uint8]
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    timestamp: NDArray[np.int64]
    key_addr: NDArray[np.uint64]
    key_len: NDArray[np.int32]
    value_addr: NDArray[np.uint64]
    value_len: NDArray[np.int32]
    headers_of: Callable[[int], Headers] = lambda i: ()
    owner: Any = None  # keeps the memory behind the addresses alive
    on_release: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self.offset)

    def key(self, i: int) -> bytes | None:
        """The key of record i, copied."""
        return _bytes(int(self.key_addr[i]), int(self.key_len[i]))

    def value(self, i: int) -> bytes | None:
        """The value of record i, copied."""
        return _bytes(int(self.value_addr[i]), int(self.value_len[i]))

    def record(self, i: int) -> Record:
        """Record i with its headers, copied: outlives the batch."""
        return Record(
            self.topics[self.topic[i]], int(self.partition[i]), int(self.offset[i]), int(self.timestamp[i]),
            self.key(i), self.value(i), self.headers_of(i),
        )  # fmt: skip

    def release(self) -> None:
        """Give the memory back to the backend. Idempotent; the addresses are dead afterwards."""
        done, self.on_release, self.owner = self.on_release, None, None
        if done:
            done()


def batch_of(topics: Sequence[str], records: Iterable[Record]) -> Batch:
    """A batch over records in memory: replay, tests, slow paths."""
    rs = list(records)
    index = {t: k for k, t in enumerate(topics)}
    n = len(rs)
    ka, kl, va, vl = np.zeros(n, np.uint64), np.full(n, -1, np.int32), np.zeros(n, np.uint64), np.full(n, -1, np.int32)
    buf = np.frombuffer(b"".join([(r.key or b"") + (r.value or b"") for r in rs]) + b"\0", np.uint8)
    at = buf.ctypes.data
    for i, r in enumerate(rs):
        if r.key is not None:
            ka[i], kl[i] = at, len(r.key)
            at += len(r.key)
        if r.value is not None:
            va[i], vl[i] = at, len(r.value)
            at += len(r.value)
    return Batch(
        tuple(topics),
        np.array([index[r.topic] for r in rs], np.uint8),
        np.array([r.partition for r in rs], np.int32),
        np.array([r.offset for r in rs], np.int64),
        np.array([r.timestamp for r in rs], np.int64),
        ka, kl, va, vl,
        headers_of=lambda i: rs[i].headers,
        owner=buf,
    )  # fmt: skip


def _bytes(addr: int, n: int) -> bytes | None:
    return None if n < 0 else ctypes.string_at(addr, n)


@dataclass(frozen=True)
class TopicInfo:
    """What the log says of one topic."""

    name: str
    partitions: int
    config: Mapping[str, str] = field(default_factory=dict)


class Reader(Protocol):
    """Reads assigned partitions; one thread only."""

    def assign(self, offsets: Mapping[TP, int]) -> None:
        """Read these partitions from these offsets (-2: the first kept, -1: the end), replacing what was assigned. Doesn't block."""

    def poll(self, max_records: int, timeout: float) -> Batch | None:
        """What is there now, at most `max_records`; waits up to `timeout` seconds for the first record only, never for
        a full batch. None: nothing came. The previous batch must have been released or copied. Raises LogUnavailable
        only for what can't mend itself; a broker that is away is retried inside."""

    def pause(self, partitions: Iterable[TP]) -> None:
        """Deliver nothing of these until `resume`. A new assignment forgets it."""

    def resume(self, partitions: Iterable[TP]) -> None:
        """Deliver again, from where `pause` stopped."""

    def ended(self) -> Mapping[TP, int]:
        """Ends of partitions that were read to an end, past what no batch shows there: markers and aborted records of
        transactions, records compacted away. Of this assignment; a partition may have grown since. Empty where offsets
        have no gaps."""

    def close(self) -> None:
        """Leave the group (if any). Blocks for seconds at most."""


class GroupListener(Protocol):
    """What a member of a consumer group is told, from inside `poll`, on the polling thread."""

    def assigned(self, partitions: list[TP]) -> Mapping[TP, int]:
        """These came in addition: open their stores and say from which offsets to read. Offsets of others that came earlier
        may be among them: those are read again from there."""

    def revoked(self, partitions: list[TP]) -> None:
        """These go: commit and flush them before returning. Where the reader is `eager` the next `assigned` may give some
        of them back; otherwise release them too."""

    def lost(self, partitions: list[TP]) -> None:
        """These are gone and may already have another owner: write nothing, drop them."""


class GroupReader(Reader, Protocol):
    """A member of a consumer group. `assign` is the group's business; offsets come from the listener."""

    @property
    def eager(self) -> bool:
        """Whether a rebalance takes every partition away before it says who keeps which."""

    def confirm(self) -> None:
        """Raises Fenced when this member may have lost its partitions to another: call it before what must not be written by
        two. Free while `poll` is called often; after a stall it asks the group, for two seconds at most."""

    def member(self) -> str:
        """This member's name, as `Log.members` has it; "" while it has none."""

    def reread(self, offsets: Mapping[TP, int]) -> None:
        """Go on at other offsets (-2: the first kept) in some of the partitions that the group gave. Pauses stay."""

    def rejoin(self) -> None:
        """After Fenced: give up what was assigned and join the group anew, without a word to the listener."""

    def commit(self, offsets: Mapping[TP, int]) -> None:
        """Tell the group (advisory: the store's offset is the truth). Doesn't block. Raises Fenced when an earlier commit was
        refused because this member lost its membership."""

    def committed(self, partitions: Iterable[TP]) -> dict[TP, int]:
        """What the group last committed; -1 where it never did. May be called from inside the listener. Blocks briefly, or
        until a transaction that another member left open has ended."""

    def group_metadata(self) -> bytes:
        """Who this member is, for `Transactions.commit`. Raises Fenced for one that is none."""


Delivered = Callable[[BaseException | None, TP, int], None]  # error or None, (topic, partition), offset


class Writer(Protocol):
    """Appends records; safe to use from one thread. Values over the topic's limit raise RecordError('too_large')."""

    def append(
        self, topic: str, key: bytes | None, value: bytes | None, *, timestamp: int | None = None,
        headers: Headers = (), partition: int | None = None, on_delivery: Delivered | None = None,
    ) -> None:  # fmt: skip
        """Queue one record. Without `partition`: murmur2 of the key, as Java clients do (null key: any). May block while the
        queue is full. `on_delivery` is called from `poll` or `flush`, when the record is durable or has failed."""

    def poll(self) -> None:
        """Serve delivery callbacks; doesn't block."""

    def flush(self, timeout: float = 30.0) -> None:
        """Wait until everything queued is durable. Raises LogUnavailable."""

    def close(self) -> None:
        """Flush and close."""


class Transactions(Writer, Protocol):
    """A writer whose records appear together with a group's offsets, or not at all."""

    open: bool  # something was appended since the last commit

    def commit(self, offsets: Mapping[TP, int], group_metadata: bytes) -> None:
        """End the transaction with these offsets of the group whose member `GroupReader.group_metadata` tells. Blocks. At
        least one: the broker looks at offsets alone to see whether the member is one still. Raises Fenced when it refuses them (the
        membership or the transaction is lost): nothing of it will ever be seen."""

    def abort(self) -> None:
        """Take back what was appended."""


class Log(Protocol):
    """A connection to one log."""

    url: str

    def topics(self) -> dict[str, TopicInfo]:
        """All topics with their partitions and the configuration that `create` understands. Raises LogUnavailable."""

    def create(self, topics: Iterable[TopicInfo]) -> None:
        """Create topics; one that exists already is left as it is."""

    def configure(self, topic: str, config: Mapping[str, str]) -> None:
        """Change a topic's configuration."""

    def begins(self, topic: str) -> dict[int, int]:
        """First offset kept of each partition."""

    def ends(self, topic: str) -> dict[int, int]:
        """Next offset to be written of each partition (high watermark)."""

    def offsets_for_time(self, topic: str, timestamp: int) -> dict[int, int]:
        """Per partition the first offset whose timestamp is >= `timestamp`; the end where there is none."""

    def committed(self, group: str, topics: Sequence[str]) -> dict[TP, int]:
        """What a group last committed of these topics, from outside the group; -1 where it never did."""

    def members(self, group: str) -> list[str] | None:
        """The members of a group (their static names, or those that the broker gave them). None while it is between two
        assignments, and where the log doesn't tell. Raises LogUnavailable."""

    def describe(self) -> dict[str, Any]:
        """What there is to say of the log itself: at least `kind` and `nodes` (addresses). Raises LogUnavailable."""

    def reader(self, topics: Sequence[str]) -> Reader:
        """A reader outside any group. Topic indexes in its batches follow `topics`."""

    def group_reader(
        self,
        group: str,
        topics: Sequence[str],
        listener: GroupListener,
        *,
        instance_id: str = "",
        protocol: str = "classic",
    ) -> GroupReader:
        """A member of `group`, subscribed to `topics`, which must be co-partitioned (equal partition numbers together).
        Kafka alone knows `instance_id` (static membership) and `protocol`: classic or consumer (KIP-848)."""

    def writer(self, **tuning: Any) -> Writer:
        """A writer. Tuning: `linger_ms` (default 5)."""

    def transactions(self, transactional_id: str) -> Transactions:
        """A transactional writer; a new one with the same id ends the older one's. Raises UsageError where the log has none."""

    def close(self) -> None:
        """Close what this connection opened."""

    def __enter__(self) -> Self: ...
    def __exit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None: ...


def open_log(url: str, kafka: Mapping[str, str] | None = None) -> Log:
    """`kafka://HOST:PORT[,HOST:PORT]` or `file:DIR`. `kafka`: librdkafka's own settings. Raises ConfigError, LogUnavailable."""
    from stream_dmgin.errors import ConfigError

    if url.startswith("kafka://"):
        from stream_dmgin.log.kafka import KafkaLog

        return KafkaLog(url, dict(kafka or {}))
    if url.startswith("file:"):
        from stream_dmgin.log.embedded import EmbeddedLog

        return EmbeddedLog(url)
    raise ConfigError("log", url, "give kafka://HOST:PORT[,HOST:PORT] or file:DIR")
