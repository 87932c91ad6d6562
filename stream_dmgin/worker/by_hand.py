"""One request by hand, from the stores as they are committed: the score a worker would give, and what made it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import Any

from stream_dmgin.errors import UsageError
from stream_dmgin.features.build import FeatureBuilder
from stream_dmgin.features.inputs import Inputs
from stream_dmgin.log.base import open_log
from stream_dmgin.models.registry import load_model
from stream_dmgin.records import CANDIDATES_MAX
from stream_dmgin.scoring.engine import choose_engine
from stream_dmgin.scoring.explain import explain
from stream_dmgin.settings import Settings
from stream_dmgin.state.arrays import UserArrays
from stream_dmgin.state.ops.stores import Stores
from stream_dmgin.worker.followed import Followed
from stream_dmgin.worker.health import Health
from stream_dmgin.worker.releases import reads


def score_by_hand(
    settings: Settings, user: str, candidates: Sequence[str], lat: float | None, lon: float | None, surface: str | None, page: str | None,
    groups_shown: int,
) -> dict[str, Any]:  # fmt: skip
    """Scores with explanations, as the JSON that `score -o json` prints. Raises UsageError, LogUnavailable."""
    if not 1 <= len(candidates) <= CANDIDATES_MAX:
        raise UsageError(f"--items: {len(candidates)} items: give 1 to {CANDIDATES_MAX}, separated by commas")
    stores = Stores.of(settings.data_dir)
    model = load_model(settings["worker.model"], settings.data_dir)
    engine, _ = choose_engine(model)
    with open_log(settings.log, settings.kafka) as log, closing(
        Followed(log, settings.prefix, settings.data_dir / "shared", Health(), partial(reads, settings))
    ) as followed:  # fmt: skip
        followed.catch_up()
        with closing(stores.open(stores.partition_of(user))) as store:
            groups = store.groups
            builder = FeatureBuilder(engine.spec, followed.catalogue, followed.counters, groups)
            arrays = UserArrays.of(engine.spec, 1)
            inputs = Inputs.allocate(engine.spec, 1, len(candidates))
            store.read([user.encode()], arrays)
            now = int(time.time() * 1000)
            builder.user_side(arrays, 1, inputs)
            builder.request_side(arrays, 1, [(now, candidates, lat, lon, surface, page)], inputs)
            effects = explain(engine, inputs, len(candidates))
            shown = store.show(user)
    names = [g["group"] for g in shown["groups"]] if shown else []
    rows = []
    for c, item in enumerate(candidates):
        effect = effects.effect[:, c]
        order = sorted(range(len(effect)), key=lambda g: -abs(effect[g]))[:groups_shown]
        group = groups.lookup(item)
        rows.append(
            {
                "item_id": item,
                "group": item if group is None else group,
                "ctr": float(effects.ctr[c]),
                "ctr_without_groups": float(effects.none[c]),
                "groups": [{"group": names[g], "effect": float(effect[g])} for g in order],
            }
        )
    return {
        "user_id": user,
        "ts": now,
        "events": shown["events"] if shown else 0,
        "impressions": shown["impressions"] if shown else 0,
        "groups_total": len(names),
        "model": model.id,
        "groups": groups.id,
        "candidates": rows,
    }
