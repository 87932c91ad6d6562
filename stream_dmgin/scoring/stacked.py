"""Trees beside a network, or alone: what the forest says of the same inputs is added to the network's logit of the click."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.errors import StreamDmginError
from stream_dmgin.features.spec import InputSpec
from stream_dmgin.models.registry import Model
from stream_dmgin.scoring.engine import Engine, Inputs, UserTower, calibrated


class NoTower:
    """Trees alone keep nothing of a user."""

    nbytes = 0


class StackEngine:
    """A forest, and the engine of the network beside it where there is one."""

    def __init__(self, model: Model, network: Engine | None) -> None:
        if model.forest is None:
            raise StreamDmginError(f"{model.id} has no trees")
        self.name = "trees" if network is None else f"{network.name}+trees"
        self.model, self._forest, self._network = model, model.forest, network

    @property
    def spec(self) -> InputSpec:
        """Sizes of the inputs it takes."""
        return self.model.config.spec

    def tower(self, inputs: Inputs) -> list[UserTower]:
        """Towers of the network, as `Engine` says."""
        if self._network is None:
            return [NoTower() for _ in range(len(inputs["g_mask"]))]
        return self._network.tower(inputs)

    def logits(self, towers: Sequence[UserTower], inputs: Inputs) -> dict[str, NDArray[np.float32]]:
        """Request side of B requests, one tower each -> raw logits [B,C] per head."""
        b, c = inputs["c_id"].shape
        dense: NDArray[Any] = inputs["c_dense"].reshape(b * c, -1)
        trees = self._forest.scores(dense, inputs["u_dense"], inputs["x_cat"], np.full(b, c)).reshape(b, c)
        if self._network is None:
            return {"ctr": trees.astype(np.float32)}
        found = self._network.logits(towers, inputs)
        return {**found, "ctr": (self.model.network_weight * found["ctr"] + trees).astype(np.float32)}

    def head(self, towers: Sequence[UserTower], inputs: Inputs) -> dict[str, NDArray[np.float64]]:
        """As `logits`, as calibrated probabilities."""
        return calibrated(self.model, self.logits(towers, inputs), inputs)
