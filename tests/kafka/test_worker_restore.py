"""Restoring from snapshots on a real Kafka: members keep their places in the group however long it takes, a rebalance in its
midst costs nothing twice, and standby copies begin with a snapshot, too."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from stream_dmgin.log.base import open_log
from stream_dmgin.settings import Settings
from stream_dmgin.state.ops.diff import diff
from stream_dmgin.state.ops.stores import Stores
from stream_dmgin.state.snapshots.place import Place
from stream_dmgin.worker.run import Worker, worker
from stream_dmgin.worker.snapshots import snapshot
from tests.workers import PATIENCE_S, event, folded, make_topics, running, settings_of, turn_until, write

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]
TOPICS = ("impressions", "clicks", "post-clicks")
INTERVAL_S = 3.0  # max.poll.interval.ms and session
numbers = itertools.count()


@pytest.fixture
def of(kafka: str, prefix: str, tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a worker with a data directory of this name; 400 events of two partitions are folded in `first`, and in a
    snapshot."""
    url = f"memory://kr{next(numbers)}"

    def settings(data: str, **values: Any) -> Settings:
        own = {
            "log": f"kafka://{kafka}",
            "prefix": prefix,
            "worker.group": prefix + "g",
            "worker.commit_interval_s": 0.2,
        }
        s = settings_of(tmp_path, data, **own, **{"snapshot.to": url, "snapshot.every_s": 0}, **values)
        ms = str(round(INTERVAL_S * 1000))
        return replace(s, kafka={"session.timeout.ms": ms, "max.poll.interval.ms": ms})

    first = settings("first")
    make_topics(first)
    write(first, [event(f"u{k % 40}", k, TOPICS[k % 3]) for k in range(400)])
    with running(first) as w:
        turn_until(w, folded(w), "the fold")
    snapshot(first.data_dir, url, None)
    return settings


class Slow:
    """Blobs come once `go` is set; `fetched` counts them by place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.asked, self.fetched = threading.Event(), threading.Event(), Counter[Path]()
        get = Place.get_blob

        def slow(place: Place, partition: int, sha256: str, target: Path) -> None:
            self.asked.set()
            assert self.go.wait(PATIENCE_S)
            get(place, partition, sha256, target)
            self.fetched[target] += 1

        monkeypatch.setattr(Place, "get_blob", slow)


def turn_all(workers: list[Worker], done: Callable[[], Any], what: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < until, f"waited {PATIENCE_S:.0f} s for {what}"
        for w in workers:
            w.loop.turn(0.02)


def rebalances(w: Worker, kind: str) -> float:
    return float(w.health.metrics.rebalances.labels(kind)._value.get())


def test_a_restore_longer_than_the_poll_interval_loses_nothing(
    of: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)
    write(of("first"), [event(f"u{k % 40}", k) for k in range(400, 450)])
    with running(of("again")) as w:
        turn_until(w, slow.asked.is_set, "the restore to begin")
        end = time.monotonic() + 2 * INTERVAL_S
        while time.monotonic() < end:
            w.loop.turn(0.02)
            status, body = w.health.ready()
            assert status == 503 and body["restore_remaining_bytes"] > 0
        slow.go.set()
        turn_until(w, lambda: w.health.ready()[0] == 200 and len(w.partitions.owned) == 2, "the stores")
        turn_until(w, folded(w), "the tail")
        assert w.loop.totals.events == 50
        assert (rebalances(w, "assigned"), rebalances(w, "lost"), rebalances(w, "revoked")) == (1, 0, 0)
        assert max(slow.fetched.values()) == 1


def test_a_rebalance_in_the_midst_fetches_nothing_twice(
    of: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)
    write(of("first"), [event(f"u{k % 40}", k) for k in range(400, 450)])
    with running(of("a")) as a:
        turn_until(a, slow.asked.is_set, "the restore to begin")
        with running(of("b")) as b:
            turn_all([a, b], lambda: len(a.partitions.coming) == len(b.partitions.coming) == 1, "one partition each")
            slow.go.set()
            turn_all([a, b], lambda: len(a.partitions.owned) == len(b.partitions.owned) == 1, "the stores")
            done = [folded(a), folded(b)]
            turn_all([a, b], lambda: all(d() for d in done), "the tails")
            assert a.loop.totals.events + b.loop.totals.events == 50
        turn_until(a, lambda: len(a.partitions.owned) == 2, "the other partition")
        turn_until(a, folded(a), "its tail")
    assert max(slow.fetched.values()) == 1  # in each directory


def test_a_standby_copy_begins_with_a_snapshot(
    of: Callable[..., Settings], kafka: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its log has lost the beginning."""
    first = of("first")
    names = [first.topic(t) for t in TOPICS]
    with open_log(first.log) as log:
        gone = [TopicPartition(t, p, end) for t in names for p, end in log.ends(t).items()]
    admin = AdminClient({"bootstrap.servers": kafka})
    for f in admin.delete_records(gone).values():
        f.result()
    write(first, [event(f"u{k % 40}", k) for k in range(400, 500)])
    caplog.set_level(logging.INFO)
    with worker(of("b", **{"worker.standby": True}), score=False) as b:
        with running(first) as a:
            turn_all([a, b], lambda: len(a.partitions.owned) == len(b.partitions.owned) == 1, "one partition each")
            (mine,) = b.partitions.owned
            (p,) = a.partitions.owned
            assert mine != p
            copies: Any = b.partitions.standby
            turn_all([a, b], lambda: copies.has(p), "the copy")
            done = folded(a)
            turn_all([a, b], done, "the fold")
            a.loop.commit()
            want = dict(a.partitions.owned[p].engine.offsets)
            turn_all([a, b], lambda: copies.has(p) and dict(copies.copies[p].engine.offsets) == want, "the copy's fold")
        turn_until(b, lambda: len(b.partitions.owned) == 2, "the take-over")
        turn_until(b, folded(b), "the rest")
        assert "1 of them standby copies" in caplog.text
    with running(first) as a:
        turn_until(a, folded(a), "the fold")
    assert diff(Stores.of(first.data_dir), Stores.of(of("b").data_dir))["ok"]
