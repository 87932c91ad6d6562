"""What a run starts from: normalisation and base rates from the training rows, or the weights of a network that was trained before;
an optimizer, the pace of the learning rate."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from stream_dmgin.models.trunk import Trunk
from stream_dmgin.training.columns import spans
from stream_dmgin.training.items import ItemStart
from stream_dmgin.training.objective import LISTS
from stream_dmgin.training.options import Options
from stream_dmgin.training.rows import TrainingRows

SAMPLE = 200_000
FLAT = 0.05  # slope of a calibration


def prepare(network: Trunk, rows: TrainingRows, requests: NDArray[np.int64], items: ItemStart | None = None) -> None:
    """Normalisation from the training requests alone; start at the base rates, and the table of items with `items`."""
    take = rows.rows_of(requests)
    few = requests[
        :: max(1, rows.groups_in(requests) // SAMPLE)
    ]  # whole requests, so that few pieces of a folder are read
    groups = spans(rows.offsets()["r_groups"][few], rows["r_groups"][few])
    of = {"c_dense": take, "u_dense": requests, "g_stat": groups}
    for name, dense in network.dense_inputs().items():
        some = of[name][:: max(1, len(of[name]) // SAMPLE)]
        dense.fit(torch.from_numpy(rows[name][some].astype(np.float32)))
    with torch.no_grad():
        for i, head in enumerate(("ctr", *network.config.heads)):
            y = rows.labels("ctr" if head == LISTS else head)[take]
            rate = (float((y == 1).sum()) + 1.0) / (float((y >= 0).sum()) + 20.0)
            network.deep.bias[i] = math.log(rate / (1.0 - rate))
        if items is not None:
            network.item.weight[torch.from_numpy(items.bucket)] = torch.from_numpy(items.vector)


OUTPUTS = ("deep.weight", "deep.bias", "wide_c.weight", "wide_u.weight")  # of the last layer: a row a head


@torch.no_grad()
def take_over(network: Trunk, start: Trunk, rows: TrainingRows, requests: NDArray[np.int64]) -> None:
    """Begin with the weights of `start`, its normalisation too. A second output for the order inside lists, where `start` has none, begins
    as `ctr` does, for lists of the usual length."""
    state = start.state_dict()
    if LISTS in network.config.heads and LISTS not in start.config.heads:
        at = 1 + network.config.heads.index(LISTS)
        for name in OUTPUTS:
            state[name] = torch.cat([state[name][:at], state[name][:1], state[name][at:]])
        state["deep.bias"][at] += usual_length(rows, requests)
    network.load_state_dict(state)


def usual_length(rows: TrainingRows, requests: NDArray[np.int64]) -> float:
    """Mean over rows of the logarithm of their list's length: what the second output has more than `ctr`."""
    n = rows["r_rows"][requests].astype(np.float64)
    return float((n * np.log(np.maximum(n, 1.0))).sum() / max(1.0, n.sum()))


@torch.no_grad()
def rescaled(network: Trunk, by: Mapping[str, tuple[float, float]]) -> Trunk:
    """A copy whose logit of each head named is slope * logit + offset of this one's."""
    made = copy.deepcopy(network)
    for i, head in enumerate(("ctr", *network.config.heads)):
        slope, offset = by.get(head, (1.0, 0.0))
        for layer in (made.deep, made.wide_c, made.wide_u):
            layer.weight[i] *= slope
        made.deep.bias[i] = made.deep.bias[i] * slope + offset
    return made


def scales(platt: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """The calibrations of heads that can be undone again: a slope of about nothing has no scale."""
    return {h: (a, b) for h, (a, b) in platt.items() if a > FLAT}


def make_optimizer(network: Trunk, options: Options) -> torch.optim.AdamW:
    """AdamW; hash tables decay strongly (most of their rows are seen a few times), biases and norms not at all."""
    tables = [network.item.weight, network.category.weight, network.advertiser.weight]
    special = {id(p) for p in tables}
    rest = [p for p in network.parameters() if id(p) not in special]
    groups = [
        {"params": tables, "weight_decay": options.table_decay},
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": options.decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.lr, fused=True)


def pace(step: int, steps: int) -> float:
    """Share of the learning rate: a short warm-up, then a cosine down to 5 %."""
    warm = min(100, max(1, steps // 20))
    if step < warm:
        return (step + 1) / warm
    return 0.05 + 0.95 * 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class Gradients:
    """The gradients of a network in one flat array: emptied, added up over processes and clipped by one operation each."""

    def __init__(self, network: Trunk) -> None:
        parameters = [p for p in network.parameters() if p.requires_grad]
        self.flat = torch.zeros(sum(p.numel() for p in parameters) + 1)  # the last is free for a loss
        at = 0
        for p in parameters:
            p.grad = self.flat[at : at + p.numel()].view_as(p)
            at += p.numel()

    def clip(self, most: float) -> None:
        """Shorten the gradient to a length of `most`."""
        norm = float(torch.linalg.vector_norm(self.flat[:-1]))
        if norm > most:
            self.flat[:-1].mul_(most / norm)
