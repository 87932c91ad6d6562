"""A worker with standby copies follows another one, and takes over where it was."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import msgpack

from stream_dmgin.counters.chains import SharedCounters
from stream_dmgin.errors import InputError
from stream_dmgin.log.base import open_log
from stream_dmgin.state.ops.stores import Stores
from tests.chaos.campaign import _cli
from tests.chaos.checks import _shown
from tests.chaos.fleet import Fleet, Member, environment
from tests.oracle import Oracle, hash64

PARTITIONS, USERS, ITEMS = 3, 9, 20
T0 = 1_760_000_000_000


def until(what: Callable[[], bool], fleet: Fleet, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "\n".join(m.log.read_text()[-1500:] for m in fleet.members)
        time.sleep(0.1)


def write(url: str, topic: str, values: list[dict[str, object]]) -> None:
    with open_log(url) as log:
        w = log.writer()
        for v in values:
            w.append("dmgin." + topic, str(v["user_id"]).encode(), msgpack.packb(v), timestamp=T0)
        w.close()


def read(url: str, topic: str) -> list[bytes]:
    with open_log(url) as log:
        reader, ends = log.reader(["dmgin." + topic]), log.ends("dmgin." + topic)
        reader.assign({("dmgin." + topic, p): 0 for p in ends})
        out: list[bytes] = []
        while len(out) < sum(ends.values()) and (batch := reader.poll(1000, 5)) is not None:
            out += [batch.value(i) or b"" for i in range(len(batch))]
            batch.release()
        reader.close()
        return out


def events(first: int, n: int) -> list[dict[str, object]]:
    return [
        {"user_id": f"u{k % USERS}", "item_id": f"i{k % ITEMS}", "ts": T0 - k, "event_id": f"e{k}", "dwell_ms": k}
        for k in range(first, first + n)
    ]


def folded(data: Path) -> int:
    """Events in the stores of a directory, as committed."""
    stores, total = Stores.of(data), 0
    for p in stores.present():
        try:
            engine = stores.open(p)
        except InputError:  # just being made
            continue
        total += sum(engine.offsets.values())
        engine.close()
    return total


def test_a_copy_follows_its_owner_and_takes_over(tmp_path: Path) -> None:
    url = f"file:{tmp_path / 'log'}"
    env = environment(STREAM_DMGIN_WORKER_STANDBY="true")
    _cli(env, "topics", "apply", "--log", url, "--partitions", str(PARTITIONS))
    a, b = (Member(n, ["--log", url, "--data-dir", str(tmp_path / n)], tmp_path / f"{n}.log", env) for n in "ab")
    fleet = Fleet([a, b])
    first, second = events(0, 300), events(300, 200)
    try:
        a.start()
        until(lambda: a.said("assigned partitions"), fleet)
        b.start()
        write(url, "clicks", first)
        until(lambda: (tmp_path / "b" / "state" / "meta.json").exists() and folded(tmp_path / "b") == 300, fleet)
        a.send(signal.SIGKILL)
        write(url, "clicks", second)
        request = {"request_id": "q", "user_id": "u1", "ts": T0, "candidates": ["i1"]}
        write(url, "requests", [request])
        until(lambda: len(read(url, "scores")) == 1, fleet)
        assert b.said(f"{PARTITIONS} of them standby copies")
        assert fleet.stop()[-1] == 0
    finally:
        fleet.kill()
    want = Oracle()
    for k, e in enumerate(first + second):
        want.fold("clicks", 0, k, e)
    stores = Stores.of(tmp_path / "b")
    for user in want.users:
        engine = stores.open(stores.partition_of(user))
        assert engine.show(user) == _shown(want.show(user), engine.show(user))
        engine.close()
    counters = SharedCounters()  # each event once, whoever published it
    for offset, value in enumerate(read(url, "counters")):
        counters.fold(value, offset)
    assert (counters.chains.gaps, counters.chains.overlaps) == (0, 0)
    for k in range(ITEMS):
        assert counters.table.totals("item", hash64(f"i{k}"))["clicks"] == len(range(k, 500, ITEMS))


def test_copies_need_a_directory_of_their_own(tmp_path: Path) -> None:
    url = f"file:{tmp_path / 'log'}"
    env = environment(STREAM_DMGIN_WORKER_STANDBY="true")
    _cli(env, "topics", "apply", "--log", url, "--partitions", str(PARTITIONS))
    a, b = (Member(n, ["--log", url, "--data-dir", str(tmp_path / "data")], tmp_path / f"{n}.log", env) for n in "ab")
    fleet = Fleet([a, b])
    try:
        a.start()
        until(lambda: a.said("assigned partitions"), fleet)
        b.start()
        until(lambda: not b.alive, fleet)
        assert b.said("give each worker a directory of its own")
    finally:
        fleet.kill()
