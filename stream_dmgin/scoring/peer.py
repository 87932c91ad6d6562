"""Peers that the state suffices for (`models/members.py`) in eager PyTorch: what they make of a flat sequence depends on the time of the
request, so that of a user only the newest events' vectors are kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from stream_dmgin.errors import StreamDmginError
from stream_dmgin.features.spec import InputSpec
from stream_dmgin.models.peers.base import LIFE, Peer
from stream_dmgin.models.registry import Model
from stream_dmgin.scoring.engine import Inputs, UserTower, calibrated

SHORT = ("s_item", "s_cls", "s_time", "s_dwell")
REQUEST = ("c_item", "c_id", "c_dense", "u_dense", "x_cat")


class PeerTower:
    """Vectors of a user's newest events [1,s,d]; none of them: s is 0."""

    __slots__ = ("nbytes", "short")

    def __init__(self, short: Tensor) -> None:
        self.short, self.nbytes = short, short.nbytes


class PeerEngine:
    """PyTorch as it is, on the CPU, one thread."""

    name = "eager"

    def __init__(self, model: Model) -> None:
        if not isinstance(model.network, Peer):
            raise StreamDmginError(f"{model.id} is a {type(model.network).__name__}, no peer")
        torch.set_num_threads(1)
        self.model, self._network = model, model.network

    @property
    def spec(self) -> InputSpec:
        """Sizes of the inputs it takes."""
        return self.model.config.spec

    @torch.inference_mode()
    def tower(self, inputs: Inputs) -> list[UserTower]:
        """User side of B users -> their towers."""
        n = inputs["s_mask"].sum(1).tolist()
        most = max(1, *n)
        short = self._network.embed_short({k: torch.from_numpy(inputs[k][:, :most]) for k in SHORT})
        return [PeerTower(short[i : i + 1, :k].clone()) for i, k in enumerate(n)]

    @torch.inference_mode()
    def logits(self, towers: Sequence[UserTower], inputs: Inputs) -> dict[str, NDArray[np.float32]]:
        """Request side of B requests, one tower each -> raw logits [B,C] per head."""
        parts: list[Tensor] = [t.short for t in towers]  # type: ignore[attr-defined]  # made by self.tower
        most = max(1, *(t.shape[1] for t in parts))
        short = torch.cat([F.pad(t, (0, 0, 0, most - t.shape[1])) for t in parts])
        s_mask = torch.arange(most) < torch.tensor([t.shape[1] for t in parts]).unsqueeze(-1)
        life = max(1, int(inputs["h_mask"].sum(1).max()))
        x = {k: torch.from_numpy(inputs[k][:, :life]) for k in LIFE}
        x |= {k: torch.from_numpy(inputs[k]) for k in REQUEST}
        return {k: v.numpy() for k, v in self._network.answer(short, s_mask, x).items()}

    def head(self, towers: Sequence[UserTower], inputs: Inputs) -> dict[str, NDArray[np.float64]]:
        """As `logits`, as calibrated probabilities."""
        return calibrated(self.model, self.logits(towers, inputs), inputs)
