"""TWIN (arXiv 2302.02352) and TWIN-V2 (arXiv 2407.16357): the search ranks events by the very weights that attention gives them.

A key has two parts: what an item is (its projection is one look-up per event) and what happened (behaviour, age, dwell, hour: a number
each, added to the weight). TWIN finds 100 of the newest 10,000 events. TWIN-V2 looks at the whole life, its events of like kind put into
clusters of bounded size, and adds ln(size) to a cluster's weight.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stream_dmgin.features.spec import N_AGE, N_CLS, N_DWELL, N_HOUR
from stream_dmgin.models.peers.base import Peer, best, parts, take
from stream_dmgin.models.trunk import DMGINConfig, away


class TWIN(Peer):
    """Candidates [B,C,d] and 10,000 events -> attention over 100 of them [B,C,d], and its product with the candidate."""

    reach, kept = 10_000, 100

    def __init__(self, config: DMGINConfig) -> None:
        super().__init__(config)
        d, self.heads = config.width, config.attention_heads
        self.ask, self.value, self.out = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.key = nn.Linear(self.event.in_features, d, bias=False)
        sizes = {"h_cls": N_CLS, "h_time": N_AGE, "h_dwell": N_DWELL, "h_hour": N_HOUR}
        self.cross = nn.ModuleDict({k: nn.Embedding(n, self.heads) for k, n in sizes.items()})
        for parameter in self.cross.parameters():
            nn.init.zeros_(parameter)

    def comparisons(self) -> list[tuple[nn.Linear, nn.Linear | None]]:
        """As `Trunk` says; in the search too."""
        return [*super().comparisons(), (self.ask, self.key)]

    def interests(self, target: Tensor, x: Mapping[str, Tensor]) -> list[Tensor]:
        """As `Peer` says."""
        q = self.ask(target)  # [B,C,d]
        some = take(x, *self.search(q, x))
        b, c, k = some["h_mask"].shape
        keys = self.key(self.embed_items(some["h_item"])).view(b, c, k, self.heads, -1)
        scores = (q.view(b, c, 1, self.heads, -1) * keys).sum(-1) * keys.shape[-1] ** -0.5 + self.what(some)
        weights = (scores + away(some["h_mask"]).unsqueeze(-1)).softmax(2)  # [B,C,k,H]
        values = self.value(self.embed_life(some)).view(b, c, k, self.heads, -1)
        found = self.out((weights.unsqueeze(-1) * values).sum(2).flatten(-2)) * some["h_mask"].any(-1, keepdim=True)
        return [found, target * found]

    def what(self, x: Mapping[str, Tensor]) -> Tensor:
        """What happened, as terms of the weights: h_* [...] -> [...,H]."""
        terms: Tensor = sum(table(x[name]) for name, table in self.cross.items())  # type: ignore[assignment]
        return terms + x["h_size"].unsqueeze(-1)

    @torch.no_grad()
    def search(self, q: Tensor, x: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The events with the greatest weights, mean over heads: index and whether it exists [B,C,kept]; q: [B,C,d]."""
        b, n = x["h_mask"].shape
        found = []
        for part in parts(b, n * q.shape[1]):
            keys = self.project(x["h_item"][part], self.key.weight.T)  # [.,N,d]
            terms = self.what({k: x[k][part] for k in (*self.cross, "h_size")}).mean(-1)  # [.,N]
            scores = q[part] @ keys.transpose(1, 2) * (q.shape[-1] / self.heads) ** -0.5 / self.heads
            found.append(best(scores + terms.unsqueeze(1), x["h_mask"][part], self.kept))
        return torch.cat([i for i, _ in found]), torch.cat([f for _, f in found])


class TWINV2(TWIN):
    """TWIN over clusters of the whole life, at most `training/lives.py`'s CLUSTER events each."""

    reach, clustered = 100_000, True
