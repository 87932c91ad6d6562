"""Does a released model hold: its engine against the plain network and trees, its answers against empty histories and odd
batches; how fast.
"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stream_dmgin.errors import UsageError
from stream_dmgin.models.members import read_by
from stream_dmgin.models.registry import Model
from stream_dmgin.scoring import graphs
from stream_dmgin.scoring.engine import Engine, Inputs, Prefer, calibrated, choose_engine, dmgin_of

ALLOWED = 1e-6  # of probabilities, between one batch and another


def check(model: Model, prefer: str = "auto", rounds: int = 30) -> dict[str, Any]:
    """`ok` and `reason`, `engine`, the greatest differences of probabilities, milliseconds of 1 user x 100 candidates."""
    chosen: Prefer = prefer  # type: ignore[assignment]  # choose_engine refuses other words
    engine, why = choose_engine(model, chosen)
    x = graphs.example_inputs(model.config.spec, 8, 100)  # the first user has no history
    together = engine.head(engine.tower(x), x)
    plain = _plain(model, x)
    against = max(float(np.abs(together[h] - p).max()) for h, p in plain.items())
    alone = 0.0
    for row in range(8):
        one = {k: v[row : row + 1] for k, v in x.items()}
        found = engine.head(engine.tower(one), one)
        alone = max(alone, *(float(np.abs(found[h][0] - together[h][row]).max()) for h in found))
    whole = all(bool(np.isfinite(p).all() and (p > 0).all() and (p < 1).all()) for p in together.values())
    limit = ALLOWED if engine.name.split("+")[0] in ("eager", "fused", "trees") else 1e-3
    reasons = [
        *(["a probability is not strictly between 0 and 1"] if not whole else []),
        *([f"the engine differs from the network by {against:.2g}"] if not against <= limit else []),
        *([f"a score depends on its batch by {alone:.2g}"] if not alone <= limit else []),
    ]
    return {
        "model": model.id, "ok": not reasons, "reason": "; ".join(reasons) or None, "engine": engine.name, "engine_why": why,
        "against_network": against, "alone_or_together": alone, **_times(engine, x, rounds),
    }  # fmt: skip


def _plain(model: Model, x: Inputs) -> dict[str, NDArray[np.float64]]:
    """Probabilities by each plain network in one piece, and by the trees where the model has some."""
    logits: dict[str, NDArray[np.floating]] = {}
    b, c = x["c_id"].shape
    total: NDArray[np.floating] = np.zeros((b, c))
    with torch.inference_mode():
        for m in model.members:
            found = m.network({k: torch.from_numpy(v) for k, v in read_by(m.kind, x).items()})
            total = total + m.weight * found["ctr"].numpy()
            logits = logits or {h: z.numpy() for h, z in found.items()}  # further heads are the first's
    if model.forest is not None:
        dense: NDArray[Any] = x["c_dense"].reshape(b * c, -1)
        total = total + model.forest.scores(dense, x["u_dense"], x["x_cat"], np.full(b, c)).reshape(b, c)
    return calibrated(model, {**logits, "ctr": total}, x)


def _times(engine: Engine, x: Inputs, rounds: int) -> dict[str, float]:
    one = {k: v[1:2] for k, v in x.items()}
    tower, head = [], []
    for _ in range(rounds + 3):
        a = perf_counter()
        towers = engine.tower(one)
        b = perf_counter()
        engine.head(towers, one)
        tower.append(b - a)
        head.append(perf_counter() - b)
    return {"tower_ms": float(np.median(tower[3:])) * 1e3, "head_ms": float(np.median(head[3:])) * 1e3}


def export(model: Model, out: Path) -> dict[str, Any]:
    """Write <name>.pt2 for tower and head; torch.export.load reads them. For up to 32 users and 1,000 candidates.

    UsageError for a model with trees or several networks, which such a program can't hold.
    """
    if model.architecture != "dmgin":
        raise UsageError(
            f"{model.id} has trees or several networks, which torch.export can't hold: export a model of the network alone"
        )
    out.mkdir(parents=True, exist_ok=True)
    files = {}
    for graph in graphs.graphs(dmgin_of(model), 32, (1000,)):
        name = "tower" if graph.name == "tower" else "head"
        torch.export.save(graphs.export(graph), out / f"{name}.pt2")
        files[name] = str(out / f"{name}.pt2")
    return {"model": model.id, "files": files}
