"""Compaction of a store that no worker has open."""

from __future__ import annotations

from collections.abc import Callable

from stream_dmgin.state.erased import MARK, free_row
from stream_dmgin.state.ops.stores import Stores


def compact(stores: Stores, partition: int, told: Callable[[int, int], None] = lambda done, of: None) -> None:
    """Compact one partition, and note in it of which erasures its files are free now; `told(slices done, of all)`. Raises StoreBusy."""
    engine = stores.open(partition, read_only=False)
    try:
        row = free_row(engine.scan(MARK))
        for done, of in engine.compact():
            told(done, of)
        if row is not None:
            engine.commit([row])
    finally:
        engine.close()


def size(stores: Stores, partition: int) -> int:
    """Bytes of a store's files now."""
    return sum(f.stat().st_size for f in stores.path(partition).glob("*.sst"))
