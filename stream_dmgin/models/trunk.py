"""What every network here has in common, whatever it makes of a user's past: tables of items, the newest events, the dense
inputs, the MLP that ends in logits. `DMGIN` and its peers (`models/peers/`) put their vectors of interest between.

    candidate ── embed ── target                                   [B,C,d]
    newest events ── embed ── attention of the candidate ── short   [B,C,d]
    counters, user, context ── standardised and cut into steps      dense path
    [target, short, target * short, interests ...] ── with the dense path ── MLP ── logits; the dense inputs add to them straight

Letters in shapes as in `models/dmgin.py`: B users, S short events, C candidates, d = `width`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream_dmgin.features.spec import N_AGE, N_CLS, N_DWELL, InputSpec

FAR = -1e4  # additive mask: softmax gives such a place nothing, and a row of only such places stays finite
TENTS, TENT_STEP = 8, 3.0  # tent functions over log2(1 + minutes): one per 3 octaves, up to 2^21 minutes (4 years)
# What `DMGINConfig.off` can switch off, to measure what each is worth; `features/spec.py` and `models/dmgin.py` say what they are
MODULES = {
    "stat": "statistics of each group",
    "inside": "attention inside a group: the plain mean of its events is left",
    "across": "HSTU across groups, and the time between them",
    "attention": "attention of the candidate over groups: the plain mean of all is left",
    "bias": "size, age and own-group terms of that attention",
    "own-group": "the candidate's own group: its vector, its events",
    "same-item": "events on the very same item",
    "short": "the newest events over all groups",
}


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
    off: tuple[str, ...] = ()  # modules left out (MODULES): ablations

    def __post_init__(self) -> None:
        if not set(self.off) <= set(MODULES):
            raise ValueError(f"modules {self.off} can't be switched off: name some of {', '.join(MODULES)}")


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


class Trunk(nn.Module):
    """Tables, dense path and MLP. A network is a `Trunk` with modules of interest that calls `logits`; `vectors` is how many
    vectors [B,C,d] it gives beside the candidate's own.
    """

    def __init__(self, config: DMGINConfig, vectors: int) -> None:
        super().__init__()
        self.config, spec, d = config, config.spec, config.width
        item, small = config.item_width, max(4, config.item_width // 2)
        self.item = nn.Embedding(spec.item_buckets, item)
        self.category = nn.Embedding(spec.category_buckets, small)
        self.advertiser = nn.Embedding(spec.advertiser_buckets, small)
        self.event = nn.Linear(item + 2 * small, d)  # an event's item
        self.candidate = nn.Linear(item + 2 * small, d)  # the candidate
        self.behaviour, self.age = nn.Embedding(N_CLS, d), nn.Embedding(N_AGE, d)
        self.dwell = nn.Embedding(N_DWELL, d)
        if "short" not in config.off:
            self.ask_short, self.short_key = nn.Linear(d, d), nn.Linear(d, d)
        # counters, context and the MLP
        columns = len(spec.candidate_features)
        self.c_dense, self.u_dense = Dense(columns, config.bins), Dense(len(spec.user_features), config.bins)
        self.surface = nn.Embedding(spec.surface_buckets, 8)
        h1, h2 = config.hidden
        self.dense_c, self.dense_u = nn.Linear(self.c_dense.out, h1), nn.Linear(self.u_dense.out + 8, h1, bias=False)
        self.interest = nn.Linear((1 + vectors) * d, h1)
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
            self.surface,
        ):
            nn.init.normal_(table.weight, std=0.05)
        for linear in (self.wide_c, self.wide_u):
            nn.init.zeros_(linear.weight)

    def dense_inputs(self) -> Mapping[str, Dense]:
        """What has to be fitted to the training rows before training, by the name of the input."""
        return {"c_dense": self.c_dense, "u_dense": self.u_dense}

    def comparisons(self) -> list[tuple[nn.Linear, nn.Linear | None]]:
        """Of each attention of the candidates over events: what projects the candidate, and what projects that with which it is compared
        (None: nothing does). The product of both is a similarity."""
        return [] if "short" in self.config.off else [(self.ask_short, self.short_key)]

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

    def embed_short(self, x: Mapping[str, Tensor]) -> Tensor:
        """The user's newest events s_* [B,S,...] -> [B,S,d]."""
        return self.embed_events(x, "s")

    def target(self, x: Mapping[str, Tensor]) -> Tensor:
        """The candidates c_item [B,C,3] -> [B,C,d]."""
        embedded: Tensor = self.candidate(self.embed_items(x["c_item"]))
        return embedded

    def near(self, target: Tensor, short: Tensor, s_mask: Tensor) -> Tensor:
        """Attention of the candidates [B,C,d] over the newest events [B,S,d], s_mask [B,S] -> [B,C,d], zeros where none."""
        similar = self.ask_short(target) @ self.short_key(short).transpose(-1, -2) * target.shape[-1] ** -0.5
        some = s_mask.any(-1).to(torch.float32)[:, None, None]
        mixed: Tensor = (similar + away(s_mask).unsqueeze(-2)).softmax(-1) @ short * some
        return mixed

    def logits(self, interests: Sequence[Tensor], x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits of `ctr` and each further head [B,C], from the candidate's and the `vectors` further vectors [B,C,d], and the
        dense inputs of x."""
        c, u = self.c_dense(x["c_dense"]), self.u_dense(x["u_dense"])
        user = torch.cat([u, self.surface(x["x_cat"])], -1)
        dense = F.silu(self.norm1(self.dense_c(self.drop(c)) + self.dense_u(user).unsqueeze(-2)))  # [B,C,h1]
        deep = F.silu(self.norm2(self.interest(self.drop(torch.cat([*interests], -1)))))
        hidden = self.mlp(self.drop(torch.cat([dense, deep], -1)))
        logits = self.deep(hidden) + self.wide_c(c) + self.wide_u(u).unsqueeze(-2)  # [B,C,1+heads]
        return {name: logits[..., i] for i, name in enumerate(("ctr", *self.config.heads))}
