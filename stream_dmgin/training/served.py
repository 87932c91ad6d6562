"""What a release serves: a network, trees, or several of both as one, fitted on the same rows and chosen on the same valid days."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.models.calibration import Calibration
from stream_dmgin.models.dmgin import DMGIN
from stream_dmgin.models.forest import Forest, joined
from stream_dmgin.models.members import Member
from stream_dmgin.models.registry import architecture_of, save_model
from stream_dmgin.models.trunk import DMGINConfig, Trunk
from stream_dmgin.training.loop import Fitted, Point, Requests, predict
from stream_dmgin.training.parallel import ALONE, Ranks
from stream_dmgin.training.rows import TrainingRows
from stream_dmgin.training.stack import weigh
from stream_dmgin.training.trees import TreeOptions, Trees, forest_logits, train_trees
from stream_dmgin.training.zoo import Bare, Contender, kind_of, rows_read_by

Logits = dict[str, NDArray[np.floating]]  # by head, of all rows; nan where not asked for
HARDLY = 1e-9  # weight of a network that only the further heads are served for


@dataclass(frozen=True)
class Served:
    """Parts of a release, as `models/registry.py` keeps them, and how they were found. `parts`: what a refit (`training/continual.py`)
    must know of them beside: each network's own calibration; rounds and weight of the trees, and how their score enters the sum; and of a
    stack the `shares` of all its members, those too that have none and are left out."""

    network: Trunk
    calibration: Calibration
    steps: int
    curve: list[Point] = field(default_factory=list)
    list_weight: float = 0.0
    forest: Forest | None = None
    network_weight: float = 1.0
    parts: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "dmgin"
    further: tuple[Member, ...] = ()

    @property
    def architecture(self) -> str:
        """As `models/registry.py` names it."""
        return architecture_of(self.forest, self.network_weight, self.kind, self.further)

    @property
    def members(self) -> tuple[Member, ...]:
        """Its networks; none where it is made of trees alone."""
        return (Member(self.kind, self.network, self.network_weight), *self.further) if self.network_weight else ()

    def save(self, directory: Path, name: str, training: Mapping[str, Any], card: str) -> str:
        """Write the release's folder (`models/registry.py`); its id."""
        return save_model(
            directory,
            name,
            self.network,
            self.calibration,
            training,
            card,
            self.forest,
            self.network_weight,
            self.kind,
            self.further,
        )

    def logits(self, rows: TrainingRows, requests: Requests, ranks: Ranks = ALONE) -> Logits:
        """Raw logits of every head on the rows of these requests."""
        found: Logits = {}
        take = rows.rows_of(requests)
        ctr = np.full(len(rows), np.nan)
        ctr[take] = 0.0
        for m in self.members:
            mine = predict(m.network, rows_read_by(m.kind, rows), requests, ranks=ranks)
            ctr += m.weight * mine["ctr"].astype(np.float64)
            found = found or {**mine}
        if self.forest is not None:
            ctr[take] += forest_logits(self.forest, rows, requests)
        return {**found, "ctr": ctr}


def of_network(fitted: Fitted) -> Served:
    """The network alone."""
    return Served(
        fitted.network,
        fitted.calibration,
        fitted.best.step,
        fitted.curve,
        fitted.list_weight,
        parts={"platt": _platt(fitted)},
    )


def of_trees(
    config: DMGINConfig, rows: TrainingRows, learn: Requests, judge: Requests, options: TreeOptions,
    report: Callable[[Point], None] | None = None,
) -> Served:  # fmt: skip
    """Trees alone: there are no further heads, and of the network only the input spec counts."""
    trees = train_trees(rows, learn, judge, options, report)
    network = DMGIN(replace(config, heads=()))
    parts = {"trees": _grown(trees, 1.0, 0.0)}
    return Served(network, trees.calibration, trees.rounds[0], trees.curve, 0.0, trees.forest, 0.0, parts)


def stacked(found: Mapping[str, Contender], rows: TrainingRows, judge: Requests) -> Served:
    """All of these as one, by their names in `zoo.py`: calibrations and weights of the members go into the leaves, the networks' weights
    and the calibration. Further heads are the first network's that has a share."""
    straight = []
    for name, c in found.items():
        slope, offset = c.calibration.platt["ctr"]
        straight.append(slope * np.asarray(c.logits(rows_read_by(name, rows), judge), np.float64) + offset)
    weights, (slope, offset) = weigh(np.stack(straight, 1), rows.labels()[rows.rows_of(judge)])
    share = dict(zip(found, weights.tolist(), strict=True))
    networks = {n: c.fitted if isinstance(c, Bare) else c for n, c in found.items() if not isinstance(c, Trees)}
    trees = next((c for c in found.values() if isinstance(c, Trees)), None)
    rest = float(sum(share[n] * c.calibration.platt["ctr"][1] for n, c in found.items()))
    members, fits = [], []
    for n, fitted in networks.items():
        assert isinstance(fitted, Fitted)
        members.append(Member(kind_of(n), fitted.network, share[n] * fitted.calibration.platt["ctr"][0]))
        fits.append(fitted)
    kept = [i for i, m in enumerate(members) if m.weight > 0]
    if not kept and members and members[0].network.config.heads:
        kept, members[0] = [0], replace(members[0], weight=HARDLY)
    parts: dict[str, Any] = {"shares": share}
    forest = None
    if trees is not None and share["lightgbm"] > 0:
        scale = share["lightgbm"] * trees.calibration.platt["ctr"][0]
        forest = joined([(trees.forest, scale)], rest)
        parts["trees"] = _grown(trees, scale, rest)
    else:
        offset += slope * rest
    if not kept:  # the trees take all
        assert trees is not None
        config = replace(members[0].network.config if members else _config(rows), heads=())
        return Served(
            DMGIN(config), Calibration({"ctr": (slope, offset)}), trees.rounds[0], trees.curve, 0.0, forest, 0.0, parts
        )
    first, further = kept[0], kept[1:]
    weight = members[first].weight
    if (
        forest is None and not further and members[first].kind == "dmgin"
    ):  # one is left: its share goes into its calibration
        slope, weight = slope * weight, 1.0
    parts["platt"] = _platt(fits[first])
    parts["further"] = [{"platt": _platt(fits[i]), "list_weight": fits[i].list_weight} for i in further]
    calibration = Calibration({**fits[first].calibration.platt, "ctr": (slope, offset)})
    return Served(
        members[first].network, calibration, fits[first].best.step, fits[first].curve, fits[first].list_weight, forest, weight, parts,
        members[first].kind, tuple(members[i] for i in further),
    )  # fmt: skip


def _config(rows: TrainingRows) -> DMGINConfig:
    return DMGINConfig(rows.spec)


def _platt(fitted: Fitted) -> dict[str, list[float]]:
    return {h: list(p) for h, p in fitted.calibration.platt.items()}


def _grown(trees: Trees, share: float, offset: float) -> dict[str, Any]:
    return {"rounds": list(trees.rounds), "weight": trees.weight, "share": share, "offset": offset}
