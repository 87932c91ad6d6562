"""What followed clicks, as labels of the requests on a log: 1 where the log holds such an event of the candidate, 0 where it was
clicked and none came so far, unknown where it was not clicked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
import pyarrow as pa

from stream_dmgin import topics
from stream_dmgin.datasets.form import Dataset
from stream_dmgin.replay.logsource import Columns, LogSource

_peek = msgspec.msgpack.Decoder().decode


def label_heads(source: LogSource, heads: Sequence[str]) -> Dataset:
    """Give the requests of a log their labels of these heads, whose names are types of post-click events. Returns rows and items in the
    normalised form, without events: `rows_as_of` takes from it when each label became visible."""
    r = source.requests
    request = r.request_of_rows()
    came = _came(source.recorded, heads)
    rows: dict[str, pa.Array] = {"item_id": pa.array(r.item, pa.string()), "ts": pa.array(r.at[request])}
    rows |= {"request_id": pa.array(r.id, pa.string()).take(pa.array(request)), "label": pa.array(r.label)}
    rows["user_id"] = pa.array(r.user, pa.string()).take(pa.array(request))
    for head, at in came.items():
        when = np.fromiter(
            (at.get((r.id[i], x), -1) for i, x in zip(request.tolist(), r.item, strict=True)), np.int64, len(r.item)
        )
        r.heads[head] = np.where(r.label == 1, (when >= 0).astype(np.int8), np.int8(-1))
        rows[f"label_{head}_at"] = pa.array(when, mask=when < 0)
    source.meta = replace(source.meta, heads=list(heads))
    items = [(i.item_id, i.advertiser) for i in source.items()]
    catalogue = pa.table(
        {
            "item_id": pa.array([i for i, _ in items], pa.string()),
            "advertiser": pa.array([a for _, a in items], pa.string()),
        }
    )
    nothing = pa.table(
        {
            k: pa.array([], pa.int64() if k in ("ts", "visible_at") else pa.string())
            for k in ("topic", "user_id", "item_id", "ts", "visible_at")
        }
    )
    return Dataset(nothing, pa.table(rows), catalogue, source.meta)


def _came(events: Columns, heads: Sequence[str]) -> dict[str, dict[tuple[str, str], int]]:
    """For each head: (request, item) -> when the first such event became visible (ms)."""
    found: dict[str, dict[tuple[str, str], int]] = {h: {} for h in heads}
    post = topics.EVENTS.index(topics.POST_CLICKS)
    for topic, value, at in zip(events.topic.tolist(), events.values, events.timestamp.tolist(), strict=True):
        if topic != post or value is None:
            continue
        try:
            m = _peek(value)
        except (msgspec.MsgspecError, ValueError):
            continue
        if isinstance(m, dict) and m.get("type") in found and isinstance(m.get("request_id"), str):
            key = (m["request_id"], str(m.get("item_id")))
            before = found[m["type"]].get(key)
            found[m["type"]][key] = at if before is None else min(before, at)
    return found
