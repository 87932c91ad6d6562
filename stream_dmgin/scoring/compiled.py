"""An engine over compiled graphs of full size: batches cut and padded to what the graphs take, towers kept on their device.

The graphs come from a compiler (`tensorrt.py`); with the modules themselves it runs anywhere, which is how it is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_dmgin.errors import StreamDmginError, UsageError
from stream_dmgin.features.spec import InputSpec
from stream_dmgin.models.dmgin import Tower
from stream_dmgin.models.registry import Model
from stream_dmgin.scoring.engine import HEAD_INPUTS, Inputs, UserTower, calibrated
from stream_dmgin.scoring.graphs import CANDIDATE_INPUTS, LEAST, TOWER_INPUTS, difference

MAX_USERS, CANDIDATES = 32, (128, 1000)  # the profiles: users at a time, candidates of each head
TOLERANCE = 2e-3  # of logits against eager: other kernels, another order of sums, all in fp32
Run = Callable[..., Any]


class DeviceTower:
    """A user's `Tower` of one row on the device, of full size."""

    __slots__ = ("nbytes", "tower")

    def __init__(self, tower: Tower) -> None:
        self.tower = tower
        self.nbytes = sum(t.nbytes for t in tower)


class CompiledEngine:
    """`runs`: the compiled graphs by name, `tower` and `head128`, `head1000`, on `device`. One interface with the eager engine."""

    name = "compiled"

    def __init__(self, model: Model, runs: Mapping[str, Run], device: str) -> None:
        self.model, self.device, self._runs = model, device, runs

    @property
    def spec(self) -> InputSpec:
        """Sizes of the inputs it takes."""
        return self.model.config.spec

    def verify(self) -> float:
        """Greatest difference of logits from the eager model on random inputs. StreamDmginError beyond TOLERANCE."""
        worst = difference(self, ((1, 1), (3, CANDIDATES[0]), (2, CANDIDATES[1])))
        if not worst <= TOLERANCE:
            raise StreamDmginError(
                f"the {self.name} engine of {self.model.id} differs from the model by {worst:.2g}: delete its engines and try again"
            )
        return worst

    @torch.inference_mode()
    def tower(self, inputs: Inputs) -> list[UserTower]:
        """User side of B users -> their towers."""
        towers: list[UserTower] = []
        for at in range(0, len(inputs["g_mask"]), MAX_USERS):
            n = len(inputs["g_mask"][at : at + MAX_USERS])
            x = {k: _padded(inputs[k][at : at + MAX_USERS], self.device, n) for k in (*TOWER_INPUTS, "e_id", "s_mask")}
            groups, tokens, short = self._runs["tower"](*(x[k] for k in TOWER_INPUTS))
            batch = Tower(groups, x["g_mask"], tokens, x["e_id"], x["e_mask"], short, x["s_mask"])
            towers += [DeviceTower(Tower(*(t[row : row + 1].clone() for t in batch))) for row in range(n)]
        return towers

    @torch.inference_mode()
    def logits(self, towers: Sequence[UserTower], inputs: Inputs) -> dict[str, NDArray[np.float32]]:
        """Request side of B requests, one tower each -> raw logits [B,C] per head."""
        c = inputs["c_id"].shape[1]
        if c > CANDIDATES[-1]:
            raise UsageError(f"{c} candidates: this engine takes at most {CANDIDATES[-1]}, cut the request")
        run = self._runs[f"head{next(most for most in CANDIDATES if c <= most)}"]
        parts = []
        for at in range(0, len(towers), MAX_USERS):
            some: list[Tower] = [t.tower for t in towers[at : at + MAX_USERS]]  # type: ignore[attr-defined]
            n = len(some)
            some += some[:1] * max(0, LEAST - n)
            batch = [torch.cat(field) for field in zip(*some, strict=True)]
            x = [
                _padded(inputs[k][at : at + n], self.device, n, c if k in CANDIDATE_INPUTS else None)
                for k in HEAD_INPUTS
            ]
            parts.append(run(*batch, *x)[:n, :c].float().cpu().numpy())
        found = np.concatenate(parts)
        return {head: found[..., i] for i, head in enumerate(("ctr", *self.model.heads))}

    def head(self, towers: Sequence[UserTower], inputs: Inputs) -> dict[str, NDArray[np.float64]]:
        """As `logits`, as calibrated probabilities."""
        return calibrated(self.model, self.logits(towers, inputs), inputs)


def _padded(array: NDArray[Any], device: str, users: int, candidates: int | None = None) -> Tensor:
    """On the device, padded with zeros to LEAST users and candidates."""
    more = [(0, max(0, LEAST - users))]
    if candidates is not None:
        more.append((0, max(0, LEAST - candidates)))
    if any(after for _, after in more):
        array = np.pad(array, more + [(0, 0)] * (array.ndim - len(more)))
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)
