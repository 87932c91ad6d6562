"""How the fold holds up as the state grows, and what a deep store costs: python bench/deep_store.py [--events N] [--users N] ...

Events are made in memory (not timed) and go through parse_events, StateEngine.fold and commit as the worker does it, on one core. Prints
one JSON document: for each stage of the way how fast events were folded then; how much was committed and how much was
written to the disk (write amplification); and, with --snapshots, what a snapshot of the whole uploads, and the next one after
one user in a hundred had a new event. Users are Zipf by --skew (0: all alike).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from stream_dmgin.bench import machine
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import Batch
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.ops.places import store_path
from stream_dmgin.state.parse import parse_events
from stream_dmgin.topics import PREFIX
from stream_dmgin.worker.partitions import write_meta

TOPICS = ("dmgin.impressions", "dmgin.clicks", "dmgin.post-clicks")
START = 1_760_000_000_000
NUMBERS = np.arange(3, dtype=np.uint8)
KINDS: tuple[tuple[int, float, dict[str, Any]], ...] = (  # topic, share, what such an event has beside ids and time
    (0, 0.5, {}), (1, 0.3, {"dwell_ms": 40_000}), (2, 0.08, {"type": "cart", "dwell_ms": 40_000}),
    (2, 0.08, {"type": "share", "dwell_ms": 40_000}), (2, 0.04, {"type": "order", "dwell_ms": 40_000, "value": 12.5}),
)  # fmt: skip


class Template:
    """MessagePack events of one kind, many at once: all of one length, ids and times written over it."""

    def __init__(self, more: dict[str, Any]) -> None:
        event = {"v": 1, "user_id": "u00000000", "item_id": "i000000", "event_id": "e0000000000", "ts": START, **more}
        self.bytes = np.frombuffer(msgpack.packb(event), np.uint8)
        raw = self.bytes.tobytes()
        self.user, self.item, self.event = (raw.index(x) for x in (b"u00000000", b"i000000", b"e0000000000"))
        self.ts = raw.index(START.to_bytes(8, "big"))

    def fill(
        self, user: NDArray[np.int64], item: NDArray[np.int64], event: NDArray[np.int64], ts: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """[n, length] bytes."""
        out = np.tile(self.bytes, (len(user), 1))
        for at, width, value in ((self.user, 8, user), (self.item, 6, item), (self.event, 10, event)):
            rest = value.copy()
            for k in range(width, 0, -1):
                out[:, at + k] = 48 + rest % 10
                rest //= 10
        out[:, self.ts : self.ts + 8] = ts.astype(">i8").view(np.uint8).reshape(-1, 8)
        return out


class Source:
    """Batches of new events, each (topic, partition) with offsets that go on."""

    def __init__(self, a: argparse.Namespace) -> None:
        self.a, self.r, self.number = a, np.random.default_rng(7), 0
        self.templates = [Template(more) for _, _, more in KINDS]
        self.offsets = np.zeros((3, a.partitions), np.int64)
        weights = np.arange(1, a.users + 1, dtype=np.float64) ** -a.skew
        self.cdf = np.cumsum(weights) / weights.sum()

    def users(self, n: int) -> NDArray[np.int64]:
        """So many users, by their weights; in cohorts, of those whose time it is."""
        found = np.searchsorted(self.cdf, self.r.random(n)).astype(np.int64)
        each = self.a.users // self.a.cohorts
        return found % each + each * min(self.a.cohorts - 1, self.number * self.a.cohorts // self.a.events)

    def batch(self, user: NDArray[np.int64]) -> Batch:
        """An event of each of these users."""
        n, r = len(user), self.r
        number = self.number + np.arange(n)
        self.number += n
        item, ts = r.integers(0, self.a.items, n), START + number * 7
        kind = np.searchsorted(np.cumsum([share for _, share, _ in KINDS])[:-1], r.random(n))
        address, length, key = np.zeros(n, np.uint64), np.zeros(n, np.int32), np.zeros(n, np.uint64)
        keep = []
        for k, t in enumerate(self.templates):
            mine = np.flatnonzero(kind == k)
            data = t.fill(user[mine], item[mine], number[mine], ts[mine])
            keep.append(data)
            address[mine] = data.ctypes.data + np.arange(len(mine)) * data.shape[1]
            length[mine] = data.shape[1]
            key[mine] = address[mine] + np.uint64(t.user)
        topic = np.array([t for t, _, _ in KINDS], np.uint8)[kind]
        partition = (user % self.a.partitions).astype(np.int32)
        offset = np.zeros(n, np.int64)
        for t in range(3):
            for p in range(self.a.partitions):
                mine = np.flatnonzero((topic == t) & (partition == p))
                offset[mine] = self.offsets[t, p] + np.arange(len(mine))
                self.offsets[t, p] += len(mine)
        return Batch(TOPICS, topic, partition, offset, ts, key, np.full(n, 9, np.int32), address, length, owner=keep)


def written() -> int:
    """Bytes that this process has handed to the system for writing."""
    with open("/proc/self/io") as f:
        return int(next(line.split()[1] for line in f if line.startswith("wchar")))


class Run:
    """The engines of a data directory, and what they did."""

    def __init__(self, a: argparse.Namespace, d: Path) -> None:
        self.a, self.state = a, d / "state"
        self.groups = GroupMap({f"i{k:06d}": k * 7 % a.groups for k in range(a.items)})
        write_meta(self.state, a.partitions, PREFIX, self.groups)
        self.source = Source(a)
        self.committed = self.since = 0
        self.open()

    def open(self) -> None:
        """As a worker that starts."""
        each = (self.a.cache_mb << 20) // self.a.partitions
        self.engines = [
            StateEngine.open(store_path(self.state, p), p, self.groups, cache_bytes=each)
            for p in range(self.a.partitions)
        ]

    def fold(self, user: NDArray[np.int64]) -> float:
        """Fold an event of each of these users; seconds that it took."""
        b = self.source.batch(user)
        t0 = time.perf_counter()
        cols, bad = parse_events(b, NUMBERS)
        assert not bad
        for p, rows in cols.rows_by_partition().items():
            self.engines[p].fold(cols, rows)
            if self.engines[p].pressure > 1:
                self.engines[p].evict()
                if self.engines[p].pressure > 1:
                    self._commit(self.engines[p])
        self.since += len(b)
        if self.since >= self.a.commit:
            self.commit()
        return time.perf_counter() - t0

    def commit(self) -> None:
        """All partitions."""
        self.since = 0
        for e in self.engines:
            self._commit(e)

    def _commit(self, e: StateEngine) -> None:
        e.take_increments()
        self.committed += e.commit().bytes

    def close(self) -> None:
        """As a worker that stops."""
        for e in self.engines:
            e.close()

    def stages(self) -> list[dict[str, Any]]:
        """The whole way, a stage each `--stage` events."""
        a, out = self.a, []
        for first in range(0, a.events, a.stage):
            seconds, wrote, loaded, committed = 0.0, written(), self._loaded(), self.committed
            for _ in range(first, min(a.events, first + a.stage), a.batch):
                seconds += self.fold(self.source.users(a.batch))
            stats = [e.stats() for e in self.engines]
            out.append({
                "events": first + a.stage, "events_per_s": round(a.stage / seconds), "users": sum(s["users"] for s in stats),
                "users_loaded": self._loaded() - loaded, "cache_mb": sum(s["cache_bytes"] for s in stats) >> 20,
                "store_mb": sum(s["total_sst_files_size"] for s in stats) >> 20,
                "write_amplification": round((written() - wrote) / max(1, self.committed - committed), 2),
            })  # fmt: skip
            if a.progress:
                print(json.dumps(out[-1]), flush=True)
        return out

    def _loaded(self) -> int:
        return sum(e.stats()["users_loaded"] for e in self.engines)


def snapshots(run: Run, d: Path) -> dict[str, Any]:
    """A snapshot of everything, and the next after one user in a hundred had an event: the fold closed both times."""
    at = ["--log", f"file:{d / 'log'}", "--data-dir", str(d), "-o", "json"]
    machine.run(["topics", "apply", *at, "--partitions", str(run.a.partitions)])

    def take() -> dict[str, Any]:
        run.commit()
        run.close()
        t0 = time.perf_counter()
        taken: dict[str, Any] = json.loads(machine.run(["state", "snapshot", "--to", str(d / "kept"), *at]))
        run.open()
        return {
            "bytes": taken["bytes"],
            "bytes_uploaded": taken["bytes_uploaded"],
            "seconds": round(time.perf_counter() - t0, 1),
        }

    first = take()
    known = np.unique(run.source.users(run.a.batch * 50)) if run.a.skew else np.arange(run.a.users)
    changed = np.sort(run.source.r.permutation(known)[: max(1, len(known) // 100)])
    for part in np.array_split(changed, -(-len(changed) // run.a.batch)):
        run.fold(part.astype(np.int64))
    return {"first": first, "users_changed": len(changed), "next": take()}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--events", type=int, default=20_000_000)
    p.add_argument("--users", type=int, default=20_000)
    p.add_argument("--skew", type=float, default=1.0)
    p.add_argument("--cohorts", type=int, default=1, help="so many sets of users, whose lives follow one another")
    p.add_argument("--items", type=int, default=5_000)
    p.add_argument("--groups", type=int, default=400)
    p.add_argument("--partitions", type=int, default=8)
    p.add_argument("--cache-mb", type=int, default=2048, help="of all partitions")
    p.add_argument("--batch", type=int, default=20_000)
    p.add_argument("--commit", type=int, default=800_000, help="events between commits: about two seconds")
    p.add_argument("--stage", type=int, default=1_000_000)
    p.add_argument("--dir", help="where the stores lie (default: the temporary directory)")
    p.add_argument("--snapshots", action="store_true")
    p.add_argument("--progress", action="store_true")
    a = p.parse_args()
    about, before = machine.describe(), written()
    with tempfile.TemporaryDirectory(prefix="deep-", dir=a.dir) as tmp:
        run = Run(a, Path(tmp))
        stages = run.stages()
        run.commit()
        out = {
            "arguments": vars(a), "stages": stages, "committed_mb": run.committed >> 20,
            "written_mb": (written() - before) >> 20, "write_amplification": round((written() - before) / run.committed, 2),
        }  # fmt: skip
        if a.snapshots:
            out["snapshots"] = snapshots(run, Path(tmp))
        run.close()
    print(json.dumps(out | {"machine": about}, indent=1))


if __name__ == "__main__":
    main()
