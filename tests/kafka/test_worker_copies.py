"""One standby copy of each partition: whichever worker leaves, the others find what comes to them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from stream_dmgin.worker import copies
from stream_dmgin.worker.run import Worker
from tests.workers import PATIENCE_S, event, make_topics, running, settings_of, write

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]
PARTITIONS = 6


def turn_all(workers: list[Worker], done: Callable[[], Any], what: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < until, f"waited {PATIENCE_S:.0f} s for {what}"
        for w in workers:
            w.loop.turn(0.01)


def kept(w: Worker) -> set[int]:
    standby: Any = w.partitions.standby
    return set(standby.copies)


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_what_moves_finds_its_copy(
    kafka: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    monkeypatch.setattr(copies, "EVERY_S", 0.2)
    own = {
        "log": f"kafka://{kafka}", "prefix": prefix, "worker.group": prefix + "g", "worker.standby": 1,
        "worker.group_protocol": protocol, "worker.commit_interval_s": 0.2,
    }  # fmt: skip
    settings = [settings_of(tmp_path, f"d{k}", **own) for k in range(3)]
    make_topics(settings[0], PARTITIONS)
    write(settings[0], [event(f"u{k % 60}", k) for k in range(600)])
    with ExitStack() as stack:
        workers = [stack.enter_context(running(s)) for s in settings[:2]]
        last = ExitStack()
        workers.append(last.enter_context(running(settings[2])))
        with last:

            def shared() -> bool:
                owned = [set(w.partitions.owned) for w in workers]
                having = sorted(p for w in workers for p in kept(w))
                return [len(o) for o in owned] == [2, 2, 2] and having == list(range(PARTITIONS))

            turn_all(workers, shared, "two partitions and two copies each")
            before = [(set(w.partitions.owned), kept(w)) for w in workers]
            gone = workers.pop()
        assert not gone.partitions.owned
        turn_all(workers, lambda: [len(w.partitions.owned) for w in workers] == [3, 3], "the take-over")
        for w, (owned, copied) in zip(workers, before, strict=False):
            assert set(w.partitions.owned) <= owned | copied
            assert not owned & copied
