"""Attention that begins with what is alike: a candidate finds the events on items like it before it has learnt anything.

By lot a network begins with short vectors of items and two projections that have nothing to do with each other, so that all weights of an
attention are nearly the same, and on few rows they stay so (docs/quality.md, "Attention hardly starts"). Here vectors of items begin with
length 1, a candidate with the projection of an event's item, and what asks with what is asked. What is served does not change.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from stream_dmgin.models.trunk import Trunk


@torch.no_grad()
def begin_alike(network: Trunk, strength: float) -> None:
    """Begin so that the similarity of a candidate t and an event e is `strength` x t.e, as each attention scales it, and that of equal
    items about `strength`. Changes the network's tables and projections."""
    for table in (network.item, network.category, network.advertiser):
        table.weight.copy_(nn.functional.normalize(table.weight, dim=-1))
    network.candidate.load_state_dict(network.event.state_dict())
    width = network.config.width
    for ask, key in network.comparisons():
        factor = math.sqrt(strength * math.sqrt(width)) if key is not None else strength * math.sqrt(width)
        for side in (ask, key):
            if side is None:
                continue
            # of a raw item: as an event is made of it
            side.weight.copy_(factor * (torch.eye(width) if side.in_features == width else network.event.weight))
            if side.bias is not None:
                side.bias.zero_()
