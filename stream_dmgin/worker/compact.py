"""`state compact` on a data directory, whether workers run on it or not."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stream_dmgin.state.ops.compact import compact, size
from stream_dmgin.state.ops.stores import Stores
from stream_dmgin.worker import admin


def compact_all(
    data_dir: Path, partition: int | None, told: Callable[[int, int, int], None] = lambda partition, done, of: None
) -> dict[str, Any]:
    """Compact all partitions that have a store here, or one. Raises InputError, StoreBusy."""
    t0 = time.monotonic()
    stores = Stores.of(data_dir)
    present = stores.present() if partition is None else [p for p in stores.present() if p == partition]
    before = {p: size(stores, p) for p in present}
    done: set[int] = set()
    for socket in admin.workers(data_dir):
        got = admin.ask(
            socket, "compact", lambda x: told(x["partition"], x["done"], x["of"]), partition=partition
        )  # fmt: skip
        done.update(got["partitions"])
    for p in present:
        if p not in done:
            compact(stores, p, lambda k, of, p=p: told(p, k, of))  # type: ignore[misc]
    after = {p: size(stores, p) for p in present}
    return {
        "partitions": [{"partition": p, "bytes_before": before[p], "bytes": after[p], "running": p in done} for p in present],
        "bytes_before": sum(before.values()), "bytes": sum(after.values()), "seconds": round(time.monotonic() - t0, 3),
    }  # fmt: skip
