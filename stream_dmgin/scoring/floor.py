"""The floor: an item's own smoothed click rate. What a score falls back to without a model, and what models are held against."""

from __future__ import annotations

from collections.abc import Sequence

from stream_dmgin.counters.table import CounterTable
from stream_dmgin.state.hash import item_hash

SMOOTHING = 20.0  # impressions' worth of the rate over all items
FIRST_RATE = 0.05  # before anything was clicked
MARGIN = 1e-6


def item_rates(counters: CounterTable, items: Sequence[str], now: int) -> list[float]:
    """Click rate for life of each item, shrunk towards the rate of all; strictly between 0 and 1."""
    total = counters.global_totals()
    prior = (total["clicks"] + SMOOTHING * FIRST_RATE) / (total["impressions"] + SMOOTHING)
    out = []
    for item in items:
        t = counters.totals("item", item_hash(item))
        rate = (t["clicks"] + SMOOTHING * prior) / (t["impressions"] + SMOOTHING)
        out.append(min(max(rate, MARGIN), 1 - MARGIN))
    return out
