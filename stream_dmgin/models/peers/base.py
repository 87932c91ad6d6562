"""What all peers share: the flat inputs, embedding them, searching in them, attention of the candidate over what was found.

The flat sequence of a user (`training/lives.py` makes it), newest first, N events (for TWIN-V2: clusters of events):

| tensor | shape | dtype | meaning |
|---|---|---|---|
| h_item | [B,N,3] | int32 | bucketed hash of item, category, advertiser |
| h_cls, h_dwell, h_hour | [B,N] | int32 | behaviour class, dwell bucket, hour of the week, as `e_*` of `features/spec.py` |
| h_time | [B,N] | int32 | age bucket relative to the request |
| h_age | [B,N] | float32 | log2(1 + minutes) to the request |
| h_size | [B,N] | float32 | ln(events it stands for): 0 but for clusters |
| h_mask | [B,N] | bool | it exists; events fill the array from the front |

A user without any has a mask of nothing and gets zeros. Padding never changes a result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from stream_dmgin.features.spec import N_AGE, N_HOUR
from stream_dmgin.models.trunk import DMGINConfig, Trunk, away

LIFE = ("h_item", "h_cls", "h_dwell", "h_hour", "h_time", "h_age", "h_size", "h_mask")
CELLS = 4_000_000  # so many (candidate, event) pairs are looked at at once: it bounds the memory, nothing else


class Peer(Trunk, ABC):
    """A trunk with a module of interest: a subclass gives `interests` from the candidates and the flat sequence.

    `reach`: newest events it is given, its paper's usual cut-off; `vectors`: how many vectors [B,C,d] `interests` gives.
    """

    reach: ClassVar[int]
    vectors: ClassVar[int] = 2
    clustered: ClassVar[bool] = False

    def __init__(self, config: DMGINConfig) -> None:
        if config.off:
            raise ValueError(f"modules {config.off} are DMGIN's: a peer has none to switch off")
        super().__init__(config, 2 + self.vectors)
        self.when, self.hour = nn.Embedding(N_AGE, config.width), nn.Embedding(N_HOUR, config.width)
        for table in (self.when, self.hour):
            nn.init.normal_(table.weight, std=0.05)

    def forward(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits of `ctr` and each further head [B,C] from the request side, s_* and h_* (what is beyond `reach` is left out)."""
        return self.answer(self.embed_short(x), x["s_mask"], x)

    def answer(self, short: Tensor, s_mask: Tensor, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `forward`, from vectors of the newest events [B,S,d], the request side and h_*."""
        x = {k: v[:, : self.reach] if k in LIFE else v for k, v in x.items()}
        if self.training:
            return self.whole(short, s_mask, x)
        (b, n), c = x["h_mask"].shape, x["c_item"].shape[1]
        found = [
            self.whole(short[part], s_mask[part], {k: v[part] for k, v in x.items()}) for part in parts(b, self.cells(n, c))
        ]
        return {head: torch.cat([f[head] for f in found]) for head in found[0]}

    def cells(self, n: int, c: int) -> int:
        """Numbers, roughly, that one user with n events and c candidates needs at once, in units of a (candidate, event) pair."""
        return 4 * n * c

    def whole(self, short: Tensor, s_mask: Tensor, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`answer` of all users at once."""
        target = self.target(x)
        near = self.near(target, short, s_mask)
        return self.logits([target, near, target * near, *self.interests(target, x)], x)

    @abstractmethod
    def interests(self, target: Tensor, x: Mapping[str, Tensor]) -> list[Tensor]:
        """Candidates [B,C,d] and the flat sequence -> `vectors` vectors [B,C,d]."""

    def embed_life(self, x: Mapping[str, Tensor]) -> Tensor:
        """Events h_* of any leading shape -> [...,d]."""
        about: Tensor = self.behaviour(x["h_cls"]) + self.when(x["h_time"]) + self.dwell(x["h_dwell"])
        item: Tensor = self.event(self.embed_items(x["h_item"])) + self.hour(x["h_hour"])
        return item + about

    def project(self, item: Tensor, weight: Tensor) -> Tensor:
        """Embeddings of items [...,3] times weight [item_width + 2 * small, m] -> [...,m]: each table is multiplied once, so that
        a long sequence costs look-ups alone."""
        parts = torch.split(weight, [t.embedding_dim for t in (self.item, self.category, self.advertiser)])
        tables = [t.weight @ w for t, w in zip((self.item, self.category, self.advertiser), parts, strict=True)]
        found: Tensor = tables[0][item[..., 0]]
        return found + tables[1][item[..., 1]] + tables[2][item[..., 2]]


def take(x: Mapping[str, Tensor], index: Tensor, found: Tensor) -> dict[str, Tensor]:
    """The events at index [B,C,K] as h_* [B,C,K,...]; h_mask: `found`."""
    b, n = x["h_mask"].shape
    flat = (index + torch.arange(b).view(-1, 1, 1) * n).flatten()
    taken = {k: x[k].flatten(0, 1).index_select(0, flat).view(*index.shape, *x[k].shape[2:]) for k in LIFE}
    taken["h_mask"] = found
    return taken


def best(scores: Tensor, mask: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Where the k best of scores [B,C,N] lie and whether they exist [B,C,k], newest first; mask: [B,N] or [B,C,N]."""
    mask = mask.unsqueeze(1) if mask.ndim == 2 else mask
    scores = scores.masked_fill(~mask, -torch.inf)
    top = scores.topk(min(k, scores.shape[-1]), -1)
    n = scores.shape[-1]
    index, order = torch.where(top.values > -torch.inf, top.indices, n).sort(-1)
    missing = k - index.shape[-1]
    if missing:  # always k places: what comes behind may look at positions
        index = nn.functional.pad(index, (0, missing), value=n)
    return index.clamp(max=n - 1), index < n


def parts(b: int, cells: int) -> list[slice]:
    """Slices of b users, so that each has about CELLS (candidate, event) pairs; `cells`: pairs of one user."""
    step = max(1, CELLS // max(1, cells))
    return [slice(at, at + step) for at in range(0, b, step)]


class SimHash(nn.Module):
    """Signs of random projections of an item's embedding: near vectors get like signs. Fixed, not learned."""

    planes: Tensor

    def __init__(self, width: int, bits: int) -> None:
        super().__init__()
        self.register_buffer("planes", torch.randn(width, bits))

    @torch.no_grad()
    def forward(self, trunk: Peer, item: Tensor) -> Tensor:
        """Items [...,3] -> signs [...,bits], each -1 or 1."""
        return torch.where(trunk.project(item, self.planes) > 0, 1.0, -1.0)


class TargetAttention(nn.Module):
    """Multi-head attention of each candidate over events of its own."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ask, self.key, self.value, self.out = (nn.Linear(d, d) for _ in range(4))

    def forward(self, target: Tensor, tokens: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
        """Candidates [B,C,d], events [B,C,K,d], mask [B,C,K], bias [B,C,K] or none -> [B,C,d], zeros where no event is."""
        b, c, k, d = tokens.shape
        q = self.ask(target).view(b, c, self.heads, 1, -1)
        keys, values = (f(tokens).view(b, c, k, self.heads, -1).transpose(2, 3) for f in (self.key, self.value))
        far = away(mask) if bias is None else away(mask) + bias
        weights = (q @ keys.transpose(-1, -2) * (d // self.heads) ** -0.5 + far[:, :, None, None]).softmax(-1)
        mixed = self.out((weights @ values).reshape(b, c, d))
        found: Tensor = mixed * mask.any(-1, keepdim=True)
        return found
