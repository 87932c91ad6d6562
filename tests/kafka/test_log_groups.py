"""Consumer groups on a real Kafka: co-partitioning, fencing, the newer protocol."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from stream_dmgin.errors import Fenced, StreamDmginError
from stream_dmgin.log.base import TP, GroupReader, Log, TopicInfo, open_log

pytestmark = pytest.mark.kafka
TOPICS = ("impressions", "clicks", "post-clicks", "requests")
PARTITIONS = 4


class Member:
    """Polls in the test's thread; notes what it is told. Offsets live in `store`, as the worker's do."""

    def __init__(self, log: Log, group: str, topics: list[str], store: dict[TP, int], instance_id: str = "") -> None:
        self.mine: set[TP] = set()
        self.told: list[str] = []
        self.read: list[tuple[str, int, int]] = []
        self.store = store
        self.reader: GroupReader = log.group_reader(group, topics, self, instance_id=instance_id)

    def assigned(self, partitions: list[TP]) -> Mapping[TP, int]:
        self.mine |= set(partitions)
        self.told.append("assigned")
        return {tp: self.store.get(tp, 0) for tp in partitions}

    def revoked(self, partitions: list[TP]) -> None:
        self.reader.commit({tp: self.store.get(tp, 0) for tp in partitions})
        self.mine -= set(partitions)
        self.told.append("revoked")

    def lost(self, partitions: list[TP]) -> None:
        self.mine -= set(partitions)
        self.told.append("lost")

    def poll(self) -> None:
        batch = self.reader.poll(500, 0.02)
        if batch is None:
            return
        for i in range(len(batch)):
            tp = (batch.topics[batch.topic[i]], int(batch.partition[i]))
            assert tp in self.mine, "a record of a partition that is not ours"
            assert batch.offset[i] == self.store.get(tp, 0), "a gap or a repetition"
            self.store[tp] = int(batch.offset[i]) + 1
            self.read.append((*tp, int(batch.offset[i])))
        batch.release()


def until(members: list[Member], what: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited too long"
        for m in members:
            m.poll()


def make(log: Log, prefix: str) -> list[str]:
    names = [prefix + t for t in TOPICS]
    log.create(TopicInfo(n, PARTITIONS, {}) for n in names)
    return names


PROTOCOLS: dict[str, dict[str, str]] = {"classic range": {}, "KIP-848 range": {"group.protocol": "consumer"}}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_equal_partition_numbers_stay_together_while_members_come_and_go(
    kafka: str, prefix: str, protocol: str
) -> None:
    with open_log("kafka://" + kafka, PROTOCOLS[protocol]) as log:
        topics = make(log, prefix)
        everyone = {(t, p) for t in topics for p in range(PARTITIONS)}
        store: dict[TP, int] = {}
        stop, written = threading.Event(), [0]

        def write() -> None:
            writer = log.writer()
            while not stop.is_set():
                for t in topics:
                    for p in range(PARTITIONS):
                        writer.append(t, b"k", b"v", partition=p)
                        written[0] += 1
                writer.flush()
                time.sleep(0.005)
            writer.close()

        thread = threading.Thread(target=write)
        thread.start()
        try:
            a = Member(log, prefix + "g", topics, store)
            until([a], lambda: a.mine == everyone and len(a.read) > 200)
            b = Member(log, prefix + "g", topics, store)
            until([a, b], lambda: len(a.mine) == len(b.mine) == len(everyone) // 2)
            for m in (a, b):
                numbers = {p for _, p in m.mine}
                assert m.mine == {(t, p) for t in topics for p in numbers}  # the same numbers of every topic
            until([a, b], lambda: len(b.read) > 200)
            a.reader.close()
            assert a.mine == set() and a.told[-1] == "revoked"
            until([b], lambda: b.mine == everyone)
        finally:
            stop.set()
            thread.join()
        until([b], lambda: len(a.read) + len(b.read) == written[0])
        b.reader.close()
        assert len({*a.read, *b.read}) == written[0]  # nothing twice, nothing missing


def test_a_member_that_stalls_is_fenced_and_told_that_its_partitions_are_lost(kafka: str, prefix: str) -> None:
    impatient = {"session.timeout.ms": "3000", "max.poll.interval.ms": "3000", "heartbeat.interval.ms": "300"}
    with open_log("kafka://" + kafka, impatient) as log:
        topics = make(log, prefix)
        everyone = {(t, p) for t in topics for p in range(PARTITIONS)}
        a = Member(log, prefix + "g", topics, {})
        until([a], lambda: a.mine == everyone)
        a.reader.commit({(topics[0], 0): 0})
        a.poll()
        b = Member(log, prefix + "g", topics, {})
        until([b], lambda: b.mine == everyone)  # a doesn't poll
        a.reader.commit({(topics[0], 0): 0})  # refused: seen by a later call
        end = time.monotonic() + 60
        with pytest.raises(Fenced):
            while time.monotonic() < end:
                time.sleep(0.05)
                batch = a.reader.poll(10, 0)
                assert batch is None
                if "lost" in a.told:
                    raise Fenced("told so")
                a.reader.commit({(topics[0], 0): 0})
        until([a, b], lambda: "lost" in a.told)
        assert "revoked" not in a.told
        until([a, b], lambda: len(a.mine) == len(b.mine) == len(everyone) // 2)  # it joins again
        a.reader.commit(dict.fromkeys(a.mine, 0))
        a.reader.close()
        b.reader.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_new_assignment_forgets_pauses_and_old_positions(kafka: str, prefix: str, protocol: str) -> None:
    with open_log("kafka://" + kafka, PROTOCOLS[protocol]) as log:
        topic = make(log, prefix)[0]
        everyone = {(topic, p) for p in range(PARTITIONS)}
        store: dict[TP, int] = {}
        written = 0
        writer = log.writer(linger_ms=0)

        def write() -> None:
            nonlocal written
            for p in range(PARTITIONS):
                for _ in range(10):
                    writer.append(topic, b"k", b"v", partition=p)
            writer.flush()
            written += 10 * PARTITIONS

        write()
        a = Member(log, prefix + "g", [topic], store)
        until([a], lambda: len(a.read) == written)
        a.reader.pause(everyone)
        b = Member(log, prefix + "g", [topic], store)
        until([a, b], lambda: len(a.mine) == len(b.mine) == PARTITIONS // 2)
        write()
        until([a, b], lambda: sum(store[tp] for tp in b.mine) == written // 2)  # a's old position is behind now
        b.reader.pause(b.mine)
        b.reader.close()
        until([a], lambda: a.mine == everyone)
        write()
        until([a], lambda: sum(store.values()) == written)
        a.reader.close()
        reader = log.reader([topic])
        reader.assign(dict.fromkeys(everyone, 0))
        reader.pause(everyone)
        assert reader.poll(10, 0.3) is None
        reader.assign(dict.fromkeys(everyone, 5))
        batch = reader.poll(1, 10.0)
        assert batch is not None and batch.offset[0] == 5
        reader.close()
        writer.close()


def test_a_static_member_that_comes_back_moves_nothing_and_its_double_is_fenced(kafka: str, prefix: str) -> None:
    with open_log("kafka://" + kafka) as log:
        topics = make(log, prefix)
        a, b = (Member(log, prefix + "g", topics, {}, n) for n in "ab")
        until([a, b], lambda: len(a.mine) == len(b.mine) == PARTITIONS // 2 * len(topics))
        had, told = set(a.mine), len(b.told)
        a.reader.close()
        again = Member(log, prefix + "g", topics, {}, "a")
        until([again, b], lambda: again.mine == had)
        assert len(b.told) == told
        double = Member(log, prefix + "g", topics, {}, "a")
        until([double, b], lambda: double.mine == had)
        with pytest.raises(StreamDmginError, match="fenced"):
            until([again, double, b], lambda: False)
        for m in (again, double, b):
            m.reader.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("how", ["at once", "later"])
def test_offsets_that_the_group_would_not_take_are_told_again(
    kafka: str, prefix: str, monkeypatch: pytest.MonkeyPatch, protocol: str, how: str
) -> None:
    """With the next ones, or, after the last, on the way out."""
    with open_log("kafka://" + kafka, PROTOCOLS[protocol]) as log:
        a = Member(log, prefix + "g", make(log, prefix), {})
        until([a], lambda: len(a.mine) == PARTITIONS * len(TOPICS))
        one, two = sorted(a.mine)[:2]
        reader: Any = a.reader
        real = reader._lib.commit_queue
        busy = [True]

        def refuse(rk: int, parts: Any, queue: int, told: Any, epoch: int) -> int:
            if not busy:
                return int(real(rk, parts, queue, told, epoch))
            busy.clear()
            if how == "at once":
                return -185  # timed out
            reader._on_commit(rk, 27, parts, epoch)  # a rebalance is under way
            return 0

        monkeypatch.setattr(reader._lib, "commit_queue", refuse)
        a.reader.commit({one: 5})
        a.reader.commit({two: 6})
        until([a], lambda: a.reader.committed([one, two]) == {one: 5, two: 6})
        a.reader.commit({one: 8})
        until([a], lambda: a.reader.committed([one]) == {one: 8})
        busy.append(True)
        a.store |= {one: 11, two: 12}  # told by `revoked`, the last that is told
        a.reader.close()
        b = Member(log, prefix + "g", a.reader.topics, {})  # type: ignore[attr-defined]
        until([b], lambda: bool(b.mine))
        assert b.reader.committed([one, two]) == {one: 11, two: 12}
        b.reader.close()


@pytest.mark.parametrize("noticed", [False, True], ids=["in librdkafka's queue", "noticed"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_assignment_that_waits_when_a_member_joins_anew_is_not_the_last(
    kafka: str, prefix: str, protocol: str, noticed: bool
) -> None:
    """librdkafka joins by itself after a session that was lost: its assignment may be here before the fence is. It was answered with
    "nothing", which librdkafka takes for no answer: it would wait, as a member in good standing that owns partitions, for ever."""
    with open_log("kafka://" + kafka, PROTOCOLS[protocol]) as log:
        a = Member(log, prefix + "g", make(log, prefix), {})
        reader: Any = a.reader
        end = time.monotonic() + 30.0
        while not log.members(prefix + "g"):
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(1.0)  # the assignment is on its way to the member
        if noticed:
            while not reader._pending:
                late = reader._lib.consumer_poll(reader._rk, 20)
                assert not late
                assert time.monotonic() < end
        a.reader.rejoin()
        assert not a.told
        until([a], lambda: len(a.mine) == PARTITIONS * len(TOPICS), 30.0)
        until([a], lambda: len(log.members(prefix + "g") or ()) == 1, 30.0)
        a.reader.close()


def test_one_that_is_no_member_has_no_word_for_a_transaction(kafka: str, prefix: str) -> None:
    """The broker would take its offsets: without a generation they come from anybody."""
    with open_log("kafka://" + kafka) as log:
        a = Member(log, prefix + "g", make(log, prefix), {})
        with pytest.raises(Fenced):
            a.reader.group_metadata()
        a.reader.rejoin()
        until([a], lambda: bool(a.mine))
        t = log.transactions(prefix + "t")
        at = min(a.mine)
        t.append(at[0], b"k", b"v")
        t.commit({at: 7}, a.reader.group_metadata())
        assert a.reader.committed([at]) == {at: 7}
        t.append(at[0], b"k", b"v")
        stranger = a.reader.group_metadata()
        a.reader.close()  # the group has another generation then, and no such member
        with pytest.raises(Fenced):
            t.commit({at: 9}, stranger)
        assert not t.open
        t.close()


def test_polling_again_is_no_proof_of_membership(kafka: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was stopped goes on somewhere within a poll: before it writes, it still has to ask."""
    with open_log("kafka://" + kafka) as log:
        a = Member(log, prefix + "g", make(log, prefix), {})
        until([a], lambda: bool(a.mine))
        reader: Any = a.reader
        asked: list[Any] = []
        committed = reader._committed
        monkeypatch.setattr(reader, "_committed", lambda *args: asked.append(args) or committed(*args))
        reader.confirm()
        assert not asked
        reader._served -= 60.0  # a minute ago, as after SIGSTOP and SIGCONT
        a.poll()
        reader.confirm()
        assert len(asked) == 1
        reader.confirm()
        assert len(asked) == 1
        reader.close()
