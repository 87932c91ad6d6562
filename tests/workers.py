"""A worker of this process that a test turns by hand, on the embedded log: control paths without the cost of processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack

from stream_dmgin.log import manage
from stream_dmgin.log.base import open_log
from stream_dmgin.settings import Settings, load
from stream_dmgin.worker.run import Worker, worker

T0 = 1_760_000_000_000
PATIENCE_S = 90.0


def settings_of(root: Path, data: str = "data", **values: Any) -> Settings:
    """Settings of a worker on the log `root/log`, with its data in `root/data`."""
    flags = {"log": f"file:{root / 'log'}", "data_dir": str(root / data), "worker.http": "off", **values}
    return load(flags, environ={}, file=Path("/nowhere"))


def make_topics(settings: Settings, partitions: int = 2) -> None:
    with open_log(settings.log) as log:
        manage.apply(log, manage.plan(log, settings.prefix, partitions))


def write(settings: Settings, records: list[tuple[str, bytes | None, bytes | None]]) -> None:
    """(topic without prefix, key, value)"""
    with open_log(settings.log) as log:
        w = log.writer()
        for topic, key, value in records:
            w.append(settings.topic(topic), key, value, timestamp=T0 + 10**9)
        w.flush()
        w.close()


def event(user: str, k: int, topic: str = "clicks", **more: Any) -> tuple[str, bytes, bytes]:
    """One event, different for each k."""
    e = {"user_id": user, "item_id": f"i{k % 40}", "ts": T0 + 1000 * k, "event_id": f"e{k}", **more}
    if topic == "post-clicks":
        e = {"type": "order", "value": k / 4, **e}
    return topic, user.encode(), msgpack.packb(e)


@contextmanager
def running(settings: Settings, **kwargs: Any) -> Iterator[Worker]:
    with worker(settings, score=False, **kwargs) as w:
        yield w


def turn_until(w: Worker, done: Callable[[], Any], what: str = "it") -> Any:
    """Turn until `done()` is true; its value."""
    until = time.monotonic() + PATIENCE_S
    while not (found := done()):
        assert time.monotonic() < until, f"waited {PATIENCE_S:.0f} s for {what}"
        w.loop.turn(0.02)
    return found


def folded(w: Worker) -> Callable[[], bool]:
    """Whether everything that the log holds now is folded."""
    ends = w.partitions.ends()
    return lambda: w.partitions.reached(ends)
