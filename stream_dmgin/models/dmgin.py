"""DMGIN, the deep multimodal group interest network, whole: from the inputs of `features/spec.py` to logits.

    events of a group ── embed ── attention inside the group ── tokens ─ mean ─┐
    group statistics ──────────────────────────────────────────────────────────┴─ group      encode_groups   per group
    groups of a user, by time ── HSTU layers with relative time bias ── groups               evolve          per user
    newest events ── embed ── short                                                          embed_short     per user
    candidate ── attention over groups (size, age), over its own group's events,             head            per request
                 over the short sequence ── with counters and context ── MLP ── logits

Everything above `head` is a function of the user's state alone (`Tower`), so that it can be cached until the user's
next event; `encode_groups` depends on the events of one group alone, so that a group can be encoded again by itself.

Letters in shapes: B users, G groups, L events of a group, S short events, C candidates, N groups of any users, d =
`width`, H attention heads, e = d // H. Only operations that TensorRT converts are used; masks are additive, so that an
empty history gives zeros and never NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream_dmgin.features.spec import N_HOUR, N_STAT
from stream_dmgin.models.trunk import TENTS, Dense, DMGINConfig, Trunk, away, tents

GAPS, GAPS_AN_OCTAVE = 128, 6  # how finely the time between two groups is told apart


class Tower(NamedTuple):
    """What the head needs of a user's state. `e_id` and the masks are those of the inputs."""

    groups: Tensor  # [B,G,d]
    g_mask: Tensor  # [B,G]
    tokens: Tensor  # [B,G,L,d]
    e_id: Tensor  # [B,G,L]
    e_mask: Tensor  # [B,G,L]
    short: Tensor  # [B,S,d]
    s_mask: Tensor  # [B,S]


class OwnGroup(NamedTuple):
    """The events of each candidate's own group, and those of them on the very same item."""

    group: Tensor  # [B,C,d], zeros where the user has no such group
    tokens: Tensor  # [B,C,L,d]
    mask: Tensor  # [B,C,L] bool
    same: Tensor  # [B,C,L] bool


class InsideGroup(nn.Module):
    """Masked multi-head self-attention over the events of a group."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.out = nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x: Tensor, far: Tensor) -> Tensor:
        """Events x [N,L,d], additive mask far [N,L] -> [N,L,d]."""
        n, length, d = x.shape
        q, k, v = (
            self.qkv(self.norm(x)).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        )  # [N,H,L,e]
        weights = (q @ k.transpose(-1, -2) * (d // self.heads) ** -0.5 + far[:, None, None, :]).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).reshape(n, length, d)
        made: Tensor = x + self.out(mixed)
        return made


class HSTU(nn.Module):
    """One layer across groups: SiLU attention over all groups of the user, divided by their number, gated by U."""

    def __init__(self, d: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.norm_in, self.uvqk = nn.LayerNorm(d), nn.Linear(d, 4 * d)
        self.norm_out, self.out = nn.LayerNorm(d), nn.Linear(d, d)
        self.time = nn.Parameter(torch.zeros(TENTS, heads))

    def forward(self, x: Tensor, bias: Tensor, share: Tensor) -> Tensor:
        """Groups x [B,G,d]; bias [B,H,G,G]; share [B,1,1,G]: 1/n of an existing group, else 0."""
        b, g, d = x.shape
        u, v, q, k = F.silu(self.uvqk(self.norm_in(x))).chunk(4, -1)
        q, k, v = (y.view(b, g, self.heads, -1).transpose(1, 2) for y in (q, k, v))  # [B,H,G,e]
        weights = F.silu(q @ k.transpose(-1, -2) * (d // self.heads) ** -0.5 + bias) * share
        mixed = (weights @ v).transpose(1, 2).reshape(b, g, d)
        made: Tensor = x + self.dropout(self.out(self.norm_out(mixed) * u))
        return made


class DMGIN(Trunk):
    """The model. Inputs are mappings of tensors by the names of `features/spec.py`; integer inputs may be int32.

    `config.off` leaves modules out, to measure what they are worth: eager PyTorch serves such a model, the other engines refuse it.
    """

    gap_tents: Tensor

    def __init__(self, config: DMGINConfig) -> None:
        off = frozenset(config.off)
        lost = ("own-group" in off) * 2 + ("same-item" in off) + ("short" in off) * 2
        super().__init__(config, 7 - lost)
        self.off, d = off, config.width
        self.hour = nn.Embedding(N_HOUR, d)
        nn.init.normal_(self.hour.weight, std=0.05)
        if "inside" not in off:
            self.inside = InsideGroup(d, config.attention_heads)
        self.stat = Dense(N_STAT, 0)
        if "stat" not in off:
            self.stat_in = nn.Linear(self.stat.out, d)
        self.group = nn.Linear(d if "stat" in off else 2 * d, d)
        layers = config.layers if "across" not in off else 0
        if layers:
            self.group_time = nn.Linear(TENTS, d, bias=False)
        self.across = nn.ModuleList([HSTU(d, config.attention_heads, config.dropout) for _ in range(layers)])
        self.register_buffer("gap_tents", tents(torch.arange(GAPS) / GAPS_AN_OCTAVE), persistent=False)
        # attention of the candidate: over groups, its own group's events, those on the same item
        if "attention" not in off:
            self.ask_groups, self.groups_key = nn.Linear(d, d), nn.Linear(d, d)
            if "bias" not in off:
                self.size_bias = nn.Parameter(torch.ones(1))
                self.age_bias = nn.Parameter(torch.zeros(TENTS, 1))
                self.own_bias = nn.Parameter(torch.zeros(1))
        if not {"own-group", "same-item"} <= off:
            self.ask_own = nn.Linear(d, d)

    def dense_inputs(self) -> Mapping[str, Dense]:
        """As `Trunk` says; the statistics of groups too."""
        return {**super().dense_inputs(), "g_stat": self.stat}

    def comparisons(self) -> list[tuple[nn.Linear, nn.Linear | None]]:
        """As `Trunk` says; over the events of the own group too."""
        own = [] if {"own-group", "same-item"} <= self.off else [(self.ask_own, None)]
        return [*super().comparisons(), *own]

    # -- user side ---------------------------------------------------------------------------------------------------

    def encode_groups(self, x: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """N groups, each by itself: e_* [N,L,...], e_mask [N,L], g_stat [N,N_STAT] -> groups [N,d], tokens [N,L,d]."""
        mask = x["e_mask"]
        keep = mask.to(torch.float32).unsqueeze(-1)  # [N,L,1]
        events = self.embed_events(x, "e") + self.hour(x["e_hour"])
        tokens = (events if "inside" in self.off else self.inside(events, away(mask))) * keep
        dyna = tokens.sum(-2) / keep.sum(-2).clamp(min=1.0)  # mean of the group's events
        if "stat" in self.off:
            plain: Tensor = self.group(dyna)
            return plain, tokens
        stat = F.silu(self.stat_in(self.stat(x["g_stat"])))
        return self.group(torch.cat([dyna, stat], -1)), tokens

    def evolve(self, groups: Tensor, g_time: Tensor, g_mask: Tensor) -> Tensor:
        """The groups [B,G,d] of each user see one another (g_time, g_mask [B,G]) -> [B,G,d], zeros where there is none."""
        keep = g_mask.to(torch.float32)
        if not self.across:
            return groups * keep.unsqueeze(-1)
        minutes = torch.exp(g_time * 0.6931472)
        apart = (minutes.unsqueeze(-1) - minutes.unsqueeze(-2)).abs()
        gaps = (torch.log(1.0 + apart) * (GAPS_AN_OCTAVE * 1.442695)).clamp(max=GAPS - 1.0).to(torch.int32)  # [B,G,G]
        # relative time bias of every layer at once: piecewise linear in the time between two groups
        table = self.gap_tents @ torch.cat(self.times(), -1)  # [GAPS,layers*H]
        if self.training:  # the same look-up, with a gradient that costs a fifth; but it does not convert
            index = gaps.flatten().to(torch.int64).unsqueeze(0).expand(table.shape[1], -1)
            found = table.T.gather(1, index).view(-1, *gaps.shape).transpose(0, 1)
        else:
            found = F.embedding(gaps, table).permute(0, 3, 1, 2)
        biases = found.chunk(len(self.across), 1)  # [B,H,G,G] each
        share = (keep / keep.sum(-1, keepdim=True).clamp(min=1.0))[:, None, None, :]
        x: Tensor = groups + self.group_time(tents(g_time))
        for layer, bias in zip(self.across, biases, strict=True):
            x = layer(x, bias, share)
        return x * keep.unsqueeze(-1)

    def times(self) -> list[Tensor]:
        """What each layer makes of the time between two groups [TENTS,H]."""
        return [layer.time for layer in self.across if isinstance(layer, HSTU)]

    def user_tower(self, x: Mapping[str, Tensor]) -> Tower:
        """The whole user side on padded inputs. `models/ragged.py` gives the same and leaves the padding out."""
        b, g = x["g_mask"].shape
        rows = {k: v.flatten(0, 1) for k, v in x.items() if k.startswith("e_") or k == "g_stat"}
        groups, tokens = self.encode_groups(rows)
        groups = self.evolve(groups.view(b, g, -1), x["g_time"], x["g_mask"])
        tokens = tokens.view(b, g, -1, self.config.width)
        return Tower(groups, x["g_mask"], tokens, x["e_id"], x["e_mask"], self.embed_short(x), x["s_mask"])

    # -- request side ------------------------------------------------------------------------------------------------

    def head(self, tower: Tower, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits of `ctr` and each further head [B,C], from the tower and the request side of the inputs."""
        b, g = tower.g_mask.shape
        has = x["c_group"] < g  # [B,C]
        index = x["c_group"].clamp(max=g - 1).to(torch.int64)
        flat = (index + torch.arange(b, device=index.device).unsqueeze(-1) * g).flatten()  # row of B*G

        def own(of: Tensor) -> Tensor:
            return of.flatten(0, 1).index_select(0, flat).view(b, -1, *of.shape[2:])

        mask = own(tower.e_mask) & has.unsqueeze(-1)
        same = mask & (own(tower.e_id) == x["c_id"].unsqueeze(-1))
        group = own(tower.groups) * has.to(torch.float32).unsqueeze(-1)
        return self.score(tower, OwnGroup(group, own(tower.tokens), mask, same), x)

    def score(self, tower: Tower, own: OwnGroup, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`head` once the candidates' own groups are gathered; does not read tower.tokens, tower.e_id, tower.e_mask."""
        target = self.target(x)  # [B,C,d]
        long = self.over_groups(target, tower, x)
        interests = [target, long, target * long]
        if not {"own-group", "same-item"} <= self.off:  # over the events of its own group, and those on the same item
            asked = (self.ask_own(target).unsqueeze(-2) * own.tokens).sum(-1) * target.shape[-1] ** -0.5  # [B,C,L]
            if "own-group" not in self.off:
                interests += [own.group, self.mix(asked, own.mask, own.tokens)]
            if "same-item" not in self.off:
                interests += [self.mix(asked, own.same, own.tokens)]
        if "short" not in self.off:
            short = self.near(target, tower.short, tower.s_mask)
            interests += [short, target * short]
        return self.logits(interests, x)

    def over_groups(self, target: Tensor, tower: Tower, x: Mapping[str, Tensor]) -> Tensor:
        """Attention of the candidates [B,C,d] over the user's groups: similarity + ln(size) + age + "its own group" -> [B,C,d].

        Groups that don't exist are zeros; an existing one has a size of at least ln 2.
        """
        if "attention" in self.off:
            keep = tower.g_mask.to(torch.float32).unsqueeze(-1)
            mean = (tower.groups * keep).sum(-2) / keep.sum(-2).clamp(min=1.0)
            return mean.unsqueeze(-2).expand_as(target)
        similar = self.ask_groups(target) @ self.groups_key(tower.groups).transpose(-1, -2) * target.shape[-1] ** -0.5
        bias = away(tower.g_mask).unsqueeze(-2)
        if "bias" not in self.off:
            number = torch.arange(x["g_age"].shape[1], device=target.device)
            told = self.size_bias * x["g_size"] + (tents(x["g_age"]) @ self.age_bias).squeeze(-1)  # [B,G]
            is_own = (x["c_group"].unsqueeze(-1) == number).to(torch.float32) * self.own_bias  # [B,C,G]
            bias = bias + told.unsqueeze(-2) + is_own
        weighed: Tensor = (similar + bias).softmax(-1) @ tower.groups
        return weighed

    @staticmethod
    def mix(asked: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
        """Attention over each candidate's own events: asked [B,C,L], mask [B,C,L], tokens [B,C,L,d] -> [B,C,d], zeros
        where none.
        """
        weights = (asked + away(mask)).softmax(-1) * mask.to(torch.float32)
        return (weights.unsqueeze(-2) @ tokens).squeeze(-2)

    def forward(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Both sides, padded."""
        return self.head(self.user_tower(x), x)
