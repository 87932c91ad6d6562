"""Looking into the stores: one user, all users, sizes. Read-only, also beside a running worker. Control path."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from stream_dmgin.state.arrays import UserArrays
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.ops.stores import Stores

HOT_GROUPS = 128
BLOCK = 500  # users read at a time
LEVELS = 7
HOTTEST = 10


def show_user(stores: Stores, user_id: str, limit: int | None = None) -> dict[str, Any] | None:
    """The contract's `state show` document; None for a user without events in the store here. `limit`: groups."""
    p = stores.partition_of(user_id)
    if p not in stores.present():
        return None
    engine = stores.open(p)
    try:
        found = engine.show(user_id, limit)
        if found is None:
            return None
        return {"user_id": user_id, "partition": p, "offsets": stores.offsets(engine), **found}
    finally:
        engine.close()


def list_users(stores: Stores, limit: int | None = None, partition: int | None = None) -> dict[str, Any]:
    """`users`: at most `limit` ids with their partitions; `total`: how many there are."""
    out: list[dict[str, Any]] = []
    total = 0
    for p in stores.present() if partition is None else sorted({partition} & set(stores.present())):
        engine = stores.open(p)
        try:
            total += engine.count_users()
            room = None if limit is None else limit - len(out)
            out += [{"user_id": u, "partition": p} for u in islice(engine.users(), room)]
        finally:
            engine.close()
    return {"users": out, "total": total}


def statistics(stores: Stores, sample: int) -> dict[str, Any]:
    """Per partition and over all: users, offsets, sizes, RocksDB's own figures; from `sample` users a partition: how many
    events and groups users have."""
    partitions = []
    lives: list[Life] = []
    for p in stores.present():
        engine = stores.open(p)
        try:
            lives += _lives(engine, p, sample)
            partitions.append({
                "partition": p, "users": engine.count_users(), "groups": engine.groups.id, "offsets": stores.offsets(engine),
                **_sizes(stores.path(p)), **_rocksdb(engine),
            })  # fmt: skip
        finally:
            engine.close()
    events, groups = [x.events for x in lives], [x.groups for x in lives]
    return {
        "data_dir": str(stores.directory.parent),
        "groups": stores.groups_id,
        "partitions_in_topics": stores.partitions,
        "users": sum(p["users"] for p in partitions),
        "bytes": sum(p["bytes"] for p in partitions),
        "users_looked_into": len(events),
        "events_per_user": _spread(events),
        "groups_per_user": _spread(groups),
        "users_with_spilled_groups": sum(g > HOT_GROUPS for g in groups),
        "spilled_groups": sum(max(0, g - HOT_GROUPS) for g in groups),
        "hottest_by_events": [asdict(x) for x in sorted(lives, key=lambda x: -x.events)[:HOTTEST]],
        "hottest_by_groups": [asdict(x) for x in sorted(lives, key=lambda x: -x.groups)[:HOTTEST]],
        "partitions": partitions,
    }


@dataclass(frozen=True)
class Life:
    """One user, by size. `events`: impressions too."""

    user_id: str
    partition: int
    events: int
    groups: int


def _lives(engine: StateEngine, partition: int, sample: int) -> list[Life]:
    """The first users of the store."""
    users = [u.encode() for u in islice(engine.users(), sample)]
    arrays = UserArrays.allocate(min(BLOCK, max(1, len(users))), 1, 1)
    out: list[Life] = []
    for at in range(0, len(users), BLOCK):
        part = users[at : at + BLOCK]
        engine.read(part, arrays)
        events = (arrays.n_events[: len(part)] + arrays.n_impressions[: len(part)]).tolist()
        groups = arrays.n_groups_total[: len(part)].tolist()
        out += [Life(u.decode(), partition, e, g) for u, e, g in zip(part, events, groups, strict=True)]
    return out


def _spread(x: list[int]) -> dict[str, int]:
    if not x:
        return {}
    return {"median": int(np.median(x)), "p99": int(np.quantile(x, 0.99)), "max": max(x)}


def running(engine: StateEngine) -> dict[str, Any]:
    """What only the process that writes a store knows of it: stalls, memory. For the worker that owns it."""
    db = engine.store
    if db is None:
        return {}
    stats = engine.stats()
    return {
        "write_stopped": bool(db.property_int_value("rocksdb.is-write-stopped")),
        "delayed_write_rate": int(db.property_int_value("rocksdb.actual-delayed-write-rate") or 0),
        "compactions_running": int(db.property_int_value("rocksdb.num-running-compactions") or 0),
        "pending_compaction_bytes": int(db.property_int_value("rocksdb.estimate-pending-compaction-bytes") or 0),
        "memtable_bytes": int(db.property_int_value("rocksdb.cur-size-all-mem-tables") or 0),
        **{k: stats[k] for k in ("users_cached", "users_dirty", "cache_bytes", "memory_bytes", "users_loaded", "users_evicted")},
    }  # fmt: skip


def _rocksdb(engine: StateEngine) -> dict[str, Any]:
    """What RocksDB says of its levels."""
    db = engine.store
    if db is None:
        return {}

    def number(name: str) -> int:
        return int(db.property_int_value(f"rocksdb.{name}") or 0)

    return {
        "keys_estimate": number("estimate-num-keys"),
        "live_bytes_estimate": number("estimate-live-data-size"),
        "pending_compaction_bytes": number("estimate-pending-compaction-bytes"),
        "files_by_level": [int(db.property_value(f"rocksdb.num-files-at-level{k}") or 0) for k in range(LEVELS)],
    }


def _sizes(path: Path) -> dict[str, int]:
    sizes = [(f.suffix, f.stat().st_size) for f in path.iterdir() if f.is_file()]
    return {"bytes": sum(n for _, n in sizes), "sst_files": sum(s == ".sst" for s, _ in sizes)}
