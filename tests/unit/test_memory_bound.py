"""The cache of users has a hard bound: whatever users come, the arrays stay under the cap, and the state is right."""

from __future__ import annotations

import random
from pathlib import Path

import msgpack
import numpy as np
import pytest

from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import Record, batch_of
from stream_dmgin.state.arrays import UserArrays
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.parse import EventColumns, parse_events
from tests.workers import event, folded, make_topics, running, settings_of, turn_until, write

T0 = 1_760_000_000_000
CAP = 8 << 20
USERS = 8000


def columns(n: int, first: int, users: int, r: random.Random) -> EventColumns:
    """Clicks of users chosen evenly: none stays in memory for long."""
    records = []
    for k in range(first, first + n):
        user = f"user-{r.randrange(users)}"
        e = {"user_id": user, "item_id": f"i{r.randrange(3000)}", "ts": T0 + k, "event_id": f"e{k}"}
        records.append(Record("clicks", 0, k, T0 + k, user.encode(), msgpack.packb(e)))
    return parse_events(batch_of(("clicks",), records), np.array([1], np.uint8))[0]


def fold(engine: StateEngine, cols: EventColumns) -> float:
    """As the worker does; the highest pressure met."""
    rows, highest = np.arange(len(cols), dtype=np.int32), 0.0
    while len(rows):
        some, rows = np.split(rows, [engine.room()])
        engine.fold(cols, some)
        highest = max(highest, engine.pressure)
        if engine.pressure > 1:
            engine.evict()
            if engine.pressure > 1:
                engine.commit()
    return highest


def test_users_that_do_not_fit(tmp_path: Path) -> None:
    r = random.Random(1)
    groups = GroupMap({f"i{k}": k % 300 for k in range(3000)})
    small = StateEngine.open(tmp_path / "small", 0, groups, cache_bytes=CAP)
    large = StateEngine.open(tmp_path / "large", 0, groups, cache_bytes=1 << 30)
    most = 0
    for part in range(12):
        # few users with many groups, then many with few, and again: other arrays fill each time
        cols = columns(4000, part * 4000, 60 if part % 3 == 0 else USERS, r)
        assert fold(small, cols) < 1.3
        fold(large, cols)
        most = max(most, small._mem.user_bytes())
        small.commit()
        assert small.cached_bytes() <= CAP and small.pressure <= 1
    assert most <= 1.3 * CAP
    assert large._mem.user_bytes() > 1.5 * CAP and small.stats()["users_evicted"] > 1000
    assert sorted(small.users()) == sorted(large.users())
    for user in r.sample(sorted(large.users()), 300):
        assert small.canonical(user) == large.canonical(user)
    small.close()
    large.close()


def test_reading_alone_stays_under_the_cap(tmp_path: Path) -> None:
    r = random.Random(2)
    engine = StateEngine.open(tmp_path / "s", 0, GroupMap.empty(), cache_bytes=CAP)
    for part in range(6):
        fold(engine, columns(4000, part * 4000, USERS, r))
    engine.commit()
    out = UserArrays.allocate(50, 4, 4)
    for k in range(0, USERS, 50):
        engine.read([f"user-{u}".encode() for u in range(k, k + 50)], out)
        engine.evict()
        assert engine.pressure <= 1
    assert engine._mem.user_bytes() <= 1.3 * CAP
    engine.close()


@pytest.mark.parametrize("partitions", [2])
def test_a_worker_stays_under_its_setting(tmp_path: Path, partitions: int) -> None:
    s = settings_of(tmp_path, **{"worker.cache_mb": 16, "worker.commit_interval_s": 600})
    make_topics(s, partitions)
    r = random.Random(3)
    with running(s) as w:
        most = 0
        for part in range(4):
            write(
                s,
                [
                    event(f"user-{r.randrange(20_000)}", k, item_id=f"i{r.randrange(5000)}")
                    for k in range(part * 8000, part * 8000 + 8000)
                ],
            )
            turn_until(w, folded(w), "the fold")
            most = max(most, sum(o.engine._mem.user_bytes() for o in w.partitions.owned.values()))
        assert most <= 16e6 * 1.1
        assert sum(o.engine.count_users() for o in w.partitions.owned.values()) > 15_000
        assert w.health.metrics.text().count(b"sdmgin_state_cache_bytes") and sum(
            o.engine.stats()["users_evicted"] for o in w.partitions.owned.values()
        )
