"""The fold step by step in this process: what each step costs per event, in microseconds of one core."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from stream_dmgin import topics
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import open_log
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.parse import parse_events

COMMIT_S = 2.0
MAX_BATCH = 30_000


def measure(url: str, prefix: str, groups: Path, events: int, directory: Path) -> dict[str, float]:
    """Microseconds of CPU per event of `poll`, `parse`, `fold`, `commit` in this thread, and `other_threads`: those of the Kafka
    client and of RocksDB, which on one core take their time from it. `total` is the sum."""
    names = [prefix + t for t in topics.EVENTS]
    number = np.arange(len(names), dtype=np.uint8)
    spent = dict.fromkeys(("poll", "parse", "fold", "commit"), 0.0)
    group_map = GroupMap.from_csv(groups)
    with open_log(url) as log:
        engines = {p: StateEngine.open(directory / str(p), p, group_map) for p in log.ends(names[0])}
        reader = log.reader(names)
        reader.assign({(t, p): -2 for t in names for p in engines})
        seen, committed = 0, time.perf_counter()
        cpu0 = time.process_time()
        while seen < events:
            t0 = time.thread_time()
            batch = reader.poll(MAX_BATCH, 60)
            assert batch is not None, "the log ended early"
            t1 = time.thread_time()
            columns, _ = parse_events(batch, number)
            t2 = time.thread_time()
            rows = np.flatnonzero(columns.status == 0).astype(np.int32)
            of = batch.partition[rows]
            for p in np.unique(of):
                engines[int(p)].fold(columns, rows[of == p])
            t3 = time.thread_time()
            seen += len(batch)
            batch.release()
            if time.perf_counter() - committed > COMMIT_S or seen >= events:
                for e in engines.values():
                    e.take_increments()
                    e.commit()
                spent["commit"] += time.thread_time() - t3
                committed = time.perf_counter()
            spent["poll"] += t1 - t0
            spent["parse"] += t2 - t1
            spent["fold"] += t3 - t2
        cpu = time.process_time() - cpu0
        spent["other_threads"] = max(0.0, cpu - sum(spent.values()))
        reader.close()
        for e in engines.values():
            e.close()
    return {k: round(v / seen * 1e6, 3) for k, v in (*spent.items(), ("total", sum(spent.values())))}
