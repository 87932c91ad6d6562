"""librdkafka itself, by ctypes: the library that confluent-kafka bundles, for whole batches read in place.

confluent-kafka makes a Python object of each message (0.65 us of CPU); here a batch is an array of `rd_kafka_message_t *`
and one numba call turns it into columns (0.05 us). Only what the readers need is bound. The layouts are librdkafka's
public ABI, stable within 1.x and 2.x; `library()` refuses other major versions.
"""

from __future__ import annotations

import ctypes as C
import ctypes.util
import functools
import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from stream_dmgin.errors import ConfigError, LogUnavailable, UnavailableError
from stream_dmgin.log.base import TP, Headers
from stream_dmgin.log.native import call_i64, call_void, load_i32, load_i64, load_u64

DESTROY_AT_ONCE = 8  # RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE
OFFSET_BEGINNING, OFFSET_INVALID = -2, -1001
ERR_ASSIGN, ERR_REVOKE = -175, -174
ERR_MAX_POLL, ERR_AUTO_OFFSET_RESET, ERR_NO_OFFSET = -147, -140, -168
ERR_PARTITION_EOF = -191
TRANSIENT = frozenset(
    {-195, -187, -185, -193, -180, -184}
)  # transport, all brokers down, timed out, resolve, wait coord, in progress
# unknown member, illegal generation, fenced instance, fenced or stale member epoch: another owner may be at work
FENCING = frozenset({25, 22, 82, 110, 113})
ERR_FENCED_INSTANCE, ERR_REBALANCING = 82, 27
MESSAGE_BYTES = 72  # sizeof(rd_kafka_message_t) on 64 bits
TOPICS_MAX = 64  # distinct topics of one batch


class TopicPartition(C.Structure):
    """rd_kafka_topic_partition_t"""

    _fields_ = [
        ("topic", C.c_char_p), ("partition", C.c_int32), ("offset", C.c_int64), ("metadata", C.c_void_p),
        ("metadata_size", C.c_size_t), ("opaque", C.c_void_p), ("err", C.c_int), ("_private", C.c_void_p),
    ]  # fmt: skip


class TopicPartitionList(C.Structure):
    """rd_kafka_topic_partition_list_t"""

    _fields_ = [("cnt", C.c_int), ("size", C.c_int), ("elems", C.POINTER(TopicPartition))]


class Message(C.Structure):
    """rd_kafka_message_t; only for errors and checks, the hot path reads the addresses"""

    _fields_ = [
        ("err", C.c_int), ("rkt", C.c_void_p), ("partition", C.c_int32), ("payload", C.c_void_p), ("len", C.c_size_t),
        ("key", C.c_void_p), ("key_len", C.c_size_t), ("offset", C.c_int64), ("_private", C.c_void_p),
    ]  # fmt: skip


P_LIST = C.POINTER(TopicPartitionList)
RebalanceCb = C.CFUNCTYPE(None, C.c_void_p, C.c_int, P_LIST, C.c_void_p)
CommitCb = C.CFUNCTYPE(None, C.c_void_p, C.c_int, P_LIST, C.c_void_p)
LogCb = C.CFUNCTYPE(None, C.c_void_p, C.c_int, C.c_char_p, C.c_char_p)

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "version": (C.c_int, []),
    "version_str": (C.c_char_p, []),
    "err2str": (C.c_char_p, [C.c_int]),
    "err2name": (C.c_char_p, [C.c_int]),
    "conf_new": (C.c_void_p, []),
    "conf_destroy": (None, [C.c_void_p]),
    "conf_set": (C.c_int, [C.c_void_p, C.c_char_p, C.c_char_p, C.c_char_p, C.c_size_t]),
    "conf_set_rebalance_cb": (None, [C.c_void_p, RebalanceCb]),
    "conf_set_log_cb": (None, [C.c_void_p, LogCb]),
    "new": (C.c_void_p, [C.c_int, C.c_void_p, C.c_char_p, C.c_size_t]),
    "set_log_queue": (C.c_int, [C.c_void_p, C.c_void_p]),
    "poll_set_consumer": (C.c_int, [C.c_void_p]),
    "queue_get_consumer": (C.c_void_p, [C.c_void_p]),
    "queue_destroy": (None, [C.c_void_p]),
    "subscribe": (C.c_int, [C.c_void_p, P_LIST]),
    "unsubscribe": (C.c_int, [C.c_void_p]),
    "assign": (C.c_int, [C.c_void_p, P_LIST]),
    "incremental_assign": (C.c_void_p, [C.c_void_p, P_LIST]),
    "incremental_unassign": (C.c_void_p, [C.c_void_p, P_LIST]),
    "assignment_lost": (C.c_int, [C.c_void_p]),
    "rebalance_protocol": (C.c_char_p, [C.c_void_p]),
    "error_string": (C.c_char_p, [C.c_void_p]),
    "error_destroy": (None, [C.c_void_p]),
    "pause_partitions": (C.c_int, [C.c_void_p, P_LIST]),
    "resume_partitions": (C.c_int, [C.c_void_p, P_LIST]),
    "consumer_group_metadata": (C.c_void_p, [C.c_void_p]),
    "consumer_group_metadata_write": (C.c_void_p, [C.c_void_p, C.POINTER(C.c_void_p), C.POINTER(C.c_size_t)]),
    "consumer_group_metadata_destroy": (None, [C.c_void_p]),
    "mem_free": (None, [C.c_void_p, C.c_void_p]),
    "committed": (C.c_int, [C.c_void_p, P_LIST, C.c_int]),
    "position": (C.c_int, [C.c_void_p, P_LIST]),
    "query_watermark_offsets": (
        C.c_int,
        [C.c_void_p, C.c_char_p, C.c_int32, C.POINTER(C.c_int64), C.POINTER(C.c_int64), C.c_int],
    ),
    "consumer_poll": (C.c_void_p, [C.c_void_p, C.c_int]),
    "consume_batch_queue": (C.c_ssize_t, [C.c_void_p, C.c_int, C.c_void_p, C.c_size_t]),
    "message_destroy": (None, [C.c_void_p]),
    "message_timestamp": (C.c_int64, [C.c_void_p, C.c_void_p]),
    "message_headers": (C.c_int, [C.c_void_p, C.POINTER(C.c_void_p)]),
    "header_get_all": (
        C.c_int,
        [C.c_void_p, C.c_size_t, C.POINTER(C.c_char_p), C.POINTER(C.c_void_p), C.POINTER(C.c_size_t)],
    ),
    "topic_name": (C.c_char_p, [C.c_void_p]),
    "queue_new": (C.c_void_p, [C.c_void_p]),
    "commit_queue": (C.c_int, [C.c_void_p, P_LIST, C.c_void_p, CommitCb, C.c_void_p]),
    "yield": (None, [C.c_void_p]),
    "consumer_close_queue": (C.c_void_p, [C.c_void_p, C.c_void_p]),
    "consumer_closed": (C.c_int, [C.c_void_p]),
    "destroy_flags": (None, [C.c_void_p, C.c_int]),
    "topic_partition_list_new": (P_LIST, [C.c_int]),
    "topic_partition_list_add": (C.POINTER(TopicPartition), [P_LIST, C.c_char_p, C.c_int32]),
    "topic_partition_list_destroy": (None, [P_LIST]),
}


@functools.cache
def library() -> Any:
    """The loaded library, functions named without their `rd_kafka_`. Raises UnavailableError."""
    import confluent_kafka  # loads its own copy of the library first: both then share it

    package = Path(confluent_kafka.__file__).parent
    places = [package.parent / "confluent_kafka.libs", package / ".dylibs"]
    names = [str(f) for place in places for f in sorted(place.glob("librdkafka*")) if "++" not in f.name]
    system = ctypes.util.find_library("rdkafka")
    for name in [*names, *([system] if system else [])]:
        try:
            lib = C.CDLL(name)
            bound = _bind(lib)
        except (OSError, AttributeError):
            continue
        if not 1 <= bound.version() >> 24 <= 2:
            raise UnavailableError(f"librdkafka {bound.version_str().decode()} at {name}: its 1.x or 2.x is needed")
        if C.sizeof(Message) != MESSAGE_BYTES:
            raise UnavailableError("reading Kafka in place needs a 64-bit machine")
        return bound
    raise UnavailableError(
        f"librdkafka was found neither in {places[0]} nor on the system: reinstall confluent-kafka from its wheel, "
        "or install librdkafka (Debian, Ubuntu: librdkafka1)"
    )


class _Bound:
    pass


def _bind(lib: C.CDLL) -> Any:
    bound = _Bound()
    for name, (result, arguments) in _SIGNATURES.items():
        f = getattr(lib, "rd_kafka_" + name)
        f.restype, f.argtypes = result, arguments
        setattr(bound, name, f)
    return bound


def error_text(code: int) -> str:
    """NAME: what librdkafka says of an error code."""
    lib = library()
    return f"{lib.err2name(code).decode()}: {lib.err2str(code).decode()}"


def make_list(offsets: Mapping[TP, int] | Iterable[TP]) -> Any:
    """A topic_partition_list to be given to `topic_partition_list_destroy`."""
    lib = library()
    pairs = offsets.items() if isinstance(offsets, Mapping) else [(tp, OFFSET_INVALID) for tp in offsets]
    out = lib.topic_partition_list_new(max(1, len(pairs)))
    for (topic, partition), offset in pairs:
        lib.topic_partition_list_add(out, topic.encode(), partition).contents.offset = offset
    return out


def read_list(parts: Any) -> list[tuple[TP, int, int]]:
    """((topic, partition), offset, error code) of each element."""
    if not parts:
        return []
    es = parts.contents.elems
    return [((es[i].topic.decode(), es[i].partition), es[i].offset, es[i].err) for i in range(parts.contents.cnt)]


def make_conf(settings: Mapping[str, str]) -> int:
    """An rd_kafka_conf_t with these settings. Raises ConfigError naming the setting that is wrong."""
    lib = library()
    conf = lib.conf_new()
    error = C.create_string_buffer(512)
    for name, value in settings.items():
        if lib.conf_set(conf, name.encode(), str(value).encode(), error, 512):
            lib.conf_destroy(conf)
            raise ConfigError(f"kafka.{name}", value, error.value.decode(errors="replace"))
    return int(conf)


class RateLimitedLog:
    """librdkafka's lines into Python logging; of one facility at most one line in `seconds`, with a count of the others."""

    # a broker that is away, or a coordinator that is still loading, is retried inside
    AT_MOST = {"FAIL": logging.WARNING, "ERROR": logging.WARNING, "GETPID": logging.INFO}
    LEVELS = (logging.ERROR,) * 4 + (logging.WARNING, logging.INFO, logging.DEBUG, logging.DEBUG)

    def __init__(self, logger: logging.Logger, seconds: float = 10.0) -> None:
        self._logger, self._seconds = logger, seconds
        self._seen: dict[str, tuple[float, int]] = {}

    def __call__(self, level: int, facility: str, text: str) -> None:
        """Log one line, or count it."""
        now = time.monotonic()
        at, held = self._seen.get(facility, (-1e9, 0))
        if now - at < self._seconds:
            self._seen[facility] = (at, held + 1)
            return
        self._seen[facility] = (now, 0)
        severity = min(self.LEVELS[min(level, 7)], self.AT_MOST.get(facility, logging.ERROR))
        self._logger.log(severity, "%s: %s%s", facility, text, f" ({held} more like it)" if held else "")


def unavailable(code: int, doing: str) -> LogUnavailable:
    """The error for a librdkafka code that can't mend itself."""
    return LogUnavailable(f"{doing}: {error_text(code)}")


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def columns(
    messages: NDArray[np.uint64], timestamp_fn: np.uint64, err: NDArray[np.int32], rkts: NDArray[np.uint64], topic: NDArray[np.uint8],
    partition: NDArray[np.int32], offset: NDArray[np.int64], timestamp: NDArray[np.int64], key_addr: NDArray[np.uint64],
    key_len: NDArray[np.int32], value_addr: NDArray[np.uint64], value_len: NDArray[np.int32],
) -> tuple[int, int]:  # fmt: skip
    """Fill the columns of len(messages) rows from rd_kafka_message_t addresses, in place: keys and values stay where they are.

    `topic` becomes an index into `rkts`, the distinct rd_kafka_topic_t addresses. Returns how many topics (-1: more than
    fit) and how many rows with an error. Per message about 20 ns, all of it memory latency.
    """
    n_topics, n_errors, last, last_rkt = 0, 0, 0, np.uint64(0)
    for i in range(len(messages)):
        m = messages[i]
        err[i] = load_i32(m)
        n_errors += err[i] != 0
        rkt = load_u64(m + np.uint64(8))
        if rkt != last_rkt or n_topics == 0:
            last = -1
            for k in range(n_topics):
                if rkts[k] == rkt:
                    last = k
                    break
            if last < 0:
                if n_topics == len(rkts):
                    return -1, n_errors
                rkts[n_topics] = rkt
                last = n_topics
                n_topics += 1
            last_rkt = rkt
        topic[i] = last
        partition[i] = load_i32(m + np.uint64(16))
        value_addr[i] = load_u64(m + np.uint64(24))
        value_len[i] = -1 if value_addr[i] == 0 else np.int32(load_u64(m + np.uint64(32)))
        key_addr[i] = load_u64(m + np.uint64(40))
        key_len[i] = -1 if key_addr[i] == 0 else np.int32(load_u64(m + np.uint64(48)))
        offset[i] = load_i64(m + np.uint64(56))
        timestamp[i] = call_i64(timestamp_fn, m)
    return n_topics, n_errors


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def destroy_all(messages: NDArray[np.uint64], destroy_fn: np.uint64) -> None:
    """rd_kafka_message_destroy of each."""
    for i in range(len(messages)):
        call_void(destroy_fn, messages[i])


@functools.cache
def warm() -> None:
    """Compile what a reader calls, or load it from numba's cache, so that the first records don't wait for it."""
    none: NDArray[np.uint64] = np.empty(0, np.uint64)
    i32, i64 = np.empty(0, np.int32), np.empty(0, np.int64)
    columns(none, np.uint64(0), i32, none, np.empty(0, np.uint8), i32, i64, i64, none, i32, none, i32)
    destroy_all(none, np.uint64(0))


def address_of(function: Any) -> np.uint64:
    """The address of a bound function, for `columns` and `destroy_all`."""
    return np.uint64(C.cast(function, C.c_void_p).value or 0)


def headers(message: int) -> Headers:
    """The headers of one message, copied."""
    lib = library()
    found = C.c_void_p()
    if lib.message_headers(message, C.byref(found)):
        return ()
    out: list[tuple[str, bytes]] = []
    name, value, size = C.c_char_p(), C.c_void_p(), C.c_size_t()
    while not lib.header_get_all(found, len(out), C.byref(name), C.byref(value), C.byref(size)):
        out.append(
            (
                (name.value or b"").decode("utf-8", "replace"),
                C.string_at(value.value, size.value) if value.value else b"",
            )
        )
    return tuple(out)
