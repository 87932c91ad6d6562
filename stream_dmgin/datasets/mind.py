"""MIND: news impressions with the articles shown, clicks, titles and categories.

Files: `behaviors.tsv` (impression id, user, time on a 12-hour clock, history, articles `N1-0 N2-1`), and for titles
either MIND's own `news.tsv` or `news_titles_51282.tsv` with `nid2idx_small_train.json`. Feedback becomes visible a minute
after the impression. A user's history has no times: it is dated before the log begins, and counts in the user's state only.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_dmgin.datasets import form, source
from stream_dmgin.errors import InputError

LAG_MS = 60_000
WARM, TRAIN, VALID = 0.05, 0.60, 0.75  # quantiles of the impressions' times where each part ends


def load(path: Path) -> form.Dataset:
    """The log in the normalised form; `meta.splits` has train, valid and test. Raises InputError."""
    source.directory(path, "give the directory that holds MIND's behaviors.tsv")
    names = ["impression", "user", "time", "history", "shown"]
    t = _tsv(path / "behaviors.tsv", names)
    time = pc.strptime(t["time"], format="%m/%d/%Y %I:%M:%S %p", unit="ms", error_is_null=True)
    if time.null_count:
        raise InputError(f"{path / 'behaviors.tsv'}: {time.null_count} times are not like '11/12/2019 2:14:46 PM'")
    ms = time.cast(pa.int64()).to_numpy()
    order = np.argsort(ms, kind="stable")
    t, ms = t.take(pa.array(order)).combine_chunks(), ms[order]

    shown = pc.split_pattern(t["shown"].combine_chunks(), " ")
    row = np.repeat(np.arange(len(ms)), pc.list_value_length(shown).to_numpy())
    pair = pc.split_pattern(pc.list_flatten(shown), "-")
    article, label = pc.list_element(pair, 0), pc.list_element(pair, 1).cast(pa.int8())
    r, n = pa.array(row), len(row)
    impression, user = t["impression"].cast(pa.string()), t["user"].cast(pa.string())
    rows = form.table(
        form.ROWS,
        {
            "request_id": impression.take(r),
            "user_id": user.take(r),
            "item_id": article,
            "ts": ms[row],
            "label": label,
            "impression_id": impression.take(r),
        },
    )
    shown_events = form.table(
        form.EVENTS,
        {
            "topic": pa.repeat("impressions", n),
            "user_id": rows["user_id"],
            "item_id": article,
            "ts": ms[row],
            "visible_at": ms[row] + LAG_MS,
            "type": pa.repeat("impression", n),
            "request_id": rows["request_id"],
            "event_id": pc.binary_join_element_wise("i", rows["request_id"].combine_chunks(), article, "-"),
            "shared": pa.repeat(True, n),
        },
    )
    clicks = shown_events.filter(pc.equal(label, 1))
    clicks = clicks.set_column(0, "topic", pa.repeat("clicks", clicks.num_rows))
    clicks = clicks.set_column(clicks.column_names.index("type"), "type", pa.repeat("click", clicks.num_rows))
    clicks = clicks.set_column(
        clicks.column_names.index("event_id"),
        "event_id",
        pc.binary_join_element_wise(
            "c", clicks["request_id"].combine_chunks(), clicks["item_id"].combine_chunks(), "-"
        ),
    )
    start = int(ms[0])
    events = form.in_visible_order(
        pa.concat_tables([_history(t, start), shown_events, clicks], promote_options="default")
    )
    warm, train, valid = (int(np.quantile(ms, q, method="higher")) for q in (WARM, TRAIN, VALID))
    splits = {"train": [warm, train], "valid": [train, valid], "test": [valid, int(ms[-1]) + 1]}
    meta = form.Meta("mind", start // form.DAY_MS * form.DAY_MS, gauc="impression", splits=splits)
    articles = pc.unique(pa.chunked_array([events["item_id"].combine_chunks(), article])).to_pylist()
    return form.Dataset(events, rows, _items(path, articles), meta)


def _tsv(path: Path, names: list[str]) -> pa.Table:
    if not path.is_file():
        raise InputError(f"{path} is missing: it is a file of MIND with the columns {', '.join(names)}")
    lines = path.read_text("utf-8").splitlines()
    cells = [line.split("\t", len(names) - 1) for line in lines if line]  # a title may hold a tab
    short = next((i for i, c in enumerate(cells) if len(c) < len(names)), None)
    if short is not None:
        raise InputError(
            f"{path}, line {short + 1}: {len(cells[short])} fields instead of {len(names)}: {', '.join(names)}"
        )
    return pa.table({n: pa.array([c[k] for c in cells], pa.string()) for k, n in enumerate(names)})


def _history(t: pa.Table, start: int) -> pa.Table:
    """The history of each user's first impression, oldest first, a second a step, ending an hour before the log."""
    users = t["user"].to_pylist()
    first = sorted({u: i for i, u in reversed(list(enumerate(users)))}.values())
    history = t["history"].take(pa.array(first)).to_pylist()
    u: list[str] = []
    a: list[str] = []
    at: list[int] = []
    for i, text in zip(first, history, strict=True):
        ids = text.split()
        u += [users[i]] * len(ids)
        a += ids
        at += range(start - 3_600_000 - 1000 * (len(ids) - 1), start - 3_600_000 + 1, 1000)
    n = len(u)
    return form.table(
        form.EVENTS,
        {
            "topic": pa.repeat("clicks", n),
            "user_id": u,
            "item_id": a,
            "ts": at,
            "visible_at": at,
            "type": pa.repeat("history", n),
            "event_id": [f"h-{x}-{k}" for x, k in zip(u, at, strict=True)],
            "shared": pa.repeat(False, n),
        },
    )


def _items(path: Path, articles: list[str]) -> pa.Table:
    name: dict[str, str] = {}
    category: dict[str, str] = {}
    if (path / "news.tsv").is_file():
        t = _tsv(
            path / "news.tsv",
            ["id", "category", "subcategory", "title", "abstract", "url", "entities", "abstract_entities"],
        )
        name = dict(zip(t["id"].to_pylist(), t["title"].to_pylist(), strict=True))
        category = dict(zip(t["id"].to_pylist(), t["subcategory"].to_pylist(), strict=True))
    elif (path / "news_titles_51282.tsv").is_file() and (path / "nid2idx_small_train.json").is_file():
        t = _tsv(path / "news_titles_51282.tsv", ["row", "category", "title"])
        index = {int(r): (c, s) for r, c, s in zip(*(t[c].to_pylist() for c in t.column_names), strict=True)}
        for news, k in json.loads((path / "nid2idx_small_train.json").read_text()).items():
            if k - 1 in index:
                category[news], name[news] = index[k - 1]
    return form.table(
        form.ITEMS,
        {
            "item_id": articles,
            "name": [name.get(a) for a in articles],
            "category": [category.get(a) for a in articles],
        },
    )
