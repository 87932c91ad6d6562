"""The card of a released model: what it is, what it was made from, how good it is and where, and how to make it again."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.models.segments import KNOWN, item_codes
from stream_dmgin.models.trunk import DMGINConfig
from stream_dmgin.training.metrics import auc, ece, logloss
from stream_dmgin.training.rows import TrainingRows

LEAST = 200  # rows of a segment, below which its figures say nothing
SHOWN = (f"fewer than {KNOWN[0]} times", f"{KNOWN[0]} to {KNOWN[1] - 1} times", f"{KNOWN[1]} times or more")
HOURS = ((0, 6), (6, 12), (12, 18), (18, 24))


def surface_names(rows: TrainingRows, named: Sequence[str | None]) -> dict[int, str]:
    """Names of the hash buckets of surfaces (`x_cat`). `named`: the surface of each request of the rows, None where it has none."""
    found: dict[int, set[str]] = {}
    for bucket, name in zip(rows["x_cat"].tolist(), named, strict=True):
        if name:
            found.setdefault(bucket, set()).add(name)
    return {bucket: " or ".join(sorted(names)) for bucket, names in found.items()}


def segments(
    rows: TrainingRows, requests: NDArray[np.int64], p: NDArray[np.float64], surfaces: Mapping[int, str] = MappingProxyType({}),
    most: int = 6,
) -> list[dict[str, Any]]:  # fmt: skip
    """Metrics of `ctr` by surface (the `most` commonest; `surfaces`: their names), hour (UTC), what is known of user and item, and length
    of the list, on these requests; `p`: calibrated probabilities of their rows, in the order of `rows.rows_of`. Segments of few rows, or
    of all rows, are left out."""
    n = rows["r_rows"][requests]
    y = rows.labels()[rows.rows_of(requests)]
    surface, groups = (np.repeat(rows[k][requests], n) for k in ("x_cat", "r_groups"))
    hour = np.repeat(rows["r_ts"][requests] // 3_600_000 % 24, n)
    length = np.repeat(n, n)
    common = [int(s) for s in np.argsort(-np.bincount(surface), kind="stable")[:most]] if len(surface) else []
    which = {f"surface {surfaces.get(s, s or 'none')}": surface == s for s in common}
    which |= {f"{a:02d} to {b:02d} h UTC": (hour >= a) & (hour < b) for a, b in HOURS}
    which |= {"users without a history": groups == 0, "users with 1 to 9 groups": (groups > 0) & (groups < 10)}
    which |= {"users with 10 groups or more": groups >= 10}
    item = item_codes(rows.spec, rows["c_dense"][rows.rows_of(requests)])
    which |= {f"items shown {said}": item == k for k, said in enumerate(SHOWN)}
    which |= {
        "lists of one": length == 1,
        "lists of 2 to 9": (length > 1) & (length < 10),
        "lists of 10 or more": length >= 10,
    }
    found = []
    for name, mine in which.items():
        mine = mine & (y >= 0)
        if LEAST <= mine.sum() < (y >= 0).sum():
            found.append({"segment": name, "rows": int(mine.sum()), **_measures(y[mine], p[mine])})
    return found


def reliability(y: NDArray[np.int8], p: NDArray[np.float64], bins: int = 10) -> list[dict[str, float]]:
    """Predicted against observed rate in bins of as many rows each."""
    order = np.argsort(p, kind="stable")
    parts = [x for x in np.array_split(order, bins) if len(x)]
    return [
        {"rows": len(x), "predicted": float(p[x].mean()), "clicked": float((y[x] == 1).mean())} for x in parts
    ]  # fmt: skip


def _measures(y: NDArray[np.int8], p: NDArray[np.float64]) -> dict[str, float]:
    return {
        "rate": float((y == 1).mean()), "predicted": float(p.mean()), "auc": auc(y, p), "logloss": logloss(y, p), "ece": ece(y, p),
    }  # fmt: skip


def made_of(architecture: str, config: DMGINConfig) -> str:
    """What kind of model it is, in words."""
    network = f"DMGIN, width {config.width}, {config.layers} layers across groups"
    said = {
        "trees": "Boosted trees", "stack": f"{network}, with boosted trees beside it",
        "ensemble": f"Several models as one, networks of width {config.width}",
    }  # fmt: skip
    return said.get(architecture, network)


def _shares(parts: Mapping[str, Any]) -> str:
    """What a stack is made of, and how much of each."""
    shares = parts.get("shares", {})
    if not shares:
        return ""
    return (
        " A weighted sum of calibrated logits: " + ", ".join(f"{n} {w:.3f}" for n, w in shares.items())
        + "; fitted on the valid days, what has no share is left out."
    )  # fmt: skip


def card(name: str, config: DMGINConfig, training: dict[str, Any], seconds: float, command: Sequence[str]) -> str:
    """The model's card, Markdown."""
    spec = config.spec
    made = training
    lines = [
        f"# {name}",
        "",
        made_of(made["architecture"], config)
        + ", heads: ctr"
        + "".join(f", {h}" for h in config.heads)
        + f". Inputs: {spec.groups} groups of {spec.events} events, {spec.short} newest events, "
        f"{len(spec.candidate_features)} columns a candidate, {len(spec.user_features)} a user."
        + (f" {spec.flat} newest events as one sequence." if spec.flat else "")
        + _shares(made["parts"]),
        "",
        "## Trained on",
        f"`{made['dataset']}`, days {made['train_days']} ({made['train_rows']:,} rows); "
        f"{'judged' if made.get('refit') else 'chosen and calibrated'} on days "
        f"{made['valid_days']} ({made['valid_rows']:,} rows); {made['period'][0]} to {made['period'][1]}; "
        f"group map `{made['groups']}`; {made['steps']:,} steps, {seconds:.0f} s by {made['processes']} "
        f"process{'es' if made['processes'] > 1 else ''} of one thread ({platform.machine()})."
        + (f" It began with the weights of `{made['parent']}`." if made.get("parent") else ""),
        "",
        "## How to make it again",
        "    " + shlex.join(command),
        "",
        f"stream_dmgin {made['stream_dmgin']}, torch {made['torch']}, seed {made['options']['seed']}. The same rows and seed give the "
        f"same weights on the same machine. SHA-256 of the training rows' labels and times: `{made['rows_sha256']}`; of the "
        "weights: `weights_sha256` and the like in `config.json`; both with the calibration are in the eight digits of the model's id.",
        "",
        "## Measured on the rows that judged it" if made.get("refit") else "## Measured on the valid days",
        "The newest ones: neither weights nor calibration learned from them, but they let the model through."
        if made.get("refit")
        else "These days chose the weights and the calibration, so that the figures flatter.",
        "",
        "| head | rows | rate | predicted | AUC | GAUC | logloss | ECE (of a perfect model) |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {h} | {m['rows']:,} | {m['rate']:.4f} | {m['predicted']:.4f} | {m['auc']:.4f} | {m['gauc']:.4f} | {m['logloss']:.4f} "
            f"| {m['ece']:.4f} ({m['ece_noise']:.4f}) |"
            for h, m in made["valid"].items()
            if m["rows"]
        ),
        "",
        "### Clicks by segment",
        "| segment | rows | rate | predicted | AUC | logloss | ECE |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {m['segment']} | {m['rows']:,} | {m['rate']:.4f} | {m['predicted']:.4f} | {m['auc']:.4f} | {m['logloss']:.4f} "
            f"| {m['ece']:.4f} |"
            for m in made["segments"]
        ),
        "",
        "### Calibration of clicks",
        "Slope and offset (Platt): "
        + ", ".join(f"{h} {a:.3f} {b:+.3f}" for h, (a, b) in made["platt"].items())
        + ". Tenths of the rows, by probability:",
        "",
        "| predicted | " + " | ".join(f"{b['predicted']:.4f}" for b in made["reliability"]) + " |",
        "|---|" + "---|" * len(made["reliability"]),
        "| observed | " + " | ".join(f"{b['clicked']:.4f}" for b in made["reliability"]) + " |",
        "",
        "## Limits",
        "Probabilities hold for the traffic it was trained on; under another policy or other users it must be calibrated again. "
        "Items and users it never saw are scored by their counters, category and advertiser. Segments not listed had fewer than "
        f"{LEAST} rows: nothing is claimed of them." + _labels(made),
        "",
    ]
    return "\n".join(lines)


def _labels(training: dict[str, Any]) -> str:
    options, said = training["options"], ""
    if training.get("teacher"):
        said += f" Of a click's label {options['teacher']:.0%} is what trees say of it that had not seen it."
    if options["reported"]:
        said += (
            f" Labels of {', '.join(options['reported'])} come from advertisers: those that never reported any, though they had "
            "clicks enough, counted as unknown."
        )
    if options["delay_days"]:
        said += f" What follows a click was taken to come within {options['delay_days']:g} days."
    return said
