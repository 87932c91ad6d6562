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
    """Microseconds per event of `poll`, `parse`, `fold`, `commit`, and `cpu_total` of the whole process: what exceeds their sum
    is the client's and RocksDB's threads (on one core they take their time from the others)."""
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
            t0 = time.perf_counter()
            batch = reader.poll(MAX_BATCH, 60)
            assert batch is not None, "the log ended early"
            t1 = time.perf_counter()
            columns, _ = parse_events(batch, number)
            t2 = time.perf_counter()
            rows = np.flatnonzero(columns.status == 0).astype(np.int32)
            of = batch.partition[rows]
            for p in np.unique(of):
                engines[int(p)].fold(columns, rows[of == p])
            t3 = time.perf_counter()
            seen += len(batch)
            batch.release()
            if t3 - committed > COMMIT_S or seen >= events:
                for e in engines.values():
                    e.take_increments()
                    e.commit()
                committed = time.perf_counter()
                spent["commit"] += committed - t3
            spent["poll"] += t1 - t0
            spent["parse"] += t2 - t1
            spent["fold"] += t3 - t2
        cpu = time.process_time() - cpu0
        reader.close()
        for e in engines.values():
            e.close()
    return {k: round(v / seen * 1e6, 3) for k, v in (*spent.items(), ("cpu_total", cpu))}
