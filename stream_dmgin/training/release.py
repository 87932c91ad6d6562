"""From a log to a released model: replay, train, calibrate, measure on the valid days, write the folder and its card."""

from __future__ import annotations

import hashlib
import importlib.metadata
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from stream_dmgin.datasets.content import check_embeddings
from stream_dmgin.datasets.form import Dataset, Meta
from stream_dmgin.errors import InputError, UsageError
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.models.registry import Model
from stream_dmgin.models.trunk import DMGINConfig, Trunk
from stream_dmgin.replay.rows import training_rows
from stream_dmgin.replay.source import DatasetSource
from stream_dmgin.training.card import card, reliability, segments, surface_names
from stream_dmgin.training.curve import write_curve
from stream_dmgin.training.heads import head_measures, rows_as_of
from stream_dmgin.training.items import ItemStart, item_start
from stream_dmgin.training.loop import Options, Point, Requests, train
from stream_dmgin.training.parallel import ALONE, Ranks
from stream_dmgin.training.parent import start_of
from stream_dmgin.training.recipes import Recipe
from stream_dmgin.training.rows import TrainingRows
from stream_dmgin.training.served import Served, of_network, of_trees, stacked
from stream_dmgin.training.side import side_by_side
from stream_dmgin.training.stack import StackOptions
from stream_dmgin.training.teacher import attach, lesson
from stream_dmgin.training.trees import TreeOptions
from stream_dmgin.training.zoo import SERVED, Contender, Report, fit, rows_read_by

Span = tuple[int, int]  # ms, [from, to)


@dataclass(frozen=True)
class Spans:
    """Times of the training and of the validation rows, with the words the user gave for them."""

    train: Span
    valid: Span
    train_days: str
    valid_days: str


def made_of(wanted: str, recipe: Recipe) -> tuple[str, tuple[str, ...]]:
    """(architecture, members of the stack) for what `train --model` is given: dmgin, trees (or lightgbm), stack, or names of SERVED.
    UsageError."""
    if wanted == "dmgin":
        return wanted, ()
    if wanted in ("trees", "lightgbm"):  # the latter is what `evaluate` calls them
        return "trees", ()
    members = recipe.stack.members if wanted == "stack" else tuple(dict.fromkeys(n.strip() for n in wanted.split(",")))
    wrong = [m for m in members if m not in SERVED]
    if wrong or len(members) < 2:
        raise UsageError(
            f"--model {wanted!r} can't be served{': ' + ', '.join(wrong) if wrong else ''}: give dmgin, trees, stack, or two or more of "
            f"{', '.join(SERVED)} (`evaluate` measures others: the state keeps no sequence as long as they read)"
        )
    return "stack", members


def rows_for(
    data: Dataset,
    groups: GroupMap,
    config: DMGINConfig,
    spans: Spans,
    progress: Callable[[int, int], None] | None = None,
    directory: Path | None = None,
    ranks: Ranks = ALONE,
) -> TrainingRows:
    """Replay the log from its beginning, and keep the inputs of the requests of both spans: in memory, or in `directory`, which is
    used again if a training set of these requests is there. Of several processes one replays, the others wait."""
    check_embeddings(data, config.spec)
    source = DatasetSource(data)
    first, last = _range(source, spans)

    def seen(done: int) -> None:
        if progress is not None:
            progress(done - first, last - first)

    if directory is None:
        return training_rows(source, groups, config.spec, first, last, seen)
    if ranks.first and not (directory / "rows.json").is_file():
        training_rows(source, groups, config.spec, first, last, seen, directory)
    ranks.wait()
    rows = TrainingRows.load(directory, config.spec)
    if not np.array_equal(rows["r_ts"], source.requests.ts[first:last]):
        raise InputError(
            f"{directory} holds the rows of other days, or of another log: give another folder, or delete it"
        )
    return rows


def _range(source: DatasetSource, spans: Spans) -> tuple[int, int]:
    if spans.train[1] > spans.valid[0]:
        raise UsageError(
            f"--valid-days {spans.valid_days} must come after --train-days {spans.train_days}: days that a model learned from can't"
            " choose or calibrate it"
        )
    first, last = source.requests.between(min(spans.train[0], spans.valid[0]), max(spans.train[1], spans.valid[1]))
    if first == last:
        raise UsageError(f"the log holds no rows on days {spans.train_days} and {spans.valid_days}: choose other days")
    return first, last


def release(
    data: Dataset, groups: GroupMap, rows: TrainingRows, config: DMGINConfig, options: Options, spans: Spans, out: Path,
    command: Sequence[str], checkpoint: Path | None = None, report: Report = lambda name, point: None, ranks: Ranks = ALONE,
    checkpoint_steps: int = 0, progress: Callable[[int, int], None] | None = None, architecture: str = "dmgin",
    trees: TreeOptions = TreeOptions(), parent: Model | None = None, members: Sequence[str] = StackOptions().members,
    jobs: int = 1, done: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:  # fmt: skip
    """Train on the rows of `rows_for`, write the model's folder `out` (its name is the model's) and curve.csv; what `train -o json`
    prints. Labels count as known at the end of the valid days. Of several processes the first writes. `architecture`: dmgin, trees, or
    stack, which is made of `members` (SERVED of `zoo.py`), each fitted as `evaluate` does; only dmgin by several processes. `parent`: the
    release whose network is begun with, of the same config. `jobs`: members of a stack that are fitted at a time, each in a process of its
    own; of these `done` is told how many are ready, of how many, and `progress` nothing. UsageError where these don't go together.
    """
    started = time.monotonic()
    source = DatasetSource(data)
    first, last = _range(source, spans)
    start = int(source.requests.first[first])
    surfaces = surface_names(rows, source.requests.surface[first:last])
    known = rows_as_of(rows, data, start, max(spans.train[1], spans.valid[1]), options)
    chosen, judged = known.between(*spans.train), known.between(*spans.valid)
    if architecture != "dmgin" and ranks.world > 1:
        raise UsageError(f"a model of {architecture} is trained by one process: leave torchrun out")
    if parent is not None and architecture == "stack" and [m for m in members if m != "lightgbm"] != ["dmgin"]:
        raise UsageError(
            "--from is for one network, a dmgin: a stack of several is trained from nothing, or goes on by `stream-dmgin refit`"
        )
    teacher = None
    if architecture != "trees" and options.teacher:
        taught = lesson(known, chosen, judged, trees, options.seed, jobs, lambda p: report("teacher", p))
        known, teacher = attach(known, taught.chances), asdict(taught.grown)
    begin = start_of(parent) if parent is not None else None
    items = item_start(data.items, config, options)
    if architecture == "trees":
        seeded = replace(trees, seed=options.seed)
        fitted = of_trees(config, known, chosen, judged, seeded, lambda p: report("lightgbm", p))
    elif architecture == "dmgin":
        fitted = of_network(
            train(
                config, known, chosen, known, judged, options, checkpoint, lambda p: report("dmgin", p), ranks=ranks,
                checkpoint_steps=checkpoint_steps, progress=progress, start=begin, items=items,
            )
        )  # fmt: skip
    else:
        recipe = Recipe(config, options, trees, StackOptions(tuple(members)))
        fits: dict[str, partial[Contender]] = {}
        for name in members:
            own = checkpoint.with_name(f"{checkpoint.name}.{name}") if checkpoint is not None and fits else checkpoint
            fits[name] = partial(
                _member, name, recipe, known, chosen, judged, options, own, checkpoint_steps, progress if jobs == 1 else None, begin, items
            )  # fmt: skip
        found = side_by_side(fits, jobs, lambda told: report(*told), done if jobs > 1 else lambda done, of: None)
        fitted = stacked(found, known, judged)
    config = fitted.network.config
    seconds = time.monotonic() - started
    training = described(fitted, known, chosen, judged, options, trees, data.meta, groups.id, ranks, surfaces) | {
        "train_days": spans.train_days,
        "valid_days": spans.valid_days,
        "parent": parent.id if parent is not None else None,
        "teacher": teacher,
    }
    name, ident = out.name, ""
    if ranks.first:
        about = card(name, config, training, seconds, command)
        ident = fitted.save(out, name, training, about)
        write_curve(out / "curve.csv", fitted.curve)
    return {
        "model": ident,
        "path": str(out),
        "seconds": seconds,
        **{k: v for k, v in training.items() if k not in ("options", "trees", "parts", "teacher")},
    }


def _member(
    name: str, recipe: Recipe, rows: TrainingRows, chosen: Requests, judged: Requests, options: Options, checkpoint: Path | None,
    checkpoint_steps: int, progress: Callable[[int, int], None] | None, begin: Trunk | None, items: ItemStart | None,
    tell: Callable[[tuple[str, Point]], None],
) -> Contender:  # fmt: skip
    mine = rows_read_by(name, rows)
    return fit(
        name, recipe, mine, chosen, judged, options, lambda *point: tell(point), checkpoint, checkpoint_steps, progress, begin, items
    )  # fmt: skip


def described(
    fitted: Served, rows: TrainingRows, chosen: Requests, judged: Requests, options: Options, trees: TreeOptions, meta: Meta,
    groups: str, ranks: Ranks = ALONE, surfaces: Mapping[int, str] = MappingProxyType({}),
) -> dict[str, Any]:  # fmt: skip
    """What a release keeps of its training, and how good it is on the requests that judged it. `surfaces`: as
    `card.surface_names` gives them."""
    logits = fitted.logits(rows, judged, ranks)
    take = rows.rows_of(judged)
    y, p = rows.labels()[take], fitted.calibration.apply("ctr", logits["ctr"][take])
    period = (rows["r_ts"][min(chosen[0], judged[0])], rows["r_ts"][max(chosen[-1], judged[-1])])
    return {
        "dataset": meta.dataset,
        "period": [time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(int(t) / 1000)) for t in period],
        "learned_until": int(rows["r_ts"][chosen[-1]]),
        "train_rows": len(rows.rows_of(chosen)),
        "valid_rows": len(take),
        "rows_sha256": digest(rows, np.concatenate([chosen, judged])),
        "groups": groups,
        "options": asdict(options),
        "trees": asdict(trees) if fitted.forest is not None or options.teacher else None,
        "parts": fitted.parts,
        "processes": ranks.world,
        "architecture": fitted.architecture,
        "steps": fitted.steps,
        "list_weight": fitted.list_weight,
        "valid": head_measures(logits, fitted.calibration, rows, judged, meta.gauc == "user"),
        "segments": segments(rows, judged, p, surfaces),
        "reliability": reliability(y[y >= 0], p[y >= 0]),
        "platt": {k: list(v) for k, v in fitted.calibration.platt.items()},
        "stream_dmgin": importlib.metadata.version("stream-dmgin"),
        "torch": torch.__version__.split("+")[0],
    }


def digest(rows: TrainingRows, requests: Requests) -> str:
    """A hash over times and labels of the rows of these requests."""
    found = hashlib.sha256(np.ascontiguousarray(rows["r_ts"][requests]).tobytes())
    found.update(np.ascontiguousarray(rows["label"][rows.rows_of(requests)]).tobytes())
    return found.hexdigest()
