"""A user who is erased stays erased: on running and stopped stores, in rebuilt ones, in older ones, in verify and in replay."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import msgpack
import pytest

from stream_dmgin import control
from stream_dmgin.cli.main import main
from stream_dmgin.log.base import open_log
from stream_dmgin.log.murmur2 import partition_of
from stream_dmgin.replay.logsource import LogSource
from stream_dmgin.settings import Settings
from stream_dmgin.state.ops import erase as ops
from stream_dmgin.state.ops.inspect import show_user
from stream_dmgin.state.ops.stores import Stores
from stream_dmgin.state.ops.verify import verify
from tests.oracle import Oracle
from tests.workers import event, folded, make_topics, running, settings_of, turn_until, write

PARTITIONS = 2
USERS = [f"u{k}" for k in range(9)]
TOPICS = ("impressions", "clicks", "post-clicks")


def traffic(first: int, n: int, seed: int = 1) -> list[tuple[str, bytes, bytes]]:
    r = random.Random(seed)
    return [event(r.choice(USERS), k, r.choice(TOPICS)) for k in range(first, first + n)]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    s = settings_of(tmp_path)
    make_topics(s, PARTITIONS)
    return s


def cli(settings: Settings, *args: str, code: int = 0) -> Any:
    with pytest.raises(SystemExit) as e:
        main([*args, "--log", settings.log, "--data-dir", str(settings.data_dir), "-o", "json"])
    assert int(e.value.code or 0) == code
    return None


def states(settings: Settings) -> dict[str, bytes]:
    """Canonical bytes of every user in the stores, as committed."""
    stores = Stores.of(settings.data_dir)
    out = {}
    for p in stores.present():
        engine = stores.open(p)
        out |= {u: engine.canonical(u) for u in engine.users()}
        engine.close()
    return out


def rebuilt(settings: Settings, name: str) -> dict[str, bytes]:
    """The states that a worker with an empty data directory comes to."""
    other = settings_of(settings.data_dir.parent, name)
    with running(other) as w:
        turn_until(w, folded(w), "the rebuild")
    return states(other)


def expected(records: list[tuple[str, bytes, bytes]], user: str, ends: dict[str, int]) -> Any:
    """The oracle's document of a user of whom the records below `ends` are forgotten."""
    oracle, offsets = Oracle({}), dict.fromkeys(TOPICS, 0)
    p = partition_of(user.encode(), PARTITIONS)
    for topic, key, value in records:
        if partition_of(key, PARTITIONS) == p:
            if key.decode() == user and offsets[topic] >= ends[topic]:
                oracle.fold(topic, p, offsets[topic], msgpack.unpackb(value))
            offsets[topic] += 1
    found = oracle.show(user)
    return None if found is None else {k: found[k] for k in ("events", "impressions")}


def shown(settings: Settings, user: str) -> Any:
    found = show_user(Stores.of(settings.data_dir), user)
    return None if found is None else {k: found[k] for k in ("events", "impressions")}


def audit(settings: Settings) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (settings.data_dir / "audit.log").read_text().splitlines()]


def test_erase_beside_a_running_worker(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, user = traffic(0, 400), traffic(400, 300, 2), "u3"
    write(settings, first)
    with running(settings) as w:
        turn_until(w, folded(w), "the fold")
        w.loop.commit()
        shutil.copytree(settings.data_dir, settings.data_dir.parent / "before", ignore=shutil.ignore_patterns("admin"))
        cli(settings, "state", "erase", user, "--dry-run")
        would = json.loads(capsys.readouterr().out)
        assert would["dry_run"] and would["partitions"][0]["events"] > 0 and shown(settings, user) is not None
        cli(settings, "state", "erase", user, "--yes", "--wait", "0")
        told = json.loads(capsys.readouterr().out)
        line = told["partitions"][0]
        assert line["erased_here"] is False  # the worker, which is this process, could not yet
        assert {k: line[k] for k in ("events", "groups", "rows")} == {
            k: would["partitions"][0][k] for k in ("events", "groups", "rows")
        }
        stores = Stores.of(settings.data_dir)
        order = ops_order(settings, user)
        turn_until(w, lambda: ops.is_done(stores, order), "the erasure")
        assert shown(settings, user) is None
        write(settings, second)  # a new life
        turn_until(w, folded(w), "the new life")
    assert shown(settings, user) == expected(first + second, user, order.offsets)
    done = [a for a in audit(settings) if a["action"] == "erased"]
    assert len(done) == 1 and done[0]["events"] == line["events"] and done[0]["rows"] == line["rows"] > 0
    text = (settings.data_dir / "audit.log").read_text()
    assert f'"{user}"' not in text and control.digest_of(user.encode()) in text
    live = states(settings)
    assert rebuilt(settings, "again") == live
    older = settings_of(settings.data_dir.parent, "before")
    with running(older) as w:  # a copy from before the erasure: it is applied before any request is answered
        w.loop.turn(0.5)
        turn_until(w, lambda: all(o.hold == 0 for o in w.partitions.owned.values()), "the erasure in the old store")
        turn_until(w, folded(w), "the tail")
    assert states(older) == live
    with open_log(settings.log) as log:
        for s in (settings, older):
            report = verify(Stores.of(s.data_dir), log)
            assert report.ok and report.erasing == 0 and report.checked == len(live)
        source = LogSource(log)
        kept = [k for k in source.recorded.keys if k == user.encode()]
        assert len(kept) == sum(k == user.encode() for _, k, _ in second) > 0


def ops_order(settings: Settings, user: str) -> control.Erasure:
    with open_log(settings.log) as log:
        found, _, _ = control.read_control(log, settings.prefix)
    return found.erasures[partition_of(user.encode(), PARTITIONS)][control.digest_of(user.encode())]


def test_what_was_folded_after_the_order_is_kept(settings: Settings) -> None:
    """The worker learns of the order when it has folded past its offsets: what came after them is folded again."""
    first, second, third = traffic(0, 300), traffic(300, 300, 2), traffic(600, 100, 3)
    user, p = "u5", partition_of(b"u5", PARTITIONS)
    write(settings, first)
    with running(settings) as w:
        turn_until(w, folded(w), "the fold")
        with open_log(settings.log) as log:
            order = ops.order(log, settings.prefix, user, p)
            write(settings, second)
            turn_until(w, folded(w), "the fold past the order")
            control.give(log, settings.prefix, {order.key: control.encode(order)})
            stores = Stores.of(settings.data_dir)
            turn_until(w, lambda: ops.is_done(stores, order), "the erasure")
            assert shown(settings, user) == expected(first + second, user, order.offsets)
            increments = w.partitions.owned[p].engine.take_increments()
            assert len(increments.count) == 0  # what is folded again counts nothing in the shared counters
            write(settings, third)
            turn_until(w, folded(w), "the rest")
    assert shown(settings, user) == expected(first + second + third, user, order.offsets)
    assert rebuilt(settings, "again") == states(settings)
    with open_log(settings.log) as log:
        assert verify(Stores.of(settings.data_dir), log).ok


def test_erase_on_a_stopped_store_and_twice(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    write(settings, traffic(0, 300))
    with running(settings) as w:
        turn_until(w, folded(w), "the fold")
    cli(settings, "state", "erase", "u1", code=2)  # nobody is there to answer
    assert "--yes" in capsys.readouterr().err and shown(settings, "u1") is not None
    with open_log(settings.log) as log:  # an order that is in no store yet is no difference
        order = ops.order(log, settings.prefix, "u2", partition_of(b"u2", PARTITIONS))
        control.give(log, settings.prefix, {order.key: control.encode(order)})
        report = verify(Stores.of(settings.data_dir), log)
        assert report.ok and report.erasing == 1
    for user in ("u1", "u1", "nobody"):
        cli(settings, "state", "erase", user, "--yes")
        assert all(p["erased_here"] for p in json.loads(capsys.readouterr().out)["partitions"])
        assert shown(settings, user) is None
    write(settings, traffic(300, 50, 4))
    with running(settings) as w:
        turn_until(w, lambda: all(o.hold == 0 for o in w.partitions.owned.values()) and w.partitions.owned, "u2")
        turn_until(w, folded(w), "the fold")
    assert rebuilt(settings, "again") == states(settings)
    assert (
        len([a for a in audit(settings) if a["action"] == "erased"]) == 3
    )  # the second order for u1 was in the store already


def test_orders_that_can_not_be_read_are_left_out(settings: Settings) -> None:
    digest = "0" * 64
    good = control.Erasure(0, digest, 7, {"clicks": 3}, 1)
    bad = [
        ("erase/x/1", b"\x80"),
        (f"erase/0/{digest}", b"\xc1"),
        (f"erase/1/{digest}", control.encode(good)),
        (f"erase/0/{digest}", msgpack.packb({"partition": 0, "digest": digest, "hash": -1.5, "offsets": {}, "at": 1})),
        ("skip/clicks/1", b"\x80"),
    ]
    write(settings, [("control", k.encode(), v) for k, v in bad])
    write(
        settings,
        [("control", good.key.encode(), control.encode(good)), ("control", b"model", msgpack.packb({"id": "x"}))],
    )
    with open_log(settings.log) as log:
        found, refused, end = control.read_control(log, settings.prefix)
        assert len(refused) == len(bad) and end == len(bad) + 2
        assert found.erasures[0] == {digest: good} and found.others == {"model": {"id": "x"}}
        control.give(log, settings.prefix, {good.key: b""})
        assert control.read_control(log, settings.prefix)[0].erasures[0] == {}
    with running(settings) as w:
        w.loop.turn(0.5)
        turn_until(w, lambda: w.loop.totals.dead_letters == len(bad), "their dead letters")
