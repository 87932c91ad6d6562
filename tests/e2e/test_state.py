"""`state show / users / stats / verify` on a store beside its log, and what verify finds when they disagree."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from stream_dmgin.cli.main import main
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import Record, TopicInfo, batch_of, open_log
from stream_dmgin.log.murmur2 import partition_of
from stream_dmgin.log.scan import scan
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.ops.stores import store_path
from stream_dmgin.state.parse import parse_events
from stream_dmgin.topics import EVENTS
from stream_dmgin.worker.partitions import write_meta
from tests.oracle import Oracle
from tests.streams import Logged, Shape, differences, groups_of, random_log

PARTITIONS = 3
TOPICS = [f"dmgin.{t}" for t in EVENTS]
USERS = tuple(f"u{k}" for k in range(30))
SHAPE = Shape(n=3000, users=USERS, items=tuple(f"i{k}" for k in range(60)), ts_range=10**7)


class World:
    """A log, the stores that a worker would have made of it, and the oracle's opinion."""

    def __init__(self, root: Path) -> None:
        self.url, self.data = f"file:{root / 'log'}", root / "data"
        self.groups = groups_of(SHAPE.items, 12, 0.2, random.Random(5))
        write_meta(self.data / "state", PARTITIONS, "dmgin.", GroupMap(self.groups))
        with open_log(self.url) as log:
            log.create(TopicInfo(t, PARTITIONS) for t in TOPICS)
        self.written: list[tuple[str, int, int, dict[str, Any]]] = []
        self.next: dict[tuple[str, int], int] = {}

    def write(self, events: list[Logged], partition: int | None = None) -> None:
        with open_log(self.url) as log:
            w = log.writer()
            for topic, e in events:
                key = e["user_id"].encode()
                p = partition_of(key, PARTITIONS) if partition is None else partition
                offset = self.next.get((topic, p), 0)
                self.next[topic, p] = offset + 1
                self.written.append((topic, p, offset, e))
                w.append(f"dmgin.{topic}", key, msgpack.packb(e), timestamp=2_000_000_000_000, partition=p)
            w.flush()
            w.close()

    def write_noise(self) -> None:
        with open_log(self.url) as log:
            w = log.writer()
            for p in range(PARTITIONS):
                w.append("dmgin.clicks", b"u", b"\xc1", partition=p)
                self.next["clicks", p] = self.next.get(("clicks", p), 0) + 1
            w.flush()
            w.close()

    def engine(self, p: int) -> StateEngine:
        return StateEngine.open(store_path(self.data / "state", p), p, GroupMap(self.groups))

    def fold(self) -> None:
        """What the worker does, without the rest of it."""
        with open_log(self.url) as log:
            for p in range(PARTITIONS):
                engine = self.engine(p)
                ranges = {(t, p): (engine.offsets.get(k, 0), log.ends(t)[p]) for k, t in enumerate(TOPICS)}
                for batch, inside in scan(log, ranges):
                    columns, _ = parse_events(batch, np.array([TOPICS.index(t) for t in batch.topics], np.uint8))
                    engine.fold(columns, np.flatnonzero(inside).astype(np.int32))
                engine.commit()
                engine.close()

    def oracle(self) -> Oracle:
        o = Oracle(self.groups)
        for topic, p, offset, e in self.written:
            o.fold(topic, p, offset, e)
        return o

    def run(self, capsys: pytest.CaptureFixture[str], *args: object, log: bool = False) -> tuple[int, Any]:
        """Exit code, and the JSON document or what was printed."""
        with pytest.raises(SystemExit) as e:
            main(["state", *map(str, args), "--data-dir", str(self.data), *(["--log", self.url] if log else [])])
        out = capsys.readouterr()
        return int(e.value.code or 0), json.loads(out.out) if "json" in args and out.out else out.out + out.err


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("COLUMNS", "250")
    w = World(tmp_path)
    w.write(random_log(random.Random(1), SHAPE))
    w.write_noise()
    w.fold()
    yield w


def test_show_is_the_contracts_document(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    oracle = world.oracle()
    for u in USERS[:10]:
        code, got = world.run(capsys, "show", u, "-o", "json")
        assert code == 0
        assert differences(oracle.show(u), got) == []
        p = partition_of(u.encode(), PARTITIONS)
        assert got["partition"] == p
        assert got["offsets"] == {f"dmgin.{t}": world.next[t, p] for t in EVENTS}
    code, text = world.run(capsys, "show", "u1", "--limit", 2)
    assert code == 0 and "older groups" in text and "user u1" in text


def test_show_of_an_unknown_user(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    code, got = world.run(capsys, "show", "nobody", "-o", "json")
    assert code == 1 and got["user_id"] == "nobody" and "unknown" in got["error"]
    code, text = world.run(capsys, "show", "nobody")
    assert code == 1 and "no event of it has been folded yet" in text


def test_where_no_worker_has_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (["show", "u"], ["users"], ["stats"], ["verify"]):
        with pytest.raises(SystemExit) as e:
            main(["state", *verb, "--data-dir", str(tmp_path)])
        assert e.value.code == 2
        assert "--data-dir" in capsys.readouterr().err


def test_users_and_stats(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    code, got = world.run(capsys, "users", "--limit", 0, "-o", "json")
    assert code == 0 and got["total"] == 30
    assert {(u["user_id"], u["partition"]) for u in got["users"]} == {
        (u, partition_of(u.encode(), PARTITIONS)) for u in USERS
    }
    code, got = world.run(capsys, "users", "--limit", 4, "--partition", 1, "-o", "json")
    assert len(got["users"]) == 4 and {u["partition"] for u in got["users"]} == {1}
    code, text = world.run(capsys, "users", "--limit", 3)
    assert code == 0 and "27 more" in text
    code, text = world.run(capsys, "users", "--partition", 3)
    assert code == 2 and "there are 3" in text
    code, got = world.run(capsys, "stats", "-o", "json")
    assert code == 0 and got["users"] == 30 and got["bytes"] > 0 and got["groups"].startswith("csv-")
    assert [p["partition"] for p in got["partitions"]] == [0, 1, 2]
    most = max(len(u.events) + len(u.impressions) for u in world.oracle().users.values())
    assert got["events_per_user"]["max"] == most
    code, text = world.run(capsys, "stats")
    assert code == 0 and "SST files" in text


def test_verify_finds_no_difference(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    code, got = world.run(capsys, "verify", "-o", "json", log=True)
    assert code == 0 and got["ok"] and got["checked"] == got["users"] == 30 and not got["sampled"]
    assert got["events"] == SHAPE.n and got["malformed"] == PARTITIONS and got["differences"] == []
    code, text = world.run(capsys, "verify", log=True)
    assert code == 0 and "no difference" in text
    world.write(random_log(random.Random(2), SHAPE))  # what is not folded yet is no difference
    assert world.run(capsys, "verify", log=True)[0] == 0
    world.fold()
    code, got = world.run(capsys, "verify", "-o", "json", log=True)
    assert code == 0 and got["events"] == 2 * SHAPE.n


def test_verify_in_several_passes_and_by_sample(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream_dmgin.state.ops.verify.USERS_A_PASS", 4)
    code, got = world.run(capsys, "verify", "--all", "-o", "json", log=True)
    assert code == 0 and got["checked"] == 30 and got["events"] == SHAPE.n
    chosen = set()
    for seed in range(6):
        code, got = world.run(capsys, "verify", "--users", 10, "--seed", seed, "-o", "json", log=True)
        assert code == 0 and got["sampled"] and 1 <= got["checked"] < 30
        chosen.add((got["checked"], got["events"]))
    assert len(chosen) > 1


def test_verify_finds_an_event_that_was_not_folded(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """One more event of a known user, one of an unknown user, and one that only the store has."""
    world.write([("clicks", {"user_id": u, "item_id": "i1", "ts": 1_760_000_000_000}) for u in ("u3", "stranger")])
    ghost = msgpack.packb({"user_id": "ghost", "item_id": "i", "ts": 10**12})
    for p in range(PARTITIONS):  # the store believes it has read something else there
        engine = world.engine(p)
        records = [
            Record("dmgin.clicks", p, o, 2_000_000_000_000, b"ghost", ghost if e["user_id"] == "u3" else b"")
            for t, q, o, e in world.written
            if (t, q) == ("clicks", p) and o >= engine.offsets[1]
        ]
        columns, _ = parse_events(batch_of(TOPICS, records), np.arange(3, dtype=np.uint8))
        engine.fold(columns, np.arange(len(records), dtype=np.int32))
        engine.commit()
        engine.close()
    code, got = world.run(capsys, "verify", "-o", "json", log=True)
    assert code == 1 and not got["ok"]
    assert {(d["what"], d["user_id"]) for d in got["differences"]} == {
        ("differs", "u3"),
        ("missing", "stranger"),
        ("extra", "ghost"),
    }
    assert (got["differing"], got["missing"], got["extra"]) == (1, 1, 1)
    assert any(f.startswith("events: ") for d in got["differences"] for f in d["fields"])
    code, text = world.run(capsys, "verify", log=True)
    assert code == 1 and "missing: stranger" in text


def test_verify_says_what_it_can_not_decide(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """A click written twice, with 40 post-clicks of the other topic that may have come between the copies, or not."""
    click = {"user_id": "twice", "item_id": "i1", "ts": 1_760_000_000_000, "event_id": "same"}
    world.write([("clicks", click)])
    world.fold()
    posts = [
        ("post-clicks", {**click, "event_id": f"p{k}", "ts": click["ts"] + 1 + k, "type": "order"}) for k in range(40)
    ]
    world.write([*posts])
    world.fold()
    world.write([("clicks", click)])
    world.fold()
    code, got = world.run(capsys, "verify", "-o", "json", log=True)
    assert code == 0 and got["ok"]
    assert got["undecided"] == sum(d["what"] == "undecided" for d in got["differences"]) <= 1


def test_verify_finds_users_of_another_partitioner(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = (partition_of(b"u1", PARTITIONS) + 1) % PARTITIONS
    world.write([("clicks", {"user_id": "u1", "item_id": "i", "ts": 1_760_000_000_000})], partition=wrong)
    world.fold()
    code, got = world.run(capsys, "verify", "-o", "json", log=True)
    assert code == 0 and got["misplaced"] == 1 and got["users"] == 31
    assert "murmur2_random" in world.run(capsys, "verify", log=True)[1]


def test_verify_without_the_right_log(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world.url = f"file:{tmp_path / 'another'}"
    with open_log(world.url) as log:
        log.create(TopicInfo(t, PARTITIONS) for t in TOPICS)
    code, text = world.run(capsys, "verify", log=True)
    assert code == 1 and "another log" in text
    world.url = "kafka://127.0.0.1:9"
    code, text = world.run(capsys, "verify", log=True)
    assert code == 3


def test_all_of_it_beside_a_running_writer(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """The store is open for writing in this process, with uncommitted events: others see the last commit."""
    world.write(random_log(random.Random(3), SHAPE))
    p = partition_of(b"u1", PARTITIONS)
    engine = world.engine(p)
    try:
        before = world.run(capsys, "show", "u1", "-o", "json")[1]
        with open_log(world.url) as log:
            for batch, inside in scan(log, {("dmgin.clicks", p): (engine.offsets[1], world.next["clicks", p])}):
                columns, _ = parse_events(batch, np.array([1], np.uint8))
                engine.fold(columns, np.flatnonzero(inside).astype(np.int32))
        assert world.run(capsys, "show", "u1", "-o", "json")[1] == before
        assert world.run(capsys, "verify", log=True)[0] == 0
        engine.commit()
        after = world.run(capsys, "show", "u1", "-o", "json")[1]
        assert after["events"] > before["events"]
        assert after["offsets"]["dmgin.clicks"] == world.next["clicks", p]
        assert world.run(capsys, "verify", log=True)[0] == 0
        assert world.run(capsys, "stats", "-o", "json")[0] == 0
    finally:
        engine.close()
