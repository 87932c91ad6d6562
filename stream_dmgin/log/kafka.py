"""A connection to a real Kafka: topics, offsets, and where readers and writers come from."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

from confluent_kafka import Consumer, ConsumerGroupState, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # it does, untyped
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ConfigSource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from stream_dmgin.errors import ConfigError, LogUnavailable, UsageError
from stream_dmgin.log.base import TP, GroupListener, TopicInfo
from stream_dmgin.log.kafka_group import KafkaGroupReader
from stream_dmgin.log.kafka_reader import KafkaReader
from stream_dmgin.log.kafka_transactions import KafkaTransactions
from stream_dmgin.log.kafka_writer import KafkaWriter, LibraryLog

T = TypeVar("T")
logger = logging.getLogger(__name__)

OPEN_S = 8.0  # for the first answer of a broker
REQUEST_S = 15.0
CONFIG = ("cleanup.policy", "retention.ms", "max.message.bytes")  # always shown; others only where a topic sets them

# Latency and throughput of one core; see docs/adr/0001-embedded-log.md for what was measured.
READER = {
    "enable.auto.commit": "false", "enable.auto.offset.store": "false", "auto.offset.reset": "error",
    "fetch.wait.max.ms": "50", "fetch.queue.backoff.ms": "10", "queued.max.messages.kbytes": "2048",
    "enable.partition.eof": "true", "allow.auto.create.topics": "false", "socket.nagle.disable": "true", "reconnect.backoff.max.ms": "1000",
}  # fmt: skip
GROUP = {"partition.assignment.strategy": "range", "heartbeat.interval.ms": "300", "session.timeout.ms": "6000"}
STATIC_SESSION_MS = "30000"  # a static member leaves only when its session ends: a restart must fit into it
WRITER_ONLY = (
    "acks",
    "compression.",
    "linger.ms",
    "batch.",
    "partitioner",
    "message.timeout.ms",
    "enable.idempotence",
    "queue.buffering.",
    "transaction.",
)
READER_ONLY = (
    "fetch.", "queued.", "session.timeout.ms", "heartbeat.interval.ms", "max.poll.interval.ms", "partition.assignment.strategy",
    "isolation.level", "auto.offset.reset", "enable.auto.", "group.", "check.crcs", "max.partition.fetch.bytes", "allow.auto.create.topics",
)  # fmt: skip


class KafkaLog:
    """See base.Log."""

    def __init__(self, url: str, kafka: Mapping[str, str]) -> None:
        """Connects, and waits 8 s at most for a broker to answer. Raises LogUnavailable, ConfigError."""
        self.url = url
        hosts = url.removeprefix("kafka://").strip("/")
        if not hosts or any(":" not in h or not h.rsplit(":", 1)[1].isdigit() for h in hosts.split(",")):
            raise ConfigError("log", url, "give kafka://HOST:PORT[,HOST:PORT]")
        self._settings = {
            "bootstrap.servers": hosts,
            "client.id": "stream-dmgin",
            **{k: str(v) for k, v in kafka.items()},
        }
        common: dict[str, Any] = {
            k: v for k, v in self._settings.items() if not k.startswith((*WRITER_ONLY, *READER_ONLY))
        }
        try:
            self._admin = AdminClient(common, logger=LibraryLog(logging.getLogger(__name__ + ".admin")))
        except KafkaException as e:
            raise ConfigError("kafka", "section [kafka]", e.args[0].str()) from None
        try:
            self._admin.list_topics(timeout=OPEN_S)
        except KafkaException as e:
            raise LogUnavailable(
                f"no broker answers at {hosts}: is Kafka running there? ({e.args[0].str()}) "
                "Start it, give another --log kafka://HOST:PORT, or work without a server on --log file:DIR"
            ) from None

    def topics(self) -> dict[str, TopicInfo]:
        """See base.Log; Kafka's internal topics are left out."""
        found = {n: t for n, t in self._metadata().items() if not n.startswith("__")}
        configs = self._configs(list(found))
        return {n: TopicInfo(n, len(t.partitions), configs[n]) for n, t in sorted(found.items()) if n in configs}

    def create(self, topics: Iterable[TopicInfo]) -> None:
        """See base.Log. Returns when the topics have leaders."""
        new = [
            NewTopic(t.name, num_partitions=t.partitions, replication_factor=-1, config=dict(t.config)) for t in topics
        ]
        if not new:
            return
        for name, f in self._admin.create_topics(new, request_timeout=REQUEST_S).items():
            self._result(f, f"creating topic {name}", ignore=(KafkaError.TOPIC_ALREADY_EXISTS,))
        names, end = {n.topic for n in new}, time.monotonic() + REQUEST_S
        while time.monotonic() < end:
            there = self._metadata()
            if all(n in there and all(p.leader >= 0 for p in there[n].partitions.values()) for n in names):
                return
            time.sleep(0.05)
        raise LogUnavailable(
            f"topics were created but have no leaders after {REQUEST_S:g} s: {', '.join(sorted(names))}"
        )

    def configure(self, topic: str, config: Mapping[str, str]) -> None:
        """See base.Log. Returns when the brokers tell the new configuration."""
        want = {k: str(v) for k, v in config.items()}
        entries = [ConfigEntry(k, v, incremental_operation=AlterConfigOpType.SET) for k, v in want.items()]
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
        for f in self._admin.incremental_alter_configs([resource], request_timeout=REQUEST_S).values():
            self._result(f, f"configuring topic {topic}")

        def told() -> None:
            if not want.items() <= self._configs([topic]).get(topic, {}).items():
                raise _Unsettled(f"{self.url} doesn't tell the new configuration of {topic} yet")

        _patiently(told)

    def begins(self, topic: str) -> dict[int, int]:
        """See base.Log."""
        return self._offsets(topic, OffsetSpec.earliest())  # type: ignore[no-untyped-call]

    def ends(self, topic: str) -> dict[int, int]:
        """See base.Log."""
        return self._offsets(topic, OffsetSpec.latest())  # type: ignore[no-untyped-call]

    def offsets_for_time(self, topic: str, timestamp: int) -> dict[int, int]:
        """See base.Log."""
        found = self._offsets(topic, OffsetSpec.for_timestamp(timestamp))
        if min(found.values(), default=0) < 0:  # no record that late
            ends = self.ends(topic)
            found = {p: ends[p] if o < 0 else o for p, o in found.items()}
        return found

    def committed(self, group: str, topics: Sequence[str]) -> dict[TP, int]:
        """See base.Log."""
        there = self._require(topics)
        parts = [TopicPartition(t, p) for t in topics for p in there[t].partitions]
        # A consumer that never subscribes doesn't join. (The administration's own call crashed the process when it timed out.)
        settings = {k: v for k, v in self._settings.items() if not k.startswith(WRITER_ONLY)}
        consumer = Consumer({**settings, "group.id": group, "enable.auto.commit": "false"})
        try:
            found = consumer.committed(parts, timeout=REQUEST_S)
        except KafkaException as e:
            raise _unavailable(e, f"asking for the offsets of group {group}") from None
        finally:
            consumer.close()
        return {(tp.topic, tp.partition): max(-1, tp.offset) for tp in found}

    def members(self, group: str) -> list[str] | None:
        """See base.Log."""
        asked = self._admin.describe_consumer_groups([group], request_timeout=REQUEST_S)[group]
        found = self._result(asked, f"asking for the members of group {group}")
        if found.state != ConsumerGroupState.STABLE:
            return None
        return [m.group_instance_id or m.member_id for m in found.members]

    def describe(self) -> dict[str, Any]:
        """See base.Log."""
        found = self._result(self._admin.describe_cluster(request_timeout=REQUEST_S), "asking for the cluster")
        return {
            "kind": "kafka",
            "cluster": found.cluster_id,
            "nodes": sorted(f"{n.host}:{n.port}" for n in found.nodes),
        }

    def reader(self, topics: Sequence[str]) -> KafkaReader:
        """See base.Log."""
        self._require(topics)
        # librdkafka assigns only within a group's handle; this one never joins or commits
        own = {"group.id": f"stream-dmgin-reader-{os.getpid()}"}
        return KafkaReader({**self._reading(), **own}, topics)

    def group_reader(
        self,
        group: str,
        topics: Sequence[str],
        listener: GroupListener,
        *,
        instance_id: str = "",
        protocol: str = "classic",
    ) -> KafkaGroupReader:
        """See base.Log."""
        self._require(topics)
        if self._settings.get("group.protocol", protocol).lower() == "consumer":
            own = {"group.protocol": "consumer", "group.remote.assignor": "range"}
        else:
            own = dict(GROUP)
        if instance_id:
            own["group.instance.id"] = instance_id
            if "session.timeout.ms" in own:
                own["session.timeout.ms"] = STATIC_SESSION_MS
        return KafkaGroupReader({**own, **self._reading(), "group.id": group}, topics, listener)

    def writer(self, **tuning: Any) -> KafkaWriter:
        """See base.Log."""
        settings = {k: v for k, v in self._settings.items() if not k.startswith(READER_ONLY)}
        return KafkaWriter(settings, self._limit, **tuning)

    def transactions(self, transactional_id: str) -> KafkaTransactions:
        """See base.Log."""
        settings = {k: v for k, v in self._settings.items() if not k.startswith(READER_ONLY)}
        return KafkaTransactions(settings, self._limit, transactional_id)

    def close(self) -> None:
        """Nothing to wait for: librdkafka ends with the object."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _reading(self) -> dict[str, str]:
        return {**READER, **{k: v for k, v in self._settings.items() if not k.startswith(WRITER_ONLY)}}

    def _metadata(self) -> dict[str, Any]:
        try:
            return dict(self._admin.list_topics(timeout=REQUEST_S).topics)
        except KafkaException as e:
            raise _unavailable(e, "asking for the topics") from None

    def _require(self, topics: Iterable[str]) -> dict[str, Any]:
        there = self._metadata()
        missing = [t for t in topics if t not in there]
        if missing:
            raise UsageError(
                f"{self.url} has no topic {', '.join(missing)}: create the topics with `stream-dmgin topics apply`"
            )
        return there

    def _limit(self, topic: str) -> int:
        self._require([topic])

        def ask() -> int:
            found = self._configs([topic])
            if topic not in found:
                raise _Unsettled(f"{self.url} doesn't tell the configuration of {topic}")
            return int(found[topic]["max.message.bytes"])

        return _patiently(ask)

    def _configs(self, names: list[str]) -> dict[str, dict[str, str]]:
        asked = [ConfigResource(ResourceType.TOPIC, n) for n in names]
        out: dict[str, dict[str, str]] = {}
        if not asked:
            return out
        for resource, f in self._admin.describe_configs(asked, request_timeout=REQUEST_S).items():
            entries = self._result(
                f, f"asking for the configuration of {resource.name}", ignore=(KafkaError.UNKNOWN_TOPIC_OR_PART,)
            )
            if entries is not None:  # None: deleted meanwhile
                own = ConfigSource.DYNAMIC_TOPIC_CONFIG.value
                out[resource.name] = {k: e.value for k, e in sorted(entries.items()) if k in CONFIG or e.source == own}
        return out

    def _offsets(self, topic: str, spec: OffsetSpec) -> dict[int, int]:
        there = self._require([topic])
        asked = {TopicPartition(topic, p): spec for p in there[topic].partitions}

        def ask() -> dict[int, int]:
            found = self._admin.list_offsets(asked, request_timeout=REQUEST_S)
            doing = f"asking for the offsets of {topic}"
            return {tp.partition: self._result(f, doing).offset for tp, f in sorted(found.items(), key=_partition)}

        return _patiently(ask)

    def _result(self, f: Future[Any], doing: str, ignore: Sequence[int] = ()) -> Any:
        try:
            return f.result()
        except KafkaException as e:
            if e.args[0].code() in ignore:
                return None
            raise _unavailable(e, doing) from None


_partition: Callable[[Any], int] = lambda item: item[0].partition  # noqa: E731


_MOVING = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
)


class _Unsettled(LogUnavailable):
    """The broker is there, but leaders are moving or a topic is just being made: it mends itself within seconds."""


def _patiently(ask: Callable[[], T]) -> T:
    """Ask again while the answer is `unsettled`, 15 s at most."""
    end = time.monotonic() + REQUEST_S
    while True:
        try:
            return ask()
        except _Unsettled:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def _unavailable(e: KafkaException, doing: str) -> LogUnavailable | UsageError:
    error = e.args[0]
    wrong = (
        KafkaError.INVALID_CONFIG,
        KafkaError.INVALID_PARTITIONS,
        KafkaError.TOPIC_EXCEPTION,
        KafkaError.INVALID_REPLICATION_FACTOR,
    )
    text = f"{doing}: {error.name()}: {error.str()}"
    if error.code() in _MOVING:
        return _Unsettled(text)
    return UsageError(text) if error.code() in wrong else LogUnavailable(text)
