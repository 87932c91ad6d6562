"""HSTU over the flat sequence (arXiv 2402.17152): the newest 256 events see those before them, the candidates see all of them.

Each layer: pointwise SiLU attention, not normalised but divided by the number of events, with a bias by distance and by time apart, gated.
A candidate is one more position, blind to the other candidates, so that the events' keys and values are shared by all of a request (and
could be kept between requests, as servers of this model do).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream_dmgin.models.peers.base import Peer
from stream_dmgin.models.trunk import TENTS, DMGINConfig, tents

STEPS, STEPS_AN_OCTAVE = 128, 6  # how finely the time between two events is told apart


class Layer(nn.Module):
    """One layer, over events and candidates alike."""

    def __init__(self, d: int, heads: int, reach: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.norm_in, self.uvqk = nn.LayerNorm(d), nn.Linear(d, 4 * d)
        self.norm_out, self.out = nn.LayerNorm(d), nn.Linear(d, d)
        self.distance = nn.Parameter(torch.zeros(heads, reach + 1))  # by how many events lie between
        self.time = nn.Parameter(torch.zeros(TENTS, heads))

    def forward(self, x: Tensor, c: Tensor, gaps: Tensor, ages: Tensor, sees: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Events x [B,N,d], candidates c [B,C,d]; gaps [B,N,N] and ages [B,N]: steps of time between two events, and to the request; sees
        [B,N,N] bool; share [B,N]: 1/(n + 1) of an existing event, else 0 -> both again.
        """
        table = tents(torch.arange(STEPS) / STEPS_AN_OCTAVE) @ self.time  # [STEPS,H]
        n = x.shape[1]
        at = torch.arange(n)
        apart = (at - at.unsqueeze(-1)).clamp(min=0)  # [N,N]: 0 for what is newer, which is not seen
        uc, vc, qc, kc = self.split(c)
        ux, vx, qx, kx = self.split(x)
        scale = qx.shape[-1] ** -0.5
        between = self.distance[:, apart] + F.embedding(gaps, table).permute(0, 3, 1, 2)  # [B,H,N,N]
        weights = F.silu(qx @ kx.transpose(-1, -2) * scale + between) * (sees * share.unsqueeze(1)).unsqueeze(1)
        to_request = self.distance[:, at + 1] + F.embedding(ages, table).transpose(1, 2)  # [B,H,N]
        of_target = F.silu(qc @ kx.transpose(-1, -2) * scale + to_request.unsqueeze(2)) * share[:, None, None]
        itself = F.silu((qc * kc).sum(-1, keepdim=True) * scale) * vc / (1.0 + (share > 0).sum(-1))[:, None, None, None]
        return self.join(x, weights @ vx, ux), self.join(c, of_target @ vx + itself, uc)

    def split(self, x: Tensor) -> list[Tensor]:
        """[B,M,d] -> u [B,M,d]; v, q, k [B,H,M,e]."""
        u, *rest = F.silu(self.uvqk(self.norm_in(x))).chunk(4, -1)
        return [u, *(y.view(*y.shape[:2], self.heads, -1).transpose(1, 2) for y in rest)]

    def join(self, x: Tensor, mixed: Tensor, u: Tensor) -> Tensor:
        """Residual, gate and output of mixed [B,H,M,e]."""
        made: Tensor = x + self.dropout(self.out(self.norm_out(mixed.transpose(1, 2).flatten(-2)) * u))
        return made


class FlatHSTU(Peer):
    """Candidates [B,C,d] and 256 events -> the candidate after the layers [B,C,d], and its product with the candidate."""

    reach = 256

    def __init__(self, config: DMGINConfig) -> None:
        super().__init__(config)
        sizes = config.width, config.attention_heads, self.reach, config.dropout
        self.layers = nn.ModuleList([Layer(*sizes) for _ in range(config.layers)])

    def cells(self, n: int, c: int) -> int:
        """As `Peer` says: events see one another."""
        return 4 * n * (n + c)

    def interests(self, target: Tensor, x: Mapping[str, Tensor]) -> list[Tensor]:
        """As `Peer` says."""
        mask = x["h_mask"]
        n = mask.shape[1]
        minutes = torch.exp2(x["h_age"])
        gaps = _steps(torch.log2(1.0 + (minutes.unsqueeze(-1) - minutes.unsqueeze(-2)).abs()))
        sees = (torch.arange(n) >= torch.arange(n).unsqueeze(-1)) & mask.unsqueeze(1)
        share = mask.to(torch.float32) / (1.0 + mask.sum(-1, keepdim=True))
        events, c = self.embed_life(x), target
        for layer in self.layers:
            events, c = layer(events, c, gaps, _steps(x["h_age"]), sees, share)
        return [c, target * c]


def _steps(log2_minutes: Tensor) -> Tensor:
    return (log2_minutes * STEPS_AN_OCTAVE).clamp(max=STEPS - 1.0).to(torch.int32)
