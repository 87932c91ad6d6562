"""ETA, efficient target attention (arXiv 2108.04468): of the newest 1,024 events the 48 whose hash differs from the candidate's in the
fewest bits, then attention of the candidate over them. The hash moves with the embeddings, so search and attention are trained as one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stream_dmgin.models.peers.base import Peer, SimHash, TargetAttention, best, parts, take
from stream_dmgin.models.trunk import DMGINConfig


class ETA(Peer):
    """Candidates [B,C,d] and 1,024 events -> attention over 48 of them [B,C,d], and its product with the candidate."""

    reach, kept, bits = 1024, 48, 32

    def __init__(self, config: DMGINConfig) -> None:
        super().__init__(config)
        self.hash = SimHash(self.event.in_features, self.bits)
        self.attention = TargetAttention(config.width, config.attention_heads)

    def comparisons(self) -> list[tuple[nn.Linear, nn.Linear | None]]:
        """As `Trunk` says; over what was found too."""
        return [*super().comparisons(), (self.attention.ask, self.attention.key)]

    def interests(self, target: Tensor, x: Mapping[str, Tensor]) -> list[Tensor]:
        """As `Peer` says."""
        some = take(x, *self.search(self.hash(self, x["c_item"]), x))
        found = self.attention(target, self.embed_life(some), some["h_mask"])
        return [found, target * found]

    @torch.no_grad()
    def search(self, wanted: Tensor, x: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The events with the nearest hashes to `wanted` [B,C,bits], of equal ones the newest: index, whether it exists [B,C,kept]."""
        signs = self.hash(self, x["h_item"])  # [B,N,bits]
        b, n = x["h_mask"].shape
        older = torch.arange(n) / (2.0 * n)  # less than a bit
        found = []
        for part in parts(b, n * wanted.shape[1]):
            like = wanted[part] @ signs[part].transpose(1, 2) - older
            found.append(best(like, x["h_mask"][part], self.kept))
        return torch.cat([i for i, _ in found]), torch.cat([f for _, f in found])
