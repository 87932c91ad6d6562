"""How long snapshots stop a fold: a worker folds a backlog from an embedded log on one core, while snapshot after snapshot is taken.

python bench/snapshot_pause.py [EVENTS]
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from stream_dmgin.bench import machine
from stream_dmgin.bench.workload import Workload, write
from stream_dmgin.errors import StreamDmginError
from stream_dmgin.log.base import open_log
from stream_dmgin.state.ops.inspect import statistics
from stream_dmgin.state.ops.stores import Stores
from stream_dmgin.topics import PREFIX


def main(events: int) -> None:
    split = machine.cores()
    others, one = split if split else (None, None)
    workload = Workload()
    about = machine.describe()
    pauses: list[float] = []
    uploaded: list[int] = []
    with tempfile.TemporaryDirectory(prefix="stream-dmgin-bench-") as tmp:
        d = Path(tmp)
        url = f"file:{d / 'log'}"
        workload.write_groups(d / "groups.csv")
        machine.run(["topics", "apply", "--log", url])
        with machine.pinned(others), open_log(url) as log:
            write(log, PREFIX, workload, 0, events)
        args = ["worker", "--log", url, "--data-dir", str(d / "data"), "--groups", str(d / "groups.csv"), "--no-score"]
        take = [
            "state",
            "snapshot",
            "--data-dir",
            str(d / "data"),
            "--to",
            str(d / "kept"),
            "--keep",
            "2",
            "-o",
            "json",
        ]
        with (
            machine.pinned(one),
            machine.running([*args, "--http", "off"], d / "worker.log") as process,
            machine.pinned(others),
        ):
            while process.poll() is None:
                try:
                    out = machine.run(take)
                except StreamDmginError:  # it has just begun
                    time.sleep(0.5)
                    continue
                taken = json.loads(out)
                if taken["partitions"]:
                    pauses.append(taken["pause_ms"])
                    uploaded.append(taken["bytes_uploaded"])
                folded = sum(sum(o.values()) for o in taken["offsets"].values())
                if folded >= events:
                    break
        size = statistics(Stores.of(d / "data"), 1)["bytes"]
    print(json.dumps({
        "events": events, "snapshots": len(pauses), "pause_ms": pauses, "longest_pause_ms": max(pauses, default=None),
        "bytes_uploaded": uploaded, "store_bytes": size, "machine": about,
    }))  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3_000_000)
