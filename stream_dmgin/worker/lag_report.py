"""How far stores and group are behind the log, partition by partition, in records and in seconds. Control path, read-only."""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np

from stream_dmgin import topics
from stream_dmgin.errors import InputError, LogUnavailable, StreamDmginError
from stream_dmgin.log.base import TP, Log
from stream_dmgin.log.scan import scan
from stream_dmgin.settings import Settings
from stream_dmgin.state.ops.stores import Stores
from stream_dmgin.state.store import REQUESTS_ROW

log_ = logging.getLogger(__name__)

PATIENCE_S = 15.0


def lag_of(log: Log, settings: Settings) -> dict[str, Any]:
    """What `lag -o json` prints. `lag_s`: the age of the oldest record that isn't taken care of, by its record timestamp; by the
    store where one is here, else by the group. Raises InputError without topics, LogUnavailable."""
    names = [settings.topic(t) for t in (*topics.EVENTS, topics.REQUESTS)]
    there = log.topics()
    if missing := [n for n in names if n not in there]:
        raise InputError(
            f"{log.url} has no topic {', '.join(missing)}: check --log and --prefix, or run `topics apply`"
        )
    stored = _stored(settings)
    try:
        committed: dict[TP, int] = log.committed(settings["worker.group"], names)
    except LogUnavailable as e:  # a group that has just begun has no coordinator yet
        log_.warning("%s: what the group has committed is not told", e)
        committed = {}
    rows: list[dict[str, Any]] = []
    for name in names:
        begins, ends = log.begins(name), log.ends(name)
        for p in sorted(ends):
            store, group = stored.get((name, p)), committed.get((name, p), -1)
            at = max(store if store is not None else group, begins[p], 0)
            rows.append({
                "topic": name, "partition": p, "begin": begins[p], "end": ends[p], "store": store, "committed": group,
                "lag": ends[p] - min(at, ends[p]), "lag_s": 0.0,
            })  # fmt: skip
    behind = {(r["topic"], r["partition"]): r["end"] - r["lag"] for r in rows if r["lag"]}
    ages = _ages(log, behind)
    for r in rows:
        r["lag_s"] = ages.get((r["topic"], r["partition"]), 0.0)
    return {
        "group": settings["worker.group"], "lag": sum(r["lag"] for r in rows), "lag_s": max((r["lag_s"] or 0.0 for r in rows), default=0.0),
        "partitions": rows,
    }  # fmt: skip


def _stored(settings: Settings) -> dict[TP, int]:
    """The offsets of the stores of this data directory, as committed."""
    try:
        stores = Stores.of(settings.data_dir)
    except InputError:
        return {}
    out: dict[TP, int] = {}
    for p in stores.present():
        engine = stores.open(p)
        try:
            out |= {(t, p): o for t, o in stores.offsets(engine).items()}
            if row := engine.get(REQUESTS_ROW):
                out[settings.topic(topics.REQUESTS), p] = int.from_bytes(row, "big")
        finally:
            engine.close()
    return out


def _ages(log: Log, behind: dict[TP, int]) -> dict[TP, float | None]:
    """Seconds since the first record that waits; None where it can't be read (markers of transactions, retention)."""
    out: dict[TP, float | None] = dict.fromkeys(behind)
    now = time.time()
    try:
        for batch, inside in scan(log, {tp: (o, o + 1) for tp, o in behind.items()}, patience_s=PATIENCE_S):
            for i in np.flatnonzero(inside).tolist():
                tp = batch.topics[batch.topic[i]], int(batch.partition[i])
                out[tp] = round(max(0.0, now - int(batch.timestamp[i]) / 1000), 3)
    except StreamDmginError:  # what was read is told
        pass
    return out
