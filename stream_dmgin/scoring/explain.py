"""Which groups made a score: each group is left out in turn, and the difference it makes is its effect.

Model-agnostic, and what it says is what the model does: attention weights would only say where it looked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.features.inputs import Inputs
from stream_dmgin.scoring.engine import Engine


@dataclass(frozen=True, slots=True)
class Effects:
    """`ctr` [C] as scored; `effect` [G,C]: the score minus the score without group g; `none` [C]: without any group."""

    ctr: NDArray[np.float64]
    effect: NDArray[np.float64]
    none: NDArray[np.float64]


def explain(engine: Engine, inputs: Inputs, candidates: int) -> Effects:
    """Effects of the groups of the first user of `inputs` (already filled) on its first `candidates` candidates."""
    n = int(inputs["g_mask"][0].sum())
    rows = [_one(inputs, None)] + [_one(inputs, [g]) for g in range(n)] + [_one(inputs, list(range(n)))]
    ctr = np.array([engine.head(engine.tower(x), x)["ctr"][0, :candidates] for x in rows])
    return Effects(ctr[0], ctr[0] - ctr[1:-1], ctr[-1])


def _one(inputs: Inputs, without: list[int] | None) -> dict[str, NDArray[Any]]:
    """The first row of the inputs, with some groups left out as if the user had never had them."""
    x = {k: v[:1].copy() for k, v in inputs.items()}
    if without:
        for name in (
            "g_mask",
            "g_stat",
            "g_time",
            "g_age",
            "g_size",
            "e_item",
            "e_cls",
            "e_time",
            "e_dwell",
            "e_hour",
            "e_mask",
        ):
            x[name][:, without] = 0
        x["e_id"][:, without] = -1
        gone = np.isin(x["c_group"], without)
        x["c_group"][gone] = x["g_mask"].shape[1]
    return x
