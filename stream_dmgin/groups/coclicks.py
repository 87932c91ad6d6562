"""Pairs of items that one user clicked within a session, from an event log: a signal of likeness that no encoder sees.

Times matter: a map that is to be judged on later days must be made of earlier ones (`until_ms`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.errors import InputError
from stream_dmgin.groups.items import Items

SESSION_MS = 30 * 60_000
WINDOW = 5  # clicks ahead that an item is paired with
HELD_OUT = 0.1  # share of users whose pairs measure

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Clicks:
    """Clicks by (user, time). `user`, `item`: numbers; `ids`: item id of each number; `session` counts on over users."""

    user: Ints
    item: Ints
    session: Ints
    ids: list[str]

    def __len__(self) -> int:
        return len(self.item)


class Pairs(NamedTuple):
    """`left`, `right`: int64[P], rows of the items; both directions are meant. `held_out`: bool[P], pairs of the users who are
    kept for measuring."""

    left: Ints
    right: Ints
    held_out: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.left)

    def part(self, held_out: bool) -> Pairs:
        """Those to learn from, or those to measure on."""
        keep = self.held_out == held_out
        return Pairs(self.left[keep], self.right[keep], self.held_out[keep])


def read_clicks(path: str | Path, until_ms: int | None = None, session_ms: int = SESSION_MS) -> Clicks:
    """Clicks of a log in the normalised form (its directory or `events.parquet`), or of an export of the clicks topic
    (`topics export`): Parquet with user_id, item_id, ts. Events at or after `until_ms` are left out. Raises InputError."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    path = Path(path)
    if path.is_dir():
        path = next((path / n for n in ("events.parquet", "clicks.parquet") if (path / n).is_file()), path)
    if not path.is_file():
        raise InputError(
            f"{path} holds no events: give a directory with events.parquet or clicks.parquet, or such a file"
        )
    try:
        names = pq.read_schema(path).names
        missing = [c for c in ("user_id", "item_id", "ts") if c not in names]
        if missing:
            raise InputError(f"{path} has no column {', '.join(missing)}: events need user_id, item_id and ts")
        t = pq.read_table(
            path, columns=["user_id", "item_id", "ts", *(c for c in ("topic", "visible_at") if c in names)]
        )
        if "topic" in names:
            t = t.filter(pc.equal(t["topic"], "clicks"))
        if until_ms is not None:
            known = t["visible_at"] if "visible_at" in names else t["ts"]
            t = t.filter(pc.less(known.cast(pa.int64()), until_ms))
        t = t.filter(pc.and_(pc.is_valid(t["user_id"]), pc.and_(pc.is_valid(t["item_id"]), pc.is_valid(t["ts"]))))
        users, items = (t[c].cast(pa.string()).combine_chunks().dictionary_encode() for c in ("user_id", "item_id"))
        ts = t["ts"].cast(pa.int64()).to_numpy()
    except (OSError, pa.ArrowException) as e:
        raise InputError(f"{path} can't be read as events: {e}") from None
    if not t.num_rows:
        raise InputError(f"{path} holds no clicks" + (" before that time" if until_ms is not None else ""))
    user, item = (_codes(c) for c in (users, items))
    order = np.lexsort((ts, user))
    user, item, ts = user[order], item[order], ts[order]
    new = np.r_[True, (user[1:] != user[:-1]) | (ts[1:] - ts[:-1] > session_ms)]
    return Clicks(user, item, np.cumsum(new) - 1, items.dictionary.to_pylist())


def _codes(column: Any) -> Ints:
    return np.asarray(column.indices.to_numpy(zero_copy_only=False), np.int64)


def pairs_of(clicks: Clicks, ids: list[str], window: int = WINDOW, seed: int = 0, limit: int = 5_000_000) -> Pairs:
    """Pairs of different items of `ids` at most `window` clicks apart in one session; above `limit` a sample of them."""
    row = {name: i for i, name in enumerate(ids)}
    of = np.array([row.get(name, -1) for name in clicks.ids], np.int64)[clicks.item]
    known = of >= 0
    of, user, session = of[known], clicks.user[known], clicks.session[known]
    left, right, who = [], [], []
    for step in range(1, window + 1):
        together = (session[step:] == session[:-step]) & (of[step:] != of[:-step])
        left.append(of[:-step][together])
        right.append(of[step:][together])
        who.append(user[step:][together])
    a, b, u = np.concatenate(left), np.concatenate(right), np.concatenate(who)
    if len(a) > limit:
        some = np.sort(np.random.default_rng(seed).choice(len(a), limit, replace=False))
        a, b, u = a[some], b[some], u[some]
    # which users are held out follows from their number by a multiplicative hash: no state, the same for every window
    mixed = (u.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)) >> np.uint64(40)
    return Pairs(a, b, mixed.astype(np.float64) / float(1 << 24) < HELD_OUT)


def with_clicked(items: Items | None, clicks: Clicks) -> Items:
    """The items and, without any content, those that are known from clicks alone."""
    import bisect

    if items is None:
        return Items(sorted(clicks.ids))
    new = sorted(set(clicks.ids) - set(items.ids))
    if not new:
        return items
    ids = sorted([*items.ids, *new])
    place = np.array([bisect.bisect_left(ids, name) for name in items.ids], np.int64)

    def spread(words: list[str | None]) -> list[str | None]:
        out: list[str | None] = [None] * len(ids)
        for i, w in zip(place.tolist(), words, strict=True):
            out[i] = w
        return out

    return Items(
        ids, {k: v._replace(rows=place[v.rows]) for k, v in items.views.items()},
        {k: spread(w) for k, w in items.texts.items()}, None if items.category is None else spread(items.category),
    )  # fmt: skip


def groups_of(clicks: Clicks, ids: list[str], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """The group of each click, from 0 on; an item without a group (-1, or not among `ids`) is one of its own."""
    row = {name: i for i, name in enumerate(ids)}
    top = int(groups.max(initial=0)) + 1
    own = np.array([groups[row[n]] if n in row else -1 for n in clicks.ids], np.int64)
    own = np.where(own >= 0, own, top + np.arange(len(own)))
    return np.asarray(np.unique(own[clicks.item], return_inverse=True)[1].reshape(-1), np.int64)


def groups_per_user(clicks: Clicks, of: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many groups each user's clicks fall into; `of`: the group of each click (`groups_of`)."""
    return np.bincount(np.unique(np.stack([clicks.user, of]), axis=1)[0])
