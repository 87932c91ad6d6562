"""Fit a network on training rows: the terms of `training/objective.py`, early stop, calibration.

Deterministic by seed on one thread: every step draws from its own seed, so that a run that was stopped goes on as if it hadn't
been. The best weights on the validation rows win, then two calibration parameters a head are fitted there. Several processes
(`training/parallel.py`) take the steps of one together.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stream_dmgin.errors import InputError, StreamDmginError
from stream_dmgin.models import ragged
from stream_dmgin.models.calibration import Calibration, fit_platt, sigmoid
from stream_dmgin.models.dmgin import DMGIN
from stream_dmgin.models.trunk import DMGINConfig, Trunk
from stream_dmgin.training import checkpoint as disk
from stream_dmgin.training.alike import begin_alike
from stream_dmgin.training.heads import fit_late
from stream_dmgin.training.items import ItemStart
from stream_dmgin.training.metrics import auc, logloss
from stream_dmgin.training.objective import LISTS, TAUGHT, blend, blended, list_weight, losses, with_lists
from stream_dmgin.training.options import Options, Point
from stream_dmgin.training.parallel import ALONE, Ranks
from stream_dmgin.training.rows import TrainingRows
from stream_dmgin.training.start import Gradients, make_optimizer, pace, prepare, take_over

__all__ = ["Fitted", "Options", "Point", "Requests", "calibrate", "predict", "train"]

Requests = NDArray[np.int64]
LONGEST = 5.0  # gradients are shortened to this length


@dataclass
class Fitted:
    """A trained model with its calibration and the way there. `list_weight`: of the second output that is blended in."""

    network: Trunk
    calibration: Calibration
    best: Point
    curve: list[Point] = field(default_factory=list)
    list_weight: float = 0.0

    def logits(self, rows: TrainingRows, requests: Requests) -> NDArray[np.float32]:
        """Raw logits of `ctr` for the rows of these requests, in the order of `rows.rows_of`."""
        return predict(self.network, rows, requests)["ctr"][rows.rows_of(requests)]


@torch.inference_mode()
def predict(
    network: Trunk, rows: TrainingRows, requests: Requests | None = None, batch: int = 4096, ranks: Ranks = ALONE
) -> dict[str, NDArray[np.float32]]:
    """Raw logits per head for all rows, in the order of rows; nan for rows of requests that were not asked for."""
    network.eval()
    asked = np.arange(rows.requests) if requests is None else requests
    out = {h: np.full(len(rows), np.nan, np.float32) for h in ("ctr", *network.config.heads)}
    for part in rows.batches(batch, ranks.share(asked)):
        real = part.rows >= 0
        for head, logits in ragged.forward(network, part.inputs).items():
            out[head][part.rows[real].numpy()] = logits[real].numpy()
    if ranks.world > 1:
        take = rows.rows_of(asked)
        for z in out.values():
            whole = torch.from_numpy(np.nan_to_num(z[take]))
            ranks.add(whole)
            z[take] = whole.numpy()
    return out


class Run:
    """One training run: a network, the running mean of its weights, and how far it is."""

    def __init__(
        self, config: DMGINConfig, rows: TrainingRows, requests: Requests, options: Options,
        build: Callable[[DMGINConfig], Trunk], ranks: Ranks = ALONE, start: Trunk | None = None, items: ItemStart | None = None,
    ) -> None:  # fmt: skip
        torch.set_num_threads(1)
        torch.manual_seed(options.seed)
        self.rows, self.requests, self.options, self.ranks = rows, requests, options, ranks
        self.taught = torch.from_numpy(rows[TAUGHT]) if options.teacher and TAUGHT in rows.columns else None
        self.network = build(config)
        if start is None:
            if options.attention_start:
                begin_alike(self.network, options.attention_start)
            prepare(self.network, rows, requests, items)
        else:
            take_over(self.network, start, rows, requests)
        ranks.agree(self.network)
        table = self.network.item.weight.detach()
        # rows of the table of items that began with something of their own
        self.own = (table != table[0]).any(1) if start is not None else torch.zeros(len(table), dtype=torch.bool)
        if start is None and items is not None:
            self.own[torch.from_numpy(items.bucket)] = True
        self.mean = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = make_optimizer(self.network, options)
        self.gradients = Gradients(self.network)
        self.per_epoch = max(1, math.ceil(len(rows.rows_of(requests)) / options.batch))
        self.steps = self.per_epoch * options.epochs
        self.at = disk.Progress()
        self.parts: Mapping[str, nn.Module | torch.optim.Optimizer] = {
            "network": self.network,
            "mean": self.mean,
            "optimizer": self.optimizer,
        }

    def step(self, part: Requests) -> None:
        """One step on the requests of a batch."""
        options, at = self.options, self.at
        torch.manual_seed((options.seed * 1_000_003 + at.step) * 64 + self.ranks.rank)
        self.network.train()
        for group in self.optimizer.param_groups:
            group["lr"] = options.lr * pace(at.step, self.steps)
        flat, mine = self.gradients.flat, self.ranks.share(part)
        flat.zero_()
        if len(mine):
            batch = self.rows.collate(mine)
            counts = self.rows.known(part) if self.ranks.world > 1 else None
            # padding reads row 0 there, and has no label
            taught = None if self.taught is None else self.taught[batch.rows.clamp(min=0).long()]
            total, pointwise = losses(
                ragged.forward(self.network, batch.inputs), batch.labels, options, counts, batch.seen, taught
            )
            total.backward()  # type: ignore[no-untyped-call]
            flat[-1] = pointwise
        self.ranks.add(flat)
        loss = float(flat[-1])
        if not math.isfinite(loss):
            raise StreamDmginError(
                f"the loss is no number any more at step {at.step}: a smaller learning rate may help (--lr)"
            )
        self.gradients.clip(LONGEST)
        self.optimizer.step()
        at.step += 1
        at.window = (at.window[0] + loss, at.window[1] + 1)
        self._follow(min(options.average, at.step / (at.step + 10.0)))

    @torch.no_grad()
    def _follow(self, decay: float) -> None:
        ours: list[Tensor] = list(self.mean.parameters())
        theirs: list[Tensor] = list(self.network.parameters())
        torch._foreach_lerp_(ours, theirs, 1.0 - decay)

    @torch.no_grad()
    def learned(self) -> Trunk:
        """The running mean of the weights, to be used. Rows of the table of items that no step has touched yet are the unknown item's, as
        it is now: a new item is that, and no noise. Those that began with an embedding, or with what was learnt before, stay."""
        state = self.optimizer.state.get(self.network.item.weight, {})
        if "exp_avg_sq" in state:
            untouched = ~state["exp_avg_sq"].any(1) & ~self.own
            if not untouched[0]:  # the unknown item itself was learnt
                self.mean.item.weight[untouched] = self.mean.item.weight[0].clone()
        return self.mean

    def validate(self, rows: TrainingRows, requests: Requests, seconds: float) -> Point:
        """How good the mean of the weights is on these rows; it is kept if it is the best so far."""
        at = self.at
        take = rows.rows_of(requests)
        y = rows.labels()[take]
        found = predict(self.learned(), rows, requests, ranks=self.ranks)
        z = found["ctr"][take][y >= 0]
        if LISTS in found:  # the two outputs as they would be blended
            both = np.stack([z, found[LISTS][take][y >= 0]], 1).astype(np.float64)
            w = blend(both, y[y >= 0])
            z = (both @ w[:-1] + w[-1]).astype(np.float32)
        y = y[y >= 0]
        loss = at.window[0] / at.window[1] if at.window[1] else float("nan")
        point = Point(at.step, at.step / self.per_epoch, loss, logloss(y, sigmoid(z)), auc(y, z), seconds)
        at.window = (0.0, 0)
        at.curve.append(point)
        if at.best is None or point.valid_logloss < at.best.valid_logloss:
            at.best, at.since, at.weights = point, 0, copy.deepcopy(self.mean.state_dict())
        else:
            at.since += 1
            at.stopped = at.since >= self.options.patience
        return point


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
    ranks: Ranks = ALONE,
    checkpoint_steps: int = 0,
    progress: Callable[[int, int], None] | None = None,
    start: Trunk | None = None,
    items: ItemStart | None = None,
) -> Fitted:
    """Train on some requests of `rows`, choose on some of `valid` (may be the same rows).

    `checkpoint`: a file written after each epoch, and every `checkpoint_steps` steps (0: no more often), and resumed from if it is
    there (it must be of the same run). `report` is called after each validation, `progress(steps done, steps)` after each step;
    `build` makes the network, which begins with the weights of `start` where one is given, else its table of items with `items`;
    `ranks`: which of several processes this is. InputError where either part has no rows of both classes.
    """
    for name, of, chosen in (("training", rows, train_requests), ("validation", valid, valid_requests)):
        y = of.labels()[of.rows_of(chosen)]
        if not (y == 1).any() or not (y == 0).any():
            raise InputError(f"the {name} days hold no rows with both labels ({len(y)} rows): choose other days")
    lists = options.lists > 0 and bool((rows["r_rows"][train_requests] > 1).any())
    run = Run(with_lists(config) if lists else config, rows, train_requests, options, build, ranks, start, items)
    who = disk.identity(options, config, train_requests, valid_requests)
    if checkpoint is not None and checkpoint.is_file():
        run.at = disk.load(checkpoint, who, run.parts)
    at, every = run.at, max(1, run.per_epoch // options.checks)
    started = time.monotonic() - at.seconds

    def keep() -> None:
        at.seconds = time.monotonic() - started
        if checkpoint is not None and ranks.first:
            disk.save(checkpoint, who, run.parts, at)

    if start is not None and at.best is None:  # what it begins with is a choice, too
        point = run.validate(valid, valid_requests, time.monotonic() - started)
        if report is not None:
            report(point)
    while at.epoch < options.epochs and not at.stopped:
        generator = np.random.default_rng([options.seed, at.epoch])
        for part in rows.parts(options.batch, train_requests, generator, options.stretch)[at.done :]:
            run.step(part)
            at.done += 1
            if progress is not None:
                progress(at.step, run.steps)
            if at.step % every == 0:
                point = run.validate(valid, valid_requests, time.monotonic() - started)
                if report is not None:
                    report(point)
                if at.stopped:
                    break
            if checkpoint_steps and at.step % checkpoint_steps == 0:
                keep()
        at.epoch, at.done = at.epoch + 1, 0
        keep()
    if at.best is None:
        run.validate(valid, valid_requests, time.monotonic() - started)
    assert at.best is not None and at.weights is not None
    run.mean.load_state_dict(at.weights)
    best, weight = run.mean.eval(), 0.0
    if lists:
        weight = _list_weight(best, valid, valid_requests, ranks)
        best = blended(best, weight, build).eval().requires_grad_(False)
    return Fitted(best, calibrate(best, valid, valid_requests, ranks), at.best, at.curve, weight)


def _list_weight(network: Trunk, rows: TrainingRows, requests: Requests, ranks: Ranks) -> float:
    logits, take = predict(network, rows, requests, ranks=ranks), rows.rows_of(requests)
    y = rows.labels()[take]
    known = y >= 0
    return list_weight(logits["ctr"][take][known], logits[LISTS][take][known], y[known])


def calibrate(network: Trunk, rows: TrainingRows, requests: Requests, ranks: Ranks = ALONE) -> Calibration:
    """Platt parameters of every head on these requests."""
    logits, take = predict(network, rows, requests, ranks=ranks), rows.rows_of(requests)
    platt = {}
    for head, z in logits.items():
        y = rows.labels(head)[take]
        known = y >= 0
        if head != "ctr" and "seen" in rows.columns:
            seen = rows["seen"][take, rows.heads.index(head)]
            platt[head] = fit_late(z[take][known], y[known], seen[known])
        else:
            platt[head] = fit_platt(z[take][known], y[known])
    return Calibration(platt)
