"""A new group map goes live while the worker serves: every request is answered, every score names the map of the state it was
made from, and the state becomes the fold from the first event under the new map, bit for bit, through SIGKILLs and back."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import msgpack
import pytest

from stream_dmgin import control
from stream_dmgin import settings as settings_of
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import open_log
from stream_dmgin.log.embedded import EmbeddedLog
from stream_dmgin.log.murmur2 import partition_of
from stream_dmgin.replay.verify import verify as verify_scores
from stream_dmgin.state.ops import erase as erasing
from stream_dmgin.state.ops.inspect import show_user
from stream_dmgin.state.ops.places import store_path
from stream_dmgin.state.ops.stores import Stores
from stream_dmgin.state.ops.verify import verify as verify_state
from stream_dmgin.worker import regroup
from stream_dmgin.worker.publish import compare_groups, publish_groups
from stream_dmgin.worker.run import worker
from stream_dmgin.worker.snapshots import snapshot
from tests.e2e.test_worker import CLI, check_state, event_records, js, request, run, send, traffic, values

ITEMS = [f"i{k}" for k in range(60)]
OLD = {i: k % 9 for k, i in enumerate(ITEMS[:40])}
GROWN = {**OLD, **{i: k % 13 for k, i in enumerate(ITEMS[40:55])}}
CHANGED = {i: k % 7 for k, i in enumerate(ITEMS[3:])}


class Place:
    """A log with its topics, and a data directory."""

    def __init__(self, root: Path, url: str, prefix: str) -> None:
        self.url, self.prefix, self.data = url, prefix, root / "data"
        self.args = ["--log", url, "--prefix", prefix, "--data-dir", str(self.data)]
        root.mkdir(exist_ok=True)
        self.old = write(root / "old.csv", OLD)
        run(
            "topics", "apply", *self.args, "--partitions", "4", "--config", "requests:retention.ms=-1"
        )  # they are dated
        self.settings = settings_of.load(
            {"log": url, "prefix": prefix, "data_dir": str(self.data), "worker.groups": str(self.old),
             "worker.commit_interval_s": 0.05}, {},
        )  # fmt: skip
        self.asked = 0

    def requests(self, n: int):
        out = [request(self.asked + k, f"u{(self.asked + k) % 12}", ["i1", "i9", "i41", "new"]) for k in range(n)]
        self.asked += n
        return out

    def send(self, events, requests: int = 0) -> None:
        send(self.url, self.prefix, [*event_records(events), *self.requests(requests)])

    def scores(self):
        return [msgpack.unpackb(r.value) for r in values(self.url, self.prefix, "scores")]

    def check(self, events, groups: dict[str, int]) -> None:
        """State: the oracle's and, bit for bit, that of a fold from scratch. Scores: reproduced from the log alone."""
        check_state(self.args, events, groups)
        stores = Stores.of(self.data)
        assert stores.groups_id == GroupMap(groups).id
        for p in stores.present():
            engine = stores.open(p)
            assert engine.groups.id == GroupMap(groups).id
            engine.close()
        with open_log(self.url) as log:
            report = verify_state(stores, log)
            assert report.ok and report.checked == 12 and not report.undecided
            outcome = verify_scores(log, self.prefix, 10**6, None, self.data)
        scores = self.scores()
        assert {s["request_id"] for s in scores} == {f"r{k}" for k in range(self.asked)}
        assert {s["status"] for s in scores} == {"ok"}
        assert outcome.checked == outcome.reproduced == outcome.state_identical == len(scores)


@pytest.fixture
def place(tmp_path, prefix):
    return Place(tmp_path, f"file:{tmp_path / 'log'}", prefix)


def turn_until(w, done, seconds=90):
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, w.health.ready()
        w.loop.turn(0.01)


def folded(w, place):
    with open_log(place.url) as log:
        ends = [sum(log.ends(place.prefix + t).values()) for t in ("impressions", "clicks", "post-clicks", "requests")]

    def done():
        owned = w.partitions.owned.values()
        have = [sum(o.engine.offsets[n] for o in owned) for n in range(3)]
        return [*have, sum(o.answered.safe for o in owned)] == ends

    return done


def test_a_grown_map_merges_at_once_also_what_is_on_disk(place):
    events = traffic(5, 1200)
    new = GroupMap(GROWN)
    place.settings = settings_of.load(
        {**{k: place.settings[k] for k in place.settings.values}, "worker.cache_mb": 16}, {}
    )
    with worker(place.settings, score=True) as w:
        place.send(events[:600], 20)
        turn_until(w, folded(w, place))
        assert w.health.groups == GroupMap(OLD).id
        assert compare_groups(place.settings, new)["active"] is None
        publish_groups(place.settings, new)
        assert compare_groups(place.settings, GroupMap(CHANGED))["moved"] == sum(
            CHANGED.get(i) != g for i, g in GROWN.items()
        )
        place.send(events[600:900], 20)
        turn_until(w, lambda: w.health.groups == new.id and w.health.regroup is None)
        turn_until(w, folded(w, place))
        assert w.health.metrics.regroups.labels("grown")._value.get() == 4
    # another worker with nothing but the log and the settings: it goes by the published map from the start
    with worker(place.settings, score=True) as w:
        place.send(events[900:], 20)
        turn_until(w, folded(w, place))
        assert {o.engine.groups.id for o in w.partitions.owned.values()} == {new.id}
    place.check(events, GROWN)
    assert {s["groups"] for s in place.scores()} == {GroupMap(OLD).id, new.id}


def test_a_changed_map_is_built_in_the_background_and_there_is_a_way_back(place):
    events = traffic(6, 2000)
    old, new = GroupMap(OLD), GroupMap(CHANGED)
    with worker(place.settings, score=True) as w:
        place.send(events[:1000], 10)
        turn_until(w, folded(w, place))
        publish_groups(place.settings, new)
        sent = 1000
        until = time.monotonic() + 90
        while w.health.groups != new.id:  # with events and requests coming in all the while
            assert time.monotonic() < until
            more = min(1500, sent + 5)
            place.send(events[sent:more], 1)
            sent = more
            for _ in range(3):
                w.loop.turn(0.01)
        place.send(events[sent:1500], 5)
        turn_until(w, folded(w, place))
        kinds = {k: w.health.metrics.regroups.labels(k)._value.get() for k in ("grown", "rebuilt")}
        assert sum(kinds.values()) == 4 and kinds["rebuilt"] >= 3  # a partition without users has nothing to build
        done = len(place.scores())
    place.check(events[:1500], CHANGED)
    assert {s["groups"] for s in place.scores()} == {old.id, new.id}
    assert done == place.asked
    with worker(place.settings, score=True) as w:
        # Back: the old stores are there, and only have to catch up
        sizes = {p["path"]: p["groups"] for p in js("groups", "prune", *place.args, "--dry-run")["stores"]}
        assert set(sizes.values()) == {old.id}
        place.send(events[1500:], 5)
        turn_until(w, folded(w, place))
        publish_groups(place.settings, old)
        turn_until(w, lambda: w.health.groups == old.id and w.health.regroup is None)
        place.send([], 5)
        turn_until(w, folded(w, place))
    place.check(events, OLD)
    assert {store_path(place.data / "state", p).name for p in range(4)} == {f"p{p:05d}" for p in range(4)}
    found = js("groups", "prune", *place.args, "--yes")
    assert {s["groups"] for s in found["stores"]} == {new.id}
    assert js("groups", "prune", *place.args)["stores"] == []


class Traffic(threading.Thread):
    """Events and requests, all the time, until told to stop."""

    def __init__(self, place: Place, events, part: int) -> None:
        super().__init__(daemon=True)
        self.place, self.events, self.part, self.sent = place, events, part, 0
        self.stopping = threading.Event()

    def run(self) -> None:
        while not self.stopping.wait(0.03):
            more = self.events[self.sent : self.sent + self.part]
            self.place.send(more, 2)
            self.sent += len(more)


@pytest.mark.timeout(300)  # killed members leave their group when their sessions end
def test_on_kafka_under_load_and_a_sigkill(kafka, tmp_path, prefix):
    place = Place(tmp_path, f"kafka://{kafka}", prefix)
    r = random.Random(11)
    new = GroupMap(CHANGED)
    # each once: of an event that is there twice, with a ring between in some order of the topics, either may count
    events = list({e["event_id"]: (t, e) for t, e in traffic(8, 5_000)}.values())
    place.send(events[:3_000], 5)
    port = str(r.randrange(20_000, 30_000))
    command = [*CLI, "worker", *place.args, "--groups", str(place.old), "--http", f"127.0.0.1:{port}"]

    def ready():
        with contextlib.suppress(OSError, ValueError):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5) as answer:
                    return json.loads(answer.read())
            except urllib.error.HTTPError as e:
                return json.loads(e.read())
        return {}

    def wait_for(what, seconds=120):
        until = time.monotonic() + seconds
        while not what(found := ready()):
            assert time.monotonic() < until, found
            assert process.poll() is None
            time.sleep(0.05)
        return found

    process = subprocess.Popen(command, cwd=tmp_path)
    load = Traffic(place, events[3_000:], 5)
    try:
        wait_for(lambda h: h.get("ready"))
        load.start()
        run("groups", "publish", str(write(tmp_path / "new.csv", CHANGED)), *place.args, "--yes")
        wait_for(lambda h: h.get("regroup") or h.get("groups") == new.id)
        time.sleep(r.random())
        process.kill()
        process.wait()
        process = subprocess.Popen(command, cwd=tmp_path)
        wait_for(lambda h: h.get("ready") and h.get("groups") == new.id and h.get("regroup") is None)
        load.stopping.set()
        load.join()
        place.send(events[3_000 + load.sent :])
        until = time.monotonic() + 120
        while len({s["request_id"] for s in place.scores()}) < place.asked:
            assert time.monotonic() < until
            time.sleep(0.3)
        wait_for(lambda h: h.get("ready") and not any(h.get("lag", {"": 1}).values()))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        load.stopping.set()
        process.kill()
    run("worker", *place.args, "--until-end", "--http", "off")
    place.check(events, CHANGED)


def write(path: Path, groups: dict[str, int]) -> Path:
    path.write_text("item_id,group\n" + "".join(f"{i},{g}\n" for i, g in groups.items()))
    return path


def test_an_erased_user_is_in_neither_store(place):
    """Orders before, while and after the new store is built."""
    events = traffic(9, 900)
    old, new = GroupMap(OLD), GroupMap(CHANGED)

    def erase(user: str) -> None:
        with open_log(place.url) as log:
            order = erasing.order(log, place.prefix, user, partition_of(user.encode(), 4))
            control.give(log, place.prefix, {order.key: control.encode(order)})

    with worker(place.settings, score=False) as w:
        place.send(events[:500])
        turn_until(w, folded(w, place))
        publish_groups(place.settings, new)
        for k, user in enumerate(("u1", "u2", "u3", "u4")):
            erase(user)
            place.send(events[500 + 50 * k : 550 + 50 * k])
            for _ in range(10):
                w.loop.turn(0.05)
        turn_until(w, lambda: w.health.groups == new.id and w.health.regroup is None)
        erase("u5")
        place.send(events[700:])
        turn_until(w, folded(w, place))
        publish_groups(place.settings, old)  # the old stores were kept: they hold users that were erased since
        turn_until(w, lambda: w.health.groups == old.id and w.health.regroup is None)
        w.loop.turn(0.05)
        turn_until(w, lambda: all(o.hold == 0 for o in w.partitions.owned.values()))
    stores = Stores.of(place.data)
    with open_log(place.url) as log:
        report = verify_state(stores, log)
    assert report.ok and not report.erasing and report.checked > 7
    for user in ("u1", "u2", "u3", "u4", "u5"):
        assert (show_user(stores, user) or {"events": 0})["events"] < sum(
            e["user_id"] == user and t != "impressions" for t, e in events
        )


def test_a_map_that_needs_events_which_are_gone(place, monkeypatch):
    """The old map stays, with a word why; when the events are back after all, it goes on by itself."""
    monkeypatch.setattr(regroup, "AGAIN_S", 0.2)
    events = traffic(10, 600)
    new = GroupMap(CHANGED)
    begins = EmbeddedLog.begins
    with worker(place.settings, score=True) as w:
        place.send(events[:500], 5)
        turn_until(w, folded(w, place))
        gone = {place.prefix + "clicks": 7}
        monkeypatch.setattr(
            EmbeddedLog, "begins", lambda log, t: {p: at + gone.get(t, 0) for p, at in begins(log, t).items()}
        )
        publish_groups(place.settings, new)
        turn_until(w, lambda: (w.health.regroup or {}).get("failure"))
        assert "retention has removed them" in w.health.regroup["failure"]
        place.send(events[500:], 5)
        turn_until(w, folded(w, place))
        assert w.health.groups == GroupMap(OLD).id
        monkeypatch.setattr(EmbeddedLog, "begins", begins)
        turn_until(w, lambda: w.health.groups == new.id and w.health.regroup is None)
    place.check(events, CHANGED)


def test_a_build_begins_with_a_snapshot_under_the_new_map(place, tmp_path, caplog):
    """A worker that comes back with stores of the old map, while there are snapshots under the new one."""
    events, new, kept = traffic(12, 700), GroupMap(CHANGED), f"{tmp_path / 'kept'}"
    with worker(place.settings, score=True) as w:
        place.send(events[:400], 5)
        turn_until(w, folded(w, place))
    shutil.copytree(place.data, tmp_path / "before", ignore=shutil.ignore_patterns("admin"))
    with worker(place.settings, score=True) as w:
        publish_groups(place.settings, new)
        turn_until(w, lambda: w.health.groups == new.id and w.health.regroup is None)
    snapshot(place.data, kept, None)
    shutil.rmtree(place.data)
    (tmp_path / "before").rename(place.data)
    values = {**place.settings.values, "snapshot.to": kept, "snapshot.every_s": 0}
    caplog.set_level("INFO")
    caplog.clear()  # of what was built above, where an earlier test has set the level
    with worker(dataclasses.replace(place.settings, values=values), score=True) as w:
        place.send(events[400:], 5)
        turn_until(w, folded(w, place))
        turn_until(w, lambda: w.health.groups == new.id and w.health.regroup is None)
    assert "goes on from a snapshot" in caplog.text and "is built from the log" not in caplog.text
    place.check(events, CHANGED)


def counters(w) -> bytes:
    w.loop.commit()
    w.loop.flush()
    w.shared.catch_up()
    assert (w.shared._shared.chains.gaps, w.shared._shared.chains.overlaps) == (0, 0)
    return w.shared.counters.canonical()


def test_the_counters_of_all_users_are_those_of_a_worker_that_kept_its_map(place, tmp_path):
    events = traffic(7, 900)
    other = Place(tmp_path / "other", f"file:{tmp_path / 'other log'}", place.prefix)
    tables = []
    for at in (place, other):
        with worker(at.settings, score=False) as w:
            at.send(events[:500])
            turn_until(w, folded(w, at))
            if at is place:
                publish_groups(at.settings, GroupMap(CHANGED))
            at.send(events[500:])
            turn_until(w, lambda: w.health.groups == (GroupMap(CHANGED) if at is place else GroupMap(OLD)).id)  # noqa: B023
            turn_until(w, folded(w, at))
            tables.append(counters(w))
    assert tables[0] == tables[1]
