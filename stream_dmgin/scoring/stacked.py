"""Several models as one: what each network and the forest say of the same inputs is added up to the logit of the click."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.features.spec import InputSpec
from stream_dmgin.models.members import BARE
from stream_dmgin.models.registry import Model
from stream_dmgin.scoring.bare import BareEngine
from stream_dmgin.scoring.engine import Engine, Inputs, Prefer, UserTower, calibrated, of_dmgin
from stream_dmgin.scoring.peer import PeerEngine


class StackTower:
    """A user's towers, one of each network; trees keep nothing of a user."""

    __slots__ = ("nbytes", "parts")

    def __init__(self, parts: tuple[UserTower, ...]) -> None:
        self.parts = parts
        self.nbytes = sum(t.nbytes for t in parts)


class StackEngine:
    """The engines of the networks, in the order of `model.members`, and the forest where there is one."""

    def __init__(self, model: Model, networks: Sequence[Engine]) -> None:
        self.model, self._networks = model, networks
        self.name = "+".join([*(e.name for e in networks), *(["trees"] if model.forest is not None else [])])

    @property
    def spec(self) -> InputSpec:
        """Sizes of the inputs it takes."""
        return self.model.config.spec

    def tower(self, inputs: Inputs) -> list[UserTower]:
        """Towers of each network, as `Engine` says."""
        each = [e.tower(inputs) for e in self._networks]
        return [StackTower(tuple(of[i] for of in each)) for i in range(len(inputs["g_mask"]))]

    def logits(self, towers: Sequence[UserTower], inputs: Inputs) -> dict[str, NDArray[np.float32]]:
        """Request side of B requests, one tower each -> raw logits [B,C] per head; further heads are the first network's."""
        out: dict[str, NDArray[np.float32]] = {}
        b, c = inputs["c_id"].shape
        ctr = np.zeros((b, c))
        for k, (engine, member) in enumerate(zip(self._networks, self.model.members, strict=True)):
            mine: list[UserTower] = [t.parts[k] for t in towers]  # type: ignore[attr-defined]  # made by self.tower
            found = engine.logits(mine, inputs)
            ctr += member.weight * found["ctr"]
            out = out or found
        if self.model.forest is not None:
            dense: NDArray[Any] = inputs["c_dense"].reshape(b * c, -1)
            ctr += self.model.forest.scores(dense, inputs["u_dense"], inputs["x_cat"], np.full(b, c)).reshape(b, c)
        return {**out, "ctr": ctr.astype(np.float32)}

    def head(self, towers: Sequence[UserTower], inputs: Inputs) -> dict[str, NDArray[np.float64]]:
        """As `logits`, as calibrated probabilities."""
        return calibrated(self.model, self.logits(towers, inputs), inputs)


def stack_engine(model: Model, prefer: Prefer, engines: Path | None) -> tuple[Engine, str]:
    """The engine of a model that is more than a DMGIN alone, and how each of its networks runs."""
    found, said = [], []
    for k, member in enumerate(model.members):
        engine, why = _of(model.alone(k), prefer, engines)
        found.append(engine)
        said.append(why if member.kind == "dmgin" else f"{member.kind}: {why}")
    if not found:
        return StackEngine(model, ()), "trees on the CPU: the model has no network"
    return StackEngine(model, found), "; ".join(said) + (", with trees beside it" if model.forest is not None else "")


def _of(model: Model, prefer: Prefer, engines: Path | None) -> tuple[Engine, str]:
    if model.kind not in ("dmgin", BARE):
        return PeerEngine(model), "eager on the CPU: no other engine knows it"
    engine, why = of_dmgin(model, prefer, engines)
    return (BareEngine(model, engine) if model.kind == BARE else engine), why
