"""What a group map does to a model's quality: one model, fitted and measured under several maps, compared on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stream_dmgin.datasets.form import Dataset
from stream_dmgin.errors import UsageError
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.training import evaluate as protocol
from stream_dmgin.training import measure as measuring
from stream_dmgin.training.loop import Options

OWN = "own"  # the map that the log brings: its group column, or its categories


def compare_maps(
    data: Dataset, plan: protocol.Plan, maps: Mapping[str, GroupMap | None], model: str = "dmgin", seeds: int = 1,
    options: Options | None = None, say: protocol.Say = lambda text: None,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None, keep: Path | None = None, first_seed: int = 1,
    jobs: int = 1, fitted: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> dict[str, Any]:  # fmt: skip
    """`metrics` of each map (None: the log's own), and `differences` of every pair, the later minus the earlier: means over
    seeds with 95 % intervals of a paired bootstrap. `keep`, `first_seed`, `jobs`, and with a map's name before it `fitted`, are
    those of `evaluate_all`. Raises UsageError for fewer than two maps."""
    if len(maps) < 2:
        raise UsageError("two maps or more are compared: give --map twice")
    scored: dict[str, measuring.Scored] = {}
    for name, groups in maps.items():
        source, found = protocol.evaluate_all(
            data, plan, (model,), seeds, groups, options, lambda text, name=name: say(f"{name}: {text}"),  # type: ignore[misc]
            lambda done, total, name=name: progress(name, done, total),  # type: ignore[misc]
            keep=keep, first_seed=first_seed, jobs=jobs,
            fitted=lambda done, total, name=name: fitted(name, done, total),  # type: ignore[misc]
        )  # fmt: skip
        scored[name] = found[model]
    return {
        "model": model, "seeds": len(next(iter(scored.values())).raw), "rows": len(next(iter(scored.values())).row),
        "maps": {name: measuring.measure(source, s)["calibrated"] for name, s in scored.items()},
        "differences": [
            {"map": d.model, "than": d.than, **{k: i._asdict() for k, i in d.metrics.items()}}
            for d in measuring.differences(source, scored)
            if d.scores == "calibrated"
        ],
    }  # fmt: skip
