"""SIM, search-based interest (arXiv 2006.05639), hard search: of the whole life the newest 50 events of the candidate's category,
then attention of the candidate over them, which knows how long ago they were.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stream_dmgin.models.peers.base import Peer, TargetAttention, best, parts, take
from stream_dmgin.models.trunk import DMGINConfig


class SIM(Peer):
    """Candidates [B,C,d] and up to 54,000 events -> attention over 50 of them [B,C,d], and its product with the candidate."""

    reach, kept = 54_000, 50

    def __init__(self, config: DMGINConfig) -> None:
        super().__init__(config)
        self.attention = TargetAttention(config.width, config.attention_heads)

    def comparisons(self) -> list[tuple[nn.Linear, nn.Linear | None]]:
        """As `Trunk` says; over what was found too."""
        return [*super().comparisons(), (self.attention.ask, self.attention.key)]

    def interests(self, target: Tensor, x: Mapping[str, Tensor]) -> list[Tensor]:
        """As `Peer` says."""
        some = take(x, *self.search(x))
        found = self.attention(target, self.embed_life(some), some["h_mask"])
        return [found, target * found]

    @torch.no_grad()
    def search(self, x: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The newest events of each candidate's category: index and whether it exists [B,C,kept]."""
        (b, n), c = x["h_mask"].shape, x["c_item"].shape[1]
        newest = -torch.arange(n, dtype=torch.float32).expand(1, c, n)
        found = []
        for part in parts(b, n * c):
            same = x["c_item"][part, :, 1, None] == x["h_item"][part, None, :, 1]  # [.,C,N]
            found.append(best(newest.expand(len(same), c, n), same & x["h_mask"][part, None], self.kept))
        return torch.cat([i for i, _ in found]), torch.cat([f for _, f in found])
