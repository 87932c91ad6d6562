"""A DMGIN that is told nothing of groups and newest events: all users have the same tower, computed once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.features.inputs import Inputs as Allocated
from stream_dmgin.features.spec import InputSpec
from stream_dmgin.models.members import read_by
from stream_dmgin.models.registry import Model
from stream_dmgin.scoring.engine import Engine, Inputs, UserTower, calibrated


class BareEngine:
    """The engine of the network under it, with inputs that say nothing of a past."""

    def __init__(self, model: Model, network: Engine) -> None:
        self.name, self.model, self._network = network.name, model, network
        nobody = read_by(model.kind, Allocated.allocate(model.config.spec, 1, 1))
        (self._tower,) = network.tower(nobody)

    @property
    def spec(self) -> InputSpec:
        """Sizes of the inputs it takes."""
        return self.model.config.spec

    def tower(self, inputs: Inputs) -> list[UserTower]:
        """The one tower, for each of B users."""
        return [self._tower] * len(inputs["g_mask"])

    def logits(self, towers: Sequence[UserTower], inputs: Inputs) -> dict[str, NDArray[np.float32]]:
        """Request side of B requests -> raw logits [B,C] per head."""
        g_age = np.zeros_like(inputs["g_age"])
        c_group = np.full_like(inputs["c_group"], self.spec.groups)
        return self._network.logits(towers, {**inputs, "c_group": c_group, "g_age": g_age, "g_size": g_age})

    def head(self, towers: Sequence[UserTower], inputs: Inputs) -> dict[str, NDArray[np.float64]]:
        """As `logits`, as calibrated probabilities."""
        return calibrated(self.model, self.logits(towers, inputs), inputs)
