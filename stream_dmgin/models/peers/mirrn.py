"""MIRRN, multi-granularity interest retrieval and refinement (arXiv 2411.15005): three queries, three sub-sequences, a Fourier filter.

The candidate, the mean of the newest events and the mean of all ask for 20 events each of the newest 1,024, by hash. Each sub-sequence,
in order of time, is mixed along time by a learned filter in the frequency domain; then the candidate attends to each.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stream_dmgin.models.peers.base import take
from stream_dmgin.models.peers.eta import ETA
from stream_dmgin.models.trunk import DMGINConfig


class Fourier(nn.Module):
    """A filter along the events of a sub-sequence: a product in the frequency domain, one complex number a frequency and column."""

    def __init__(self, length: int, d: int) -> None:
        super().__init__()
        self.length, self.norm = length, nn.LayerNorm(d)
        self.filter = nn.Parameter(0.02 * torch.randn(length // 2 + 1, d, 2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Events [B,C,K,d], mask [B,C,K] -> [B,C,K,d], zeros where none is."""
        keep = mask.to(torch.float32).unsqueeze(-1)
        spectrum = torch.fft.rfft(x * keep, n=self.length, dim=2, norm="ortho")
        mixed = torch.fft.irfft(spectrum * torch.view_as_complex(self.filter), n=self.length, dim=2, norm="ortho")
        made: Tensor = self.norm(x + mixed) * keep
        return made


class MIRRN(ETA):
    """Candidates [B,C,d] and 1,024 events -> one vector a query [B,C,d] x 3, and the candidate times their sum."""

    reach, kept, vectors, local = 1024, 20, 4, 16

    def __init__(self, config: DMGINConfig) -> None:
        super().__init__(config)
        self.filters = nn.ModuleList([Fourier(self.kept, config.width) for _ in range(3)])
        self.granularity = nn.Parameter(torch.zeros(3, config.width))

    def interests(self, target: Tensor, x: Mapping[str, Tensor]) -> list[Tensor]:
        """As `Peer` says."""
        found = []
        for i, wanted in enumerate(self.queries(x)):
            some = take(x, *self.search(wanted, x))
            tokens = self.filters[i](self.embed_life(some) + self.granularity[i], some["h_mask"])
            wide = (-1, target.shape[1], -1)  # what was found for the user is the same for each candidate
            found.append(self.attention(target, tokens.expand(*wide, -1), some["h_mask"].expand(wide)))
        return [*found, target * torch.stack(found).sum(0)]

    @torch.no_grad()
    def queries(self, x: Mapping[str, Tensor]) -> list[Tensor]:
        """Signs of the candidate [B,C,bits], of the mean of the newest events and of the mean of all [B,1,bits]."""
        projected = self.project(x["h_item"], self.hash.planes)  # [B,N,bits]
        keep = x["h_mask"].to(torch.float32).unsqueeze(-1)
        means = [(projected * keep)[:, :n].sum(1, keepdim=True) for n in (self.local, projected.shape[1])]
        return [self.hash(self, x["c_item"]), *(torch.where(m > 0, 1.0, -1.0) for m in means)]
