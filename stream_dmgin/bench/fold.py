"""Events per second folded from the log on one core, state in RocksDB, against a plain dict fold of the same records.

The worker is a process of its own, pinned to one core; the broker and the writer of the events use the others. Its start-up
(interpreter, imports, opening of stores, joining the group) is measured by a second run over fewer events, and taken off.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from stream_dmgin.bench import machine, rivals, steps
from stream_dmgin.bench.workload import Workload, write
from stream_dmgin.errors import StreamDmginError
from stream_dmgin.log.base import open_log
from stream_dmgin.topics import PREFIX

COMMIT_S = "2"


def measure(
    on: str = "kafka", events: int = 2_000_000, workload: Workload | None = None, with_steps: bool = True
) -> dict[str, Any]:
    """`events_per_s` of the product, `plain_dict_per_s` and `consume_decode_per_s` of the rivals; `us_per_event` by step."""
    workload = workload or Workload()
    first = events // 5
    split = machine.cores()
    others, one = split if split else (None, None)
    about = machine.describe()
    with (
        tempfile.TemporaryDirectory(prefix="stream-dmgin-bench-") as tmp,
        machine.log_url(on, Path(tmp), others) as url,
    ):
        d = Path(tmp)
        groups = d / "groups.csv"
        workload.write_groups(groups)
        machine.run(["topics", "apply", "--log", url])

        def drain(name: str, want: int) -> float:
            args = ["worker", "--log", url, "--groups", str(groups), "--no-score", "--until-end", "--http", "off"]
            env = {"STREAM_DMGIN_WORKER_COMMIT_INTERVAL_S": COMMIT_S}
            t0 = time.perf_counter()
            out = machine.run([*args, "--data-dir", str(d / name), "-o", "json"], on=one, env=env)
            seconds = time.perf_counter() - t0
            assert json.loads(out)["events"] == want, out
            return seconds

        with open_log(url) as log, machine.pinned(others):
            write(log, PREFIX, workload, 0, first)
        drain("warm", first)  # compiles what is not compiled yet, fills the page cache
        t1 = drain("few", first)
        with open_log(url) as log, machine.pinned(others):
            write(log, PREFIX, workload, first, events - first)
        t2 = drain("all", events)
        with machine.pinned(one):
            raw = rivals.rate(url, PREFIX, events, rivals.decode_only)
            plain = rivals.rate(url, PREFIX, events, rivals.DictFold(workload.group_map()).fold)
            by_step = steps.measure(url, PREFIX, groups, events, d / "steps") if with_steps else {}
    if t2 <= t1:
        raise StreamDmginError(
            f"bench fold: {events} events took {t2:.1f} s, {first} took {t1:.1f} s: give more --events, on a quiet machine"
        )
    per_s = (events - first) / (t2 - t1)
    return {
        "events_per_s": round(per_s),
        "plain_dict_per_s": round(plain),
        "consume_decode_per_s": round(raw),
        "times_plain_dict": round(per_s / plain, 2),
        "start_up_s": round(t1 - first / per_s, 2),
        "us_per_event": by_step,
        "events": events,
        "log": on,
        "pinned": split is not None,
        "machine": about,
    }
