"""What training minimises: a sum of terms, each a mean over the rows whose label is known.

- pointwise: the log-likelihood of a click, of all rows alike; where a teacher (`training/teacher.py`) says how likely each click was, that
  counts for a share of the label;
- order: the chance of the clicked candidate among those of its list (a softmax over the list);
- lists: a second output of the network learns the click with its logit offset by log(1 / length of the list), so that what it
  adds is what sets a row apart from its neighbours. The length is known in training alone: no score sees its own list. The two
  outputs are blended with the weight that serves the valid rows best (`blended`), at no cost in serving: both are linear in the
  same last layer, so the blend is one output again;
- heads: post-click behaviours, a missing label counting nowhere. Where what follows comes late (`training/heads.py`), a row
  without it says only that it has not come yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from stream_dmgin.models.trunk import DMGINConfig, Trunk
from stream_dmgin.training.options import Options

LISTS = "ctr-in-list"  # name of the second output while training
TAUGHT = "taught"  # name of the column with the teacher's chances of a click; nan where it says nothing
Counts = Mapping[str, float]


def losses(
    logits: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    options: Options,
    counts: Counts | None = None,
    seen: Mapping[str, Tensor] | None = None,
    taught: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(What is minimised, the pointwise loss of `ctr` alone). Logits and labels [B,C]; labels -1 count nowhere.

    `counts`: known labels per head of the whole batch, where this is one process's part of it: the parts add up. `seen`: see
    `late`. `taught` [B,C]: chances of a click by the teacher, nan where it says nothing.
    """
    y, z = labels["ctr"], logits["ctr"]
    known = (y >= 0).to(torch.float32)
    n = _count(known, counts, "ctr")
    pointwise = _sum(z, y, known) / n
    total = pointwise if taught is None else _sum(z, _softened(y, taught, options.teacher), known) / n
    if options.order > 0 and y.shape[1] > 1:
        clicked = (y == 1).to(torch.float32)
        both = ((clicked.sum(1) > 0) & ((y == 0).sum(1) > 0)).to(torch.float32)
        share = F.log_softmax(
            z + (known - 1.0) * 1e4, dim=1
        )  # the chance of each candidate to be the one clicked in its list
        per_list = -(share * clicked).sum(1) / clicked.sum(1).clamp(min=1.0)
        # per row, so that it weighs as much beside the pointwise term for long lists and short
        total = total + options.order * (per_list * both).sum() / n
    if LISTS in logits:
        length = known.sum(1, keepdim=True).clamp(min=1.0)
        total = total + options.lists * _sum(logits[LISTS] - torch.log(length), y, known) / n
    for head in logits:
        if head not in ("ctr", LISTS) and options.heads > 0:
            known = (labels[head] >= 0).to(torch.float32)
            part = seen[head] if seen is not None and head in seen else None
            total = total + options.heads * _sum(logits[head], labels[head], known, part) / _count(known, counts, head)
    return total, pointwise.detach()


def _softened(y: Tensor, taught: Tensor, share: float) -> Tensor:
    return torch.where(taught.isnan(), y, (1.0 - share) * y + share * taught)


def _count(known: Tensor, counts: Counts | None, head: str) -> Tensor | float:
    return known.sum().clamp(min=1.0) if counts is None else max(1.0, counts[head])


def _sum(z: Tensor, y: Tensor, known: Tensor, seen: Tensor | None = None) -> Tensor:
    if seen is None:
        each = F.binary_cross_entropy_with_logits(z, y.clamp(min=0.0), reduction="none")
    else:
        each = late(z, y, seen)
    return (each * known).sum()


def late(z: Tensor, y: Tensor, seen: Tensor) -> Tensor:
    """Negative log-likelihood of a behaviour that may still come: `seen` is the share of such behaviours that would have come by
    now. Having come has chance p; not having come yet has chance 1 - p * seen. With seen = 1 it is the cross-entropy."""
    rest = torch.log((1.0 - seen).clamp(min=1e-12))
    return torch.where(y == 1, F.softplus(-z), F.softplus(z) - F.softplus(z + rest))


def with_lists(config: DMGINConfig) -> DMGINConfig:
    """The config of a network that has the second output."""
    return replace(config, heads=(*config.heads, LISTS))


def blend(columns: NDArray[np.float64], labels: NDArray[np.int8]) -> NDArray[np.float64]:
    """Weights of the logits [n, k], and an offset at the end: a logistic regression by Newton's method, held weakly at the first
    column alone."""
    x = np.concatenate([columns, np.ones((len(columns), 1))], 1)
    start = np.zeros(x.shape[1])
    start[0] = 1.0
    w = start.copy()
    for _ in range(50):
        p = 1.0 / (1.0 + np.exp(-np.clip(x @ w, -40.0, 40.0)))
        gradient = x.T @ (p - labels) + 1e-3 * (w - start)
        step = np.linalg.solve((x * (p * (1.0 - p))[:, None]).T @ x + 1e-3 * np.eye(len(w)), gradient)
        step *= min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
        w -= step
        if np.abs(step).max() < 1e-9:
            break
    return w


def list_weight(first: NDArray[np.floating], second: NDArray[np.floating], labels: NDArray[np.int8]) -> float:
    """The weight w >= 0 such that first + w * second, once calibrated, has the smallest logloss on these rows."""
    if not len(labels) or labels.min() == labels.max():
        return 0.0
    w = blend(np.stack([first, second], 1).astype(np.float64), labels)
    return float(max(0.0, w[1] / w[0])) if w[0] > 1e-6 else 0.0


@torch.no_grad()
def blended(network: Trunk, weight: float, build: Callable[[DMGINConfig], Trunk]) -> Trunk:
    """The network with one output in place of the two: `ctr` + weight * the second one; `build` made it."""
    heads = network.config.heads
    at = 1 + heads.index(LISTS)
    made = build(replace(network.config, heads=tuple(h for h in heads if h != LISTS)))
    state = network.state_dict()
    for name in ("deep.weight", "deep.bias", "wide_c.weight", "wide_u.weight"):
        rows = state[name].clone()
        rows[0] += weight * rows[at]
        state[name] = torch.cat([rows[:at], rows[at + 1 :]])
    made.load_state_dict(state)
    return made
