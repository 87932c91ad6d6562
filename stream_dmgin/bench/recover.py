"""How long a worker takes to be whole again: from an empty data directory, and after SIGKILL with its store in place."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from stream_dmgin.bench import machine
from stream_dmgin.bench.workload import Workload, write
from stream_dmgin.log.base import open_log
from stream_dmgin.topics import PREFIX


def measure(on: str = "kafka", events: int = 1_000_000, workload: Workload | None = None) -> dict[str, Any]:
    """`events` folded again in `seconds`, start-up included; `with_store_seconds`: the same start with the store in place and a
    tail of one event in a hundred to fold."""
    workload = workload or Workload()
    about = machine.describe()
    split = machine.cores()
    others, one = split if split else (None, None)
    tail = max(1, events // 100)
    with (
        tempfile.TemporaryDirectory(prefix="stream-dmgin-bench-") as tmp,
        machine.log_url(on, Path(tmp), others) as url,
    ):
        d = Path(tmp)
        groups = d / "groups.csv"
        workload.write_groups(groups)
        machine.run(["topics", "apply", "--log", url])
        args = ["worker", "--log", url, "--groups", str(groups), "--no-score", "--until-end", "--http", "off"]

        def start(want: int) -> float:
            t0 = time.perf_counter()
            out = json.loads(machine.run([*args, "--data-dir", str(d / "data"), "-o", "json"], on=one))
            assert out["events"] == want, out
            return time.perf_counter() - t0

        with open_log(url) as log, machine.pinned(others):
            write(log, PREFIX, workload, 0, events)
        empty = start(events)
        with open_log(url) as log, machine.pinned(others):
            write(log, PREFIX, workload, events, tail)
        kept = start(tail)
    return {
        "events": events,
        "seconds": round(empty, 2),
        "events_per_s": round(events / empty),
        "with_store_seconds": round(kept, 2),
        "tail_events": tail,
        "log": on,
        "pinned": split is not None,
        "machine": about,
    }
