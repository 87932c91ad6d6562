"""How long a worker takes to be whole again: from the whole log, from a snapshot and the tail, with its store in place."""

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
    """`events` folded again in `seconds`, start-up included; then, with a tail of one event in a hundred to fold,
    `from_snapshot_seconds`: an empty data directory and a snapshot, `with_store_seconds`: the store in place. Snapshots go to
    a directory on the same disk: `snapshot_bytes` in all, `changed_bytes_uploaded` by the one after the tail."""
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

        def start(want: int, data: str = "data", **env: str) -> float:
            t0 = time.perf_counter()
            out = json.loads(machine.run([*args, "--data-dir", str(d / data), "-o", "json"], on=one, env=env))
            assert out["events"] == want, out
            return time.perf_counter() - t0

        def snapshot() -> dict[str, Any]:
            to = ["--to", str(d / "kept"), "--data-dir", str(d / "data")]
            taken: dict[str, Any] = json.loads(machine.run(["state", "snapshot", *to, "-o", "json"], on=one))
            return taken

        with open_log(url) as log, machine.pinned(others):
            write(log, PREFIX, workload, 0, events)
        empty = start(events)
        whole = snapshot()
        with open_log(url) as log, machine.pinned(others):
            write(log, PREFIX, workload, events, tail)
        again = start(
            tail, "again", STREAM_DMGIN_SNAPSHOT_TO=str(d / "kept"), STREAM_DMGIN_SNAPSHOT_EVERY_S="0"
        )  # fmt: skip
        kept = start(tail)
        changed = snapshot()
    return {
        "events": events,
        "seconds": round(empty, 2),
        "events_per_s": round(events / empty),
        "from_snapshot_seconds": round(again, 2),
        "with_store_seconds": round(kept, 2),
        "tail_events": tail,
        "snapshot_bytes": whole["bytes"],
        "snapshot_seconds": whole["seconds"],
        "changed_bytes_uploaded": changed["bytes_uploaded"],
        "log": on,
        "pinned": split is not None,
        "machine": about,
    }
