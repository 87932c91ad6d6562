"""Training samples per second on one core, against the rival: the same network, rows, loss and optimizer in a padded-batch loop.

The rival's batches are what most training code makes: requests in random order, every user's groups, events and newest events padded
to the longest of the batch. The product's leave the padding out and put users of like sizes together (`training/rows.py`,
`models/ragged.py`). The two take turns, batch by batch, so that other work on the machine slows both.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_dmgin.bench import machine
from stream_dmgin.errors import InputError
from stream_dmgin.features.spec import InputSpec
from stream_dmgin.models import ragged
from stream_dmgin.models.dmgin import DMGIN
from stream_dmgin.models.trunk import DMGINConfig
from stream_dmgin.scoring.graphs import example_inputs
from stream_dmgin.training.objective import losses
from stream_dmgin.training.options import Options
from stream_dmgin.training.rows import Batch, TrainingRows
from stream_dmgin.training.start import Gradients, make_optimizer, prepare

Inputs = dict[str, Tensor]


def measure(directory: Path | None = None, batches: int = 12, size: int = 512) -> dict[str, Any]:
    """Rows a second of both loops, on a folder of rows that `train --rows` wrote, or on made-up ones; `ratio` of the two, by the
    CPU time of this process."""
    about = machine.describe()
    rows = TrainingRows.load(directory) if directory is not None else made_up()
    every = np.arange(rows.requests)
    parts = rows.parts(size, every, np.random.default_rng(1))[: batches + 1]
    if len(parts) < 2:
        raise InputError(
            f"{len(rows)} rows are too few to time batches of {size}: give more rows, or a smaller --batch"
        )
    shuffled = np.random.default_rng(1).permutation(every)
    own, rival = Loop(rows, every), Loop(rows, every)
    spent = {"own": [0.0, 0.0, 0.0], "rival": [0.0, 0.0, 0.0]}  # CPU seconds, seconds, rows
    at = 0
    for i, part in enumerate(parts):
        random = shuffled[at : at + len(part)]
        at += len(part)
        for name, loop, chosen, forward in (
            ("own", own, part, ragged_forward),
            ("rival", rival, random, padded_forward),
        ):
            cpu, wall = process_time(), perf_counter()
            n = loop.step(rows.collate(chosen), forward)
            if i:  # the first batch warms up
                for k, x in enumerate((process_time() - cpu, perf_counter() - wall, float(n))):
                    spent[name][k] += x
    rate = {k: n / cpu for k, (cpu, _, n) in spent.items()}
    return {
        "rows": int(spent["own"][2]),
        "batch": size,
        "rows_per_cpu_s": round(rate["own"]),
        "padded_rows_per_cpu_s": round(rate["rival"]),
        "ratio": round(rate["own"] / rate["rival"], 2),
        "rows_per_s": round(spent["own"][2] / spent["own"][1]),
        "padded_rows_per_s": round(spent["rival"][2] / spent["rival"][1]),
        "groups_a_request": round(float(rows["r_groups"].mean()), 1),
        "events_a_group": round(float(rows["g_len"].mean()), 1),
        "machine": about,
    }


def ragged_forward(network: DMGIN, batch: Batch) -> dict[str, Tensor]:
    """As the product trains."""
    return ragged.forward(network, batch.inputs)


def padded_forward(network: DMGIN, batch: Batch) -> dict[str, Tensor]:
    """The same network on the same requests, groups and events padded to the longest of the batch (the padding is timed too)."""
    found: dict[str, Tensor] = network(padded(batch))
    return found


def padded(batch: Batch) -> Inputs:
    """The inputs of `DMGIN.forward`: group and event inputs as [B,G,L,...]."""
    x = dict(batch.inputs.x)
    b, g = x["g_mask"].shape
    length = max((r.x["e_mask"].shape[1] for r in batch.inputs.rows), default=1)
    first = batch.inputs.rows[0].x if batch.inputs.rows else {}
    for name, like in first.items():
        shape = (g * b, *like.shape[1:]) if name == "g_stat" else (g * b, length, *like.shape[2:])
        whole = torch.zeros(shape, dtype=like.dtype)
        for row in batch.inputs.rows:
            part = row.x[name]
            if name == "g_stat":
                whole[row.slot] = part
            else:
                whole[row.slot, : part.shape[1]] = part
        x[name] = whole.view(b, g, *shape[1:])
    return x


class Loop:
    """A network and what a step of its training needs."""

    def __init__(self, rows: TrainingRows, requests: NDArray[np.int64]) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(1)
        self.options = Options()
        self.network = DMGIN(DMGINConfig(rows.spec, rows.heads))
        prepare(self.network, rows, requests)
        self.optimizer, self.gradients = make_optimizer(self.network, self.options), Gradients(self.network)

    def step(self, batch: Batch, forward: Callable[[DMGIN, Batch], dict[str, Tensor]]) -> int:
        """One step; how many rows it learned from."""
        self.network.train()
        self.gradients.flat.zero_()
        total, _ = losses(forward(self.network, batch), batch.labels, self.options)
        total.backward()  # type: ignore[no-untyped-call]
        self.gradients.clip(5.0)
        self.optimizer.step()
        return int((batch.rows >= 0).sum())


def made_up(requests: int = 8_000) -> TrainingRows:
    """Requests with histories as uneven as in life: most groups hold an event or two, a few are full."""
    spec, r = InputSpec(groups=32, events=16, short=32), np.random.default_rng(7)
    rows = TrainingRows(spec)
    for i in range(requests // 100):
        x = example_inputs(spec, 100, 1, seed=i)
        groups = np.minimum(32, 1 + r.poisson(14, 100))
        x["g_mask"] = np.arange(32) < groups[:, None]
        x["e_mask"] = (np.arange(16) < np.minimum(16, r.geometric(0.35, (100, 32)))[..., None]) & x["g_mask"][..., None]
        x["s_mask"] = np.arange(32) < np.minimum(32, 8 + r.poisson(18, 100))[:, None]
        x["c_mask"][:] = True
        x["c_group"] = np.where(r.random((100, 1)) < 0.5, r.integers(0, groups)[:, None], spec.groups).astype(np.int32)
        rows.append(x, (r.random((100, 1)) < 0.3).astype(np.int8), np.full(100, i), np.arange(100))
    return rows
