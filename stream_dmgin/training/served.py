"""What a release serves: the network, trees, or both as one, fitted on the same rows and chosen on the same valid days."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.models.calibration import Calibration
from stream_dmgin.models.dmgin import DMGIN
from stream_dmgin.models.forest import Forest, joined
from stream_dmgin.models.trunk import DMGINConfig, Trunk
from stream_dmgin.training.loop import Fitted, Point, Requests, predict
from stream_dmgin.training.parallel import ALONE, Ranks
from stream_dmgin.training.rows import TrainingRows
from stream_dmgin.training.stack import weigh
from stream_dmgin.training.trees import TreeOptions, Trees, forest_logits, train_trees

Logits = dict[str, NDArray[np.floating]]  # by head, of all rows; nan where not asked for


@dataclass(frozen=True)
class Served:
    """Parts of a release, as `models/registry.py` keeps them, and how they were found. `parts`: what a refit (`training/continual.py`)
    must know of them beside: the network's own calibration; rounds and weight of the trees, and how their score enters the sum."""

    network: Trunk
    calibration: Calibration
    steps: int
    curve: list[Point] = field(default_factory=list)
    list_weight: float = 0.0
    forest: Forest | None = None
    network_weight: float = 1.0
    parts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """dmgin, trees or stack."""
        return "dmgin" if self.forest is None else "stack" if self.network_weight else "trees"

    def logits(self, rows: TrainingRows, requests: Requests, ranks: Ranks = ALONE) -> Logits:
        """Raw logits of every head on the rows of these requests."""
        found: Logits = {}
        if self.network_weight:
            found |= predict(self.network, rows, requests, ranks=ranks)
        if self.forest is not None:
            take = rows.rows_of(requests)
            ctr = np.full(len(rows), np.nan)
            ctr[take] = forest_logits(self.forest, rows, requests)
            found["ctr"] = self.network_weight * found["ctr"].astype(np.float64) + ctr if found else ctr
        return found


def of_network(fitted: Fitted) -> Served:
    """The network alone."""
    return Served(
        fitted.network, fitted.calibration, fitted.best.step, fitted.curve, getattr(fitted, "list_weight", 0.0),
        parts={"platt": {h: list(p) for h, p in fitted.calibration.platt.items()}},
    )  # fmt: skip


def of_trees(
    config: DMGINConfig, rows: TrainingRows, learn: Requests, judge: Requests, options: TreeOptions,
    report: Callable[[Point], None] | None = None,
) -> Served:  # fmt: skip
    """Trees alone: there are no further heads, and of the network only the input spec counts."""
    trees = train_trees(rows, learn, judge, options, report)
    network = DMGIN(replace(config, heads=()))
    parts = {"trees": _grown(trees, 1.0, 0.0)}
    return Served(network, trees.calibration, trees.rounds[0], trees.curve, 0.0, trees.forest, 0.0, parts)


def of_both(
    fitted: Fitted, rows: TrainingRows, learn: Requests, judge: Requests, options: TreeOptions,
    report: Callable[[Point], None] | None = None,
) -> Served:  # fmt: skip
    """The network with trees beside it, weighted by the valid rows."""
    return stacked(fitted, train_trees(rows, learn, judge, options, report), rows, judge)


def stacked(fitted: Fitted, trees: Trees, rows: TrainingRows, judge: Requests) -> Served:
    """Both as one: the members' calibrations and weights go into the leaves and the network's weight."""
    a, b = fitted.calibration.platt["ctr"]
    slope, offset = trees.calibration.platt["ctr"]
    both = (a * fitted.logits(rows, judge).astype(np.float64) + b, slope * trees.logits(rows, judge) + offset)
    (w, v), platt = weigh(np.stack(both, 1), rows.labels()[rows.rows_of(judge)])
    share, rest = v * slope, v * offset + w * b
    forest = joined([(trees.forest, share)], rest)
    calibration = Calibration({**fitted.calibration.platt, "ctr": platt})
    # a weight of 0 would leave the further heads without their network
    weight = w * a or (1e-9 if fitted.network.config.heads else 0.0)
    made = of_network(fitted)
    parts = {**made.parts, "trees": _grown(trees, share, rest)}
    return replace(made, calibration=calibration, forest=forest, network_weight=weight, parts=parts)


def _grown(trees: Trees, share: float, offset: float) -> dict[str, Any]:
    return {"rounds": list(trees.rounds), "weight": trees.weight, "share": share, "offset": offset}
