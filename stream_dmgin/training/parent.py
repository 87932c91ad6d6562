"""A released model as what another one begins with: does it fit, what does it begin with, how was it trained, up to when."""

from __future__ import annotations

import calendar
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from stream_dmgin.errors import InputError
from stream_dmgin.models.registry import Model
from stream_dmgin.models.trunk import DMGINConfig, Trunk
from stream_dmgin.training.options import Options
from stream_dmgin.training.start import rescaled, scales
from stream_dmgin.training.teacher import Grown
from stream_dmgin.training.trees import TreeOptions

T = TypeVar("T")


def begun_with(
    model: Model, heads: Sequence[str], item_numbers: Sequence[str], wanted: DMGINConfig | None = None
) -> DMGINConfig:
    """The config of the model, which one that begins with it shares. InputError where it has no network, where the log has other heads or
    numbers of items, or where another config is wanted."""
    if model.architecture == "trees":
        raise InputError(
            f"{model.id} is made of trees alone, which are grown anew each time: there is nothing to begin with"
        )
    config = model.config
    differing = [
        f"{name} ({_said(mine)}, here {_said(theirs)})"
        for name, mine, theirs in (
            ("heads", model.heads, tuple(heads)),
            ("numbers of items", config.spec.item_numbers, tuple(item_numbers)),
        )
        if mine != theirs
    ]
    if wanted is not None:
        for of, mine, theirs in (("inputs", config.spec, wanted.spec), ("model", config, wanted)):
            differing += [
                f"{of}.{f.name} ({getattr(mine, f.name)}, here {getattr(theirs, f.name)})"
                for f in dataclasses.fields(mine)  # type: ignore[arg-type]
                if f.name not in ("spec", "heads", "item_numbers", "flat")
                and getattr(mine, f.name) != getattr(theirs, f.name)
            ]
    if differing:
        raise InputError(
            f"{model.id} can't be begun with: it has other {', '.join(differing)}. Give the recipe and a log like those it was made "
            "from, or train from nothing"
        )
    return config


def start_of(model: Model) -> Trunk:
    """Its network, scaled so that its logits are calibrated."""
    return rescaled(model.network, scales(own_platt(model)))


def own_platt(model: Model, k: int = 0) -> dict[str, tuple[float, float]]:
    """The calibration of its network k alone: in a stack that of `ctr` is not the whole's, and may not be known."""
    if model.architecture == "dmgin":
        return dict(model.calibration.platt)
    parts = model.training.get("parts", {})
    kept = parts.get("further", [])[k - 1].get("platt", {}) if k else parts.get("platt", {})
    return {h: (float(a), float(b)) for h, (a, b) in kept.items()}


def list_weight(model: Model, k: int = 0) -> float:
    """Of the second output that is blended into its network k."""
    of: Mapping[str, Any] = model.training.get("parts", {}).get("further", [])[k - 1] if k else model.training
    return float(of.get("list_weight", 0.0))


def options_of(model: Model) -> Options:
    """How it was trained; what its release doesn't say has its default."""
    return _of(Options, model.training.get("options") or {})


def trees_of(model: Model) -> tuple[TreeOptions, Mapping[str, Any]]:
    """How its trees were grown: options; `rounds`, `weight`, `share`, `offset` as `Served.parts` has them. InputError where its release
    doesn't say."""
    grown = model.training.get("parts", {}).get("trees")
    if not grown:
        raise InputError(f"{model.id} doesn't say how its trees were grown: it is older than `refit`. Train it again")
    return tree_options(model), grown


def tree_options(model: Model) -> TreeOptions:
    """Options of its trees, and of those that taught its networks; what its release doesn't say has its default."""
    return _of(TreeOptions, model.training.get("trees") or {})


def teacher_of(model: Model) -> tuple[TreeOptions, Grown] | None:
    """How the trees were grown that taught its networks; None where nothing did."""
    grown = model.training.get("teacher")
    if not grown:
        return None
    chosen = Grown(tuple(int(n) for n in grown["rounds"]), float(grown["weight"]))
    return tree_options(model), chosen


def _of(kind: type[T], given: Mapping[str, Any]) -> T:
    known = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if k in known})


def learned_until(model: Model) -> int | None:
    """Time (ms) of the newest request it learned from; for older releases the end of its period; None where neither is said."""
    if "learned_until" in model.training:
        return int(model.training["learned_until"])
    period = model.training.get("period")
    return calendar.timegm(time.strptime(period[1], "%Y-%m-%d %H:%M UTC")) * 1000 if period else None


def _said(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
