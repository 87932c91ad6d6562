"""A comparison of models that takes a second or two: a log of short days, small recipes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from stream_dmgin.datasets import form
from stream_dmgin.replay.source import DatasetSource
from stream_dmgin.training import evaluate as protocol
from stream_dmgin.training import recipes
from stream_dmgin.training.measure import Scored
from tests.logs import dataset

Recipes = Callable[[form.Meta], recipes.Recipe]


def short_log() -> form.Dataset:
    """600 requests in ten days of twenty seconds."""
    made = dataset(600)
    made.meta.day_ms = 20_000
    return made


def smaller(of: Recipes, **stack: tuple[str, ...]) -> Recipes:
    """What `recipes.of` gives, in small; `members` of the stack may be given."""

    def found(meta: form.Meta) -> recipes.Recipe:
        r = of(meta)
        spec = replace(r.spec, groups=4, events=4, short=4, item_buckets=64, category_buckets=8, advertiser_buckets=8)
        config = replace(r.config, spec=spec, width=16, item_width=8, hidden=(16, 8))
        trees = replace(r.trees, rows_a_leaf=5, rounds=20, lr=0.1, feature_fraction=0.5)
        options = replace(r.options, epochs=1, batch=128)
        return replace(r, config=config, options=options, trees=trees, stack=replace(r.stack, **stack))

    return found


def plan(data: form.Dataset, refit: int = 0) -> protocol.Plan:
    """Days 1 to 5, 6 and 7, 8 and 9."""
    spans = (protocol.days(data.meta, d, "--days") for d in ("1-5", "6-7", "8-9"))
    return protocol.Plan(*spans, refit, data.meta.day_ms)


def evaluate(
    data: form.Dataset, plan: protocol.Plan, model: str = "dmgin", **more: Any
) -> tuple[DatasetSource, Scored]:
    """What `evaluate_all` gives of one model."""
    source, scored = protocol.evaluate_all(data, plan, (model,), **more)
    return source, scored[model]
