"""The flat sequence of each user's life, exact and whole, for networks that read it (`models/peers/`): one array of events for all
users, and for each request how much of it was visible by then.

It comes from the events of the log, not from the state: the state keeps the newest events of each group and the sums of the rest, which
is DMGIN's idea and not that of its peers. Only what the state's ring of 64 newest events suffices for is read from there (`FlatRows`), and
so can be served. What counts as an event of the sequence is what counts as one of a group's ring, clicks and
post-clicks; but an event that only says how long somebody stayed (class `dwell`) goes to the event on the same item before it, from the
moment on at which that was known, so that a peer's last 50 are 50 things done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from stream_dmgin.datasets.form import Dataset
from stream_dmgin.features.spec import BEHAVIOUR_CLASSES, CLASS_OF_TYPE, N_AGE, N_DWELL, N_HOUR, InputSpec
from stream_dmgin.training.columns import Array, Column, scatter, spans
from stream_dmgin.training.items import buckets_of
from stream_dmgin.training.objective import TAUGHT
from stream_dmgin.training.rows import FLAT, Batch, TrainingRows

CLUSTER = 20  # events of a cluster at most (TWIN-V2)
DWELL = BEHAVIOUR_CLASSES.index("dwell")
_USER = 42  # bits for a time in ms (to the year 2109); those above hold the number of the user


@dataclass(frozen=True)
class Lives:
    """E events by user and time of becoming visible; the sequence of request k is [start[k], end[k])."""

    item: Array  # [E,3] buckets of item, category, advertiser
    cls: Array  # [E]
    ts: Array  # [E] ms
    dwell: Array  # [E] bucket, as of the time `told`
    told: Array  # [E] ms, when the dwell became known
    cluster: Array  # [E] number of its cluster among those of its user
    start: NDArray[np.int64]  # [R]
    end: NDArray[np.int64]  # [R]
    at: NDArray[np.int64]  # [R] ms

    def lengths(self, requests: NDArray[np.int64], reach: int) -> NDArray[np.int64]:
        """Events of each request's sequence, at most the newest `reach`."""
        found: NDArray[np.int64] = np.minimum(self.end[requests] - self.start[requests], reach)
        return found

    def flat(self, requests: NDArray[np.int64], reach: int) -> dict[str, Array]:
        """h_* of these requests (`models/peers/base.py`), padded to the longest."""
        n = self.lengths(requests, reach)
        width = max(1, int(n.max(initial=0)))
        mask = np.arange(width) < n[:, None]
        index = np.where(mask, self.end[requests][:, None] - 1 - np.arange(width), 0)
        return self._inputs(index, mask, requests, np.zeros(mask.shape, np.float32))

    def clusters(self, requests: NDArray[np.int64], reach: int) -> dict[str, Array]:
        """As `flat`, clusters in place of events: each stands as its newest event, with the mean of its dwell buckets."""
        found = [self._clusters(int(r), reach) for r in requests]
        width = max(1, *(len(last) for last, _, _ in found)) if found else 1
        shape = len(requests), width
        index, size, dwell = np.zeros(shape, np.int64), np.ones(shape, np.float32), np.zeros(shape, np.int32)
        mask = np.zeros(shape, bool)
        for k, (last, sizes, dwells) in enumerate(found):
            some = slice(0, len(last))
            index[k, some], size[k, some], dwell[k, some], mask[k, some] = last, sizes, dwells, True
        return self._inputs(index, mask, requests, np.log(size)) | {"h_dwell": dwell}

    def _clusters(self, request: int, reach: int) -> tuple[Array, Array, Array]:
        end = int(self.end[request])
        start = max(int(self.start[request]), end - reach)
        if start == end:
            return (np.zeros(0, np.int64),) * 3
        number = self.cluster[start:end] - self.cluster[start:end].min()
        size = np.bincount(number)
        last = np.zeros(len(size), np.int64)
        last[number] = np.arange(start, end)
        known = self.dwell[start:end] * (self.told[start:end] < self.at[request])
        mean = np.bincount(number, known) / np.maximum(size, 1)
        there = np.flatnonzero(size)
        there = there[np.argsort(-last[there])]  # newest first
        return last[there], size[there], np.rint(mean[there])

    def _inputs(self, index: Array, mask: Array, requests: NDArray[np.int64], size: Array) -> dict[str, Array]:
        if not len(self.ts):
            zero = np.zeros(mask.shape, np.int32)
            names = ("h_cls", "h_dwell", "h_hour", "h_time")
            nothing = {"h_item": np.zeros((*mask.shape, 3), np.int32), **dict.fromkeys(names, zero)}
            return nothing | {"h_age": size, "h_size": size, "h_mask": mask}
        at = self.at[requests][:, None]
        ts, one = self.ts[index], np.int32
        age = np.log2(1.0 + np.maximum(at - ts, 0) / 60_000)
        return {
            "h_item": self.item[index] * mask[..., None], "h_cls": self.cls[index].astype(one) * mask,
            "h_dwell": self.dwell[index].astype(one) * (mask & (self.told[index] < at)),
            "h_hour": ((ts // 14_400_000 + 18) % N_HOUR).astype(one) * mask,
            "h_time": np.minimum(N_AGE - 1, np.floor(2 * age)).astype(one) * mask,
            "h_age": (age * mask).astype(np.float32), "h_size": size * mask, "h_mask": mask,
        }  # fmt: skip


class LifeRows(TrainingRows):
    """Training rows whose batches carry h_* and no groups."""

    def __init__(self, rows: TrainingRows, lives: Lives, reach: int, clustered: bool = False) -> None:
        super().__init__(rows.spec, rows.heads)
        self.lives, self.reach, self.clustered = lives, reach, clustered
        strip(rows, self, short=True)

    def like(self, requests: NDArray[np.int64]) -> Array:
        """As `TrainingRows` says: by the length of life."""
        found: Array = 20 * np.log2(1.0 + self.lives.lengths(requests, self.reach))
        return found

    def collate(self, requests: NDArray[np.int64]) -> Batch:
        """One batch of these requests."""
        batch = super().collate(requests)
        life = self.lives.clusters if self.clustered else self.lives.flat
        more = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in life(requests, self.reach).items()}
        return replace(batch, inputs=replace(batch.inputs, x={**batch.inputs.x, **more}))


class FlatRows(TrainingRows):
    """Training rows whose batches carry the h_* that replay read from the state, the newest `reach`, and no groups."""

    def __init__(self, rows: TrainingRows, reach: int) -> None:
        super().__init__(rows.spec, rows.heads)
        self.reach = reach
        strip(rows, self, short=True, flat=True)

    def like(self, requests: NDArray[np.int64]) -> Array:
        """As `TrainingRows` says: by the length of life."""
        found: Array = 20 * np.log2(1.0 + np.minimum(self["r_flat"][requests], self.reach))
        return found

    def collate(self, requests: NDArray[np.int64]) -> Batch:
        """One batch of these requests."""
        batch, b = super().collate(requests), len(requests)
        n = np.minimum(self["r_flat"][requests], self.reach)
        width = max(1, int(n.max(initial=0)))
        events, slot = spans(self.offsets()["r_flat"][requests], n), spans(np.arange(b) * width, n)
        x = {k: scatter(self[k][events], slot, b, width) for k in FLAT}
        x = {k: v.astype(np.int32) if v.dtype == np.uint8 else v for k, v in x.items()}
        mask = np.arange(width) < n[:, None]
        x |= {"h_mask": mask, "h_size": np.zeros(mask.shape, np.float32)}
        return replace(
            batch, inputs=replace(batch.inputs, x={**batch.inputs.x, **{k: torch.from_numpy(v) for k, v in x.items()}})
        )


def strip(rows: TrainingRows, out: TrainingRows, short: bool, flat: bool = False) -> None:
    """Into the empty `out`: the same rows (not copied) without groups, without the short sequence unless `short`, without the flat one
    that came from the state unless `flat`."""
    keep = ["r_rows", "r_ts", "r_key", "u_dense", "x_cat", "c_item", "c_id", "c_dense", "label"]
    keep += ["r_short", "s_item", "s_cls", "s_time", "s_dwell"] if short else []
    keep += ["r_flat", *FLAT] if flat else []
    for name in [*keep, *({"seen", TAUGHT} & rows.columns.keys())]:
        out.columns[name] = rows.columns[name]
    for name in {"r_groups", "r_short", "r_flat"} & out.columns.keys() - {*keep}:
        out.columns[name] = Column.of(np.zeros(rows.requests, np.int32))
    out.columns["c_group"] = Column.of(np.full(len(rows), rows.spec.groups, np.int32))


def lives_of(data: Dataset, spec: InputSpec, users: Sequence[str], at: NDArray[np.int64]) -> Lives:
    """The lives of a log, for requests of these users at these times (ms): what was visible strictly earlier counts."""
    events = data.events.filter(pc.not_equal(data.events["topic"], "impressions"))
    n = events.num_rows
    everyone = pa.chunked_array([*events["user_id"].chunks, pa.array(users, pa.string())], pa.string())
    number = everyone.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    names = events["item_id"].combine_chunks().dictionary_encode()
    visible, ts = events["visible_at"].to_numpy(), events["ts"].to_numpy()
    dwell_ms = events["dwell_ms"].fill_null(-1).to_numpy()
    items = names.indices.to_numpy().astype(np.int64)
    cls, told = _classes(events), visible.copy()
    keep = _dwells(number[:n], items, cls, dwell_ms := dwell_ms.copy(), told)
    order = np.flatnonzero(keep)
    order = order[np.argsort(number[order], kind="stable")]
    key = (number[:n] << _USER | visible)[order]
    buckets = _buckets(data.items, names.dictionary, spec)[items[order]]
    return Lives(
        buckets, cls[order], ts[order], _dwell_buckets(dwell_ms[order]), told[order],
        _clustered(number[order], buckets[:, 1]), np.searchsorted(key, number[n:] << _USER),
        np.searchsorted(key, number[n:] << _USER | at), at,
    )  # fmt: skip


def _classes(events: pa.Table) -> NDArray[np.uint8]:
    usual = {"clicks": "click", "post-clicks": "other"}
    kinds = pc.coalesce(events["type"], events["topic"]).combine_chunks().dictionary_encode()
    of = [BEHAVIOUR_CLASSES.index(usual.get(t) or CLASS_OF_TYPE.get(t, "other")) for t in kinds.dictionary.to_pylist()]
    found: NDArray[np.uint8] = np.array([*of, 0], np.uint8)[kinds.indices.to_numpy()]
    return found


def _dwells(user: Array, item: Array, cls: Array, dwell_ms: Array, told: Array) -> NDArray[np.bool_]:
    """Move what `dwell` events say to the event on the same item before them, in place; returns which events are left."""
    order = np.lexsort((item, user))  # stable: by user, item, then as they became visible
    only = cls[order] == DWELL
    before = np.maximum.accumulate(
        np.where(only, -1, np.arange(len(order)))
    )  # place of the last event that is no dwell
    theirs = order[np.maximum(before, 0)]
    moved = only & (before >= 0) & (user[theirs] == user[order]) & (item[theirs] == item[order])
    dwell_ms[theirs[moved]], told[theirs[moved]] = dwell_ms[order[moved]], told[order[moved]]
    keep = np.ones(len(order), bool)
    keep[order[moved]] = False
    return keep


def _clustered(user: Array, category: Array) -> NDArray[np.int32]:
    """Number of each event's cluster among its user's: up to CLUSTER events of a category in a row of time. Events lie by user and time,
    and an event's cluster doesn't depend on later ones."""
    n = len(user)
    if not n:
        return np.zeros(0, np.int32)
    order = np.lexsort((category, user))
    u, c = user[order], category[order]
    new = np.r_[True, (u[1:] != u[:-1]) | (c[1:] != c[:-1])]
    place = np.arange(n)
    rank = place - np.maximum.accumulate(np.where(new, place, 0))
    first = np.maximum.accumulate(np.where(rank % CLUSTER == 0, place, 0))
    founds = np.zeros(n, np.int64)
    founds[order[rank % CLUSTER == 0]] = 1
    number = np.cumsum(founds) - 1
    number -= number[np.searchsorted(user, user)]  # user ascends: counted from each user's first
    out = np.empty(n, np.int32)
    out[order] = number[order[first]]
    return out


def _dwell_buckets(ms: Array) -> NDArray[np.uint8]:
    whole = np.floor(np.log2(np.maximum(ms, 1) / 1000.0)) + 1
    found: NDArray[np.uint8] = np.array(np.where(ms >= 0, np.clip(whole, 1, N_DWELL - 1), 0), np.uint8)
    return found


def _buckets(items: pa.Table, names: pa.Array, spec: InputSpec) -> NDArray[np.int32]:
    """Buckets of item, category and advertiser [n,3] of the items of these names."""
    row = {x: i for i, x in enumerate(items["item_id"].to_pylist())}
    at = pa.array([row.get(x) for x in names.to_pylist()], pa.int64())
    parts = [(names, spec.item_buckets)]
    parts += [(items[k].take(at), getattr(spec, f"{k}_buckets")) for k in ("category", "advertiser")]
    return np.stack([buckets_of(column.to_pylist(), n) for column, n in parts], -1).astype(np.int32)
