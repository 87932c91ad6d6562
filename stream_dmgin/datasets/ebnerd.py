"""EB-NeRD: news impressions with the articles in view, clicks, reading times, and each user's earlier clicks.

Files: `train/` and `validation/`, each with `behaviors.parquet` and `history.parquet`. The strict track: nothing of a row's
own list (position, length, read time) becomes an input.

What becomes visible when: exposures and clicks when the page is left (impression_time + read_time + 1 s), the reading of a
clicked article when that ends (+ next_read_time + 1 s). `train/history` is known from the start, to the shared counters too;
`validation/history` from the first moment of validation's week, without what is already known, and never in the shared counters.
The clicks of a history have no impressions beside them: they are of type `history`, an interest and no hit of a click rate. A
list shown on an article's page says that the user came to that article: a `visit`, visible when the page is left.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stream_dmgin.datasets import form, source

DAY0_MS = 1_684_393_200_000  # 2023-05-18 07:00
WEEK_MS = 7 * form.DAY_MS
LAG_MS = 1_000
# a click of a history within half an hour of one of the log, on the same article, is the same click
SAME_CLICK_MS = 1_800_000
_LOG = pa.schema(
    [
        ("impression_id", pa.int64()),
        ("article_id", pa.float64()),
        ("impression_time", pa.timestamp("us")),
        ("read_time", pa.float32()),
        ("device_type", pa.int64()),
        ("article_ids_inview", pa.large_list(pa.int64())),
        ("article_ids_clicked", pa.large_list(pa.int64())),
        ("user_id", pa.int64()),
        ("next_read_time", pa.float32()),
    ]
)
_HISTORY = ("user_id", "impression_time_fixed", "article_id_fixed", "read_time_fixed")

Columns = dict[str, NDArray[Any]]


def load(path: Path) -> form.Dataset:
    """The log in the normalised form. Raises InputError."""
    what = "give the directory of EB-NeRD that holds train/ and validation/"
    source.directory(path, what)
    t = pa.concat_tables(
        [source.parquet(path / p / "behaviors.parquet", _LOG.names, what).cast(_LOG) for p in ("train", "validation")]
    )
    time = _ms(t["impression_time"])
    t = t.take(pa.array(np.lexsort((t["impression_id"].to_numpy(), time)))).combine_chunks()
    time = _ms(t["impression_time"])
    left = time + _seconds(t["read_time"])
    seen, clicked = _flat(t, "article_ids_inview"), _flat(t, "article_ids_clicked")
    click_key = np.sort(clicked["row"] * (1 << 32) + clicked["article"])
    label = _isin_sorted(seen["row"] * (1 << 32) + seen["article"], click_key)

    user, impression = form.strings(t["user_id"].to_numpy()), form.strings(t["impression_id"].to_numpy())
    page = np.where(pc.is_null(t["article_id"]).to_numpy(zero_copy_only=False), "front", "article")
    surface = pa.array(np.char.add(np.char.add(page, "-"), t["device_type"].to_numpy().astype(str)))
    page_item = t["article_id"].combine_chunks().cast(pa.int64()).cast(pa.string())
    r = pa.array(seen["row"])
    rows = form.table(
        form.ROWS,
        {
            "request_id": impression.take(r),
            "user_id": user.take(r),
            "item_id": form.strings(seen["article"]),
            "ts": time[seen["row"]],
            "label": label.astype(np.int8),
            "surface": surface.take(r),
            "page": page_item.take(r),
            "impression_id": impression.take(r),
        },
    )

    def part(
        topic: str, kind: str, x: Columns, happened: NDArray[np.int64], visible: NDArray[np.int64], dwell: Any = None
    ) -> pa.Table:
        k, n = pa.array(x["row"]), len(x["row"])
        tag = form.strings(x["article"], f"{kind[0]}-")
        return form.table(
            form.EVENTS,
            {
                "topic": pa.repeat(topic, n),
                "user_id": user.take(k),
                "item_id": form.strings(x["article"]),
                "ts": happened,
                "visible_at": visible,
                "event_id": pc.binary_join_element_wise(impression.take(k), tag, "-"),
                "type": pa.repeat(kind, n),
                "request_id": impression.take(k),
                "dwell_ms": pa.nulls(n, pa.int64()) if dwell is None else dwell,
                "surface": surface.take(k),
                "shared": pa.repeat(True, n),
            },
        )

    known = pc.is_valid(t["next_read_time"]).to_numpy(zero_copy_only=False)[clicked["row"]]
    read = {k: v[known] for k, v in clicked.items()}
    dwell = _seconds(t["next_read_time"])[read["row"]]
    at = left[read["row"]]
    came = np.flatnonzero(pc.is_valid(t["article_id"]).to_numpy(zero_copy_only=False))
    visits = {"row": came, "article": t["article_id"].to_numpy()[came].astype(np.int64)}
    first, second = _history(path / "train", what), _history(path / "validation", what)
    clicks = {
        "user": t["user_id"].to_numpy()[clicked["row"]],
        "article": clicked["article"],
        "ts": left[clicked["row"]],
    }
    fresh, repeated = _unknown(second, first, clicks)
    week2 = DAY0_MS + WEEK_MS
    events = form.in_visible_order(
        pa.concat_tables(
            [
                _past(first, first["ts"], True),
                _past(fresh, np.full(len(fresh["ts"]), week2), False),
                part("impressions", "impression", seen, time[seen["row"]], (left + LAG_MS)[seen["row"]]),
                part("clicks", "click", clicked, left[clicked["row"]], (left + LAG_MS)[clicked["row"]]),
                part("post-clicks", "read", read, at, at + dwell + LAG_MS, dwell),
                part("post-clicks", "visit", visits, time[visits["row"]], (left + LAG_MS)[visits["row"]]),
            ]
        )
    )
    articles = pc.unique(pa.chunked_array([events["item_id"].combine_chunks(), rows["item_id"].combine_chunks()]))
    meta = form.Meta("ebnerd", DAY0_MS, gauc="impression")
    meta.dropped = {"history_already_known": repeated}
    return form.Dataset(events, rows, form.table(form.ITEMS, {"item_id": articles}), meta)


def _ms(x: pa.ChunkedArray) -> NDArray[np.int64]:
    ms: NDArray[np.int64] = x.cast(pa.timestamp("ms")).cast(pa.int64()).to_numpy()
    return ms


def _seconds(x: pa.ChunkedArray) -> NDArray[np.int64]:
    """Seconds as milliseconds; nothing known counts as zero."""
    ms: NDArray[np.int64] = np.rint(pc.fill_null(x, 0.0).to_numpy().astype(np.float64) * 1000).astype(np.int64)
    return ms


def _flat(t: pa.Table, column: str) -> Columns:
    lists = t[column].combine_chunks()
    n = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return {"row": np.repeat(np.arange(t.num_rows), n), "article": pc.list_flatten(lists).to_numpy().astype(np.int64)}


def _isin_sorted(x: NDArray[np.int64], ordered: NDArray[np.int64]) -> NDArray[np.bool_]:
    at = np.minimum(np.searchsorted(ordered, x), max(len(ordered) - 1, 0))
    return ordered[at] == x if len(ordered) else np.zeros(len(x), bool)


def _history(path: Path, what: str) -> Columns:
    t = source.parquet(path / "history.parquet", _HISTORY, what).combine_chunks()
    lists = t["article_id_fixed"].combine_chunks()
    n = pc.list_value_length(lists).to_numpy().astype(np.int64)
    return {
        "user": np.repeat(t["user_id"].to_numpy().astype(np.int64), n),
        "article": pc.list_flatten(lists).to_numpy().astype(np.int64),
        "ts": _ms(pc.list_flatten(t["impression_time_fixed"])),
        "dwell": _seconds(pc.list_flatten(t["read_time_fixed"])),
    }


def _unknown(second: Columns, first: Columns, clicks: Columns) -> tuple[Columns, int]:
    """The entries of the second history that neither the first nor the log's own clicks hold, and how many were held."""
    both = {k: np.concatenate([first[k], clicks[k]]) for k in ("user", "article", "ts")}

    def key(x: Columns) -> NDArray[np.int64]:
        return x["user"] * (1 << 32) + x["article"]

    order = np.lexsort((both["ts"], key(both)))
    pair, ts = key(both)[order], both["ts"][order]
    # the nearest known time of the same (user, article): look left and right of where it would be inserted
    joint = np.searchsorted(np.rec.fromarrays([pair, ts]), np.rec.fromarrays([key(second), second["ts"]]))
    held = np.zeros(len(second["ts"]), bool)
    for at in (np.clip(joint - 1, 0, len(ts) - 1), np.clip(joint, 0, len(ts) - 1)):
        held |= (pair[at] == key(second)) & (np.abs(ts[at] - second["ts"]) <= SAME_CLICK_MS)
    return {k: v[~held] for k, v in second.items()}, int(held.sum())


def _past(x: Columns, visible: NDArray[np.int64], shared: bool) -> pa.Table:
    n = len(x["ts"])
    user, article = form.strings(x["user"]), form.strings(x["article"])
    return form.table(
        form.EVENTS,
        {
            "topic": pa.repeat("post-clicks", n),
            "user_id": user,
            "item_id": article,
            "ts": x["ts"],
            "visible_at": visible,
            "event_id": pc.binary_join_element_wise(pa.scalar("h"), user, article, form.strings(x["ts"]), "-"),
            "type": pa.repeat("history", n),
            "request_id": pa.nulls(n, pa.string()),
            "dwell_ms": x["dwell"],
            "surface": pa.nulls(n, pa.string()),
            "shared": pa.repeat(shared, n),
        },
    )
