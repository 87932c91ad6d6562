"""`state rebuild`: fold a partition's store again, from a snapshot or from the first offset, up to exactly the offsets that the
store has. The new store is made beside the old one and takes its place when it is whole. For stopped stores: the old one is
held open for writing meanwhile, so that no worker can start on it.

The rows that the worker keeps beside the users (answered requests, increments of the shared counters on their way) belong to
those offsets, and are taken over as they are: nothing is published twice or lost.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from rocksdict import Rdict

from stream_dmgin import topics
from stream_dmgin.control import Control, mask_skipped, read_control
from stream_dmgin.errors import StoreBusy, StreamDmginError
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import Log
from stream_dmgin.log.scan import scan
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.erased import MARK, Erased
from stream_dmgin.state.ops.restore import swap_in
from stream_dmgin.state.ops.stores import Stores
from stream_dmgin.state.parse import parse_events
from stream_dmgin.state.snapshots.checkpoint import Facts, facts_in
from stream_dmgin.state.snapshots.manifest import Manifest
from stream_dmgin.state.snapshots.place import Place
from stream_dmgin.state.snapshots.restore import fetch_groups, restore_partition
from stream_dmgin.state.snapshots.run import ToldPartition, silent
from stream_dmgin.state.store import SIDE, open_store

CACHE_BYTES = 512 << 20
COMMIT_RECORDS = 500_000


def rebuild(
    stores: Stores, partition: int, log: Log, place: Place | None = None, told: ToldPartition = silent
) -> dict[str, Any]:
    """Rebuild one partition; what was done. Raises StoreBusy when a worker has the store, StreamDmginError where the log no
    longer holds what has to be folded: the old store is untouched then."""
    t0 = time.monotonic()
    old = stores.path(partition)
    new = stores.directory / f"rebuilding-p{partition:05d}"
    shutil.rmtree(new, ignore_errors=True)
    try:
        db = open_store(old, partition, read_only=False)
    except StoreBusy:
        raise
    except StreamDmginError as e:
        return _unreadable(stores, partition, place, new, e)
    try:
        facts = facts_in(db)
        if facts is None:
            raise StreamDmginError(f"{old}: nothing was ever committed to it: there is nothing to rebuild")
        problems: list[str] = []
        source = "log"
        groups = stores.maps.load(facts.map_id or stores.unmarked)
        if place is not None:
            got = restore_partition(
                place, partition, stores.directory, target=new, fits=lambda m: _wrong(m, stores, facts, groups, place)
            )
            problems, source = got.problems, got.manifest.id if got.manifest else "log"
        engine = StateEngine.open(new, partition, groups, cache_bytes=CACHE_BYTES, durable=False)
        try:
            control = read_control(log, stores.prefix)[0]
            engine.ignore(Erased(control.erasures.get(partition, {}).values()))
            records = _fold(engine, stores, partition, facts, log, control, told)
            users = engine.count_users()
            _take_side_rows(engine, db)
        finally:
            engine.close()
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)  # what was begun is of no use to anybody
        raise
    finally:
        db.close()
    swap_in(new, old)
    return {
        "partition": partition, "from": source, "records": records, "users": users, "users_before": facts.users,
        "offsets": stores.named(facts.offsets), "problems": problems, "seconds": round(time.monotonic() - t0, 3),
    }  # fmt: skip


def _fold(
    engine: StateEngine, stores: Stores, partition: int, facts: Facts, log: Log, control: Control, told: ToldPartition
) -> int:
    names = [stores.prefix + t for t in topics.EVENTS]
    ranges = {(t, partition): (engine.offsets[k], facts.offsets[k]) for k, t in enumerate(names)}
    for (t, p), (start, end) in ranges.items():
        begin, last = log.begins(t).get(p, 0), log.ends(t).get(p, 0)
        if begin > start and end > start:
            raise StreamDmginError(
                f"{t}/{p} begins at offset {begin}, but the records from {start} on are needed. Either give a location with a "
                "newer snapshot (--from), or keep the store as it is, or move it away: the worker then folds what is left"
            )
        if last < end:
            raise StreamDmginError(
                f"{t}/{p} ends at offset {last}, but the store holds records up to {end}: this is another log"
            )
    tell = told(partition, sum(end - start for start, end in ranges.values()))
    records = since = 0
    for batch, inside in scan(log, ranges):
        mask_skipped(batch, stores.prefix, control.skips)
        columns, _ = parse_events(batch, np.array([names.index(t) for t in batch.topics], np.uint8))
        rows = np.flatnonzero(inside).astype(np.int32)
        engine.fold(columns, rows)
        engine.take_increments()  # they are in the old store's rows, or published
        records += len(rows)
        since += len(rows)
        tell(len(rows))
        if since >= COMMIT_RECORDS or engine.pressure > 1:
            engine.commit()
            since = 0
    engine.commit()
    return records


def _take_side_rows(engine: StateEngine, old: Rdict) -> None:
    """All but the marks of erasures: a snapshot may be of before, so the next worker carries them out again."""
    rows: list[tuple[bytes, bytes]] = []
    for key, value in old.items(from_key=SIDE):
        if not key.startswith(SIDE):
            break
        if not key.startswith(SIDE + MARK):
            rows.append((bytes(key[len(SIDE) :]), bytes(value)))
    names = {k for k, _ in rows}
    engine.commit(rows, [bytes(k) for k, _ in engine.scan(b"") if not k.startswith(MARK) and bytes(k) not in names])


def _wrong(m: Manifest, stores: Stores, facts: Facts, groups: GroupMap, place: Place) -> str:
    if (m.prefix, m.partitions) != (stores.prefix, stores.partitions):
        return f"it is of {m.partitions} partitions of {m.prefix}*"
    if any(m.offsets[t] > o for t, o in stores.named(facts.offsets).items()):
        return "it is ahead of the store"
    if m.groups.id != groups.id:
        before = fetch_groups(place, m, stores.directory)
        if any(groups.lookup(item) != g for item, g in before.items.items()):
            return f"it was folded with group map {m.groups.id}, which {groups.id} doesn't extend"
    return ""


def _unreadable(
    stores: Stores, partition: int, place: Place | None, new: Path, error: StreamDmginError
) -> dict[str, Any]:
    """A store that can't be opened is set aside, never deleted; its place is taken by a snapshot, or stays empty."""
    problems = [str(error)]
    source = "nothing"
    if place is not None:
        got = restore_partition(place, partition, stores.directory, target=new)
        problems += got.problems
        source = got.manifest.id if got.manifest else source
    aside = stores.directory / f"unreadable-p{partition:05d}-{int(time.time())}"
    stores.path(partition).rename(aside)
    if new.exists():
        new.rename(stores.path(partition))
    return {
        "partition": partition, "from": source, "records": 0, "set_aside": str(aside), "problems": problems,
        "next": "the next worker folds the rest of the log",
    }  # fmt: skip
