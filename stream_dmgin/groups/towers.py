"""Two towers, one for what is written about an item and one for its pictures, into one space (CLIP's form).

Each view has a projection of its own, each side a small network. A tower begins as a random projection that keeps angles, so
that training can only bend what the encoder knows, and a view without a single pair keeps its meaning. Its outputs are centred over
the batch: else the shortest way down for the loss is to put everything in one place, and it stays there for long.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stream_dmgin.groups.items import VIEWS

WIDTH = 64
HIDDEN = 256


class Towers(nn.Module):
    """`widths`: view -> numbers of its embeddings. Embeddings of every view come out as float32[B,`out`], of length 1."""

    def __init__(self, widths: Mapping[str, int], out: int = WIDTH, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.skip = nn.ModuleDict({v: nn.Linear(w, out, bias=False) for v, w in widths.items()})
        self.enter = nn.ModuleDict({v: nn.Linear(w, hidden) for v, w in widths.items()})
        sides = sorted({VIEWS[v][1] for v in widths})
        self.side = nn.ModuleDict({s: nn.Sequential(nn.GELU(), nn.Dropout(0.1), nn.Linear(hidden, out)) for s in sides})
        self.centre = nn.ModuleDict({v: nn.BatchNorm1d(out, affine=False) for v in widths})
        self.log_scale = nn.Parameter(torch.tensor(5.0).log())  # 1 / temperature
        for v in widths:
            nn.init.orthogonal_(cast(nn.Linear, self.skip[v]).weight)
        for s in sides:
            last = cast(nn.Linear, cast(nn.Sequential, self.side[s])[2])
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, view: str, x: Tensor) -> Tensor:
        """Embeddings of one view, float32[B,width], in the common space."""
        y = self.skip[view](x) + self.side[VIEWS[view][1]](self.enter[view](x))
        norm = cast(nn.BatchNorm1d, self.centre[view])
        learns = self.training and len(y) > 1  # one row has no spread to learn from
        return F.normalize(F.batch_norm(y, norm.running_mean, norm.running_var, training=learns), dim=-1)

    def contrast(self, a: Tensor, b: Tensor, same: Tensor, log_share: Tensor | None = None) -> Tensor:
        """Symmetric InfoNCE of a[B,D] and b[B,D]: row i belongs to row i, all others are contrasts but those marked in
        `same` bool[B,B]. `log_share` float32[B]: ln of how often b's row is drawn, taken off where contrasts are drawn by
        popularity."""
        scale = self.log_scale.exp().clamp(max=100.0)
        logits = (scale * a @ b.T).masked_fill(same, float("-inf"))
        share = torch.zeros(len(a)) if log_share is None else log_share
        target = torch.arange(len(a))
        return (F.cross_entropy(logits - share, target) + F.cross_entropy(logits.T - share, target)) / 2
