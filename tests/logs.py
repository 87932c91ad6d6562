"""Small logs in the normalised form, made from a seed."""

from __future__ import annotations

import numpy as np

from stream_dmgin.datasets import form

T0 = 1_650_000_000_000


def dataset(n: int = 400, users: int = 7, items: int = 9, seed: int = 3, embedding: int = 0) -> form.Dataset:
    """Requests of 1 to 3 candidates in coarse time, so that many times are equal; feedback visible a little later. `embedding`: how
    many numbers those of the items have; the last item has none."""
    r = np.random.default_rng(seed)
    ts = np.sort(T0 + r.integers(0, n // 3, n) * 1000)
    rows: dict[str, list[object]] = {k: [] for k in ("request_id", "user_id", "item_id", "ts", "label", "surface")}
    events: dict[str, list[object]] = {
        k: []
        for k in (
            "topic",
            "user_id",
            "item_id",
            "ts",
            "visible_at",
            "type",
            "event_id",
            "shared",
            "request_id",
            "surface",
        )
    }
    for k, t in enumerate(ts.tolist()):
        user, surface = f"u{r.integers(users)}", ("home", "search")[k % 3 == 0]
        for i in r.choice(items, r.integers(1, 4), replace=False).tolist():
            clicked = bool(r.random() < 0.4)
            seen = t + int(r.integers(0, 5)) * 1000
            for c, v in zip(rows, (f"q{k}", user, f"i{i}", t, int(clicked), surface), strict=True):
                rows[c].append(v)
            for topic, kind in (("impressions", "impression"), ("clicks", "click"))[: 1 + clicked]:
                shared = bool(r.random() < 0.9)
                event = (topic, user, f"i{i}", t, seen, kind, f"{kind}{k}-{i}", shared, f"q{k}", surface)
                for c, v in zip(events, event, strict=True):
                    events[c].append(v)
    catalogue = {"item_id": [f"i{i}" for i in range(items)], "category": [f"c{i % 3}" for i in range(items)]}
    if embedding:
        vectors = np.random.default_rng(seed).normal(size=(items - 1, embedding))
        catalogue["embedding"] = [*vectors.tolist(), None]
    data = form.Dataset(
        form.in_visible_order(form.table(form.EVENTS, events)), form.table(form.ROWS, rows), form.table(form.ITEMS, catalogue),
        form.Meta("test", T0),
    )  # fmt: skip
    form.validate(data)
    return data
