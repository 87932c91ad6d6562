"""What a snapshot uploads when one event in a hundred is new: one partition, many users, an embedded log.

python bench/snapshot_upload.py [EVENTS] [USERS]
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from stream_dmgin.bench import machine
from stream_dmgin.bench.workload import Workload, write
from stream_dmgin.log.base import open_log
from stream_dmgin.topics import PREFIX


def main(events: int, users: int) -> None:
    workload = Workload(users=users)
    about = machine.describe()
    with tempfile.TemporaryDirectory(prefix="stream-dmgin-bench-") as tmp:
        d = Path(tmp)
        at = ["--log", f"file:{d / 'log'}", "--data-dir", str(d / "data"), "-o", "json"]
        workload.write_groups(d / "groups.csv")
        machine.run(["topics", "apply", *at, "--partitions", "1"])

        def more(first: int, n: int) -> dict[str, Any]:
            with open_log(f"file:{d / 'log'}") as log:
                write(log, PREFIX, workload, first, n)
            machine.run(["worker", *at, "--groups", str(d / "groups.csv"), "--no-score", "--until-end"])
            taken: dict[str, Any] = json.loads(machine.run(["state", "snapshot", "--to", str(d / "kept"), *at]))
            return taken

        first = more(0, events)
        steps = [more(events + k * (events // 100), events // 100) for k in range(3)]
    print(json.dumps({
        "events": events, "users": first["users"], "bytes": first["bytes"], "new_events_a_step": events // 100,
        "bytes_uploaded": [s["bytes_uploaded"] for s in steps], "machine": about,
    }))  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2_000_000, int(sys.argv[2]) if len(sys.argv) > 2 else 500_000)
