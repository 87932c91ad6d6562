"""Networks that a release may hold, by kind, and what each reads of the inputs.

| kind | what |
|---|---|
| dmgin | DMGIN, whole or without some modules (`trunk.py`) |
| no-interest | DMGIN that is told nothing of groups and newest events |
| din | a peer (`peers/`) whose reach the state's ring of newest events suffices for |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.features.spec import RING
from stream_dmgin.models.dmgin import DMGIN
from stream_dmgin.models.peers import PEERS
from stream_dmgin.models.peers.base import Peer
from stream_dmgin.models.trunk import DMGINConfig, Trunk

BARE = "no-interest"
FROM_THE_STATE = tuple(n for n, p in PEERS.items() if p.reach <= RING and not p.clustered)
KINDS: dict[str, type[DMGIN] | type[Peer]] = {"dmgin": DMGIN, BARE: DMGIN, **{n: PEERS[n] for n in FROM_THE_STATE}}


@dataclass(frozen=True)
class Member:
    """A network of a release; `weight` of its raw logit of the click in the sum."""

    kind: str
    network: Trunk
    weight: float = 1.0


def build(kind: str, config: DMGINConfig) -> Trunk:
    """A new network of this kind. KeyError where no release may hold it."""
    return KINDS[kind](config)


def reach(kind: str) -> int:
    """Events of the flat sequence that it reads; 0: none."""
    return PEERS[kind].reach if kind in FROM_THE_STATE else 0


def read_by(kind: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The inputs of B users as this kind of network is to get them."""
    if kind != BARE:
        return dict(inputs)
    spared = ("g_mask", "e_mask", "s_mask", "g_age", "g_size")
    groups = inputs["g_mask"].shape[1]
    nothing = {k: np.zeros_like(inputs[k]) for k in spared}
    return {**inputs, **nothing, "c_group": np.full_like(inputs["c_group"], groups)}
