"""DIN, the deep interest network (arXiv 1706.06978): an activation unit weighs each of the newest 50 events by the candidate.

The weights are not normalised, so that their sum tells how strong the interest is.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from stream_dmgin.models.peers.base import Peer
from stream_dmgin.models.trunk import DMGINConfig


class DIN(Peer):
    """Candidates [B,C,d] and 50 events -> the weighted sum [B,C,d], and its product with the candidate."""

    reach = 50
    hidden = 36  # of the activation unit

    def __init__(self, config: DMGINConfig) -> None:
        super().__init__(config)
        d = config.width
        # one layer over candidate, event and their product; a difference of the two would add nothing to a linear layer
        self.of_target, self.of_event = nn.Linear(d, self.hidden), nn.Linear(d, self.hidden, bias=False)
        self.of_both = nn.Linear(d, self.hidden, bias=False)
        self.unit = nn.Sequential(nn.PReLU(), nn.Linear(self.hidden, 1))

    def interests(self, target: Tensor, x: Mapping[str, Tensor]) -> list[Tensor]:
        """As `Peer` says."""
        events = self.embed_life(x)  # [B,N,d]
        both = self.of_both(target.unsqueeze(2) * events.unsqueeze(1))  # [B,C,N,hidden]
        weights = self.unit(both + self.of_target(target).unsqueeze(2) + self.of_event(events).unsqueeze(1)).squeeze(-1)
        found = (weights * x["h_mask"].unsqueeze(1)) @ events
        return [found, target * found]
