"""Engines run a model: a tower per user (once per state), then a head per request. One interface, whatever runs
underneath.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from stream_dmgin.errors import StreamDmginError, UnavailableError, UsageError
from stream_dmgin.features.spec import InputSpec
from stream_dmgin.models import ragged
from stream_dmgin.models.dmgin import DMGIN, Tower
from stream_dmgin.models.registry import Model
from stream_dmgin.models.segments import segment_codes

Inputs = Mapping[str, NDArray[Any]]
Prefer = Literal["auto", "fused", "eager", "tensorrt"]
HEAD_INPUTS = ("c_item", "c_id", "c_group", "c_dense", "g_age", "g_size", "u_dense", "x_cat")


class UserTower(Protocol):
    """One user's tower: opaque but for its size, owned by the engine that made it."""

    @property
    def nbytes(self) -> int:
        """Bytes it keeps."""
        ...


class Engine(Protocol):
    """What the worker, replay and evaluation score with. Not safe for several threads at once."""

    name: str
    model: Model

    @property
    def spec(self) -> InputSpec:
        """Sizes of the inputs it takes."""
        ...

    def tower(self, inputs: Inputs) -> list[UserTower]:
        """User side of B users -> their towers, each usable with any others in `head`."""
        ...

    def logits(self, towers: Sequence[UserTower], inputs: Inputs) -> dict[str, NDArray[np.float32]]:
        """Request side of B requests, one tower each -> raw logits of `ctr` and the heads, [B,C]."""
        ...

    def head(self, towers: Sequence[UserTower], inputs: Inputs) -> dict[str, NDArray[np.float64]]:
        """As `logits`, as calibrated probabilities strictly between 0 and 1. Padded candidates hold numbers without
        meaning.
        """
        ...


class EagerTower:
    """A user's `Tower` of one row, cut to the groups and events the user has."""

    __slots__ = ("nbytes", "tower")

    def __init__(self, tower: Tower) -> None:
        self.tower = tower
        self.nbytes = sum(t.nbytes for t in tower)


def split(batch: Tower, n_groups: Sequence[int]) -> list[Tower]:
    """Rows of a batch as towers of their own, cut to their groups and copied, so that none keeps the batch alive."""
    towers = []
    for row, n in enumerate(n_groups):
        one = Tower(*(t[row : row + 1] for t in batch))
        n = max(1, n)
        length = max(1, int(one.e_mask.sum(-1).max()))
        s = max(1, int(one.s_mask.sum()))
        cut = (
            one.groups[:, :n], one.g_mask[:, :n], one.tokens[:, :n, :length], one.e_id[:, :n, :length],
            one.e_mask[:, :n, :length], one.short[:, :s], one.s_mask[:, :s],
        )  # fmt: skip
        towers.append(Tower(*(t.clone() for t in cut)))
    return towers


def join(towers: Sequence[Tower]) -> Tower:
    """Towers of one row each -> one batch, padded to the largest."""
    if len(towers) == 1:
        return towers[0]
    g, length = max(t.tokens.shape[1] for t in towers), max(t.tokens.shape[2] for t in towers)
    s = max(t.short.shape[1] for t in towers)

    def pad(t: Tensor, *sizes: int) -> Tensor:
        wide: list[int] = []
        for have, want in zip(reversed(t.shape[1:]), reversed(sizes), strict=True):
            wide += [0, want - have]
        return F.pad(t, wide)

    d = towers[0].groups.shape[-1]
    sizes = Tower((g, d), (g,), (g, length, d), (g, length), (g, length), (s, d), (s,))  # type: ignore[arg-type]
    return Tower(*(torch.cat([pad(t[i], *size) for t in towers]) for i, size in enumerate(sizes)))  # type: ignore[misc]


class EagerEngine:
    """PyTorch as it is, on the CPU, one thread (set once for the process: two threads with a busy second core ruin
    latency).
    """

    name = "eager"

    def __init__(self, model: Model) -> None:
        torch.set_num_threads(1)
        self.model, self._network = model, dmgin_of(model)

    @property
    def spec(self) -> InputSpec:
        """Sizes of the inputs it takes."""
        return self.model.config.spec

    @torch.inference_mode()
    def tower(self, inputs: Inputs) -> list[UserTower]:
        """User side of B users -> their towers."""
        batch = ragged.user_tower(self._network, inputs)
        return [EagerTower(t) for t in split(batch, inputs["g_mask"].sum(1).tolist())]

    @torch.inference_mode()
    def logits(self, towers: Sequence[UserTower], inputs: Inputs) -> dict[str, NDArray[np.float32]]:
        """Request side of B requests, one tower each -> raw logits [B,C] per head."""
        batch = join([t.tower for t in towers])  # type: ignore[attr-defined]  # made by self.tower
        g = batch.groups.shape[1]
        x = {k: torch.from_numpy(inputs[k][:, :g] if k in ("g_age", "g_size") else inputs[k]) for k in HEAD_INPUTS}
        return {k: v.numpy() for k, v in self._network.head(batch, x).items()}

    def head(self, towers: Sequence[UserTower], inputs: Inputs) -> dict[str, NDArray[np.float64]]:
        """As `logits`, as calibrated probabilities."""
        return calibrated(self.model, self.logits(towers, inputs), inputs)


def dmgin_of(model: Model) -> DMGIN:
    """The network of a model that is a DMGIN alone. StreamDmginError where it is another."""
    if not isinstance(model.network, DMGIN):
        raise StreamDmginError(f"{model.id} is a {type(model.network).__name__}, no DMGIN")
    return model.network


def calibrated(
    model: Model, logits: Mapping[str, NDArray[np.floating]], inputs: Inputs
) -> dict[str, NDArray[np.float64]]:
    """Probabilities of raw logits [B,C] per head, shifted by the segments of the request where the calibration asks for it."""
    if not model.calibration.shifts:
        return model.calibration.apply_all(logits)
    b, c = inputs["c_id"].shape
    dense = inputs["c_dense"].reshape(b * c, -1)
    codes = segment_codes(model.config.spec, dense, inputs["u_dense"], inputs["x_cat"], np.full(b, c))
    return model.calibration.apply_all(logits, {k: v.reshape(b, c) for k, v in codes.items()})


def choose_engine(model: Model, prefer: Prefer = "auto", engines: Path | None = None) -> tuple[Engine, str]:
    """The engine for this machine, and a sentence that says why it is this one. `engines`: where built engines are kept.

    `auto`: TensorRT where CUDA and torch_tensorrt are there and its engines hold, else the fused CPU engine, else (where that
    differs from the network) eager. UnavailableError where `tensorrt` is asked for and can't be had.
    """
    if prefer not in ("auto", "fused", "eager", "tensorrt"):
        raise UsageError(f"engine {prefer!r} is not known: give auto, fused, eager or tensorrt")
    if model.architecture == "dmgin":
        return of_dmgin(model, prefer, engines)
    from stream_dmgin.scoring.stacked import stack_engine

    return stack_engine(model, prefer, engines)


def of_dmgin(model: Model, prefer: Prefer, engines: Path | None) -> tuple[Engine, str]:
    """The engine of a model that is a DMGIN alone, and why it is this one."""
    if prefer == "eager":
        return EagerEngine(model), "eager on the CPU, as asked"
    lacking = "as asked"
    if prefer != "fused":
        found = _tensorrt(model, engines)
        if not isinstance(found, str):
            return found, "TensorRT: CUDA and torch_tensorrt are there"
        if prefer == "tensorrt":
            raise UnavailableError(
                f"the TensorRT engine can't be used: {found}. Use --engine fused or eager, or mend that"
            )
        lacking = found
    from stream_dmgin.scoring.fused import FusedEngine

    try:
        fused = FusedEngine(model)
        fused.verify()
    except StreamDmginError as e:
        if prefer == "fused":
            raise
        return EagerEngine(model), f"eager on the CPU: {lacking}; {e}"
    return fused, f"fused on the CPU: {lacking}"


def _tensorrt(model: Model, engines: Path | None) -> Engine | str:
    """The TensorRT engine, or why there is none."""
    from stream_dmgin.scoring import tensorrt

    lacking = tensorrt.lacking()
    if lacking is not None:
        return lacking
    if model.config.off:
        return f"the model was trained without {', '.join(model.config.off)}, which only eager PyTorch runs"
    try:
        return tensorrt.TensorRTEngine(model, engines)
    except Exception as e:  # whatever a compiler or driver comes up with: serving goes on without it
        return f"its engines can't be built or don't hold here ({e})"
