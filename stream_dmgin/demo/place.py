"""Where a demo runs: its directory, its log, its topics. Nothing that was there before is written to."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from stream_dmgin import topics as names
from stream_dmgin.demo.watcher import written
from stream_dmgin.errors import UsageError
from stream_dmgin.log import broker
from stream_dmgin.log.base import Log, open_log
from stream_dmgin.settings import Settings, load

MARK = ".demo"  # a directory with this file belongs to the demo, which may empty it


@dataclass(frozen=True)
class Place:
    """Settings of this run (log, data directory and prefix filled in), its open log, and the consumer group of its worker."""

    settings: Settings
    log: Log
    group: str
    broker: broker.LocalKafka | None


def choose(settings: Settings, auto: bool, stack: ExitStack, say: Callable[[str], None]) -> Place:
    """Directory and log of this run. `auto`: a local Apache Kafka where Java 17 and Maven are, else the embedded log. What is
    opened is closed by `stack`. Raises LogUnavailable, UnavailableError."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    directory = _directory(settings, stamp)
    kafka = None
    if auto and broker.available():
        say("starting a local Apache Kafka (the first time, Maven fetches its jars)")
        kafka = stack.enter_context(broker.LocalKafka(directory / "kafka"))
        url = "kafka://" + kafka.bootstrap
    else:
        url = f"file:{directory / 'log'}" if auto else settings.log
    log = stack.enter_context(open_log(url, settings.kafka))
    prefix = settings.prefix
    there = log.topics()
    if any(written(log, t) for t in map(settings.topic, names.ALL) if t in there):
        prefix = f"{prefix}demo-{stamp}."
        say(f"the log holds topics of {settings.prefix!r} with records: this demo writes to {prefix}*")
    return Place(
        load({"log": url, "data_dir": str(directory), "prefix": prefix}), log, f"stream-dmgin-demo-{stamp}", kafka
    )


def _directory(settings: Settings, stamp: str) -> Path:
    """The data directory where it was given and holds no state yet, else a fresh one inside it; by default
    `.stream-dmgin/demo`, emptied of the last demo."""
    given = settings.data_dir
    if settings.origin["data_dir"] == "default":
        out = given / "demo"
        if out.exists():
            if not (out / MARK).exists():
                raise UsageError(f"{out} is not empty and was not made by the demo: give another --data-dir")
            shutil.rmtree(out)
    else:
        out = given / f"demo-{stamp}" if (given / "state").exists() else given
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()
    return out
