"""The contract of log/base.py, held against both backends."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from stream_dmgin.errors import LogUnavailable, RecordError, UsageError
from stream_dmgin.log.base import TP, GroupReader, Log, Reader, Record, TopicInfo, open_log
from stream_dmgin.log.murmur2 import partition_of

PARTITIONS = 4


@pytest.fixture(params=["file", pytest.param("kafka", marks=pytest.mark.kafka)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file:{tmp_path / 'log'}"
    return "kafka://" + request.getfixturevalue("kafka")


@pytest.fixture
def log(url: str) -> Iterator[Log]:
    with open_log(url) as opened:
        yield opened


@pytest.fixture
def topic(log: Log, prefix: str) -> str:
    name = prefix + "events"
    log.create([TopicInfo(name, PARTITIONS, {"retention.ms": "-1", "max.message.bytes": str(11 << 20)})])
    return name


def drain(reader: Reader, want: int, seconds: float = 20.0, max_records: int = 1000) -> list[Record]:
    """Copies of the records that come, until there are `want`."""
    out: list[Record] = []
    end = time.monotonic() + seconds
    while len(out) < want and time.monotonic() < end:
        batch = reader.poll(max_records, 0.1)
        if batch is not None:
            assert 0 < len(batch) <= max_records
            out += [batch.record(i) for i in range(len(batch))]
            batch.release()
    return out


def everything(log: Log, *topics: str) -> list[Record]:
    """What the topics hold."""
    ends = {(t, p): e for t in topics for p, e in log.ends(t).items()}
    reader = log.reader(topics)
    reader.assign(dict.fromkeys(ends, 0))
    try:
        return drain(reader, sum(ends.values()))
    finally:
        reader.close()


def test_what_was_appended_is_read_in_order(log: Log, topic: str) -> None:
    writer, told = log.writer(), []
    for i in range(2000):
        writer.append(
            topic,
            f"user{i % 17}".encode(),
            b"v%d" % i,
            timestamp=1_700_000_000_000 + i,
            on_delivery=lambda *a: told.append(a),
        )
    writer.flush()
    assert [e for e, _, _ in told] == [None] * 2000
    records = everything(log, topic)
    assert sorted((r.partition, r.offset) for r in records) == sorted((p, o) for _, (_, p), o in told)
    for p in range(PARTITIONS):
        mine = [r for r in records if r.partition == p]
        assert [r.offset for r in mine] == list(range(len(mine)))  # dense, in order
        numbers = [int((r.value or b"")[1:]) for r in mine]
        assert numbers == sorted(numbers)  # as appended
    for r in records:
        assert r.key is not None and r.partition == partition_of(r.key, PARTITIONS)
        assert r.timestamp == 1_700_000_000_000 + int((r.value or b"")[1:])
    writer.close()


def test_null_and_empty_keys_values_and_headers(log: Log, topic: str) -> None:
    writer = log.writer(linger_ms=0)
    given = [
        (b"k", None, ()), (None, b"v", (("a", b"1"), ("a", b"2"))), (b"", b"", (("empty", b""),)),
        (None, None, (("ü", b"\x00\xff" * 500),)), (b"\x00\xff", b"\x00" * 10, ()),
    ]  # fmt: skip
    for key, value, headers in given:
        writer.append(topic, key, value, headers=headers, partition=1, timestamp=5)
    writer.close()
    assert [(r.key, r.value, r.headers) for r in everything(log, topic)] == given


def test_a_timestamp_is_given_by_the_clock_otherwise(log: Log, topic: str) -> None:
    before = int(time.time() * 1000)
    writer = log.writer()
    writer.append(topic, b"k", b"v")
    writer.close()
    assert before <= everything(log, topic)[0].timestamp <= int(time.time() * 1000)


def test_big_values_pass_and_too_large_ones_are_refused(log: Log, topic: str) -> None:
    value = np.random.default_rng(1).bytes(5 << 20)
    writer = log.writer()
    for i in range(3):
        writer.append(topic, b"k", value + bytes([i]))
    writer.append(topic, b"k", b"small")
    with pytest.raises(RecordError, match=r"max\.message\.bytes is 11534336") as e:
        writer.append(topic, b"k", bytes(11 << 20))
    assert e.value.reason == "too_large"
    writer.close()
    assert [r.value for r in everything(log, topic)] == [value + b"\0", value + b"\1", value + b"\2", b"small"]


def test_ends_begins_and_offsets_for_a_time(log: Log, topic: str) -> None:
    assert log.ends(topic) == log.begins(topic) == dict.fromkeys(range(PARTITIONS), 0)
    writer = log.writer(linger_ms=0)
    for t in (10, 20, 15, 30, 30, 5):  # late ones in between
        writer.append(topic, b"k", b"v", partition=2, timestamp=t)
    writer.append(topic, b"k", b"v", partition=0, timestamp=100)
    writer.flush()
    assert log.ends(topic) == {0: 1, 1: 0, 2: 6, 3: 0}
    assert log.begins(topic) == dict.fromkeys(range(PARTITIONS), 0)
    first = {t: log.offsets_for_time(topic, t)[2] for t in (0, 10, 11, 20, 21, 30, 31)}
    assert first == {0: 0, 10: 0, 11: 1, 20: 1, 21: 3, 30: 3, 31: 6}
    assert log.offsets_for_time(topic, 31) == {0: 0, 1: 0, 2: 6, 3: 0}
    writer.close()


def test_topics_create_and_configure(log: Log, topic: str, prefix: str) -> None:
    log.create([TopicInfo(topic, 9, {}), TopicInfo(prefix + "other", 1, {"cleanup.policy": "compact"})])
    found = log.topics()
    assert found[topic].partitions == PARTITIONS  # what exists stays
    assert found[topic].config["retention.ms"] == "-1"
    assert found[prefix + "other"].config["cleanup.policy"] == "compact"
    log.configure(topic, {"retention.ms": "86400000"})
    with open_log(log.url) as again:
        assert again.topics()[topic].config["retention.ms"] == "86400000"
        assert again.topics()[topic].config["max.message.bytes"] == str(11 << 20)


def test_a_topic_that_does_not_exist(log: Log, prefix: str) -> None:
    for call in (
        lambda: log.writer().append(prefix + "none", b"k", b"v"), lambda: log.reader([prefix + "none"]),
        lambda: log.ends(prefix + "none"), lambda: log.group_reader("g", [prefix + "none"], Listener()),
    ):  # fmt: skip
        with pytest.raises(UsageError, match="topics apply"):
            call()


def test_reading_from_the_middle_and_again(log: Log, topic: str) -> None:
    writer = log.writer()
    for i in range(3000):
        writer.append(topic, b"k", b"%d" % i, partition=i % 2)
        if i % 700 == 0:
            writer.flush()  # several frames
    writer.flush()
    reader = log.reader([topic])
    reader.assign({(topic, 0): 1234, (topic, 1): 1499, (topic, 2): 0})
    records = drain(reader, 1500 - 1234 + 1, max_records=100)
    assert sorted((r.partition, r.offset) for r in records) == [(0, o) for o in range(1234, 1500)] + [(1, 1499)]
    assert all(r.value == b"%d" % (2 * r.offset + r.partition) for r in records)
    reader.assign({(topic, 1): -2})  # the first kept
    assert drain(reader, 1)[0].offset == 0
    reader.assign({(topic, 1): 1500})  # the end: what comes later
    assert reader.poll(10, 0.05) is None
    writer.append(topic, b"k", b"new", partition=1)
    writer.flush()
    assert [r.value for r in drain(reader, 1)] == [b"new"]
    reader.close()
    writer.close()


def test_an_offset_past_the_end_is_refused(log: Log, topic: str) -> None:
    reader = log.reader([topic])
    with pytest.raises(LogUnavailable, match=r"ends at offset 0, but the store has read up to 12345"):
        reader.assign({(topic, 0): 12345})
        drain(reader, 1, 10)
    reader.close()


def test_batches_index_the_topics_that_were_asked_for(log: Log, topic: str, prefix: str) -> None:
    other = prefix + "other"
    log.create([TopicInfo(other, 2, {})])
    writer = log.writer()
    writer.append(topic, b"k", b"in topic")
    writer.append(other, b"k", b"in other")
    writer.close()
    for asked in ([topic, other], [other, topic]):
        reader = log.reader(asked)
        reader.assign({(topic, p): 0 for p in range(PARTITIONS)} | {(other, 0): 0, (other, 1): 0})
        found = {r.topic: r.value for r in drain(reader, 2)}
        assert found == {topic: b"in topic", other: b"in other"}
        reader.close()


def test_pause_and_resume(log: Log, topic: str) -> None:
    writer = log.writer(linger_ms=0)
    for p in (0, 1):
        for i in range(50):
            writer.append(topic, b"k", b"%d" % i, partition=p)
    writer.flush()
    reader = log.reader([topic])
    reader.assign({(topic, 0): 0, (topic, 1): 0})
    records = drain(reader, 1, max_records=10)
    reader.pause([(topic, 0)])
    records += drain(reader, 1000, 1.0)
    assert sum(r.partition == 1 for r in records) == 50
    held = [r.offset for r in records if r.partition == 0]
    assert held == list(range(len(held))) and len(held) <= 10
    reader.resume([(topic, 0)])
    records += drain(reader, 50 - len(held))
    assert [r.offset for r in records if r.partition == 0] == list(range(50))
    reader.close()
    writer.close()


def test_a_single_record_comes_soon(log: Log, topic: str) -> None:
    reader = log.reader([topic])
    reader.assign({(topic, p): 0 for p in range(PARTITIONS)})
    drain(reader, 1, 0.3)
    writer, took = log.writer(linger_ms=0), []
    for _ in range(30):
        start = time.perf_counter()
        writer.append(topic, b"k", b"v")
        assert len(drain(reader, 1)) == 1
        took.append(time.perf_counter() - start)
        writer.poll()
    assert sorted(took)[15] < 0.1  # 0.1 ms (embedded) and 1 ms (Kafka) on an idle machine
    reader.close()
    writer.close()


def test_an_unreleased_batch_is_released_by_the_next_poll_and_by_close(log: Log, topic: str) -> None:
    writer = log.writer()
    for i in range(100):
        writer.append(topic, b"k%d" % i, b"v")
    writer.close()
    reader = log.reader([topic])
    reader.assign({(topic, p): 0 for p in range(PARTITIONS)})
    seen = 0
    while seen < 100:
        batch = reader.poll(7, 5.0)
        assert batch is not None
        seen += len(batch)
    reader.close()  # the last batch is out still: must not hang
    batch.release()
    batch.release()


WRITER = """
import sys
from stream_dmgin.log.base import open_log
url, topic, name, count = sys.argv[1:]
with open_log(url) as log:
    w = log.writer(linger_ms=1)
    for i in range(int(count)):
        w.append(topic, b"user%d" % (i % 50), f"{name}:{i}".encode())
    w.close()
"""


def test_two_processes_write_while_one_reads(log: Log, topic: str) -> None:
    count = 5000
    children = [subprocess.Popen([sys.executable, "-c", WRITER, log.url, topic, name, str(count)]) for name in "ab"]
    reader = log.reader([topic])
    reader.assign({(topic, p): 0 for p in range(PARTITIONS)})
    records = drain(reader, 2 * count, 60)
    reader.close()
    assert [c.wait(30) for c in children] == [0, 0]
    assert len(records) == 2 * count == sum(log.ends(topic).values())
    for p in range(PARTITIONS):
        mine = [r for r in records if r.partition == p]
        assert [r.offset for r in mine] == list(range(len(mine)))
        for name in "ab":
            numbers = [int((r.value or b"")[2:]) for r in mine if (r.value or b"").startswith(name.encode())]
            assert numbers == sorted(numbers)


class Listener:
    """Notes what a group tells; begins at `start`."""

    def __init__(self, start: int = 0) -> None:
        self.start, self.mine, self.told = start, set[TP](), list[str]()
        self.reader: GroupReader | None = None

    def assigned(self, partitions: list[TP]) -> Mapping[TP, int]:
        assert not self.mine & set(partitions)
        self.mine |= set(partitions)
        self.told.append("assigned")
        return dict.fromkeys(partitions, self.start)

    def revoked(self, partitions: list[TP]) -> None:
        assert set(partitions) <= self.mine
        if self.reader is not None:
            self.reader.commit(dict.fromkeys(partitions, 1))
        self.mine -= set(partitions)
        self.told.append("revoked")

    def lost(self, partitions: list[TP]) -> None:
        self.mine -= set(partitions)
        self.told.append("lost")


def test_a_group_begins_where_its_listener_says_and_hands_over(log: Log, topic: str, prefix: str) -> None:
    writer = log.writer()
    for i in range(400):
        writer.append(topic, b"k%d" % i, b"v", partition=i % PARTITIONS)
    writer.close()
    first, second = Listener(start=10), Listener(start=99)
    a = first.reader = log.group_reader(prefix + "g", [topic], first)
    records = drain(a, 400 - 10 * PARTITIONS)
    assert len(records) == 400 - 10 * PARTITIONS and min(r.offset for r in records) == 10
    assert first.mine == {(topic, p) for p in range(PARTITIONS)}
    assert a.committed(first.mine) == dict.fromkeys(first.mine, -1)
    a.commit(dict.fromkeys(first.mine, 100))
    a.close()
    assert first.told == ["assigned", "revoked"] and not first.mine
    b = second.reader = log.group_reader(prefix + "g", [topic], second)
    assert sorted(r.offset for r in drain(b, PARTITIONS)) == [99] * PARTITIONS
    assert b.committed(second.mine) == dict.fromkeys(second.mine, 1)  # from `revoked`
    b.close()
    assert second.told == ["assigned", "revoked"]


def test_every_partition_has_one_owner_while_members_come_and_go(log: Log, topic: str, prefix: str) -> None:
    everyone = {(topic, p) for p in range(PARTITIONS)}
    first, second = Listener(), Listener()
    a = first.reader = log.group_reader(prefix + "g", [topic], first)
    until([a], lambda: first.mine == everyone)
    b = second.reader = log.group_reader(prefix + "g", [topic], second)
    for _ in range(20):
        assert a.poll(10, 0.02) is None and b.poll(10, 0.02) is None
        assert not first.mine & second.mine
    a.close()
    until([b], lambda: second.mine == everyone)
    assert not first.mine
    b.close()


def until(readers: list[GroupReader], what: object, seconds: float = 20.0) -> None:
    """Poll until `what()` holds."""
    assert callable(what)
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited too long"
        for r in readers:
            batch = r.poll(100, 0.02)
            if batch is not None:
                batch.release()


def test_what_the_listener_raises_passes_through_poll(log: Log, topic: str, prefix: str) -> None:
    class Broken(Listener):
        def assigned(self, partitions: list[TP]) -> Mapping[TP, int]:
            raise OSError("the disk is full")

    reader = log.group_reader(prefix + "g", [topic], Broken())
    with pytest.raises(OSError, match="the disk is full"):
        until([reader], lambda: False)
    reader.close()
