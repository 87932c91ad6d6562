"""Tower and head as graphs of tensors in a fixed order, which compilers export; no compiler is imported here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stream_dmgin.features.spec import N_AGE, N_CLS, N_DWELL, N_HOUR, N_STAT, InputSpec
from stream_dmgin.models.dmgin import DMGIN, Tower
from stream_dmgin.scoring.engine import HEAD_INPUTS, Engine

Shape = tuple[int, ...]
TOWER_INPUTS = ("g_mask", "g_stat", "g_time", "e_item", "e_cls", "e_time", "e_dwell", "e_hour", "e_mask",
                "s_item", "s_cls", "s_time", "s_dwell")  # fmt: skip
CANDIDATE_INPUTS = ("c_item", "c_id", "c_group", "c_dense")
LEAST = 2  # the exporter takes a size of 1 for a constant: engines begin at 2, a single user or candidate is padded


class TowerGraph(nn.Module):
    """`DMGIN.user_tower` with tensors in a fixed order: TOWER_INPUTS -> groups, tokens, short."""

    def __init__(self, network: DMGIN) -> None:
        super().__init__()
        self.network = network

    def forward(self, *given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Padded user side -> groups [B,G,d], tokens [B,G,L,d], short [B,S,d]."""
        x = dict(zip(TOWER_INPUTS, given, strict=True))
        b, g = x["g_mask"].shape
        rows = {k: v.flatten(0, 1) for k, v in x.items() if k.startswith("e_") or k == "g_stat"}
        groups, tokens = self.network.encode_groups(rows)
        d = self.network.config.width
        groups = self.network.evolve(groups.reshape(b, g, d), x["g_time"], x["g_mask"])
        return groups, tokens.reshape(b, g, -1, d), self.network.embed_short(x)


class HeadGraph(nn.Module):
    """`DMGIN.head` with tensors in a fixed order: the fields of Tower, then HEAD_INPUTS -> logits [B,C,1+heads]."""

    def __init__(self, network: DMGIN) -> None:
        super().__init__()
        self.network = network

    def forward(self, *given: Tensor) -> Tensor:
        """Tower and request side -> logits [B,C,1+heads]."""
        n = len(Tower._fields)
        logits = self.network.head(Tower(*given[:n]), dict(zip(HEAD_INPUTS, given[n:], strict=True)))
        return torch.stack(list(logits.values()), -1)


def example_inputs(spec: InputSpec, users: int, candidates: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Random inputs of the right shapes and ranges, some histories empty: to export with and to verify with."""
    r = np.random.default_rng(seed)
    b, g, length, s, c = users, spec.groups, spec.events, spec.short, candidates

    def whole(high: int, *shape: int) -> NDArray[np.int32]:
        return r.integers(0, high, shape).astype(np.int32)

    def items(*shape: int) -> NDArray[np.int32]:
        sizes = (spec.item_buckets, spec.category_buckets, spec.advertiser_buckets)
        return np.stack([whole(high, *shape) for high in sizes], -1)

    n_groups = r.integers(0, g + 1, b)
    n_groups[0] = 0
    g_mask = np.arange(g) < n_groups[:, None]
    e_mask = (np.arange(length) < r.integers(0, length + 1, (b, g))[..., None]) & g_mask[..., None]
    c_group = whole(g, b, c)
    number = np.float32
    return {
        "g_mask": g_mask, "g_stat": r.exponential(1.0, (b, g, N_STAT)).astype(number), "e_mask": e_mask,
        "g_time": np.sort(r.uniform(0, 18, (b, g)), 1).astype(number), "e_item": items(b, g, length),
        "e_id": np.where(e_mask, whole(50, b, g, length), -1).astype(np.int32), "e_cls": whole(N_CLS, b, g, length),
        "e_time": whole(N_AGE, b, g, length), "e_dwell": whole(N_DWELL, b, g, length), "e_hour": whole(N_HOUR, b, g, length),
        "s_item": items(b, s), "s_cls": whole(N_CLS, b, s), "s_time": whole(N_AGE, b, s), "s_dwell": whole(N_DWELL, b, s),
        "s_mask": np.arange(s) < r.integers(0, s + 1, b)[:, None], "c_item": items(b, c), "c_id": whole(50, b, c),
        "c_group": np.where(c_group < n_groups[:, None], c_group, g).astype(np.int32),
        "c_dense": r.normal(0, 1, (b, c, len(spec.candidate_features))).astype(number), "c_mask": np.ones((b, c), np.bool_),
        "g_age": r.uniform(0, 18, (b, g)).astype(number), "g_size": (r.uniform(0.7, 5, (b, g)) * g_mask).astype(number),
        "u_dense": r.normal(0, 1, (b, len(spec.user_features))).astype(number), "x_cat": whole(spec.surface_buckets, b),
        **(_flat(spec, b, r, items, whole) if spec.flat else {}),
    }  # fmt: skip


def _flat(
    spec: InputSpec, b: int, r: np.random.Generator, items: Callable[..., NDArray[np.int32]], whole: Callable[..., NDArray[np.int32]]
) -> dict[str, NDArray[Any]]:  # fmt: skip
    """h_* of b users; the first has none."""
    n = r.integers(0, spec.flat + 1, b)
    n[0] = 0
    mask = np.arange(spec.flat) < n[:, None]
    shape = mask.shape
    return {
        "h_item": items(*shape) * mask[..., None], "h_cls": whole(N_CLS, *shape) * mask, "h_dwell": whole(N_DWELL, *shape) * mask,
        "h_hour": whole(N_HOUR, *shape) * mask, "h_time": whole(N_AGE, *shape) * mask,
        "h_age": np.sort(r.uniform(0, 18, shape), 1).astype(np.float32) * mask, "h_size": np.zeros(shape, np.float32), "h_mask": mask,
    }  # fmt: skip


def difference(engine: Engine, sizes: Sequence[tuple[int, int]]) -> float:
    """Greatest difference of an engine's logits from the network's own, on random inputs of these (users, candidates)."""
    worst = 0.0
    for users, candidates in sizes:
        x = example_inputs(engine.spec, users, candidates, seed=users)
        found = engine.logits(engine.tower(x), x)
        with torch.inference_mode():
            wanted = engine.model.network({k: torch.from_numpy(v) for k, v in x.items()})
        worst = max(worst, *(float(np.abs(found[k] - wanted[k].numpy()).max()) for k in wanted))
    return worst


class Graph(NamedTuple):
    """What is compiled into one engine: example tensors (of the usual sizes), least and greatest shape of each."""

    name: str
    module: nn.Module
    given: list[Tensor]
    low: list[Shape]
    high: list[Shape]


def graphs(network: DMGIN, users: int, candidates: Sequence[int], device: str = "cpu") -> list[Graph]:
    """A tower for up to `users` users, and a head for each of the greatest numbers of `candidates`, called
    head<number>.
    """
    x = {k: torch.from_numpy(v).to(device) for k, v in example_inputs(network.config.spec, 2, min(candidates)).items()}
    tower = network.user_tower(x)
    head = [*tower, *(x[k] for k in HEAD_INPUTS)]
    names = [*Tower._fields, *HEAD_INPUTS]

    def bounds(given: list[Tensor], names: Sequence[str], b: int, c: int) -> list[Shape]:
        return [
            (b, c, *t.shape[2:]) if n in CANDIDATE_INPUTS else (b, *t.shape[1:])
            for n, t in zip(names, given, strict=True)
        ]

    user = [x[k] for k in TOWER_INPUTS]
    low = LEAST
    return [
        Graph(
            "tower", TowerGraph(network), user, bounds(user, TOWER_INPUTS, low, 0), bounds(user, TOWER_INPUTS, users, 0)
        ),
        *(
            Graph(f"head{c}", HeadGraph(network), head, bounds(head, names, low, low), bounds(head, names, users, c))
            for c in candidates
        ),
    ]


def export(graph: Graph) -> Any:
    """The graph as an exported program, dynamic where its least and greatest shapes differ."""
    dims: dict[tuple[int, int], Any] = {}

    def dim(axis: int, least: int, most: int) -> Any:
        return dims.setdefault((axis, most), torch.export.Dim(f"d{axis}", min=least, max=most))

    dynamic = tuple(
        {axis: dim(axis, a, b) for axis, (a, b) in enumerate(zip(small, large, strict=True)) if a != b}
        for small, large in zip(graph.low, graph.high, strict=True)
    )
    with torch.no_grad():
        return torch.export.export(graph.module, tuple(graph.given), dynamic_shapes=(dynamic,))
