"""KuaiRand-Pure: short-video impressions with clicks, play time and later signals.

Files: `log_standard*.parquet` (or the original `log_standard*.csv`), `item_features.parquet`, and
`user_sequences_before_0424.parquet` (optional, histories without times, dated at each user's `last_time_ms`).
All feedback of an impression becomes visible together, when the user has left the video:
time_ms + play time + profile stay + comment stay + 10 s. The counters of `item_features` are aggregates of the whole
period and are never read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from stream_dmgin.datasets import form, source
from stream_dmgin.errors import InputError

DAY0_MS = 1_650_812_400_000
LAG_MS = 10_000
SIGNALS = {  # column -> event type
    "long_view": "long_view",
    "is_like": "like",
    "is_follow": "follow",
    "is_comment": "comment",
    "is_forward": "forward",
    "is_hate": "hate",
    "is_profile_enter": "profile",
}
HEADS = ("long_view", "like")
_LOG = (
    "user_id",
    "video_id",
    "time_ms",
    "is_click",
    "play_time_ms",
    "duration_ms",
    "profile_stay_time",
    "comment_stay_time",
    "tab",
    *SIGNALS,
)
_ITEMS = (
    "video_id",
    "author_id",
    "video_type",
    "upload_dt",
    "upload_type",
    "video_duration",
    "server_width",
    "server_height",
    "music_id",
    "music_type",
    "tag",
)

Columns = dict[str, NDArray[Any]]


def load(path: Path) -> form.Dataset:
    """The log in the normalised form. Raises InputError."""
    source.directory(path, "give the directory of KuaiRand-Pure's log_standard files")
    log, duplicates = _log(path)
    warm, late = _warm(path)
    events = form.in_visible_order(pa.concat_tables([*warm, *_events(log)]))
    meta = form.Meta("kuairand", DAY0_MS, heads=list(HEADS), gauc="user", item_numbers=["duration_s", "aspect"])
    meta.dropped = {"duplicate_rows": duplicates, "warm_users_after_day0": late}
    return form.Dataset(events, _rows(log), _items(path, log), meta)


def _log(path: Path) -> tuple[Columns, int]:
    """Columns in the order (time_ms, user_id, video_id), exact duplicates of that key dropped (the first stays)."""
    files = sorted([*path.glob("log_standard*.parquet"), *path.glob("log_standard*.csv")])
    if not files:
        raise InputError(f"{path} has no log_standard*.parquet or log_standard*.csv of KuaiRand-Pure")
    parts = []
    for f in files:
        t = pacsv.read_csv(f).select(_LOG) if f.suffix == ".csv" else source.parquet(f, _LOG, "a log of KuaiRand-Pure")
        parts.append(t.cast(pa.schema([(n, pa.int64()) for n in t.column_names])))
    t = pa.concat_tables(parts)
    c = {n: t[n].to_numpy() for n in t.column_names}
    order = np.lexsort((c["video_id"], c["user_id"], c["time_ms"]))
    c = {n: x[order] for n, x in c.items()}
    new = np.ones(len(order), bool)
    new[1:] = np.logical_or.reduce([c[k][1:] != c[k][:-1] for k in ("time_ms", "user_id", "video_id")])
    return {n: x[new] for n, x in c.items()}, int((~new).sum())


def _rows(c: Columns) -> pa.Table:
    click = c["is_click"] != 0
    columns = {
        "request_id": form.strings(np.arange(len(click)), "k"),
        "user_id": form.strings(c["user_id"]),
        "item_id": form.strings(c["video_id"]),
        "ts": c["time_ms"],
        "label": click.astype(np.int8),
        "surface": form.strings(c["tab"]),
    }
    for head in HEADS:  # known only where there was a click
        column = next(k for k, v in SIGNALS.items() if v == head)
        columns[f"label_{head}"] = pa.array((c[column] != 0).astype(np.int8), mask=~click)
    return form.table(form.ROWS, columns, {f"label_{h}": pa.int8() for h in HEADS})


def _events(c: Columns) -> list[pa.Table]:
    number = np.arange(len(c["time_ms"]))
    visible = c["time_ms"] + c["play_time_ms"] + c["profile_stay_time"] + c["comment_stay_time"] + LAG_MS

    def part(
        topic: str, kind: str, tag: str, keep: NDArray[np.bool_], dwell: NDArray[np.int64] | None = None
    ) -> pa.Table:
        n = int(keep.sum())
        return form.table(
            form.EVENTS,
            {
                "topic": pa.repeat(topic, n),
                "user_id": form.strings(c["user_id"][keep]),
                "item_id": form.strings(c["video_id"][keep]),
                "ts": c["time_ms"][keep],
                "visible_at": visible[keep],
                "event_id": form.strings(number[keep], tag),
                "type": pa.repeat(kind, n),
                "request_id": form.strings(number[keep], "k"),
                "dwell_ms": pa.nulls(n, pa.int64()) if dwell is None else dwell[keep],
                "surface": form.strings(c["tab"][keep]),
                "shared": pa.repeat(True, n),
            },
        )

    out = [
        part("impressions", "impression", "i", number >= 0),
        part("clicks", "click", "c", c["is_click"] != 0, np.maximum(c["play_time_ms"], 0)),
    ]
    stay = {"comment": c["comment_stay_time"], "profile": c["profile_stay_time"]}
    for k, (column, kind) in enumerate(SIGNALS.items()):
        out.append(part("post-clicks", kind, f"p{k}-", c[column] != 0, stay.get(kind)))
    return out


def _warm(path: Path) -> tuple[list[pa.Table], int]:
    """Histories before the log: what was watched as impressions, the long watches among it as clicks with a long view.

    The order of a sequence is kept by a millisecond a step, its last entry at `last_time_ms`. Users whose
    `last_time_ms` lies in the log's own time are left out.
    """
    f = path / "user_sequences_before_0424.parquet"
    if not f.is_file():
        return [], 0
    t = source.parquet(
        f, ("user_id", "last_time_ms", "watch_seq", "like_seq", "long_watch_seq"), "KuaiRand's warm histories"
    )
    before = pc.less(t["last_time_ms"], DAY0_MS)
    late = t.num_rows - int(pc.sum(before).as_py() or 0)
    t = t.filter(before).combine_chunks()
    watched = _flat(t, "watch_seq")
    long = _flat(t, "long_watch_seq")
    liked = _flat(t, "like_seq")

    def key(x: Columns) -> NDArray[np.int64]:
        return x["user"] * (1 << 24) + x["item"]

    among = np.isin(key(watched), key(long))
    older = ~np.isin(
        key(long), key(watched)
    )  # long watches from before the window of watches: an interest, but no rate
    out = [
        _part("impressions", "impression", "wi", watched, np.ones(len(among), bool)),
        _part("clicks", "click", "wc", watched, among),
        _part("post-clicks", "long_view", "wl", watched, among),
        _part("post-clicks", "long_view", "wo", long, older),
        _part("post-clicks", "like", "wk", liked, np.ones(len(liked["at"]), bool)),
    ]
    return out, late


def _flat(t: pa.Table, column: str) -> Columns:
    """A list column as flat columns: user, item, at (ms), and the number of the entry within its user."""
    lists = t[column].combine_chunks()
    n = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    step = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
    back = np.repeat(n, n) - 1 - step
    return {
        "user": np.repeat(t["user_id"].to_numpy(), n),
        "item": pc.list_flatten(lists).to_numpy().astype(np.int64),
        "at": np.repeat(t["last_time_ms"].to_numpy(), n) - back,
        "step": step,
    }


def _part(topic: str, kind: str, tag: str, x: Columns, keep: NDArray[np.bool_]) -> pa.Table:
    n = int(keep.sum())
    user = form.strings(x["user"][keep])
    return form.table(
        form.EVENTS,
        {
            "topic": pa.repeat(topic, n),
            "user_id": user,
            "item_id": form.strings(x["item"][keep]),
            "ts": x["at"][keep],
            "visible_at": x["at"][keep],
            "type": pa.repeat(kind, n),
            "event_id": pc.binary_join_element_wise(pa.scalar(tag), user, form.strings(x["step"][keep]), "-"),
            "request_id": pa.nulls(n, pa.string()),
            "dwell_ms": pa.nulls(n, pa.int64()),
            "surface": pa.nulls(n, pa.string()),
            "shared": pa.repeat(True, n),
        },
    )


def _items(path: Path, log: Columns) -> pa.Table:
    what = "KuaiRand's item features"
    t = source.parquet(path / "item_features.parquet", _ITEMS, what).combine_chunks()
    ids = t["video_id"].to_numpy()
    # the duration that the log shows, where the table has none (a property of the video, known at the request)
    shown, first = np.unique(log["video_id"], return_index=True)
    shown_s = dict(zip(shown.tolist(), (log["duration_ms"][first] / 1000).tolist(), strict=True))
    attrs = []
    for r in t.to_pylist():
        ms, w, h = r["video_duration"], r["server_width"], r["server_height"]
        a = {
            "duration_s": ms / 1000 if ms else shown_s.get(r["video_id"]),
            "aspect": h / w if w and h else None,
            "music": str(r["music_id"]),
            "music_type": r["music_type"],
            "video_type": r["video_type"],
            "upload_type": r["upload_type"],
            "upload_date": r["upload_dt"],
        }
        attrs.append(json.dumps({k: v for k, v in a.items() if v is not None}))
    tag = pc.list_element(pc.split_pattern(t["tag"], ","), 0)
    return form.table(
        form.ITEMS,
        {
            "item_id": form.strings(ids),
            "category": pc.if_else(pc.equal(tag, "unknown"), None, tag),
            "advertiser": form.strings(t["author_id"].to_numpy()),
            "attrs": attrs,
        },
    )
