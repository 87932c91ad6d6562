"""The quality protocol: replay once, train on the train days, choose and calibrate on the valid days, measure on the test days.

Weights are fixed on the train and valid days; the state goes on to the end. The refit track fits anew before every so many test
days, on all that was visible by then, the valid days too: trees anew, networks from where they are; what was chosen stays.
Calibration is given twice: as fitted on the valid days, and followed from hour to hour by what has become visible (`online.py`).
Nothing of a test day chooses anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stream_dmgin.datasets.form import Dataset, Meta
from stream_dmgin.datasets.grouping import group_map, regrouped
from stream_dmgin.errors import InputError, UsageError
from stream_dmgin.features.spec import InputSpec
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.models.calibration import fit_platt, sigmoid
from stream_dmgin.models.peers import PEERS
from stream_dmgin.models.segments import segment_codes
from stream_dmgin.replay.rows import floor_rates, training_rows
from stream_dmgin.replay.source import DatasetSource
from stream_dmgin.training import recipes
from stream_dmgin.training.heads import head_measures, rows_as_of
from stream_dmgin.training.lives import lives_of
from stream_dmgin.training.loop import Fitted, Options, Point, predict
from stream_dmgin.training.measure import Scored
from stream_dmgin.training.online import NEVER, Answered, follow
from stream_dmgin.training.refit import Refit, refit
from stream_dmgin.training.rows import TrainingRows
from stream_dmgin.training.zoo import FLOOR, MODELS, REGROUPED, Contender, Rows, fit, named

OF_THE_REQUEST = ("hour_sin", "hour_cos", "hour2_sin", "hour2_cos", "dow_sin", "dow_cos", "global_ctr_logit")

Say = Callable[[str], None]
Span = tuple[int, int]  # ms, [from, to)


@dataclass(frozen=True)
class Plan:
    """What is trained on, chosen on and measured on; `refit_days`: 0 for the frozen track."""

    train: Span
    valid: Span
    test: Span
    refit_days: int = 0
    day_ms: int = 86_400_000

    def steps(self) -> list[Span]:
        """The test days as spans of one set of weights each: all of them, or `refit_days` each."""
        step = self.refit_days * self.day_ms or self.test[1] - self.test[0]
        return [(start, min(start + step, self.test[1])) for start in range(*self.test, step)]


def days(meta: Meta, text: str, option: str) -> Span:
    """`1-9` as times. Raises UsageError."""
    low, dash, high = text.partition("-")
    if not (low.isdigit() and (not dash or high.isdigit())) or int(high or low) < int(low):
        raise UsageError(f"{option} {text!r}: write FIRST-LAST, whole numbers of days counted from 0, as in 1-9")
    return meta.day0_ms + int(low) * meta.day_ms, meta.day0_ms + (int(high or low) + 1) * meta.day_ms


def evaluate(
    data: Dataset, plan: Plan, model: str = "dmgin", seeds: int = 1, groups: GroupMap | None = None, options: Options | None = None,
    say: Say = lambda text: None, progress: Callable[[int, int], None] | None = None, rows: TrainingRows | None = None,
) -> tuple[DatasetSource, Scored]:  # fmt: skip
    """Scores of the test rows by one model of the zoo, as `evaluate_all` gives them."""
    source, scored = evaluate_all(data, plan, (model,), seeds, groups, options, say, progress, rows)
    return source, scored[model]


def evaluate_all(
    data: Dataset, plan: Plan, models: Sequence[str] = MODELS, seeds: int = 1, groups: GroupMap | None = None,
    options: Options | None = None, say: Say = lambda text: None, progress: Callable[[int, int], None] | None = None,
    rows: TrainingRows | None = None, blocks: tuple[str, ...] | None = None, rows_dir: Path | None = None,
) -> tuple[DatasetSource, dict[str, Scored]]:  # fmt: skip
    """Scores of the test rows by several models, all fitted on the rows of one replay.

    `rows`: the training rows of requests from `plan.train[0]` on, where they are at hand already; `rows_dir`: a folder that keeps
    them, read if it is there. `blocks`: optional inputs in place of the recipe's.
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
    test = r.between(*plan.test)
    row = np.arange(r.first[test[0]], r.first[test[1]])
    out = {m: Scored(row, r.label[row]) for m in models}

    def seen(done: int) -> None:
        if progress is not None:
            progress(done - first, last - first)

    if FLOOR in models:
        rates = floor_rates(source, groups, first, last, seen)
        _floor(out[FLOOR], r.first, first, rates, r.label, plan, r.between)
    learning = [m for m in models if m != FLOOR]
    if not learning:
        return source, out
    if rows is None:
        rows = _rows(rows_dir, lambda: training_rows(source, groups, recipe.spec, first, last, seen), recipe.spec)
    if not np.array_equal(rows["r_ts"], r.ts[first:last]):
        raise InputError(
            f"the rows {rows_dir or ''} are of other requests than these days': give another folder, or delete it"
        )
    with_lives = any(m in PEERS for m in learning)
    lives = lives_of(data, recipe.spec, r.user[first:last], r.at[first:last]) if with_lives else None
    maps = {m: regrouped(m, data, groups) for m in learning if m in REGROUPED}
    others = {m: training_rows(source, other, recipe.spec, first, last, seen) for m, other in maps.items()}
    base = Rows(rows, lives, others)
    rows_of = {m: base.of(m) for m in learning}
    judged = np.arange(*(i - first for i in r.between(*plan.valid)))
    stream = _stream(data, source, rows, judged, first, plan)
    tested = np.flatnonzero(stream.ts >= plan.test[0])
    known = {low: _known(data, rows, r.id[first:last], low) for low, _ in plan.steps() if plan.refit_days}
    for m in learning:
        out[m].codes = {k: c[tested] for k, c in stream.codes.items()}
        out[m].surfaces = {c: s for c, s in zip(rows["x_cat"].tolist(), r.surface[first:last], strict=True) if s}
    for seed in range(1, seeds + 1):
        seeded = replace(options or recipe.options, seed=seed)
        learned = np.arange(*(i - first for i in r.between(*plan.train)))
        fitted: dict[str, Contender] = {}
        taught = {m: rows_as_of(rows_of[m], data, int(r.first[first]), plan.test[0], seeded) for m in learning}
        for m in learning:
            fit(m, recipe, taught[m], learned, judged, seeded, fitted, partial(_told, say, seed))
        z = {m: np.full(len(stream.ts), np.nan) for m in learning}
        held = {m: np.full(len(row), np.nan) for m in learning}
        for m in learning:
            z[m][: len(rows.rows_of(judged))] = fitted[m].logits(rows_of[m], judged)
        latest, seen_before = fitted, learned
        for low, high in plan.steps():
            score = np.arange(*(i - first for i in r.between(low, high)))
            mine = rows.rows_of(score) + r.first[first] - row[0]
            now: dict[str, Contender] = {}
            if plan.refit_days:
                taught = {m: rows_as_of(rows_of[m], data, int(r.first[first]), low, seeded) for m in learning}
            for m in learning:
                made = fitted[m]
                if plan.refit_days:
                    made = refit(m, Refit(taught, known[low], seen_before, latest, seeded, recipe.refit), now)
                z[m][tested[mine]] = made.logits(rows_of[m], score)
                if isinstance(made, Fitted) and rows.heads:
                    found = predict(made.network, rows_of[m], score)
                    of_heads = head_measures(found, made.calibration, rows_of[m], score, data.meta.gauc == "user")
                    out[m].heads.append(of_heads)
                if data.meta.gauc == "user":
                    held[m][mine] = _frozen(made, rows_of[m], score)
            if plan.refit_days:
                latest, seen_before = now, known[low]
        for m in learning:
            start = fitted[m].calibration
            out[m].raw[seed], out[m].calibrated[seed] = sigmoid(z[m][tested]), start.apply("ctr", z[m][tested])
            out[m].online[seed] = follow(replace(stream, logit=z[m]), start, *plan.test, recipe.online)[tested]
            if data.meta.gauc == "user":
                out[m].frozen[seed] = held[m]
    return source, out


def _rows(folder: Path | None, replay: Callable[[], TrainingRows], spec: InputSpec) -> TrainingRows:
    if folder is not None and (folder / "rows.json").is_file():
        return TrainingRows.load(folder, spec)
    made = replay()
    if folder is not None:
        made.save(folder)
    return made


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


def _told(say: Say, seed: int, model: str, p: Point) -> None:
    say(
        f"{model}, seed {seed}: epoch {p.epoch:.2f}, valid logloss {p.valid_logloss:.4f}, auc {p.valid_auc:.4f}, "
        f"{p.seconds:.0f} s"
    )


def _frozen(model: Contender, rows: TrainingRows, requests: NDArray[np.int64]) -> NDArray[np.float64]:
    held = rows["u_dense"][requests].copy()
    _, first, back = np.unique(rows["r_key"][requests], return_index=True, return_inverse=True)
    live = [i for i, n in enumerate(rows.spec.user_features) if n in OF_THE_REQUEST]
    changed = held[first][back]
    changed[:, live] = held[:, live]
    rows["u_dense"][requests] = changed
    try:
        return model.calibration.apply("ctr", model.logits(rows, requests))
    finally:
        rows["u_dense"][requests] = held


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
