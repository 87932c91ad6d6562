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
from pathlib import Path
from typing import Any

import torch

from stream_dmgin.errors import UnavailableError
from stream_dmgin.models.registry import Model
from stream_dmgin.scoring.compiled import CANDIDATES, MAX_USERS, CompiledEngine, Run
from stream_dmgin.scoring.engine import dmgin_of
from stream_dmgin.scoring.graphs import Graph, export, graphs

log = logging.getLogger(__name__)


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


class TensorRTEngine(CompiledEngine):
    """TensorRT on the first CUDA device. `engines`: folder of built engines (None: build anew each time)."""

    name = "tensorrt"

    def __init__(self, model: Model, engines: Path | None = None) -> None:
        """Compile or load, then verify. UnavailableError where TensorRT can't be used, StreamDmginError where it is wrong."""
        missing = lacking()
        if missing:
            raise UnavailableError(f"the TensorRT engine can't be used: {missing}")
        runs: dict[str, Run] = {}
        for graph in graphs(copy.deepcopy(dmgin_of(model)).to("cuda"), MAX_USERS, CANDIDATES, "cuda"):
            path = engine_path(model, graph.name, engines) if engines else None
            log.info("TensorRT engine %s: %s", graph.name, "loading" if path and path.is_file() else "building")
            runs[graph.name] = prepare(graph, path)
        super().__init__(model, runs, "cuda")
        self.verify()
