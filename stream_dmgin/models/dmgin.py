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
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream_dmgin.features.spec import N_AGE, N_CLS, N_DWELL, N_HOUR, N_STAT, InputSpec

FAR = -1e4  # additive mask: softmax gives such a place nothing, and a row of only such places stays finite
TENTS, TENT_STEP = 8, 3.0  # tent functions over log2(1 + minutes): one per 3 octaves, up to 2^21 minutes (4 years)
GAPS, GAPS_AN_OCTAVE = 128, 6  # how finely the time between two groups is told apart


@dataclass(frozen=True)
class DMGINConfig:
    """Sizes of a model. `heads`: names of the post-click heads beside `ctr`; `bins`: quantile steps a dense input is
    cut into.
    """

    spec: InputSpec = field(default_factory=InputSpec)
    heads: tuple[str, ...] = ()
    width: int = 32
    attention_heads: int = 2
    layers: int = 2
    item_width: int = 16
    hidden: tuple[int, int] = (128, 64)
    bins: int = 8
    dropout: float = 0.1
    hash_dropout: float = 0.1  # share of item ids that training hides, so that the unknown item (bucket 0) is learned


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


def tents(x: Tensor) -> Tensor:
    """[...] -> [...,TENTS]: weights of the two tent functions x lies between; they sum to 1."""
    centres = torch.arange(TENTS, dtype=x.dtype, device=x.device)
    return F.relu(1.0 - (x.clamp(0.0, TENT_STEP * (TENTS - 1)).unsqueeze(-1) / TENT_STEP - centres).abs())


def away(mask: Tensor) -> Tensor:
    """Bool mask -> additive mask: 0 where something is, FAR where nothing is."""
    return (mask.to(torch.float32) - 1.0) * -FAR


class Dense(nn.Module):
    """Dense inputs -> their standardised values beside their place between stored quantiles (a piecewise linear
    encoding).
    """

    mean: Tensor
    scale: Tensor
    slope: Tensor
    shift: Tensor

    def __init__(self, size: int, bins: int) -> None:
        super().__init__()
        self.out = size * (1 + bins)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("slope", torch.zeros(size, bins))
        self.register_buffer("shift", torch.zeros(size, bins))

    def fit(self, x: Tensor) -> None:
        """Take mean, deviation and quantiles from x [n,size]. A constant input, and a step between equal quantiles,
        become zeros.
        """
        if not len(x):
            return
        std = x.std(0, correction=0)
        self.mean.copy_(x.mean(0))
        self.scale.copy_(torch.where(std > 1e-6, 1.0 / std.clamp(min=1e-6), 0.0))
        knots = torch.quantile(
            x[:: max(1, len(x) // 100_000)], torch.linspace(0.0, 1.0, self.slope.shape[1] + 1), dim=0
        ).T
        low, width = knots[:, :-1], knots[:, 1:] - knots[:, :-1]  # [size,bins]
        real = width > 1e-6
        self.slope.copy_(torch.where(real, 1.0 / width.clamp(min=1e-6), 0.0))
        self.shift.copy_(torch.where(real, -low / width.clamp(min=1e-6), 0.0))

    def forward(self, x: Tensor) -> Tensor:
        """[...,size] -> [...,out]."""
        z = ((x - self.mean) * self.scale).clamp(-6.0, 6.0)
        if not self.slope.shape[1]:
            return z
        steps = torch.addcmul(self.shift, x.unsqueeze(-1), self.slope).clamp(0.0, 1.0)  # how far through each step
        return torch.cat([z, steps.flatten(-2)], -1)


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


class DMGIN(nn.Module):
    """The model. Inputs are mappings of tensors by the names of `features/spec.py`; integer inputs may be int32."""

    gap_tents: Tensor

    def __init__(self, config: DMGINConfig) -> None:
        super().__init__()
        self.config, spec, d = config, config.spec, config.width
        item, small = config.item_width, max(4, config.item_width // 2)
        self.item = nn.Embedding(spec.item_buckets, item)
        self.category = nn.Embedding(spec.category_buckets, small)
        self.advertiser = nn.Embedding(spec.advertiser_buckets, small)
        self.event = nn.Linear(item + 2 * small, d)  # an event's item
        self.candidate = nn.Linear(item + 2 * small, d)  # the candidate
        self.behaviour, self.age = nn.Embedding(N_CLS, d), nn.Embedding(N_AGE, d)
        self.dwell, self.hour = nn.Embedding(N_DWELL, d), nn.Embedding(N_HOUR, d)
        self.inside = InsideGroup(d, config.attention_heads)
        self.stat = Dense(N_STAT, 0)
        self.stat_in, self.group = nn.Linear(self.stat.out, d), nn.Linear(2 * d, d)
        self.group_time = nn.Linear(TENTS, d, bias=False)
        self.across = nn.ModuleList([HSTU(d, config.attention_heads, config.dropout) for _ in range(config.layers)])
        self.register_buffer("gap_tents", tents(torch.arange(GAPS) / GAPS_AN_OCTAVE), persistent=False)
        # attention of the candidate: over groups, its own group's events, those on the same item, the short sequence
        self.ask_groups, self.groups_key = nn.Linear(d, d), nn.Linear(d, d)
        self.size_bias = nn.Parameter(torch.ones(1))
        self.age_bias = nn.Parameter(torch.zeros(TENTS, 1))
        self.own_bias = nn.Parameter(torch.zeros(1))
        self.ask_own, self.ask_short, self.short_key = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        # counters, context and the MLP
        columns = len(spec.candidate_features)
        self.c_dense, self.u_dense = Dense(columns, config.bins), Dense(len(spec.user_features), config.bins)
        self.surface = nn.Embedding(spec.surface_buckets, 8)
        h1, h2 = config.hidden
        self.dense_c, self.dense_u = nn.Linear(self.c_dense.out, h1), nn.Linear(self.u_dense.out + 8, h1, bias=False)
        self.interest = nn.Linear(8 * d, h1)
        self.norm1, self.norm2 = nn.LayerNorm(h1), nn.LayerNorm(h1)
        self.mlp = nn.Sequential(nn.Linear(2 * h1, h2), nn.SiLU(), nn.Dropout(config.dropout))
        outputs = 1 + len(config.heads)
        self.deep = nn.Linear(h2, outputs)
        self.wide_c = nn.Linear(self.c_dense.out, outputs, bias=False)
        self.wide_u = nn.Linear(self.u_dense.out, outputs, bias=False)
        self.drop = nn.Dropout(config.dropout)
        for table in (
            self.item,
            self.category,
            self.advertiser,
            self.behaviour,
            self.age,
            self.dwell,
            self.hour,
            self.surface,
        ):
            nn.init.normal_(table.weight, std=0.05)
        for linear in (self.wide_c, self.wide_u):
            nn.init.zeros_(linear.weight)

    # -- user side ---------------------------------------------------------------------------------------------------

    def embed_items(self, item: Tensor) -> Tensor:
        """Buckets of item, category and advertiser [...,3] -> [..., item_width + 2 * small]."""
        bucket = item[..., 0]
        if self.training and self.config.hash_dropout > 0:
            bucket = torch.where(torch.rand(bucket.shape) < self.config.hash_dropout, torch.zeros_like(bucket), bucket)
        return torch.cat([self.item(bucket), self.category(item[..., 1]), self.advertiser(item[..., 2])], -1)

    def embed_events(self, x: Mapping[str, Tensor], kind: str) -> Tensor:
        """Events `e_*` or `s_*` of any leading shape -> [...,d]."""
        about: Tensor = self.behaviour(x[f"{kind}_cls"]) + self.age(x[f"{kind}_time"]) + self.dwell(x[f"{kind}_dwell"])
        item: Tensor = self.event(self.embed_items(x[f"{kind}_item"]))
        return item + about

    def encode_groups(self, x: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """N groups, each by itself: e_* [N,L,...], e_mask [N,L], g_stat [N,N_STAT] -> groups [N,d], tokens [N,L,d]."""
        mask = x["e_mask"]
        keep = mask.to(torch.float32).unsqueeze(-1)  # [N,L,1]
        tokens = self.inside(self.embed_events(x, "e") + self.hour(x["e_hour"]), away(mask)) * keep
        dyna = tokens.sum(-2) / keep.sum(-2).clamp(min=1.0)  # mean of the group's events
        stat = F.silu(self.stat_in(self.stat(x["g_stat"])))
        return self.group(torch.cat([dyna, stat], -1)), tokens

    def evolve(self, groups: Tensor, g_time: Tensor, g_mask: Tensor) -> Tensor:
        """The groups [B,G,d] of each user see one another (g_time, g_mask [B,G]) -> [B,G,d], zeros where there is none."""
        keep = g_mask.to(torch.float32)
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

    def embed_short(self, x: Mapping[str, Tensor]) -> Tensor:
        """The user's newest events s_* [B,S,...] -> [B,S,d]."""
        return self.embed_events(x, "s")

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
        target = self.candidate(self.embed_items(x["c_item"]))  # [B,C,d]
        d = target.shape[-1]
        # over the user's groups: similarity + ln(size) + age + "its own group" (an existing group has a size of at least ln 2)
        number = torch.arange(x["g_age"].shape[1], device=target.device)
        bias = (
            self.size_bias * x["g_size"] + (tents(x["g_age"]) @ self.age_bias).squeeze(-1) + away(tower.g_mask)
        )  # [B,G]
        is_own = (x["c_group"].unsqueeze(-1) == number).to(torch.float32) * self.own_bias  # [B,C,G]
        similar = self.ask_groups(target) @ self.groups_key(tower.groups).transpose(-1, -2) * d**-0.5
        long = (similar + bias.unsqueeze(-2) + is_own).softmax(
            -1
        ) @ tower.groups  # [B,C,d]; groups that don't exist are zeros
        # over the events of its own group, and those on the same item
        asked = (self.ask_own(target).unsqueeze(-2) * own.tokens).sum(-1) * d**-0.5  # [B,C,L]
        group_events = self.mix(asked, own.mask, own.tokens)
        item_events = self.mix(asked, own.same, own.tokens)
        # over the newest events
        near = self.ask_short(target) @ self.short_key(tower.short).transpose(-1, -2) * d**-0.5 + away(
            tower.s_mask
        ).unsqueeze(-2)
        some = tower.s_mask.any(-1).to(torch.float32)[:, None, None]
        short = near.softmax(-1) @ tower.short * some  # [B,C,d]
        interests = [target, long, target * long, own.group, group_events, item_events, short, target * short]
        # with counters, user and context
        c, u = self.c_dense(x["c_dense"]), self.u_dense(x["u_dense"])
        user = torch.cat([u, self.surface(x["x_cat"])], -1)
        dense = F.silu(self.norm1(self.dense_c(self.drop(c)) + self.dense_u(user).unsqueeze(-2)))  # [B,C,h1]
        deep = F.silu(self.norm2(self.interest(self.drop(torch.cat(interests, -1)))))
        hidden = self.mlp(self.drop(torch.cat([dense, deep], -1)))
        logits = self.deep(hidden) + self.wide_c(c) + self.wide_u(u).unsqueeze(-2)  # [B,C,1+heads]
        return {name: logits[..., i] for i, name in enumerate(("ctr", *self.config.heads))}

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
