"""Another number of partitions: the copied events are the same events, and every user's state is the same, bit for bit."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time

import msgpack
import pytest
from click.testing import CliRunner

from stream_dmgin import control
from stream_dmgin.cli.main import cli
from stream_dmgin.errors import StreamDmginError
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import open_log
from stream_dmgin.log.murmur2 import partition_of
from stream_dmgin.records import decode_event
from stream_dmgin.state.hash import hash64
from stream_dmgin.state.ops import erase
from stream_dmgin.state.ops.copying import ORIGIN, with_event_id
from stream_dmgin.state.ops.stores import Stores
from stream_dmgin.state.ops.verify import verify
from tests.streams import Shape, groups_of, random_log
from tests.workers import folded, make_topics, running, settings_of, turn_until, write

USERS = tuple(f"u{k}" for k in range(40))
SHAPE = Shape(
    n=4000, users=USERS, items=tuple(f"i{k}" for k in range(50)), ts_range=10**7, no_event_id=0.5, duplicates=0.05
)
BAD = [("clicks", b"u1", b"\xc1"), ("impressions", None, b""), ("post-clicks", b"u2", msgpack.packb({"user_id": "u2"}))]
CLI = [sys.executable, "-m", "stream_dmgin.cli.main"]


def records(events):
    return [(t, e["user_id"].encode(), msgpack.packb(e)) for t, e in events]


def arguments(settings, tmp_path, partitions):
    return ["state", "rescale", "--log", settings.log, "--data-dir", str(settings.data_dir), "--partitions", str(partitions),
            "--to-prefix", "new.", "--to-data-dir", str(tmp_path / "new"), "--yes", "-o", "json"]  # fmt: skip


def rescale(settings, tmp_path, *more, ok=0, partitions=7):
    result = CliRunner().invoke(cli, [*arguments(settings, tmp_path, partitions), *more], standalone_mode=False)
    if isinstance(result.exception, StreamDmginError):
        assert result.exception.exit_code == ok
        return str(result.exception)
    assert (result.exception, result.return_value) == (None, ok), result.output
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture
def settings(tmp_path):
    groups = groups_of(SHAPE.items, 9, 0.2, random.Random(3))
    GroupMap(groups).save(tmp_path / "groups.parquet")
    found = settings_of(tmp_path, **{"worker.groups": str(tmp_path / "groups.parquet")})
    make_topics(found, 4)
    return found


def fold(settings):
    with running(settings) as w:
        turn_until(w, folded(w))
        w.loop.commit()
        w.loop.flush()
        w.shared.catch_up()
        return w.shared.counters.canonical()


def test_state_and_counters_are_the_same_over_seven_partitions(settings, tmp_path):
    events = random_log(random.Random(1), SHAPE)
    write(settings, [*records(events[:3000]), *BAD])
    counters = fold(settings)
    looked = rescale(settings, tmp_path, "--dry-run")
    assert looked["records"] == 3000 + len(BAD) and not (tmp_path / "new").exists()
    done = rescale(settings, tmp_path)
    assert done["ok"] and done["before"] == done["after"] and done["before"]["users"] == len(USERS)
    assert done["copied"]["copied"] == 3000 + len(BAD) and done["copied"]["malformed"] == len(BAD)
    assert done["copied"]["given_id"] == sum("event_id" not in e for _, e in events[:3000])
    new = settings_of(tmp_path, "new", prefix="new.")
    assert fold(new) == counters
    # the new stores are the fold of the new log, each user's from the same events
    stores = Stores.of(tmp_path / "new")
    assert stores.partitions == 7 and len(stores.present()) == 7
    with open_log(settings.log) as log:
        assert verify(stores, log).ok
        letters = log.ends("new.dead-letters")
    assert sum(letters.values()) == len(BAD)
    # more comes to the old topics: a rescale of what is not folded is refused, then it goes on
    write(settings, records(events[3000:]))
    assert "worker --until-end" in rescale(settings, tmp_path, ok=1)
    fold(settings)
    done = rescale(settings, tmp_path)
    assert (
        done["ok"]
        and done["copied"]["copied"] == 0
        and done["copied"]["before"] == 4000 + len(BAD) + len(events) - 4000
    )
    # a difference is found
    write(new, records([("clicks", {"user_id": "another", "item_id": "i1", "ts": 1_760_000_000_000})]))
    done = rescale(settings, tmp_path, ok=1)
    assert (done["extra"], done["differing"], done["missing"]) == (1, 0, 0)


def test_a_killed_copy_goes_on_and_copies_each_record_once(settings, tmp_path):
    events = random_log(random.Random(2), Shape(**{**SHAPE.__dict__, "n": 12_000}))
    write(settings, records(events))
    fold(settings)
    command = [*CLI, *arguments(settings, tmp_path, 3), "--copy-only"]
    r = random.Random(4)
    for _ in range(2):
        p = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        before = size(settings)
        while size(settings) == before and p.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(r.random() * 0.3)
        p.send_signal(signal.SIGKILL)
        p.wait()
    done = rescale(settings, tmp_path, partitions=3)
    assert done["ok"] and done["before"] == done["after"]
    assert done["copied"]["before"] + done["copied"]["copied"] == len(events) == size(settings)
    with open_log(settings.log) as log:
        origins = set()
        for t in ("impressions", "clicks", "post-clicks"):
            reader = log.reader([f"new.{t}"])
            reader.assign({(f"new.{t}", p): 0 for p in range(3)})
            while (batch := reader.poll(10_000, 0.5)) is not None:
                origins |= {dict(batch.headers_of(i))[ORIGIN] for i in range(len(batch))}
            reader.close()
    assert len(origins) == len(events)


def test_on_kafka(kafka, tmp_path, prefix):
    events = random_log(random.Random(6), Shape(**{**SHAPE.__dict__, "n": 1500, "duplicates": 0.0}))
    old = settings_of(tmp_path, log=f"kafka://{kafka}", prefix=prefix)
    make_topics(old, 4)
    write(old, records(events))
    fold(old)
    done = rescale(old, tmp_path, "--prefix", prefix, "--to-prefix", f"{prefix}new.")
    assert done["ok"] and done["before"] == done["after"] and done["after"]["users"] == len(USERS)
    again = rescale(old, tmp_path, "--prefix", prefix, "--to-prefix", f"{prefix}new.")
    assert again["copied"]["before"] == 1500 and again["after"] == done["after"]


def size(settings):
    with open_log(settings.log) as log:
        there = log.topics()
        return sum(
            sum(log.ends(t).values()) for t in ("new.impressions", "new.clicks", "new.post-clicks") if t in there
        )


def test_the_erased_are_not_copied(settings, tmp_path):
    events = random_log(random.Random(5), Shape(**{**SHAPE.__dict__, "n": 600}))
    write(settings, records(events[:500]))
    with open_log(settings.log) as log:
        order = erase.order(log, settings.prefix, "u3", partition_of(b"u3", 4))
        control.give(log, settings.prefix, {order.key: control.encode(order)})
    write(settings, records(events[500:]))
    fold(settings)
    done = rescale(settings, tmp_path)
    assert done["ok"] and done["copied"]["erased"] == sum(e["user_id"] == "u3" for _, e in events[:500]) > 0


@pytest.mark.parametrize("more", [{}, {f"x{k}": k for k in range(12)}, {f"x{k}": k for k in range(13)}, {f"x{k}": k for k in range(70_000)},
                                  {"event_id": None}, {"event_id": None, "attrs": {"event_id": None}}])  # fmt: skip
def test_an_event_gets_the_identity_of_its_record(more):
    event = {"user_id": "u", "item_id": "i", "ts": 1_760_000_000_000, **more}
    value = with_event_id(msgpack.packb(event), "clicks/3/1204")
    assert msgpack.unpackb(value) == {**event, "event_id": "clicks/3/1204"}
    got = decode_event("clicks", b"u", value, 1_760_000_000_000)
    assert hash64((got.event_id or "").encode()) == hash64(b"clicks/3/1204")
    assert with_event_id(value, "other") is value
