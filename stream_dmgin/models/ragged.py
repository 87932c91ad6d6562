"""The user tower without the padding: about 70 % of a padded [G,L] batch is empty, so existing groups alone are
encoded, by length.

Serving (`user_tower`) and training (`TrainBatch`) both encode rows of groups through `encode_rows`; results equal those
of the padded `DMGIN.user_tower` to rounding (within 1e-6), whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from stream_dmgin.models.dmgin import DMGIN, OwnGroup, Tower
from stream_dmgin.models.trunk import Trunk

EVENT_INPUTS = ("e_item", "e_cls", "e_time", "e_dwell", "e_hour", "e_mask")


@dataclass(frozen=True)
class GroupRows:
    """Some existing groups with at most L events each: `slot` [N] is where they go in the flattened [B*G]; x:
    EVENT_INPUTS [N,L,...] and g_stat [N,N_STAT].
    """

    slot: Tensor
    x: Mapping[str, Tensor]


def length_steps(longest: int, inner: Sequence[int] = (1, 4)) -> list[int]:
    """Upper ends of the length buckets: the inner ones, then the longest. Each costs one pass of small operations: few
    pay in serving, more in training.
    """
    return [*(step for step in inner if step < longest), max(longest, 1)]


def bucket_rows(
    inputs: Mapping[str, NDArray[Any]], slots: NDArray[np.int64], lengths: NDArray[np.int64]
) -> list[GroupRows]:
    """Rows `slots` of the inputs flattened to [B*G,...], cut by their number of events `lengths`."""
    rows: list[GroupRows] = []
    low = -1
    flat = {k: inputs[k].reshape(-1, *inputs[k].shape[2:]) for k in (*EVENT_INPUTS, "g_stat")}
    for high in length_steps(int(lengths.max(initial=0))):
        chosen = slots[(lengths > low) & (lengths <= high)]
        low = high
        if len(chosen):
            x = {k: torch.from_numpy(flat[k][chosen, :high]) for k in EVENT_INPUTS}
            rows.append(GroupRows(torch.from_numpy(chosen), {**x, "g_stat": torch.from_numpy(flat["g_stat"][chosen])}))
    return rows


def encode_rows(model: DMGIN, rows: Sequence[GroupRows], size: int, events: int) -> tuple[Tensor, Tensor]:
    """Groups [size,d] and their tokens [size,events,d], zeros at slots that no row fills."""
    d = model.config.width
    groups, tokens = torch.zeros(size, d), torch.zeros(size, events, d)
    for row in rows:
        encoded, events_of = model.encode_groups(row.x)
        groups[row.slot] = encoded
        tokens[row.slot, : events_of.shape[1]] = events_of
    return groups, tokens


FEW = 2  # users: for so few, one padded call costs less than a call for each bucket of lengths


def user_tower(model: DMGIN, inputs: Mapping[str, NDArray[Any]]) -> Tower:
    """`DMGIN.user_tower` of numpy inputs, cut to the groups, events and short events that exist in the batch (at least
    one each).

    Events of a group, groups of a user and the short sequence fill their arrays from the front.
    """
    g_mask, e_mask, s_mask = inputs["g_mask"], inputs["e_mask"], inputs["s_mask"]
    b = len(g_mask)
    g = max(1, int(g_mask.sum(1).max(initial=0)))
    lengths = e_mask[:, :g].sum(-1)
    length = max(1, int(lengths.max(initial=0)))
    s = max(1, int(s_mask.sum(1).max(initial=0)))
    cut = {k: inputs[k][:, :g, :length] for k in (*EVENT_INPUTS, "e_id")}
    cut["g_stat"] = inputs["g_stat"][:, :g]
    if b <= FEW:
        x = {k: torch.from_numpy(cut[k]).flatten(0, 1) for k in (*EVENT_INPUTS, "g_stat")}
        groups, tokens = model.encode_groups(x)
    else:
        slots = np.flatnonzero(g_mask[:, :g])
        rows = bucket_rows(cut, slots, lengths.reshape(-1)[slots])
        groups, tokens = encode_rows(model, rows, b * g, length)
    mask = torch.from_numpy(g_mask[:, :g])
    groups = model.evolve(groups.view(b, g, -1), torch.from_numpy(inputs["g_time"][:, :g]), mask)
    short = model.embed_short({k: torch.from_numpy(inputs[k][:, :s]) for k in ("s_item", "s_cls", "s_time", "s_dwell")})
    events = (torch.from_numpy(cut["e_id"]), torch.from_numpy(cut["e_mask"]))
    return Tower(groups, mask, tokens.view(b, g, length, -1), *events, short, torch.from_numpy(s_mask[:, :s]))


@dataclass(frozen=True)
class TrainBatch:
    """A batch of the training set: B requests with the existing groups of their users.

    x: the request side, g_mask, g_time, s_*, padded to the batch; for peers (`models/peers/`) h_* too. rows: the groups, their x with e_id [N,L] too. own: per
    entry of `rows` (which of its groups are a candidate's own, whose: slots in the flattened [B*C]).
    """

    rows: Sequence[GroupRows]
    own: Sequence[tuple[Tensor, Tensor]]
    x: Mapping[str, Tensor]


def forward(model: Trunk, batch: TrainBatch) -> dict[str, Tensor]:
    """Logits [B,C] of a training batch."""
    x = batch.x
    if not isinstance(model, DMGIN):  # a peer: it needs no groups
        peer: dict[str, Tensor] = model(x)
        return peer
    (b, g), c, d = x["g_mask"].shape, x["c_id"].shape[1], model.config.width
    length = max((row.x["e_mask"].shape[1] for row in batch.rows), default=1)
    groups, tokens = torch.zeros(b * g, d), torch.zeros(b * c, length, d)
    mask, same = torch.zeros(b * c, length, dtype=torch.bool), torch.zeros(b * c, length, dtype=torch.bool)
    candidate = x["c_id"].flatten().unsqueeze(-1)
    for row, (at, slot) in zip(batch.rows, batch.own, strict=True):
        encoded, events = model.encode_groups(row.x)
        groups = groups.index_copy(0, row.slot, encoded)
        if len(at):
            n = events.shape[1]
            tokens = tokens.index_copy(0, slot, F.pad(events.index_select(0, at), (0, 0, 0, length - n)))
            mask[slot, :n] = row.x["e_mask"][at]
            same[slot, :n] = row.x["e_mask"][at] & (row.x["e_id"][at] == candidate[slot])
    groups = model.evolve(groups.view(b, g, d), x["g_time"], x["g_mask"])
    flat = (x["c_group"].to(torch.int64).clamp(max=g - 1) + torch.arange(b).unsqueeze(-1) * g).flatten()
    has = (x["c_group"] < g).to(torch.float32).unsqueeze(-1)
    group = groups.flatten(0, 1).index_select(0, flat).view(b, c, d) * has
    own = OwnGroup(group, tokens.view(b, c, length, d), mask.view(b, c, length), same.view(b, c, length))
    empty = torch.zeros(b, g, 0)
    tower = Tower(groups, x["g_mask"], empty, empty, empty, model.embed_short(x), x["s_mask"])
    return model.score(tower, own, x)
