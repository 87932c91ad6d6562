"""Fit a network on training rows: pointwise log-likelihood plus a small term for the order inside a request; stop early;
calibrate.

Deterministic by seed on one thread. The best weights on the validation rows win, then two calibration parameters a head
are fitted there.
"""

from __future__ import annotations

import copy
import csv
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from stream_dmgin.errors import InputError
from stream_dmgin.models import ragged
from stream_dmgin.models.calibration import Calibration, fit_platt, sigmoid
from stream_dmgin.models.dmgin import DMGIN
from stream_dmgin.models.trunk import DMGINConfig, Trunk
from stream_dmgin.training.metrics import auc, logloss
from stream_dmgin.training.rows import TrainingRows, spans

Requests = NDArray[np.int64]


@dataclass(frozen=True)
class Options:
    """How to train. `order`: weight of the term for the order inside a request; `table_decay`: weight decay of the hash
    tables.
    """

    epochs: int = 4
    batch: int = 1024
    lr: float = 1e-3
    decay: float = 1e-2
    table_decay: float = 1.0
    order: float = 0.1
    heads: float = 0.2
    average: float = 0.998  # decay of the running mean of the weights, which is what is evaluated and kept
    checks: int = 2  # validations an epoch
    patience: int = 4  # validations without a gain before stopping
    seed: int = 1


@dataclass
class Point:
    """One validation."""

    step: int
    epoch: float
    train_loss: float
    valid_logloss: float
    valid_auc: float
    seconds: float


@dataclass
class Fitted:
    """A trained model with its calibration and the way there."""

    network: Trunk
    calibration: Calibration
    best: Point
    curve: list[Point] = field(default_factory=list)

    def logits(self, rows: TrainingRows, requests: Requests) -> NDArray[np.float32]:
        """Raw logits of `ctr` for the rows of these requests, in the order of `rows.rows_of`."""
        return predict(self.network, rows, requests)["ctr"][rows.rows_of(requests)]


@torch.inference_mode()
def predict(
    network: Trunk, rows: TrainingRows, requests: Requests | None = None, batch: int = 4096
) -> dict[str, NDArray[np.float32]]:
    """Raw logits per head for all rows, in the order of rows; nan for rows of requests that were not asked for."""
    network.eval()
    out = {h: np.full(len(rows), np.nan, np.float32) for h in ("ctr", *network.config.heads)}
    for part in rows.batches(batch, requests):
        real = part.rows >= 0
        for head, logits in ragged.forward(network, part.inputs).items():
            out[head][part.rows[real].numpy()] = logits[real].numpy()
    return out


def losses(logits: Mapping[str, Tensor], labels: Mapping[str, Tensor], options: Options) -> tuple[Tensor, Tensor]:
    """(What is minimised, the pointwise loss of `ctr` alone). Labels -1 count nowhere."""
    y, z = labels["ctr"], logits["ctr"]
    known = (y >= 0).to(torch.float32)
    pointwise = (
        F.binary_cross_entropy_with_logits(z, y.clamp(min=0.0), reduction="none") * known
    ).sum() / known.sum().clamp(min=1.0)
    total = pointwise
    if options.order > 0 and y.shape[1] > 1:
        clicked = (y == 1).to(torch.float32)
        both = ((clicked.sum(1) > 0) & ((y == 0).sum(1) > 0)).to(torch.float32)
        share = F.log_softmax(
            z + (known - 1.0) * 1e4, dim=1
        )  # the chance of each candidate to be the one clicked in its list
        per_list = -(share * clicked).sum(1) / clicked.sum(1).clamp(min=1.0)
        # per row, so that it weighs as much beside the pointwise term for long lists and short
        total = total + options.order * (per_list * both).sum() / known.sum().clamp(min=1.0)
    for head in logits:
        if head != "ctr" and options.heads > 0:
            known = (labels[head] >= 0).to(torch.float32)
            each = F.binary_cross_entropy_with_logits(logits[head], labels[head].clamp(min=0.0), reduction="none")
            total = total + options.heads * (each * known).sum() / known.sum().clamp(min=1.0)
    return total, pointwise.detach()


def prepare(network: Trunk, rows: TrainingRows, requests: Requests) -> None:
    """Normalisation from the training requests alone; start at the base rates."""
    take = rows.rows_of(requests)
    groups = spans(rows.offsets()["r_groups"][requests], rows["r_groups"][requests])
    of = {"c_dense": take, "u_dense": requests, "g_stat": groups}
    for name, dense in network.dense_inputs().items():
        some = of[name][:: max(1, len(of[name]) // 200_000)]
        dense.fit(torch.from_numpy(rows[name][some].astype(np.float32)))
    with torch.no_grad():
        for i, head in enumerate(("ctr", *network.config.heads)):
            y = rows.labels(head)[take]
            rate = (float((y == 1).sum()) + 1.0) / (float((y >= 0).sum()) + 20.0)
            network.deep.bias[i] = math.log(rate / (1.0 - rate))


def make_optimizer(network: Trunk, options: Options) -> torch.optim.AdamW:
    """AdamW; hash tables decay strongly (most of their rows are seen a few times), biases and norms not at all."""
    tables = [network.item.weight, network.category.weight, network.advertiser.weight]
    special = {id(p) for p in tables}
    rest = [p for p in network.parameters() if id(p) not in special]
    groups = [
        {"params": tables, "weight_decay": options.table_decay},
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": options.decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.lr)


def pace(step: int, steps: int) -> float:
    """Share of the learning rate: a short warm-up, then a cosine down to 5 %."""
    warm = min(100, max(1, steps // 20))
    if step < warm:
        return (step + 1) / warm
    return 0.05 + 0.95 * 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def train(
    config: DMGINConfig,
    rows: TrainingRows,
    train_requests: Requests,
    valid: TrainingRows,
    valid_requests: Requests,
    options: Options = Options(),
    checkpoint: Path | None = None,
    report: Callable[[Point], None] | None = None,
    build: Callable[[DMGINConfig], Trunk] = DMGIN,
) -> Fitted:
    """Train on some requests of `rows`, choose on some of `valid` (may be the same rows).

    `checkpoint`: a file written after each epoch and resumed from if it is there (it must be of the same options).
    `report` is called after each validation; `build` makes the network. InputError where either part has no rows of both classes.
    """
    torch.set_num_threads(1)
    for name, part, chosen in (("training", rows, train_requests), ("validation", valid, valid_requests)):
        y = part.labels()[part.rows_of(chosen)]
        if not (y == 1).any() or not (y == 0).any():
            raise InputError(f"the {name} days hold no rows with both labels ({len(y)} rows): choose other days")
    torch.manual_seed(options.seed)
    network = build(config)
    prepare(network, rows, train_requests)
    optimizer = make_optimizer(network, options)
    mean = copy.deepcopy(network).requires_grad_(False)
    per_epoch = max(1, math.ceil(len(rows.rows_of(train_requests)) / options.batch))
    steps, every = per_epoch * options.epochs, max(1, per_epoch // options.checks)
    state: dict[str, Any] = {"step": 0, "since": 0, "best": None, "weights": None, "curve": [], "stopped": False}
    start_epoch, started = 0, time.monotonic()
    if checkpoint is not None and checkpoint.is_file():
        start_epoch = _resume(checkpoint, options, network, mean, optimizer, state)
    window: list[float] = []
    for epoch in range(start_epoch, options.epochs):
        if state["stopped"]:
            break
        torch.manual_seed(options.seed * 10_007 + epoch)  # so that a resumed run goes on as the whole one would have
        generator = np.random.default_rng([options.seed, epoch])
        for batch in rows.batches(options.batch, train_requests, generator):
            network.train()
            for group in optimizer.param_groups:
                group["lr"] = options.lr * pace(state["step"], steps)
            total, pointwise = losses(ragged.forward(network, batch.inputs), batch.labels, options)
            optimizer.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            state["step"] += 1
            _follow(mean, network, min(options.average, state["step"] / (state["step"] + 10.0)))
            window.append(float(pointwise))
            if state["step"] % every == 0:
                point = _validate(
                    mean, valid, valid_requests, state["step"], per_epoch, window, time.monotonic() - started
                )
                window = []
                _judge(state, point, mean, options)
                if report is not None:
                    report(point)
                if state["stopped"]:
                    break
        if checkpoint is not None:
            _save(checkpoint, options, network, mean, optimizer, state, epoch + 1)
    if state["best"] is None:
        point = _validate(mean, valid, valid_requests, state["step"], per_epoch, window, time.monotonic() - started)
        _judge(state, point, mean, options)
    mean.load_state_dict(state["weights"])
    return Fitted(mean.eval(), calibrate(mean, valid, valid_requests), state["best"], state["curve"])


def calibrate(network: Trunk, rows: TrainingRows, requests: Requests) -> Calibration:
    """Platt parameters of every head on these requests."""
    logits, take = predict(network, rows, requests), rows.rows_of(requests)
    platt = {}
    for head, z in logits.items():
        y = rows.labels(head)[take]
        known = y >= 0
        platt[head] = fit_platt(z[take][known], y[known])
    return Calibration(platt)


def write_curve(path: Path, curve: Sequence[Point]) -> None:
    """The validations as CSV."""
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, [*Point.__dataclass_fields__])
        writer.writeheader()
        writer.writerows(asdict(p) for p in curve)


def _follow(mean: Trunk, network: Trunk, decay: float) -> None:
    with torch.no_grad():
        ours: list[Tensor] = list(mean.parameters())
        theirs: list[Tensor] = list(network.parameters())
        torch._foreach_lerp_(ours, theirs, 1.0 - decay)


def _validate(
    network: Trunk,
    rows: TrainingRows,
    requests: Requests,
    step: int,
    per_epoch: int,
    window: list[float],
    seconds: float,
) -> Point:
    take = rows.rows_of(requests)
    y = rows.labels()[take]
    z = predict(network, rows, requests)["ctr"][take][y >= 0]
    y = y[y >= 0]
    loss = float(np.mean(window)) if window else float("nan")
    return Point(step, step / per_epoch, loss, logloss(y, sigmoid(z)), auc(y, z), seconds)


def _judge(state: dict[str, Any], point: Point, network: Trunk, options: Options) -> None:
    state["curve"].append(point)
    if state["best"] is None or point.valid_logloss < state["best"].valid_logloss:
        state.update(best=point, since=0, weights=copy.deepcopy(network.state_dict()))
    else:
        state["since"] += 1
        state["stopped"] = state["since"] >= options.patience


def _save(
    path: Path,
    options: Options,
    network: Trunk,
    mean: Trunk,
    optimizer: torch.optim.AdamW,
    state: dict[str, Any],
    epoch: int,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {
        **state,
        "best": asdict(state["best"]) if state["best"] else None,
        "curve": [asdict(p) for p in state["curve"]],
    }
    parts = {"network": network.state_dict(), "mean": mean.state_dict(), "optimizer": optimizer.state_dict()}
    half = path.with_suffix(".part")
    torch.save({**parts, "state": kept, "epoch": epoch, "options": asdict(options)}, half)
    half.replace(path)


def _resume(
    path: Path, options: Options, network: Trunk, mean: Trunk, optimizer: torch.optim.AdamW, state: dict[str, Any]
) -> int:
    saved = torch.load(path, weights_only=True)
    if saved["options"] != asdict(options):
        raise InputError(
            f"{path} was written with other options: give the same ones to go on from it, or delete it to start anew"
        )
    network.load_state_dict(saved["network"])
    mean.load_state_dict(saved["mean"])
    optimizer.load_state_dict(saved["optimizer"])
    state.update(saved["state"])
    state["best"] = Point(**state["best"]) if state["best"] else None
    state["curve"] = [Point(**p) for p in state["curve"]]
    return int(saved["epoch"])
