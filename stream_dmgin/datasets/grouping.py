"""The group map that a log brings itself: what training, replay and evaluation use where none is given."""

from __future__ import annotations

import numpy as np

from stream_dmgin.datasets.form import Dataset
from stream_dmgin.groups.map import GroupMap

FILE = "groups.parquet"  # beside the other files of the normalised form, for `worker --groups`


def group_map(data: Dataset) -> GroupMap:
    """The log's own grouping: its `group` column where it has one, else one group a category."""
    items = data.items
    if items["group"].null_count < items.num_rows:
        pairs = zip(items["item_id"].to_pylist(), items["group"].to_pylist(), strict=True)
        return GroupMap({i: g for i, g in pairs if g is not None}, "table")
    return by_category(data)


def by_category(data: Dataset) -> GroupMap:
    """One group a category; items without one are groups of their own."""
    items = data.items
    category = items["category"].to_pylist()
    numbers = {c: n for n, c in enumerate(sorted({c for c in category if c is not None}))}
    ids = items["item_id"].to_pylist()
    return GroupMap({i: numbers[c] for i, c in zip(ids, category, strict=True) if c is not None}, "category")


def shuffled(groups: GroupMap, seed: int = 0) -> GroupMap:
    """The same groups in size and number, their members drawn by lot: what is left of a map that means nothing."""
    numbers = np.random.default_rng(seed).permutation(list(groups.items.values()))
    return GroupMap(dict(zip(groups.items, numbers.tolist(), strict=True)), "random")


def regrouped(how: str, data: Dataset, groups: GroupMap) -> GroupMap:
    """Another map in place of `groups`: `dmgin-random-groups` (`shuffled`), `dmgin-category-groups` or `dmgin-item-groups` (each item by
    itself)."""
    if how == "dmgin-random-groups":
        return shuffled(groups)
    return by_category(data) if how == "dmgin-category-groups" else GroupMap.empty()
