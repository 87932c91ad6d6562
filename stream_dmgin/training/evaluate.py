"""The quality protocol: replay once, train on the train days, choose and calibrate on the valid days, measure on the test days.

Weights are fixed on the train and valid days; the state goes on to the end. The refit track fits anew every so many test
days, on what was visible by then. Nothing of a test day chooses anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stream_dmgin.datasets.form import Dataset, Meta
from stream_dmgin.datasets.grouping import group_map
from stream_dmgin.errors import InputError, UsageError
from stream_dmgin.features.spec import USER_FEATURES
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.models.calibration import Calibration, fit_platt, sigmoid
from stream_dmgin.models.dmgin import DMGIN
from stream_dmgin.replay.rows import floor_rates, training_rows
from stream_dmgin.replay.source import DatasetSource
from stream_dmgin.training import recipes
from stream_dmgin.training.loop import Options, Point, predict, train
from stream_dmgin.training.metrics import ece_floor, summary
from stream_dmgin.training.rows import TrainingRows

MODELS = ("dmgin", "no-interest", "item-ctr")
TIME_OF_REQUEST = ("hour_sin", "hour_cos", "hour2_sin", "hour2_cos", "dow_sin", "dow_cos", "global_ctr_logit")

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

    def folds(self) -> list[tuple[Span, Span, Span]]:
        """(train, valid, test) of each fit. A later fit moves the valid days along, and trains on all before them."""
        if not self.refit_days:
            return [(self.train, self.valid, self.test)]
        out = []
        step, length = self.refit_days * self.day_ms, self.valid[1] - self.valid[0]
        for start in range(self.test[0], self.test[1], step):
            valid = (start - length, start)
            out.append(((self.train[0], valid[0]), valid, (start, min(start + step, self.test[1]))))
        return out


@dataclass
class Scored:
    """Scores of the test rows: `row` counts the source's candidates; probabilities per seed."""

    row: NDArray[np.int64]
    label: NDArray[np.int8]
    raw: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    calibrated: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    frozen: dict[int, NDArray[np.float64]] = field(
        default_factory=dict
    )  # user-only inputs as at the user's first test row


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
    """Scores of the test rows. `rows`: the training rows of requests from `plan.train[0]` on, where they are at hand already."""
    if model not in MODELS:
        raise UsageError(f"--model {model!r} is not known: choose one of {', '.join(MODELS)}")
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
    test = r.between(*plan.test)
    row = np.arange(r.first[test[0]], r.first[test[1]])
    out = Scored(row, r.label[row])

    def seen(done: int) -> None:
        if progress is not None:
            progress(done - first, last - first)

    if model == "item-ctr":
        rates = floor_rates(source, groups, first, last, seen)
        _floor(out, r.first, first, rates, r.label, plan, r.between)
        return source, out
    if rows is None:
        rows = training_rows(source, groups, recipe.spec, first, last, seen)
    if model == "no-interest":
        rows = without_interests(rows)
    for seed in range(1, seeds + 1):
        raw, calibrated, frozen = (np.full(len(row), np.nan) for _ in range(3))
        for train_span, valid_span, test_span in plan.folds():
            chosen = [
                np.arange(a - first, b - first) for a, b in (r.between(*s) for s in (train_span, valid_span, test_span))
            ]
            if plan.refit_days:
                known = _visible_before(data, r.id, test_span[0])[first:last]
                chosen[:2] = [c[known[c]] for c in chosen[:2]]
            fitted = train(
                recipe.config, rows, chosen[0], rows, chosen[1], replace(options or recipe.options, seed=seed),
                report=partial(_told, say, seed),
            )  # fmt: skip
            at = rows.rows_of(chosen[2])
            mine = at + r.first[first] - row[0]
            z = predict(fitted.network, rows, chosen[2])["ctr"][at]
            raw[mine], calibrated[mine] = sigmoid(z), fitted.calibration.apply("ctr", z)
            if data.meta.gauc == "user":
                frozen[mine] = _frozen(fitted.network, fitted.calibration, rows, chosen[2], at)
        out.raw[seed], out.calibrated[seed] = raw, calibrated
        if data.meta.gauc == "user":
            out.frozen[seed] = frozen
    return source, out


def _told(say: Say, seed: int, p: Point) -> None:
    say(
        f"seed {seed}: epoch {p.epoch:.2f}, valid logloss {p.valid_logloss:.4f}, auc {p.valid_auc:.4f}, {p.seconds:.0f} s"
    )


def measure(source: DatasetSource, scored: Scored) -> dict[str, Any]:
    """Metrics of raw and calibrated scores, mean and deviation over seeds.

    `gauc` groups by the log's own unit. Where that is the user, the user-only inputs are frozen at the user's first test row,
    because a live user rate distorts an AUC within users; `gauc_live` is without that.
    """
    r = source.requests
    request = r.request_of_rows()[scored.row]
    unit = np.array(r.user)[request] if source.meta.gauc == "user" else request
    result: dict[str, Any] = {}
    for name, found in (("raw", scored.raw), ("calibrated", scored.calibrated)):
        each = []
        for seed, p in found.items():
            m = summary(scored.label, p, unit)
            if scored.frozen:
                m |= {"gauc_live": m["gauc"], "gauc": summary(scored.label, scored.frozen[seed], unit)["gauc"]}
            each.append(m)
        result[name] = {k: float(np.mean([m[k] for m in each])) for k in each[0]}
        result[f"{name}_sd"] = {
            k: float(np.std([m[k] for m in each], ddof=1)) if len(each) > 1 else 0.0 for k in each[0]
        }
    mean, low, high = ece_floor(next(iter(scored.calibrated.values())))
    result["ece_noise"] = {"mean": mean, "low": low, "high": high}
    return result


def without_interests(rows: TrainingRows) -> TrainingRows:
    """The same rows with no groups and no short sequence: what the interest modules add is the difference."""
    out = TrainingRows(rows.spec, rows.heads)
    keep = ("r_rows", "r_ts", "r_key", "u_dense", "x_cat", "c_item", "c_id", "c_dense", "label")
    for name in keep:
        out.columns[name] = rows.columns[name]
    for name in ("r_groups", "r_short"):
        out.columns[name].extend(np.zeros(rows.requests, np.int32))
    out.columns["c_group"].extend(np.full(len(rows), rows.spec.groups, np.int32))
    return out


def _frozen(
    network: DMGIN, calibration: Calibration, rows: TrainingRows, requests: NDArray[np.int64], at: NDArray[np.int64]
) -> NDArray[np.float64]:
    held = rows["u_dense"][requests].copy()
    _, first, back = np.unique(rows["r_key"][requests], return_index=True, return_inverse=True)
    live = [i for i, n in enumerate(USER_FEATURES) if n in TIME_OF_REQUEST]
    changed = held[first][back]
    changed[:, live] = held[:, live]
    rows["u_dense"][requests] = changed
    try:
        return calibration.apply("ctr", predict(network, rows, requests)["ctr"][at])
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


def _visible_before(data: Dataset, ids: Sequence[str], time: int) -> NDArray[np.bool_]:
    """Whether all feedback on each request was visible before `time`."""
    late = data.events.filter(data.events["visible_at"].to_numpy() >= time)["request_id"].to_pylist()
    after = set(late)
    return np.fromiter((i not in after for i in ids), bool, len(ids))


def write_scores(source: DatasetSource, scored: Scored, path: Path) -> None:
    """Parquet with one line per scored row and seed: user_id, item_id, ts, impression_id (where any), label, ctr, ctr_raw, seed."""
    r = source.requests
    request = pa.array(r.request_of_rows()[scored.row])
    parts = []
    for seed in scored.calibrated:
        columns: dict[str, Any] = {
            "user_id": pa.array(r.user, pa.string()).take(request),
            "item_id": pa.array([r.item[k] for k in scored.row.tolist()], pa.string()),
            "ts": r.ts[request.to_numpy()], "label": scored.label,
            "ctr": scored.calibrated[seed], "ctr_raw": scored.raw[seed], "seed": np.full(len(scored.row), seed, np.int32),
        }  # fmt: skip
        if r.impression is not None:
            columns["impression_id"] = pa.array(r.impression, pa.string()).take(request)
        parts.append(pa.table(columns))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.concat_tables(parts), path)
