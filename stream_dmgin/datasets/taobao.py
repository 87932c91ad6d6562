"""Taobao UserBehavior: page views, carts, favourites and purchases of nine days. No impressions, so no rows to score.

File: a CSV without header (user, item, category, behaviour, seconds), or a directory with one. Events outside the
published period, 25 November to 3 December 2017 in China's time, are dropped.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from stream_dmgin.datasets import form
from stream_dmgin.errors import InputError

DAY0_MS = 1_511_539_200_000  # 2017-11-25 00:00 in China
END_MS = DAY0_MS + 9 * form.DAY_MS
TOPIC = {"pv": "clicks", "cart": "post-clicks", "fav": "post-clicks", "buy": "post-clicks"}
_NAMES = ["user", "item", "category", "type", "ts"]


def load(path: Path) -> form.Dataset:
    """The log in the normalised form, with an empty rows table. Raises InputError."""
    files = sorted(path.glob("UserBehavior*.csv")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise InputError(f"{path} is no CSV file and has no UserBehavior*.csv")
    types = {"user": pa.string(), "item": pa.string(), "category": pa.string(), "type": pa.string(), "ts": pa.int64()}
    broken: list[str] = []

    def skip(row: pacsv.InvalidRow) -> str:
        broken.append(row.text)
        return "skip"

    options, parse = (
        pacsv.ReadOptions(column_names=_NAMES, use_threads=False),
        pacsv.ParseOptions(invalid_row_handler=skip),
    )
    convert = pacsv.ConvertOptions(column_types=types)
    try:
        t = pa.concat_tables([pacsv.read_csv(f, options, parse, convert) for f in files])
    except pa.ArrowException as e:
        raise InputError(
            f"{files[0]} is not Taobao's user,item,category,behaviour,seconds without header: {e}"
        ) from None
    if not t.num_rows:
        raise InputError(f"{files[0]} has no line of Taobao's user,item,category,behaviour,seconds")
    ms = t["ts"].to_numpy() * 1000
    inside = (ms >= DAY0_MS) & (ms < END_MS)
    known = pc.is_in(t["type"], value_set=pa.array(list(TOPIC))).to_numpy()
    kept = t.filter(pa.array(inside & known)).group_by(_NAMES, use_threads=False).aggregate([])
    dropped = {
        "out_of_period": int((~inside).sum()),
        "unknown_behaviour": int((inside & ~known).sum()),
        "duplicates": int((inside & known).sum()) - kept.num_rows,
        "broken_lines": len(broken),
    }
    n = kept.num_rows
    at = kept["ts"].to_numpy() * 1000
    kind = kept["type"].combine_chunks()
    topic = pc.if_else(pc.equal(kind, "pv"), "clicks", "post-clicks")
    events = form.in_visible_order(
        form.table(
            form.EVENTS,
            {
                "topic": topic,
                "user_id": kept["user"],
                "item_id": kept["item"],
                "ts": at,
                "visible_at": at,
                "type": kind,
                "event_id": pc.binary_join_element_wise(
                    kind, kept["user"].combine_chunks(), kept["item"].combine_chunks(), form.strings(at), "-"
                ),
                "shared": pa.array(np.ones(n, bool)),
            },
        )
    )
    first = kept.group_by("item", use_threads=False).aggregate([("category", "first")])
    items = form.table(form.ITEMS, {"item_id": first["item"], "category": first["category_first"]})
    rows = form.no_rows()
    meta = form.Meta("taobao", DAY0_MS)
    meta.dropped = dropped
    return form.Dataset(events, rows, items, meta)
