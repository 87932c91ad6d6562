"""What each step of the fold costs without a broker: python bench/fold_inprocess.py [--events N] [--users N] ...

Events are encoded first (not timed), then go through parse_events, StateEngine.fold and commit in batches as the worker does,
over 8 partitions. Prints one JSON document: CPU microseconds per event of this thread by step, and events a second of CPU.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from typing import Any

import msgpack
import numpy as np

from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import Batch, Record, batch_of
from stream_dmgin.state import fold, resolve, write_back
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.parse import parse_events

TYPES = ("order", "cart", "favourite", "share", "dwell", "negative")
TOPICS = ("dmgin.impressions", "dmgin.clicks", "dmgin.post-clicks")


def batches(a: argparse.Namespace) -> list[Batch]:
    """Encoded events: Zipf users, uniform items, half impressions, a hundredth duplicated, a twentieth late."""
    r = random.Random(7)
    users = r.choices(range(a.users), weights=[1 / (k + 1) for k in range(a.users)], k=a.events)
    out, records, offset = [], [], [0, 0, 0]
    for k, u in enumerate(users):
        x = r.random()
        t = 0 if x < 0.5 else 1 if x < 0.8 else 2
        e: dict[str, Any] = {
            "v": 1, "event_id": f"e{k}", "user_id": f"u{u}", "item_id": f"i{r.randrange(a.items)}",
            "ts": 1_760_000_000_000 + 7 * k - (r.randrange(3500) if r.random() < 0.05 else 0),
        }  # fmt: skip
        if t:
            e["dwell_ms"] = r.randrange(60_000)
        if t == 2:
            e["type"] = r.choice(TYPES)
            if e["type"] == "order":
                e["value"] = round(r.random() * 90, 2)
        for _ in range(2 if r.random() < 0.01 else 1):
            records.append(Record(TOPICS[t], u % 8, offset[t], e["ts"], e["user_id"].encode(), msgpack.packb(e)))
            offset[t] += 1
        if len(records) >= a.batch or k == a.events - 1:
            out.append(batch_of(TOPICS, records))
            records = []
    return out


def timed(spent: dict[str, float], name: str, f: Any) -> Any:
    """`f` with its CPU time added to spent[name]."""

    def call(*args: Any) -> Any:
        t = time.thread_time()
        try:
            return f(*args)
        finally:
            spent[name] = spent.get(name, 0.0) + time.thread_time() - t

    return call


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--events", type=int, default=1_000_000)
    p.add_argument("--users", type=int, default=20_000)
    p.add_argument("--items", type=int, default=5_000)
    p.add_argument("--groups", type=int, default=400)
    p.add_argument("--batch", type=int, default=20_000)
    p.add_argument("--commit", type=int, default=500_000, help="events between commits")
    p.add_argument("--cache-mb", type=int, default=256, help="of each of the 8 partitions")
    p.add_argument("--repeat", type=int, default=1)
    p.add_argument("--memory", action="store_true", help="no store")
    a = p.parse_args()
    data = batches(a)
    directory = tempfile.mkdtemp(prefix="fold-")
    groups = GroupMap({f"i{k}": (k * 7) % a.groups for k in range(a.items)})
    number = np.arange(3, dtype=np.uint8)

    def run(data: list[Batch], name: str) -> dict[str, float]:
        engines = [
            StateEngine.open(None if a.memory else f"{directory}/{name}-{k}", k, groups, cache_bytes=a.cache_mb << 20)
            for k in range(8)
        ]
        spent: dict[str, float] = {}
        seen = since = loaded = 0
        wall, cpu = time.perf_counter(), time.process_time()
        for b in data:
            t0 = time.thread_time()
            cols, _ = parse_events(b, number)
            t1 = time.thread_time()
            for k, rows in cols.rows_by_partition().items():
                engines[k].fold(cols, rows)
            t2 = time.thread_time()
            seen += len(b)
            since += len(b)
            if since >= a.commit or b is data[-1]:
                since = 0
                for e in engines:
                    e.take_increments()
                t3 = time.thread_time()
                for e in engines:
                    e.commit()
                t4 = time.thread_time()
                spent["take_increments"] = spent.get("take_increments", 0) + t3 - t2
                spent["commit"] = spent.get("commit", 0) + t4 - t3
            spent["parse"] = spent.get("parse", 0) + t1 - t0
            spent["fold"] = spent.get("fold", 0) + t2 - t1
        loaded = sum(e.stats()["users_loaded"] for e in engines)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        memory = sum(e.stats()["memory_bytes"] for e in engines)
        for e in engines:
            e.close()
        thread = sum(spent[k] for k in ("parse", "fold", "commit", "take_increments"))
        out = {f"{k}_us": round(v / seen * 1e6, 3) for k, v in sorted(spent.items())}
        return out | {
            "thread_us": round(thread / seen * 1e6, 3), "process_us": round(cpu / seen * 1e6, 3),
            "wall_us": round(wall / seen * 1e6, 3), "events": seen, "events_per_cpu_s": round(seen / cpu),
            "memory_mb": memory >> 20, "users_loaded": loaded,
        }  # fmt: skip

    try:
        run(data[:2], "warm")
        out = run(data, "plain")
        spent: dict[str, float] = {}
        resolve.resolve = timed(spent, "resolve", resolve.resolve)
        fold.fold_rows = timed(spent, "fold_rows", fold.fold_rows)
        write_back.encode_dirty = timed(spent, "encode", write_back.encode_dirty)
        run(data, "steps")
        out["steps_us"] = {k: round(v / out["events"] * 1e6, 3) for k, v in spent.items()}  # type: ignore[assignment]
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
