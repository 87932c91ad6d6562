"""SDIM, sampling-based deep interest modelling (arXiv 2205.10249): no search; events whose hash collides with the candidate's are summed.

Several signatures of a few bits each: an event collides with a probability that grows with its likeness, so that the mean of the sums
behaves as an attention whose cost doesn't depend on the candidates.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream_dmgin.models.peers.base import Peer, SimHash
from stream_dmgin.models.trunk import DMGINConfig


class SDIM(Peer):
    """Candidates [B,C,d] and 1,024 events -> mean over 16 signatures of 3 bits of the sum of colliding events [B,C,d], each sum of length
    1, through a layer; and its product with the candidate.
    """

    reach, signatures, bits = 1024, 16, 3

    def __init__(self, config: DMGINConfig) -> None:
        super().__init__(config)
        self.hash = SimHash(self.event.in_features, self.signatures * self.bits)
        self.out = nn.Linear(config.width, config.width)

    def interests(self, target: Tensor, x: Mapping[str, Tensor]) -> list[Tensor]:
        """As `Peer` says."""
        events = self.embed_life(x)  # [B,N,d]
        ours, theirs = self.codes(x["c_item"]), self.codes(x["h_item"])  # [B,C,signatures], [B,N,signatures]
        found = torch.zeros_like(target)
        for j in range(self.signatures):
            collides = (ours[..., j].unsqueeze(2) == theirs[..., j].unsqueeze(1)) & x["h_mask"].unsqueeze(1)  # [B,C,N]
            found = found + F.normalize(collides.to(torch.float32) @ events, dim=-1, eps=1e-6)
        mixed = self.out(found / self.signatures) * x["h_mask"].any(-1)[:, None, None]
        return [mixed, target * mixed]

    def codes(self, item: Tensor) -> Tensor:
        """Items [...,3] -> signatures [...,signatures], each a number of `bits` bits."""
        signs = self.hash(self, item).view(*item.shape[:-1], self.signatures, self.bits) > 0
        return torch.stack([signs[..., i] * 2**i for i in range(self.bits)]).sum(0)
