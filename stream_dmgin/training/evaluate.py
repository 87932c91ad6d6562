"""The quality protocol: replay once, train on the train days, choose and calibrate on the valid days, measure on the test days.

Weights are fixed on the train and valid days; the state goes on to the end. The refit track fits anew before every so many test
days, on all that was visible by then, the valid days too: trees anew, networks from where they are; what was chosen stays.
Calibration is given twice: as fitted on the valid days, and followed from hour to hour by what has become visible (`online.py`).
Nothing of a test day chooses anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stream_dmgin.datasets.content import check_embeddings
from stream_dmgin.datasets.form import Dataset, Meta
from stream_dmgin.datasets.grouping import group_map
from stream_dmgin.errors import InputError, UsageError
from stream_dmgin.features.spec import InputSpec
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.models.calibration import fit_platt, sigmoid
from stream_dmgin.models.segments import segment_codes
from stream_dmgin.replay.rows import floor_rates, training_rows
from stream_dmgin.replay.source import DatasetSource
from stream_dmgin.training import recipes
from stream_dmgin.training.card import surface_names
from stream_dmgin.training.contest import Contest, Plan, Say, Span
from stream_dmgin.training.keep import INPUTS, Keep, of_code, of_data
from stream_dmgin.training.loop import Options
from stream_dmgin.training.measure import Scored
from stream_dmgin.training.online import NEVER, Answered, follow
from stream_dmgin.training.rows import TrainingRows
from stream_dmgin.training.zoo import FLOOR, MODELS, named

__all__ = ["Plan", "Say", "days", "evaluate_all", "label_times"]


def days(meta: Meta, text: str, option: str) -> Span:
    """`1-9` as times. Raises UsageError."""
    low, dash, high = text.partition("-")
    if not (low.isdigit() and (not dash or high.isdigit())) or int(high or low) < int(low):
        raise UsageError(f"{option} {text!r}: write FIRST-LAST, whole numbers of days counted from 0, as in 1-9")
    return meta.day0_ms + int(low) * meta.day_ms, meta.day0_ms + (int(high or low) + 1) * meta.day_ms


def evaluate_all(
    data: Dataset, plan: Plan, models: Sequence[str] = MODELS, seeds: int = 1, groups: GroupMap | None = None,
    options: Options | None = None, say: Say = lambda text: None, progress: Callable[[int, int], None] | None = None,
    blocks: tuple[str, ...] | None = None, rows_dir: Path | None = None, keep: Path | None = None, first_seed: int = 1,
    hide: Sequence[str] = (), jobs: int = 1, fitted: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[DatasetSource, dict[str, Scored]]:  # fmt: skip
    """Scores of the test rows by several models, all fitted on the rows of one replay.

    `blocks`: optional inputs in place of the recipe's. `hide`: inputs of candidates that no model is to see. `rows_dir`: a folder that
    keeps the training rows, read if it is there. `keep`: one that keeps them and what each model said, so that only what is missing is
    fitted (`keep.py`). Seeds are `first_seed` and those after it. `jobs` models are fitted at a time (`side.py`); `fitted` is told how
    many are, of how many.
    """
    models = named(",".join(models))
    source = DatasetSource(data)
    r = source.requests
    first, last = r.between(plan.train[0], plan.test[1])
    for name, span in (("train", plan.train), ("valid", plan.valid), ("test", plan.test)):
        a, b = r.between(*span)
        if a == b:
            raise InputError(f"the log has no rows on the {name} days")
    groups = groups if groups is not None else group_map(data)
    if not plan.train[1] <= plan.valid[0] or not plan.valid[1] <= plan.test[0]:
        raise UsageError("train, valid and test days must follow one another")
    recipe = recipes.of(data.meta)
    if blocks is not None:
        recipe = recipes.with_blocks(recipe, blocks)
    learning = [m for m in models if m != FLOOR]
    if learning:
        check_embeddings(data, recipe.spec)
    test = r.between(*plan.test)
    row = np.arange(r.first[test[0]], r.first[test[1]])
    out = {m: Scored(row, r.label[row]) for m in models}

    def seen(done: int) -> None:
        if progress is not None:
            progress(done - first, last - first)

    if FLOOR in models:
        rates = floor_rates(source, groups, first, last, seen)
        _floor(out[FLOOR], r.first, first, rates, r.label, plan, r.between)
    if not learning:
        return source, out
    store, log = (Keep(keep, say), of_data(data)) if keep is not None else (None, "")

    def replay(mapped: GroupMap) -> TrainingRows:
        def make() -> TrainingRows:
            return training_rows(source, mapped, recipe.spec, first, last, seen)

        if store is None:
            return make()
        facts = {"log": log, "groups": mapped.id, "spec": asdict(recipe.spec), "first": first, "last": last}
        return store.rows({**facts, "code": of_code(*INPUTS)}, make)

    def replayed(mapped: GroupMap) -> TrainingRows:
        return _hidden(replay(mapped), hide)

    rows = _hidden(_rows(rows_dir, lambda: replay(groups), recipe.spec), hide)
    if not np.array_equal(rows["r_ts"], r.ts[first:last]):
        raise InputError(
            f"the rows {rows_dir or ''} are of other requests than these days': give another folder, or delete it"
        )
    known = {low: _known(data, rows, r.id[first:last], low) for low, _ in plan.steps() if plan.refit_days}
    contest = Contest(data, source, groups, plan, recipe, rows, first, known, replayed, say, store, log)
    stream = _stream(data, source, rows, contest.between(*plan.valid), first, plan)
    tested = np.flatnonzero(stream.ts >= plan.test[0])
    for m in learning:
        out[m].codes = {k: c[tested] for k, c in stream.codes.items()}
        out[m].surfaces = surface_names(rows, r.surface[first:last])
    runs = [replace(options or recipe.options, seed=seed) for seed in range(first_seed, first_seed + seeds)]
    for seed, said in enumerate(contest.outcomes(learning, runs, jobs, fitted), first_seed):
        for m, found in said.items():
            z, start, mine = found.logits, found.calibration, out[m]
            mine.raw[seed], mine.calibrated[seed] = sigmoid(z[tested]), start.apply("ctr", z[tested])
            mine.online[seed] = follow(replace(stream, logit=z), start, *plan.test, recipe.online)[tested]
            if data.meta.gauc == "user":
                mine.frozen[seed] = start.apply("ctr", found.held)
            mine.heads += found.heads
            mine.seconds[seed] = found.seconds
    return source, out


def _rows(folder: Path | None, replay: Callable[[], TrainingRows], spec: InputSpec) -> TrainingRows:
    if folder is not None and (folder / "rows.json").is_file():
        return TrainingRows.load(folder, spec)
    made = replay()
    if folder is not None:
        made.save(folder)
    return made


def _hidden(rows: TrainingRows, names: Sequence[str]) -> TrainingRows:
    """The rows with some inputs of the candidates at 0 everywhere, in memory; a folder that they lie in keeps them."""
    if names:
        rows["c_dense"][:, [rows.spec.candidate_features.index(n) for n in names]] = 0.0
    return rows


def _stream(
    data: Dataset, source: DatasetSource, rows: TrainingRows, judged: NDArray[np.int64], first: int, plan: Plan
) -> Answered:
    """The rows of the valid and test days without their logits: what calibration can follow."""
    r = source.requests
    every = np.r_[judged, np.arange(*(i - first for i in r.between(*plan.test)))]
    take, counts = rows.rows_of(every), rows["r_rows"][every]
    visible = label_times(data, [r.id[first + i] for i in every.tolist()])
    codes = segment_codes(rows.spec, rows["c_dense"][take], rows["u_dense"][every], rows["x_cat"][every], counts)
    ts = np.repeat(rows["r_ts"][every], counts)
    return Answered(ts, np.full(len(ts), np.nan), rows.labels()[take], np.repeat(visible, counts), codes)


def _floor(
    out: Scored, first_row: NDArray[np.int64], first: int, rates: NDArray[np.float64], label: NDArray[np.int8], plan: Plan,
    between: Callable[[int, int], Span],
) -> None:  # fmt: skip
    start = int(first_row[first])
    logit = np.log(rates / (1 - rates))
    a, b = (int(first_row[i]) for i in between(*plan.valid))
    slope, offset = fit_platt(logit[a - start : b - start], label[a:b])
    z = logit[out.row - start]
    out.raw[1], out.calibrated[1] = sigmoid(z), sigmoid(slope * z + offset)


def label_times(data: Dataset, ids: Sequence[str]) -> NDArray[np.int64]:
    """When the label of each request was known: its impressions and clicks all visible. NEVER where the log has none of them."""
    events = data.events.filter(pc.is_in(data.events["topic"], pa.array(["impressions", "clicks"])))
    last = events.group_by("request_id").aggregate([("visible_at", "max")])
    at = dict(zip(last["request_id"].to_pylist(), last["visible_at_max"].to_pylist(), strict=True))
    return np.fromiter((at.get(i, NEVER) for i in ids), np.int64, len(ids))


def _visible_before(data: Dataset, ids: Sequence[str], time: int) -> NDArray[np.bool_]:
    """Whether what was shown and clicked of each request was visible before `time`. What follows a click may come days later: leaving
    out the rows that it came of would leave out clicks and keep the rest (`training/heads.py` knows of it)."""
    late = data.events.filter(
        (data.events["visible_at"].to_numpy() >= time)
        & (data.events["topic"].to_numpy(zero_copy_only=False) != "post-clicks")
    )["request_id"].to_pylist()
    after = set(late)
    return np.fromiter((i not in after for i in ids), bool, len(ids))


def _known(data: Dataset, rows: TrainingRows, ids: Sequence[str], time: int) -> NDArray[np.int64]:
    """Requests before `time` whose feedback was all visible by then."""
    return np.flatnonzero(_visible_before(data, ids, time) & (rows["r_ts"] < time))
