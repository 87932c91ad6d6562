"""DMGIN on a CPU core without padding and without an operator call for every step: the fast path where there is no GPU.

The same function as `models/dmgin.py`, arranged for one core: linear layers of embeddings are multiplied into their tables
once, scales and shifts of layer norms into the layers behind them; events and groups that don't exist take no time; what
lies between two matrix products is one compiled kernel (`fused_tower.py`, `fused_head.py`). The matrix products are torch's.
Logits equal the eager engine's to TOLERANCE; `verify` holds them to it before an engine is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stream_dmgin.errors import StreamDmginError
from stream_dmgin.features.spec import InputSpec
from stream_dmgin.models.dmgin import DMGIN, GAPS, GAPS_AN_OCTAVE, HSTU
from stream_dmgin.models.registry import Model
from stream_dmgin.scoring import fused_head, fused_tower
from stream_dmgin.scoring.engine import Inputs, UserTower, calibrated
from stream_dmgin.scoring.graphs import difference

TOLERANCE = 5e-5  # of logits against eager: other kernels, another order of sums, all in fp32
Floats = NDArray[np.float32]


class FusedTower:
    """A user's groups [n,d], their events [E,d] with first events `starts` [n+1] and ids [E], short events [s,d]; keys are what
    candidates are compared with.
    """

    __slots__ = ("group_keys", "groups", "ids", "nbytes", "short", "short_keys", "starts", "tokens")

    def __init__(
        self, groups: Floats, group_keys: Floats, tokens: Floats, starts: NDArray[np.int64], ids: NDArray[np.int32],
        short: Floats, short_keys: Floats,
    ) -> None:  # fmt: skip
        self.groups, self.group_keys, self.tokens, self.starts, self.ids = groups, group_keys, tokens, starts, ids
        self.short, self.short_keys = short, short_keys
        self.nbytes = sum(x.nbytes for x in (groups, group_keys, tokens, starts, ids, short, short_keys))


class Linear:
    """x @ weight + bias of a matrix product: weight [in,out], bias [out]."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight.contiguous(), bias.contiguous()

    def __call__(self, x: Floats, out: Floats) -> Floats:
        """Rows [n,in] -> out [n,out]."""
        torch.addmm(self.bias, torch.from_numpy(x), self.weight, out=torch.from_numpy(out))
        return out

    def add(self, rows: Floats, x: Floats) -> None:
        """Add the product to `rows`, which have the bias already."""
        torch.from_numpy(rows).addmm_(torch.from_numpy(x), self.weight)


class Buffers:
    """Memory by name that grows when more is asked for: a call allocates nothing once the largest has been seen."""

    def __init__(self) -> None:
        self._flat: dict[str, NDArray[Any]] = {}

    def __call__(self, name: str, *shape: int, dtype: Any = np.float32) -> NDArray[Any]:
        """An array of this shape with any content."""
        size = 1
        for n in shape:
            size *= n
        flat = self._flat.get(name)
        if flat is None or len(flat) < size:
            flat = self._flat[name] = np.zeros(size + size // 4 + 16, dtype)
        return flat[:size].reshape(shape)


class FusedEngine:
    """A plain DMGIN on one CPU core. Not safe for several threads at once."""

    name = "fused"

    def __init__(self, model: Model) -> None:
        if type(model.network) is not DMGIN:
            raise StreamDmginError(f"the fused engine knows DMGIN alone, not {type(model.network).__name__}")
        if model.config.off:
            raise StreamDmginError(
                f"the fused engine knows the whole DMGIN alone, not one without {', '.join(model.config.off)}"
            )
        torch.set_num_threads(1)
        self.model = model
        self._memory = Buffers()
        with torch.inference_mode():
            self._take(model.network)

    @property
    def spec(self) -> InputSpec:
        """Sizes of the inputs it takes."""
        return self.model.config.spec

    def verify(self) -> float:
        """Greatest difference of logits from the eager model on random inputs. StreamDmginError beyond TOLERANCE."""
        worst = difference(self, ((1, 1), (3, 20), (5, 7)))
        if not worst <= TOLERANCE:
            raise StreamDmginError(f"the fused engine of {self.model.id} differs from the model by {worst:.2g}")
        return worst

    # Weights, as the kernels want them

    def _take(self, m: DMGIN) -> None:
        """Tables and layers of the network, multiplied out. Copies: the network may go on training."""
        c = m.config
        d, item, small = c.width, c.item_width, m.category.embedding_dim
        self._d, self._heads, self._outputs = d, c.attention_heads, ("ctr", *c.heads)

        def tables(layer: nn.Linear) -> tuple[Floats, Floats, Floats]:
            parts = torch.split(layer.weight, [item, small, small], 1)
            found = [table.weight @ w.T for table, w in zip((m.item, m.category, m.advertiser), parts, strict=True)]
            return _np(found[0] + layer.bias), _np(found[1]), _np(found[2])

        self._event_tables, self._candidate_tables = tables(m.event), tables(m.candidate)
        self._about = tuple(_np(t.weight) for t in (m.behaviour, m.age, m.dwell, m.hour))
        self._inside_bias = _np(m.inside.out.bias)
        self._qkv = _behind_norm(m.inside.norm, m.inside.qkv)
        self._inside_out = Linear(m.inside.out.weight.T, m.inside.out.bias)
        self._stat = (_np(m.stat.mean), _np(m.stat.scale), _np(m.stat_in.weight.T), _np(m.stat_in.bias))
        self._group = Linear(m.group.weight.T, m.group.bias)
        self._group_time = _np(m.group_time.weight.T)
        self._gap_table = _np(m.gap_tents @ torch.cat(m.times(), -1))
        self._across = [
            (_behind_norm(x.norm_in, x.uvqk), _np(x.norm_out.weight), _np(x.norm_out.bias), Linear(x.out.weight.T, x.out.bias))
            for x in m.across if isinstance(x, HSTU)
        ]  # fmt: skip
        scale = d**-0.5
        self._group_key = Linear(m.groups_key.weight.T * scale, m.groups_key.bias * scale)
        self._short_key = Linear(m.short_key.weight.T * scale, m.short_key.bias * scale)
        asks = (m.ask_groups, 1.0), (m.ask_own, scale), (m.ask_short, 1.0)
        self._asks = Linear(
            torch.cat([x.weight.T * s for x, s in asks], 1), torch.cat([x.bias * s for x, s in asks])
        )  # fmt: skip
        self._biases = (np.float32(m.size_bias.item()), _np(m.age_bias.squeeze(-1)), np.float32(m.own_bias.item()))
        self._dense_c, self._dense_u = (
            tuple(_np(t) for t in (x.mean, x.scale, x.slope, x.shift)) for x in (m.c_dense, m.u_dense)
        )
        self._columns = (m.c_dense.out, m.u_dense.out)
        self._surface = _np(m.surface.weight)
        n = len(self._outputs)
        self._wide_c = Linear(
            torch.cat([m.dense_c.weight.T, m.wide_c.weight.T], 1), torch.cat([m.dense_c.bias, torch.zeros(n)])
        )
        wide_u = torch.cat([m.wide_u.weight.T, torch.zeros(self._surface.shape[1], n)])
        self._wide_u = Linear(torch.cat([m.dense_u.weight.T, wide_u], 1), torch.zeros(c.hidden[0] + n))
        self._interest = Linear(m.interest.weight.T, m.interest.bias)
        self._norms = tuple(_np(t) for x in (m.norm1, m.norm2) for t in (x.weight, x.bias))
        mlp = m.mlp[0]
        assert isinstance(mlp, nn.Linear)
        self._mlp = Linear(mlp.weight.T, mlp.bias)
        self._deep = (_np(m.deep.weight), _np(m.deep.bias))
        self._hidden = c.hidden

    # User side

    @torch.inference_mode()
    def tower(self, inputs: Inputs) -> list[UserTower]:
        """User side of B users -> their towers."""
        x, new, d = inputs, self._memory, self._d
        b, g = x["g_mask"].shape
        users, starts = new("users", b + 1, 2, dtype=np.int64), new("starts", b * g + 1, dtype=np.int64)
        events = fused_tower.count(x["g_mask"], x["e_mask"], x["s_mask"], users, starts)
        groups, shorts = (int(n) for n in users[b])
        tokens, normal, ids = new("tokens", events, d), new("normal", events, d), new("ids", events, dtype=np.int32)
        fused_tower.embed(
            users, starts, x["e_item"], x["e_id"], x["e_cls"], x["e_time"], x["e_dwell"], x["e_hour"],
            *self._event_tables, *self._about, self._inside_bias, tokens, normal, ids,
        )  # fmt: skip
        qkv = self._qkv(normal, new("qkv", events, 3 * d))
        fused_tower.inside(starts, groups, self._heads, qkv, normal)
        self._inside_out.add(tokens, normal)
        both = new("both", groups, 2 * d)
        fused_tower.summarise(users, starts, tokens, x["g_stat"], *self._stat, both)
        rows = self._group(both, new("groups", groups, d))
        self._evolve(users, x["g_time"], rows)
        short = new("short", shorts, d)
        fused_tower.embed_short(
            users, x["s_item"], x["s_cls"], x["s_time"], x["s_dwell"], *self._event_tables, *self._about[:3], short
        )
        keys, short_keys = self._group_key(rows, new("keys", groups, d)), self._short_key(short, new("sk", shorts, d))
        return self._split(users, starts, rows, keys, tokens, ids, short, short_keys)

    def _evolve(self, users: NDArray[np.int64], g_time: Floats, rows: Floats) -> None:
        """The groups of each user see one another; rows [N,d] are changed in place."""
        new, d, n = self._memory, self._d, len(rows)
        b, g = g_time.shape
        # These two are taken by torch, so that a gap falls into the same step as in the network itself
        minutes = torch.exp(torch.from_numpy(g_time) * 0.6931472).numpy()
        at, apart = new("at", b, dtype=np.int64), new("apart", b * g * g)
        pairs = fused_tower.between(users, minutes, at, apart)
        steps = torch.log(torch.from_numpy(apart[:pairs])).mul_(GAPS_AN_OCTAVE * 1.442695).clamp_(max=GAPS - 1.0)
        gaps = steps.to(torch.int32).numpy()
        fused_tower.place(users, g_time, self._group_time, rows)
        normal, uvqk = new("g_normal", n, d), new("uvqk", n, 4 * d)
        for layer, (linear, gamma, beta, out) in enumerate(self._across):
            fused_tower.normalise_rows(rows, n, normal)
            linear(normal, uvqk)
            fused_tower.across(
                users, at, gaps, self._gap_table, layer * self._heads, self._heads, uvqk, gamma, beta, normal
            )
            rows += out.bias.numpy()
            out.add(rows, normal)

    def _split(
        self, users: NDArray[np.int64], starts: NDArray[np.int64], groups: Floats, keys: Floats, tokens: Floats,
        ids: NDArray[np.int32], short: Floats, short_keys: Floats,
    ) -> list[UserTower]:  # fmt: skip
        towers: list[UserTower] = []
        bounds = users.tolist()
        for (g0, s0), (g1, s1) in zip(bounds, bounds[1:], strict=False):
            first = starts[g0 : g1 + 1] - starts[g0]
            e0, e1 = int(starts[g0]), int(starts[g1])
            towers.append(
                FusedTower(
                    groups[g0:g1].copy(), keys[g0:g1].copy(), tokens[e0:e1].copy(), first, ids[e0:e1].copy(),
                    short[s0:s1].copy(), short_keys[s0:s1].copy(),
                )
            )  # fmt: skip
        return towers

    # Request side

    @torch.inference_mode()
    def logits(self, towers: Sequence[UserTower], inputs: Inputs) -> dict[str, Floats]:
        """Request side of B requests, one tower each -> raw logits [B,C] per head."""
        x, new, d = inputs, self._memory, self._d
        b, c = x["c_id"].shape
        n, (h1, h2), outputs = b * c, self._hidden, len(self._outputs)
        dense = new("dense", n, self._columns[0])
        fused_head.dense(x["c_dense"].reshape(n, -1), *self._dense_c, dense)
        wide = self._wide_c(dense, new("wide", n, h1 + outputs))
        user = new("user", b, self._columns[1] + self._surface.shape[1])
        fused_head.dense(x["u_dense"], *self._dense_u, user)
        fused_head.put_surface(x["x_cat"], self._surface, self._columns[1], user)
        of_user = self._wide_u(user, new("wide_u", b, h1 + outputs))
        target = new("target", n, d)
        fused_head.targets(x["c_item"].reshape(n, 3), *self._candidate_tables, target)
        asks = self._asks(target, new("asks", n, 3 * d))
        interests = new("interests", n, 8 * d)
        for i, t in enumerate(towers):
            assert isinstance(t, FusedTower)
            rows = slice(i * c, (i + 1) * c)
            fused_head.attend(
                target[rows], asks[rows], x["c_id"][i], x["c_group"][i], x["g_age"][i], x["g_size"][i], *self._biases,
                t.groups, t.group_keys, t.tokens, t.starts, t.ids, t.short, t.short_keys, interests[rows],
            )  # fmt: skip
        deep = self._interest(interests, new("deep", n, h1))
        both = new("joined", n, 2 * h1)
        fused_head.join(c, wide, of_user, deep, *self._norms, both)
        hidden = self._mlp(both, new("hidden", n, h2))
        out = np.empty((n, outputs), np.float32)
        fused_head.logits(c, hidden, *self._deep, wide, h1, of_user, out)
        return {head: out[:, i].reshape(b, c) for i, head in enumerate(self._outputs)}

    def head(self, towers: Sequence[UserTower], inputs: Inputs) -> dict[str, NDArray[np.float64]]:
        """As `logits`, as calibrated probabilities."""
        return calibrated(self.model, self.logits(towers, inputs), inputs)


def _np(t: Tensor) -> Floats:
    """A copy as a contiguous array."""
    return np.array(t.detach().numpy(), np.float32, order="C")


def _behind_norm(norm: nn.LayerNorm, linear: nn.Linear) -> Linear:
    """A linear layer that takes what the norm has not scaled and shifted."""
    weight = linear.weight * norm.weight
    return Linear(weight.T, linear.bias + linear.weight @ norm.bias)
