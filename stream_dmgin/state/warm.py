"""Compile the kernels of the state into numba's cache on disk, so that no worker or test waits for the compiler.

Runs every kernel once on a small state: `python -m stream_dmgin.state.warm`. `make install` does.
"""

from __future__ import annotations

import tempfile
import time

import numpy as np

from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import Record, batch_of
from stream_dmgin.records import Event, encode
from stream_dmgin.state.arrays import UserArrays
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.parse import EventColumns, parse_events
from stream_dmgin.topics import EVENTS

T0 = 1_760_000_000_000


def events(n: int, users: int, items: int, first: int) -> EventColumns:
    """Some events of every topic, from this offset on."""
    records = []
    for k in range(first, first + n):
        user = f"warm-{k % users}"
        e = Event(
            user, f"item-{k % items}", T0 + k, f"e{k}", f"type-{k % 9}", dwell_ms=k, value=k / 7, attrs={"a": [1]}
        )
        records.append(Record(EVENTS[k % 3], 0, k, T0 + k, user.encode(), encode(e)))
    return parse_events(batch_of(EVENTS, records), np.arange(3, dtype=np.uint8))[0]


def main() -> None:
    """Call every kernel, in memory and with a store, with growth, eviction, loading, spilling and merging."""
    rows = np.arange(3000, dtype=np.int32)
    out = UserArrays.allocate(2, interests=8)
    with tempfile.TemporaryDirectory(prefix="stream-dmgin-warm-") as d:
        for path in (None, f"{d}/0"):
            engine = StateEngine.open(path, 0, GroupMap.empty(), cache_bytes=1 << 16, durable=False)
            engine.fold(events(3000, 2, 1500, 0), rows)
            engine.fold(events(3000, 400, 2, 3000), rows)
            engine.take_increments()
            engine.read_interests(engine.take_encounters().slot[:2], out)
            engine.commit()
            engine.fold(events(800, 2, 1500, 6000), rows[:800])
            engine.commit()
            engine.close()
            if path:
                engine = StateEngine.open(path, 0, GroupMap({f"item-{k}": 7 for k in range(200)}), durable=False)
                engine.show("warm-3")
                engine.regroup(GroupMap({f"item-{k}": 7 for k in range(400)}))
                engine.show("warm-0")
                engine.canonical("warm-1")
                engine.read([b"warm-0", b"nobody"], out)
                engine.erase("warm-1")
                engine.close()


if __name__ == "__main__":
    t = time.perf_counter()
    main()
    print(f"state: kernels compiled or found in the cache in {time.perf_counter() - t:.1f} s")
