"""From a log to a released model: replay, train, calibrate, measure on the valid days, write the folder and its card."""

from __future__ import annotations

import platform
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import stream_dmgin
from stream_dmgin.datasets.form import Dataset
from stream_dmgin.errors import UsageError
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.models.registry import save_model
from stream_dmgin.models.trunk import DMGINConfig
from stream_dmgin.replay.rows import training_rows
from stream_dmgin.replay.source import DatasetSource
from stream_dmgin.training.curve import write_curve
from stream_dmgin.training.loop import Fitted, Options, Point, predict, train
from stream_dmgin.training.metrics import ece_floor, summary
from stream_dmgin.training.rows import TrainingRows

Span = tuple[int, int]  # ms, [from, to)


@dataclass(frozen=True)
class Spans:
    """Times of the training and of the validation rows, with the words the user gave for them."""

    train: Span
    valid: Span
    train_days: str
    valid_days: str


def rows_for(
    data: Dataset,
    groups: GroupMap,
    config: DMGINConfig,
    spans: Spans,
    progress: Callable[[int, int], None] | None = None,
) -> TrainingRows:
    """Replay the log from its beginning, and keep the inputs of the requests of both spans."""
    source = DatasetSource(data)
    first, last = source.requests.between(min(spans.train[0], spans.valid[0]), max(spans.train[1], spans.valid[1]))
    if first == last:
        raise UsageError(f"the log holds no rows on days {spans.train_days} and {spans.valid_days}: choose other days")

    def seen(done: int) -> None:
        if progress is not None:
            progress(done - first, last - first)

    return training_rows(source, groups, config.spec, first, last, seen)


def measures(
    fitted: Fitted, rows: TrainingRows, requests: np.ndarray[Any, np.dtype[np.int64]], by_user: bool
) -> dict[str, Any]:
    """Per head: rows, rate, and AUC, logloss, ECE, GAUC of the calibrated probabilities on these requests."""
    take = rows.rows_of(requests)
    per_request = np.repeat(np.arange(rows.requests), rows["r_rows"])
    found: dict[str, Any] = {}
    for head, z in predict(fitted.network, rows, requests).items():
        y = rows.labels(head)[take]
        known = y >= 0
        p, y = fitted.calibration.apply(head, z[take][known]), y[known]
        unit = (rows.keys() if by_user else per_request)[take][known]
        found[head] = {"rows": len(y), "rate": float(np.mean(y == 1)) if len(y) else 0.0, **summary(y, p, unit)}
        if len(y):
            found[head]["ece_noise"] = ece_floor(p, draws=50)[0]
    return found


def release(
    data: Dataset, groups: GroupMap, rows: TrainingRows, config: DMGINConfig, options: Options, spans: Spans, out: Path,
    command: Sequence[str], checkpoint: Path | None = None, report: Callable[[Point], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train on rows, write the model's folder `out` (its name is the model's) and curve.csv; what `train -o json`
    prints.
    """
    started = time.monotonic()
    chosen, judged = rows.between(*spans.train), rows.between(*spans.valid)
    fitted = train(config, rows, chosen, rows, judged, options, checkpoint, report)
    valid = measures(fitted, rows, judged, data.meta.gauc == "user")
    seconds = time.monotonic() - started
    training = {
        "dataset": data.meta.dataset,
        "train_days": spans.train_days,
        "valid_days": spans.valid_days,
        "train_rows": len(rows.rows_of(chosen)),
        "valid_rows": len(rows.rows_of(judged)),
        "groups": groups.id,
        "options": asdict(options),
        "steps": fitted.best.step,
        "valid": valid,
        "stream_dmgin": getattr(stream_dmgin, "__version__", ""),
        "torch": torch.__version__.split("+")[0],
    }
    name = out.name
    ident = save_model(
        out, name, fitted.network, fitted.calibration, training, card(name, config, training, seconds, command)
    )
    write_curve(out / "curve.csv", fitted.curve)
    return {
        "model": ident,
        "path": str(out),
        "seconds": seconds,
        **{k: v for k, v in training.items() if k != "options"},
    }


def card(name: str, config: DMGINConfig, training: dict[str, Any], seconds: float, command: Sequence[str]) -> str:
    """The model's card."""
    spec = config.spec
    lines = [
        f"# {name}",
        "",
        f"DMGIN, width {config.width}, {config.layers} layers across groups, heads: ctr"
        + "".join(f", {h}" for h in config.heads)
        + f". Inputs: {spec.groups} groups of {spec.events} events, {spec.short} newest events, "
        f"{len(spec.candidate_features)} columns a candidate.",
        "",
        "## Trained on",
        f"`{training['dataset']}`, days {training['train_days']} ({training['train_rows']:,} rows); chosen and calibrated on days "
        f"{training['valid_days']} ({training['valid_rows']:,} rows); group map `{training['groups']}`; "
        f"{training['steps']:,} steps, {seconds:.0f} s on one core ({platform.machine()}).",
        "",
        "    " + shlex.join(command),
        "",
        "## Measured on the valid days",
        "These days chose the weights and the calibration, so that the figures flatter.",
        "",
        "| head | rows | rate | AUC | GAUC | logloss | ECE (of a perfect model) |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {h} | {m['rows']:,} | {m['rate']:.4f} | {m['auc']:.4f} | {m['gauc']:.4f} | {m['logloss']:.4f} "
            f"| {m['ece']:.4f} ({m['ece_noise']:.4f}) |"
            for h, m in training["valid"].items()
            if m["rows"]
        ),
        "",
        "## Limits",
        "Probabilities hold for the traffic it was trained on; under another policy or other users it must be calibrated again. "
        "Items and users it never saw are scored by their counters, category and advertiser.",
        "",
    ]
    return "\n".join(lines)
