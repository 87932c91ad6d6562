"""The model on an NVIDIA GPU through TensorRT (torch_tensorrt, dynamo): the same interface as the eager engine.

Not yet run on a GPU. What is proven without one (tests/tensorrt, where the extra `tensorrt-rtx` is installed): tower
and head convert whole, each into one engine with dynamic shapes. Compiling for a device, keeping engines on disk,
verifying and scoring are written but wait for their first run on one.

Shapes are dynamic within few explicit profiles: up to MAX_USERS users at a time, and two heads, for up to 128 and up to
1,000 candidates; larger calls are cut. An engine on disk is a cache, named by GPU, versions and the model's id, and can
always be built again. After building or loading, its logits are held against the eager model's: a stale or wrong engine
is refused.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_dmgin.errors import StreamDmginError, UnavailableError, UsageError
from stream_dmgin.features.spec import InputSpec
from stream_dmgin.models.dmgin import Tower
from stream_dmgin.models.registry import Model
from stream_dmgin.scoring.engine import HEAD_INPUTS, Inputs, UserTower
from stream_dmgin.scoring.graphs import CANDIDATE_INPUTS, LEAST, TOWER_INPUTS, Graph, example_inputs, export, graphs

log = logging.getLogger(__name__)
MAX_USERS, CANDIDATES = 32, (128, 1000)
TOLERANCE = 2e-3  # of logits against eager: other kernels, another order of sums, all in fp32
Run = Callable[..., Any]


def lacking() -> str | None:
    """What is missing on this machine for TensorRT, in words; None where everything is there."""
    if importlib.util.find_spec("torch_tensorrt") is None:
        return "torch_tensorrt is not installed (the extra `tensorrt`; on a desktop GPU `tensorrt-rtx`)"
    if not torch.cuda.is_available():
        return "no CUDA device can be used"
    return None


def settings(graph: Graph) -> dict[str, Any]:
    """How a graph is compiled, on a GPU and in the proof of conversion alike."""
    import torch_tensorrt

    given = [
        torch_tensorrt.Input(min_shape=low, opt_shape=tuple(t.shape), max_shape=high, dtype=t.dtype)
        if low != high
        else torch_tensorrt.Input(shape=low, dtype=t.dtype)
        for t, low, high in zip(graph.given, graph.low, graph.high, strict=True)
    ]
    return {
        "inputs": given,
        "min_block_size": 1,
        "require_full_compilation": True,
        "disable_tf32": True,
        "immutable_weights": True,
    }


def engine_path(model: Model, name: str, directory: Path) -> Path:
    """Where the engine of a graph is kept: another GPU, version or model is another file."""
    import torch_tensorrt

    device = torch.cuda.get_device_properties(0)
    parts = (
        torch.__version__,
        torch_tensorrt.__version__,
        device.name,
        device.major,
        device.minor,
        model.id,
        MAX_USERS,
        CANDIDATES,
    )
    return directory / f"{model.id}-{name}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:12]}.ep"


def prepare(graph: Graph, path: Path | None) -> Run:
    """The compiled graph, from disk if it is there, else built and kept."""
    import torch_tensorrt

    if path is not None and path.is_file():
        loaded: Run = torch_tensorrt.load(str(path)).module()
        return loaded
    built: Any = torch_tensorrt.dynamo.compile(export(graph), **settings(graph))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(".part")
        torch_tensorrt.save(built, str(half), output_format="exported_program", arg_inputs=graph.given)
        half.replace(path)
    run: Run = built
    return run


class DeviceTower:
    """A user's `Tower` of one row on the GPU, of full size."""

    __slots__ = ("nbytes", "tower")

    def __init__(self, tower: Tower) -> None:
        self.tower = tower
        self.nbytes = sum(t.nbytes for t in tower)


class TensorRTEngine:
    """TensorRT on the first CUDA device. `engines`: folder of built engines (None: build anew each time)."""

    name = "tensorrt"

    def __init__(self, model: Model, engines: Path | None = None) -> None:
        """Compile or load, then verify. UnavailableError where TensorRT can't be used, StreamDmginError where it is
        wrong.
        """
        missing = lacking()
        if missing:
            raise UnavailableError(f"the TensorRT engine can't be used: {missing}")
        self.model = model
        network = copy.deepcopy(model.network).to("cuda")
        self._runs: dict[str, Run] = {}
        for graph in graphs(network, MAX_USERS, CANDIDATES, "cuda"):
            path = engine_path(model, graph.name, engines) if engines else None
            log.info("TensorRT engine %s: %s", graph.name, "loading" if path and path.is_file() else "building")
            self._runs[graph.name] = prepare(graph, path)
        self.verify()

    @property
    def spec(self) -> InputSpec:
        """Sizes of the inputs it takes."""
        return self.model.config.spec

    def verify(self) -> float:
        """Greatest difference of logits from the eager model on random inputs. StreamDmginError beyond TOLERANCE."""
        worst = 0.0
        for users, candidates in ((1, 1), (3, CANDIDATES[0]), (2, CANDIDATES[1])):
            x = example_inputs(self.spec, users, candidates, seed=users)
            found = self.logits(self.tower(x), x)
            with torch.inference_mode():
                wanted = self.model.network({k: torch.from_numpy(v) for k, v in x.items()})
            worst = max(worst, *(float(np.abs(found[k] - wanted[k].numpy()).max()) for k in wanted))
        if not worst <= TOLERANCE:
            raise StreamDmginError(
                f"the TensorRT engine of {self.model.id} differs from the model by {worst:.2g}: delete its engines and try again"
            )
        return worst

    @torch.inference_mode()
    def tower(self, inputs: Inputs) -> list[UserTower]:
        """User side of B users -> their towers."""
        towers: list[UserTower] = []
        for at in range(0, len(inputs["g_mask"]), MAX_USERS):
            n = len(inputs["g_mask"][at : at + MAX_USERS])
            x = {k: _to_device(inputs[k][at : at + MAX_USERS], users=n) for k in (*TOWER_INPUTS, "e_id", "s_mask")}
            groups, tokens, short = self._runs["tower"](*(x[k] for k in TOWER_INPUTS))
            batch = Tower(groups, x["g_mask"], tokens, x["e_id"], x["e_mask"], short, x["s_mask"])
            towers += [DeviceTower(Tower(*(t[row : row + 1].clone() for t in batch))) for row in range(n)]
        return towers

    @torch.inference_mode()
    def logits(self, towers: Sequence[UserTower], inputs: Inputs) -> dict[str, NDArray[np.float32]]:
        """Request side of B requests, one tower each -> raw logits [B,C] per head."""
        c = inputs["c_id"].shape[1]
        if c > CANDIDATES[-1]:
            raise UsageError(f"{c} candidates: the TensorRT engine takes at most {CANDIDATES[-1]}, cut the request")
        run = self._runs[f"head{next(most for most in CANDIDATES if c <= most)}"]
        parts = []
        for at in range(0, len(towers), MAX_USERS):
            some: list[Tower] = [t.tower for t in towers[at : at + MAX_USERS]]  # type: ignore[attr-defined]
            n = len(some)
            some += some[:1] * max(0, LEAST - n)
            batch = [torch.cat(field) for field in zip(*some, strict=True)]
            x = [
                _to_device(inputs[k][at : at + n], users=n, candidates=c if k in CANDIDATE_INPUTS else None)
                for k in HEAD_INPUTS
            ]
            parts.append(run(*batch, *x)[:n, :c].float().cpu().numpy())
        found = np.concatenate(parts)
        return {head: found[..., i] for i, head in enumerate(("ctr", *self.model.heads))}

    def head(self, towers: Sequence[UserTower], inputs: Inputs) -> dict[str, NDArray[np.float64]]:
        """As `logits`, as calibrated probabilities."""
        return {k: self.model.calibration.apply(k, v) for k, v in self.logits(towers, inputs).items()}


def _to_device(array: NDArray[Any], users: int, candidates: int | None = None) -> Tensor:
    """On the GPU, padded with zeros to LEAST users and candidates."""
    more = [(0, max(0, LEAST - users))]
    if candidates is not None:
        more.append((0, max(0, LEAST - candidates)))
    if any(after for _, after in more):
        array = np.pad(array, more + [(0, 0)] * (array.ndim - len(more)))
    return torch.from_numpy(np.ascontiguousarray(array)).to("cuda", non_blocking=True)
