"""Tower and head convert to TensorRT whole, shown without a GPU: needs the extra `tensorrt-rtx`.

The partitioner's dry run over-reports (an operator may pass it and fail the build), so that engines are built to bytes too.
Only deserialising an engine needs a GPU: that step, and what torch.cuda is asked about the device, is answered here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import types
from typing import Any

import pytest
import torch

if importlib.util.find_spec("torch_tensorrt") is None:
    pytest.skip("torch_tensorrt is not installed: pip install 'stream-dmgin[tensorrt-rtx]'", allow_module_level=True)

from stream_dmgin.features.spec import InputSpec
from stream_dmgin.models.registry import untrained
from stream_dmgin.models.trunk import DMGINConfig
from stream_dmgin.scoring import compiled, graphs, tensorrt

DEVICE = types.SimpleNamespace(name="none", major=8, minor=9, total_memory=8 << 30, multi_processor_count=40)


@pytest.fixture(scope="module")
def trt() -> Any:
    """torch_tensorrt, importable without a driver."""
    patch = pytest.MonkeyPatch()
    if not torch.cuda.is_available():
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "get_device_capability", lambda *device: (DEVICE.major, DEVICE.minor))
        patch.setattr(torch.cuda, "get_device_properties", lambda *device: DEVICE)
        patch.setattr(torch.cuda, "mem_get_info", lambda *device: (DEVICE.total_memory, DEVICE.total_memory))
    import torch_tensorrt

    yield torch_tensorrt
    patch.undo()


MODEL = untrained("convert", DMGINConfig(spec=InputSpec(), heads=("order",)))
GRAPHS = graphs.graphs(MODEL.network, users=compiled.MAX_USERS, candidates=compiled.CANDIDATES)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("graph", GRAPHS, ids=[g.name for g in GRAPHS])
def test_the_whole_graph_is_one_engine(trt: Any, graph: graphs.Graph) -> None:
    report = io.StringIO()
    with contextlib.redirect_stdout(report):
        trt.dynamo.compile(graphs.export(graph), dryrun=True, **tensorrt.settings(graph))
    text = report.getvalue()
    assert "100.0% coverage" in text, text[:2000]
    assert "TRT Engine #1" in text and "TRT Engine #2" not in text


@pytest.mark.timeout(600)
@pytest.mark.parametrize("graph", GRAPHS, ids=[g.name for g in GRAPHS])
def test_the_engine_builds_to_bytes(trt: Any, graph: graphs.Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_tensorrt.dynamo.conversion import _TRTInterpreter as interpreter

    class Kept:
        """Stands for the engine that only a GPU could load again."""

        def __init__(self, data: Any) -> None:
            self.data = data

        def get_aliased_input_tensor(self, name: str) -> None:
            return None

        def serialize(self) -> bytes:
            return bytes(self.data)

    class Keeper:
        def __init__(self, logger: Any) -> None:
            pass

        def deserialize_cuda_engine(self, data: Any) -> Kept:
            return Kept(data)

    if not torch.cuda.is_available():
        monkeypatch.setattr(interpreter.trt, "Runtime", Keeper, raising=False)
    chosen = {k: v for k, v in tensorrt.settings(graph).items() if k != "inputs"}
    built = trt.dynamo.convert_exported_program_to_serialized_trt_engine(
        graphs.export(graph), inputs=tensorrt.settings(graph)["inputs"], **chosen
    )
    assert len(bytes(built)) > 100_000
