"""Cases that random logs rarely meet: ids with equal hashes, long lives in tiny commits, large dictionaries, processes killed
while they write, increments of the shared counters, erased users."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_dmgin.features.spec import COUNTER_METRICS
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import Record, batch_of
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.parse import parse_events
from stream_dmgin.topics import EVENTS
from tests.effort import examples
from tests.oracle import Oracle, hash64
from tests.streams import FULL, PARTITION, T0, Logged, Pair, Shape, differences, random_log

P1, P2, P3, P4, P5 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
M = (1 << 64) - 1


def eight_bytes_with_hash(h: int) -> bytes:
    """XXH64 of eight bytes is a bijection: undo it."""
    h ^= h >> 32
    h = h * pow(P3, -1, 1 << 64) & M
    h ^= h >> 29 ^ h >> 58
    h = h * pow(P2, -1, 1 << 64) & M
    h ^= h >> 33
    h = (h - P4) * pow(P1, -1, 1 << 64) & M
    h = (h >> 27 | h << 37) & M
    k = (h ^ (P5 + 8)) * pow(P1, -1, 1 << 64) & M
    k = (k >> 31 | k << 33) & M
    return (k * pow(P2, -1, 1 << 64) & M).to_bytes(8, "little")


def twins(n: int) -> list[tuple[str, str]]:
    """Pairs of different ids with the same hash."""
    out = []
    k = 0
    while len(out) < n:
        k += 1
        other = eight_bytes_with_hash(hash64(f"someone {k}"))
        if all(32 <= b < 127 for b in other):
            out.append((f"someone {k}", other.decode()))
    return out


PAIRS = twins(4)


def test_twins_are_twins() -> None:
    for a, b in PAIRS:
        assert a != b and hash64(a) == hash64(b)


@examples(15)
@given(seed=st.integers(0, 2**32 - 1), tiny=st.booleans())
def test_users_whose_ids_have_one_hash_stay_apart(
    seed: int, tiny: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    r = random.Random(seed)
    pair = Pair(tmp_path_factory.mktemp("s") / "p", {"a": 1}, 1 if tiny else 64 << 20)
    users = [u for two in PAIRS for u in two]
    pair.write(random_log(r, Shape(n=150, users=users, items=("a", "b"))))
    while pair.pending():
        rest = pair.pending()
        r.shuffle(rest)
        pair.fold(rest[:20])
        pair.check()
        if r.random() < 0.5:
            pair.commit()
        if r.random() < 0.2:
            pair.restart()
    pair.check()
    pair.close()


def test_items_and_types_whose_ids_have_one_hash_keep_their_names(tmp_path: Path) -> None:
    (a, b), (t, u) = PAIRS[:2]
    pair = Pair(tmp_path / "p", {"x": 1})
    log: list[Logged] = []
    for k in range(20):
        e = {"user_id": "u", "item_id": (a, b)[k % 2], "ts": T0 + k, "event_id": f"e{k}", "type": (t, u)[k // 2 % 2]}
        log.append(("post-clicks", e))
    pair.write(log)
    for _ in range(2):
        pair.fold(pair.pending())
        shown = pair.engine.show("u")
        assert shown is not None
        recent = sorted((e["ts"], e["item_id"], e["type"]) for g in shown["groups"] for e in g["recent"])
        assert recent == [(e["ts"], e["item_id"], e["type"]) for _, e in log]
        counts = Counter[str]()
        for g in shown["groups"]:
            counts.update(g["counts"])
        assert counts == {t: 10, u: 10}
        pair.commit()
        pair.restart()
    pair.close()


def folded(
    engine: StateEngine, log: list[Logged], start: dict[str, int] | None = None, size: int = 1000, commit: int = 0
) -> None:
    """Feed a log to an engine in batches, with a commit every `commit` batches."""
    offset = dict(start or dict.fromkeys(EVENTS, 0))
    for n, at in enumerate(range(0, len(log), size)):
        records = []
        for topic, e in log[at : at + size]:
            records.append(
                Record(f"dmgin.{topic}", PARTITION, offset[topic], T0 + 10**10, e["user_id"].encode(), msgpack.packb(e))
            )
            offset[topic] += 1
        batch = batch_of(FULL, records)
        columns, bad = parse_events(batch, np.arange(3, dtype=np.uint8))
        assert not bad
        engine.fold(columns, np.arange(len(records), dtype=np.int32))
        if commit and n % commit == 0:
            engine.commit()


@pytest.mark.parametrize("cache_bytes", [1, 64 << 20])
def test_a_long_life_in_many_small_commits(tmp_path: Path, cache_bytes: int) -> None:
    items = [f"i{k}" for k in range(700)]
    groups = {i: k % 300 for k, i in enumerate(items[:600])}
    log = random_log(
        random.Random(4),
        Shape(n=12_000, users=("u", "v"), items=items, ts_range=10**9, types=("order", "cart", *"abcdefghij")),
    )
    engine = StateEngine.open(tmp_path / "p", PARTITION, GroupMap(groups), cache_bytes=cache_bytes)
    folded(engine, log, size=25, commit=1)
    engine.commit()
    engine.close()
    engine = StateEngine.open(tmp_path / "p", PARTITION, GroupMap(groups), cache_bytes=cache_bytes)
    again = StateEngine.open(None, PARTITION, GroupMap(groups))
    folded(again, random.Random(5).sample(log, len(log)), size=5000)
    oracle = Oracle(groups, duplicates=False)
    for topic, e in log:
        oracle.fold(topic, PARTITION, 0, e)
    for u in "uv":
        assert differences(oracle.show(u), engine.show(u)) == []
        assert engine.canonical(u) == again.canonical(u)
    engine.close()


def test_dictionaries_grow_to_any_size(tmp_path: Path) -> None:
    """30,000 users and 40,000 items, most of them new in each batch; then the store alone knows them all."""
    users, items = [f"user-{k}" for k in range(30_000)], [f"item-{k}" for k in range(40_000)]
    groups = {i: k % 5000 for k, i in enumerate(items[:30_000])}
    log = random_log(random.Random(6), Shape(n=70_000, users=users, items=items, ts_range=10**9))
    oracle = Oracle(groups, duplicates=False)
    for topic, e in log:
        oracle.fold(topic, PARTITION, 0, e)
    engine = StateEngine.open(tmp_path / "p", PARTITION, GroupMap(groups), cache_bytes=8 << 20)
    folded(engine, log, size=9000, commit=2)
    engine.commit()
    for _ in range(2):
        assert engine.count_users() == len(oracle.users)
        assert set(engine.users()) == set(oracle.users)
        for u in random.Random(1).sample(sorted(oracle.users), 300):
            assert differences(oracle.show(u), engine.show(u)) == []
        engine.close()
        engine = StateEngine.open(tmp_path / "p", PARTITION, GroupMap(groups), cache_bytes=8 << 20)
    engine.close()


WRITER = """
import random, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.state.engine import StateEngine
from tests.property.test_state_hard import KILL_GROUPS, PARTITION, kill_log, from_offsets
r = random.Random(int(sys.argv[2]))
engine = StateEngine.open(sys.argv[1], PARTITION, GroupMap(KILL_GROUPS), cache_bytes=1 << 20)
for n, fold in enumerate(from_offsets(engine, kill_log(), 40)):
    fold()
    if n == 0:
        print("ready", flush=True)
    if r.random() < 0.7:
        engine.commit()
engine.commit()
engine.close()
print("done", flush=True)
"""
KILL_GROUPS = {f"i{k}": k % 40 for k in range(100)}


def kill_log() -> list[Logged]:
    return random_log(random.Random(9), Shape(n=30_000, users=[f"u{k}" for k in range(200)], items=[f"i{k}" for k in range(150)], ts_range=10**9))  # fmt: skip


def from_offsets(engine: StateEngine, log: list[Logged], size: int):  # type: ignore[no-untyped-def]
    """Functions that each fold the next batch, from where the engine's offsets are."""
    seen = dict.fromkeys(EVENTS, 0)
    rest = []
    for topic, e in log:
        if seen[topic] >= engine.offsets.get(EVENTS.index(topic), 0):
            rest.append((topic, e, seen[topic]))
        seen[topic] += 1

    def fold(part: list[tuple[str, dict[str, object], int]]) -> None:
        records = [
            Record(f"dmgin.{t}", PARTITION, o, T0 + 10**10, str(e["user_id"]).encode(), msgpack.packb(e))
            for t, e, o in part
        ]
        columns, _ = parse_events(batch_of(FULL, records), np.arange(3, dtype=np.uint8))
        engine.fold(columns, np.arange(len(records), dtype=np.int32))

    for at in range(0, len(rest), size):
        yield lambda at=at: fold(rest[at : at + size])


@pytest.mark.timeout(400)
def test_a_process_killed_while_it_writes_leaves_the_fold_of_its_offsets(tmp_path: Path) -> None:
    code = textwrap.dedent(WRITER).format(root=str(Path(__file__).parents[2]))
    r = random.Random(3)
    offsets: list[int] = []
    log = kill_log()
    for attempt in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "p"), str(attempt)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(r.uniform(0.02, 0.6))
        child.send_signal(signal.SIGKILL)
        child.wait()
        engine = StateEngine.open(tmp_path / "p", PARTITION, GroupMap(KILL_GROUPS))
        done = engine.offsets
        offsets.append(sum(done.values()))
        again = StateEngine.open(None, PARTITION, GroupMap(KILL_GROUPS))
        seen = dict.fromkeys(EVENTS, 0)
        prefix: list[Logged] = []
        for topic, e in log:
            if seen[topic] < done.get(EVENTS.index(topic), 0):
                prefix.append((topic, e))
            seen[topic] += 1
        folded(again, prefix, size=5000)
        assert sorted(engine.users()) == sorted(again.users())
        assert all(engine.canonical(u) == again.canonical(u) for u in again.users())
        engine.close()
        if child.returncode == 0 or offsets[-1] == len(log):
            break
    assert offsets == sorted(offsets) and offsets[-1] > 0


def test_increments_are_those_of_the_counted_events() -> None:
    """Each counted event once, by item and quarter of an hour; not again after a duplicate, not below `published`."""
    shape = Shape(n=2000, users=("u", "v"), items=tuple("abcdef"), ts_range=10**8, duplicates=0.1,
                  types=("order", "cart", "share", "negative", "dwell", "unheard"))  # fmt: skip
    log = [
        (t, {k: v for k, v in e.items() if k != "type" or t == "post-clicks"})
        for t, e in random_log(random.Random(8), shape)
    ]
    for skip in (0, 500):
        pair = Pair(None)
        pair.write(log)
        pair.engine.published = {k: min(skip, len(pair.logs[t])) for k, t in enumerate(EVENTS)}
        want: Counter[tuple[str, int, str]] = Counter()
        got: Counter[tuple[str, int, str]] = Counter()
        oracle = Oracle()
        while pair.pending():
            rest = pair.pending()
            random.Random(len(rest)).shuffle(rest)
            order = rest[:300]
            offset = dict(pair.next)
            for topic in order:
                e = msgpack.unpackb(pair.logs[topic][offset[topic]])
                counted = oracle.fold(topic, PARTITION, offset[topic], e)
                if counted and offset[topic] >= skip:
                    at = e["item_id"], e["ts"] // 900_000
                    if topic == "impressions":
                        want[(*at, "impressions")] += 1
                    else:
                        want[(*at, "clicks")] += topic == "clicks"
                        want[(*at, "dwell_ms")] += min(e.get("dwell_ms") or 0, 3_600_000)
                        want[(*at, "orders")] += e.get("type") == "order"
                        want[(*at, "engagements")] += e.get("type") in ("cart", "share")
                offset[topic] += 1
            pair.fold(order)
            raw = pair.engine.take_increments()
            for k in range(len(raw.count)):
                name = raw.name_of(int(raw.item[k]))
                assert int(raw.item_hash[k]) == hash64(name)
                got[name, int(raw.bucket[k]), COUNTER_METRICS[raw.metric[k]]] += int(raw.count[k])
        assert {k: n for k, n in got.items() if n} == {k: n for k, n in want.items() if n}
        pair.close()


def test_an_erased_user_is_gone_and_may_come_back(tmp_path: Path) -> None:
    items = tuple(f"i{k}" for k in range(400))
    pair = Pair(tmp_path / "p")
    pair.write(random_log(random.Random(1), Shape(n=1500, users=("u", "u\0", "uu", "v"), items=items, ts_range=10**6)))
    pair.fold_all(random.Random(2), 100)
    pair.commit()
    for _ in range(2):
        assert pair.engine.erase("u")
        assert not pair.engine.erase("u")
        del pair.oracle.users["u"]
        pair.check()
        pair.commit()
        pair.restart()
        pair.check()
        rows = [
            bytes(k)
            for k, _ in pair.engine.store.items()
            if k[1:].startswith(b"u") and not k[1:].startswith((b"uu", b"u\0\0", b"u\0"))
        ]  # type: ignore[union-attr]
        assert rows == []
        pair.write(random_log(random.Random(3), Shape(n=300, users=("u",), items=items)))
        pair.fold_all(random.Random(4), 100)
        pair.check()
        pair.commit()
    pair.close()


def test_rows_of_another_partition_are_refused() -> None:
    engine = StateEngine.open(None, PARTITION, GroupMap({}))
    other = Record(
        "dmgin.clicks", PARTITION + 1, 0, T0, b"u", msgpack.packb({"user_id": "u", "item_id": "i", "ts": T0})
    )
    columns, _ = parse_events(batch_of(FULL, [other]), np.arange(3, dtype=np.uint8))
    with pytest.raises(ValueError, match="partition"):
        engine.fold(columns, np.zeros(1, np.int32))
    assert engine.count_users() == 0
