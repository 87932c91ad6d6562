"""What a deployment needs: bytes a user and an event on disk, write amplification, memory of active users.

    nice -n 10 python bench/sizing.py [--users 2000] [--events 100] [--groups 30] [--commits 20]

Users of equal lives are folded into one store in as many commits as given, and the store is then compacted whole. Prints one JSON
document. No broker; small enough for any machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path

import msgpack
import numpy as np

from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import Record, batch_of
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.parse import parse_events

TOPICS = ("impressions", "clicks", "post-clicks")
T0 = 1_760_000_000_000


def written() -> int:
    """Bytes that this process has handed to the system for writing."""
    with open("/proc/self/io") as f:
        return int(next(line.split()[1] for line in f if line.startswith("wchar")))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--users", type=int, default=2000)
    p.add_argument("--events", type=int, default=100, help="of a life: half impressions")
    p.add_argument("--groups", type=int, default=30, help="that a user meets")
    p.add_argument("--commits", type=int, default=20, help="in which the lives arrive")
    a = p.parse_args()
    r = random.Random(1)
    items = {f"item-{k}": k % 5000 for k in range(50_000)}
    names = list(items)
    with tempfile.TemporaryDirectory() as d:
        path = Path(d) / "store"
        engine = StateEngine.open(path, 0, GroupMap(items), cache_bytes=2 << 30)
        offset, committed, log_bytes, cpu = [0, 0, 0], 0, 0, 0.0
        before = written()
        mine = {u: r.sample(range(5000), a.groups) for u in range(a.users)}
        each = max(1, a.events // a.commits)
        for c in range(a.events // each):
            records = []
            for u in range(a.users):
                for k in range(each):
                    t = 0 if r.random() < 0.5 else 1 if r.random() < 0.7 else 2
                    group = mine[u][min(int(r.expovariate(3 / a.groups)), a.groups - 1)]
                    e = {"user_id": f"user-{u:08d}", "item_id": names[group + 5000 * r.randrange(10)], "event_id": f"e{u}-{c}-{k}",
                         "ts": T0 + 60_000 * (c * each + k), "v": 1}  # fmt: skip
                    if t:
                        e["dwell_ms"] = r.randrange(60_000)
                    if t == 2:
                        e |= {"type": r.choice(["order", "cart", "share"]), "value": round(r.random() * 50, 2)}
                    value = msgpack.packb(e)
                    log_bytes += len(value) + 8 + 70
                    records.append(Record(TOPICS[t], 0, offset[t], e["ts"], e["user_id"].encode(), value))
                    offset[t] += 1
            cols, _ = parse_events(batch_of(TOPICS, records), np.arange(3, dtype=np.uint8))
            t0 = time.process_time()
            engine.fold(cols, np.arange(len(records), dtype=np.int32))
            committed += engine.commit().bytes
            cpu += time.process_time() - t0
        memory, used = engine._mem.user_bytes(), engine.cached_bytes()
        items_bytes = sum(getattr(engine._mem.S, k).nbytes for k in ("I", "IH", "IB"))
        known = int(engine.stats()["items"])
        db = engine.store
        db.flush()
        grown = sum(f.stat().st_size for f in path.iterdir() if f.suffix == ".sst")
        flushed = written() - before
        db.compact_range(None, None)
        compacted = sum(int(f["size"]) for f in db.live_files())
        engine.close()
    n = sum(offset)
    print(json.dumps({
        "users": a.users, "events_per_user": n // a.users, "groups_per_user": a.groups, "commits": a.events // each,
        "disk_bytes_per_user": round(compacted / a.users), "disk_bytes_per_event": round(compacted / n, 1),
        "disk_bytes_per_event_before_compaction": round(grown / n, 1),
        "commit_bytes_per_event": round(committed / n, 1), "written_bytes_per_event": round(flushed / n, 1),
        "write_amplification": round(flushed / committed, 2), "log_bytes_per_event": round(log_bytes / n, 1),
        "memory_bytes_per_user": round(used / a.users), "memory_mb_per_100k_users": round(used / a.users / 10),
        "arrays_over_used": round(memory / used, 2), "memory_bytes_per_item": round(items_bytes / known, 1),
        "fold_and_commit_us_per_event": round(cpu / n * 1e6, 2), "cores": os.cpu_count(),
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
