"""SIGKILL at any moment: the store holds the fold of exactly the events below its offsets."""

import random
import signal
import subprocess
import sys
import time

import msgpack
import numpy as np
import pytest

from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import Record, batch_of
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.parse import parse_events
from stream_dmgin.topics import EVENTS

T0 = 1_760_000_000_000
GROUPS = {f"i{k}": k % 50 for k in range(400)}


def fold(engine: StateEngine, first: int, n: int) -> None:
    """Fold events first..first+n-1 of a log that is a function of the offset."""
    records = []
    for k in range(first, first + n):
        r = random.Random(k)
        user = f"u{int(300 * r.random() ** 2)}"
        e = {
            "user_id": user,
            "item_id": f"i{r.randrange(500)}",
            "ts": T0 + k - r.randrange(50),
            "dwell_ms": r.randrange(100),
        }
        records.append(Record("clicks", 0, k, T0 + k, user.encode(), msgpack.packb(e)))
    cols, _ = parse_events(batch_of(EVENTS, records), np.arange(3, dtype=np.uint8))
    engine.fold(cols, np.arange(n, dtype=np.int32))


def work(path: str) -> None:
    """Fold and commit until killed; a small cache, so that users come and go."""
    engine = StateEngine.open(path, 0, GroupMap(GROUPS), cache_bytes=400_000)
    while True:
        for _ in range(3):
            fold(engine, engine.offsets[1], 200)
        engine.commit(puts=[(b"c+", str(engine.offsets[1]).encode())])


@pytest.mark.slow
def test_kill(tmp_path):
    path = tmp_path / "s"
    code = f"import sys; sys.path.insert(0, {sys.path[0]!r}); from tests.unit.test_state_kill import work; work({str(path)!r})"
    seen = 0
    for k in range(3):
        child = subprocess.Popen([sys.executable, "-c", code])
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and child.poll() is None:
            try:  # until it has committed something new, then a little longer
                engine = StateEngine.open(path, 0, GroupMap(GROUPS), read_only=True)
            except Exception:
                time.sleep(0.05)
                continue
            at = engine.offsets[1]
            engine.close()
            if at > seen:
                time.sleep(random.Random(k).random())
                break
        assert child.poll() is None, "the worker ended by itself"
        child.send_signal(signal.SIGKILL)
        child.wait()
        engine = StateEngine.open(path, 0, GroupMap(GROUPS))
        seen = engine.offsets[1]
        assert seen and engine.get(b"c+") == str(seen).encode()
        plain = StateEngine.open(None, 0, GroupMap(GROUPS))
        fold(plain, 0, seen)
        assert sorted(engine.users()) == sorted(plain.users())
        assert all(engine.canonical(u) == plain.canonical(u) for u in plain.users())
        engine.close()
