"""Erase a user from a store: its rows go, and what came after the erasure is folded again from the log. Control path.

The order is a record on dmgin.control (`stream_dmgin/control.py`): which user (a digest), and how far the log had got. Stores
carry it out whenever they meet it, and mark that they have; a crash in between is no harm, since it is then done again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stream_dmgin import topics
from stream_dmgin.control import Erasure, Place, digest_of, mask_skipped, read_control
from stream_dmgin.errors import StoreBusy
from stream_dmgin.log.base import Log
from stream_dmgin.log.scan import scan
from stream_dmgin.state.arrays import UserArrays
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.erased import MARK, Erased, is_marked, mark_of, user_of
from stream_dmgin.state.hash import hash64
from stream_dmgin.state.ops.stores import Stores
from stream_dmgin.state.parse import parse_events


@dataclass(frozen=True)
class Gone:
    """What an erasure takes, or took, from a store. `kept`: events after the erasure, folded again: a new life."""

    events: int = 0
    impressions: int = 0
    groups: int = 0
    rows: int = 0
    kept: int = 0


def order(log: Log, prefix: str, user_id: str, partition: int) -> Erasure:
    """The erasure of a user as of now: everything that the partition's event topics hold at this moment. Raises LogUnavailable."""
    ends = {t: log.ends(prefix + t)[partition] for t in topics.EVENTS}
    key = user_id.encode()
    return Erasure(partition, digest_of(key), hash64(key), ends, int(time.time() * 1000))


def pending(engine: StateEngine, orders: Iterable[Erasure]) -> dict[str, Erasure]:
    """Digest -> the erasures that this store has not in it yet."""
    return {e.digest: e for e in orders if not is_marked(engine.get(MARK + bytes.fromhex(e.digest)), e)}


def look(engine: StateEngine, user_id: str) -> Gone:
    """What there is of a user."""
    arrays = UserArrays.allocate(1, 1, 1)
    engine.read([user_id.encode()], arrays)
    n = int(arrays.n_events[0]), int(arrays.n_impressions[0]), int(arrays.n_groups_total[0])
    return Gone(*n, rows=engine.count_rows(user_id.encode()))


def carry_out(
    engine: StateEngine, log: Log, prefix: str, e: Erasure, user_id: str, step: Callable[[], None],
    skips: Mapping[Place, str],
) -> Gone:  # fmt: skip
    """Take the user out of an engine in which nothing is uncommitted. The caller then commits with `mark_of(e)`.

    What the engine had folded of the user from the erasure's offsets on is read from the log again: it is not part of the
    erasure, and any other store would have it. `step` is called while that goes on. Raises LogUnavailable.
    """
    was = look(engine, user_id)
    rows = engine.erase(user_id)
    kept = 0
    folded = engine.offsets
    ranges = {}
    for n, t in enumerate(topics.EVENTS):
        if rows and folded[n] > e.ends[n]:
            first = log.begins(prefix + t)[e.partition]
            ranges[prefix + t, e.partition] = max(e.ends[n], first), folded[n]
    numbers = {prefix + t: n for n, t in enumerate(topics.EVENTS)}
    for batch, inside in scan(log, ranges):
        mask_skipped(batch, prefix, skips)
        cols, _ = parse_events(batch, np.array([numbers[t] for t in batch.topics], np.uint8))
        mine = inside & (cols.status == 0) & (cols.user_hash == np.uint64(e.hash))
        at = [r for r in np.flatnonzero(mine).tolist() if digest_of(user_of(cols, r)) == e.digest]
        kept += engine.fold_again(cols, np.array(at, np.int32))
        step()
    return Gone(was.events, was.impressions, was.groups, rows, kept)


def here(stores: Stores, user_id: str) -> dict[int, Gone]:
    """Partition -> what the stores of a data directory hold of a user. More than one: producers partition in several ways."""
    out = {}
    for p in stores.present():
        engine = stores.open(p)
        try:
            found = look(engine, user_id)
        finally:
            engine.close()
        if found.rows:
            out[p] = found
    return out


def erase_stopped(stores: Stores, log: Log, e: Erasure, user_id: str) -> Gone | None:
    """Carry an order out on a store that no worker holds; None where one does: it will do it itself."""
    if e.partition not in stores.present():
        return None
    try:
        engine = stores.open(e.partition, read_only=False)
    except StoreBusy:
        return None
    try:
        engine.ignore(Erased([e]))
        control, _, _ = read_control(log, stores.prefix)
        gone = carry_out(engine, log, stores.prefix, e, user_id, lambda: None, control.skips)
        engine.commit([mark_of(e)])
        return gone
    finally:
        engine.close()


def is_done(stores: Stores, e: Erasure) -> bool:
    """Whether the store here, as last committed, has the erasure in it."""
    engine = stores.open(e.partition)
    try:
        return not pending(engine, [e])
    finally:
        engine.close()


def as_dict(gone: Gone) -> dict[str, Any]:
    """For JSON and the audit log."""
    return {
        "events": gone.events,
        "impressions": gone.impressions,
        "groups": gone.groups,
        "rows": gone.rows,
        "kept": gone.kept,
    }
