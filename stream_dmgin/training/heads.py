"""Labels of what follows a click, as a trainer at some moment knows them: what is missing must not teach zero.

- An order may come days after the click. A row whose order is not visible yet counts as one that may still come
  (`objective.late`): the share of orders that have come by its age is taken from the orders of rows older than the window.
- Some behaviours only the advertiser can report. One that never did, though it had clicks enough that silence can't be chance, has
  unknown labels, not zeros.

When a label became visible is said by a column `label_<head>_at` of the rows (ms); without it a head's labels are known at once.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from stream_dmgin.datasets.form import DAY_MS, Dataset
from stream_dmgin.errors import InputError
from stream_dmgin.models.calibration import Calibration, fit_platt, sigmoid
from stream_dmgin.training.columns import Column
from stream_dmgin.training.metrics import ece_floor, summary
from stream_dmgin.training.options import Options
from stream_dmgin.training.rows import TrainingRows

ENOUGH = 50  # late labels needed to know how late they come
LEAST = 0.01  # share below which what would have come by now is no longer told apart


@dataclass(frozen=True)
class Known:
    """Labels of a head as of a moment [rows]: 1, 0, -1 unknown; `seen` [rows]: share of the late ones that would be here."""

    label: NDArray[np.int8]
    seen: NDArray[np.float32]
    silent: int  # advertisers without a report


def rows_as_of(rows: TrainingRows, data: Dataset, first: int, cutoff: int, options: Options) -> TrainingRows:
    """The set with its post-click labels as known at `cutoff` (ms); the rest is shared, not copied. `first`: the number in
    `data.rows` of the set's first row. The very same set where nothing of it is late or reported by advertisers."""
    wrong = sorted(set(options.reported) - set(rows.heads))
    if wrong and rows.heads:
        raise InputError(f"training.reported names {', '.join(wrong)}: the log has the heads {', '.join(rows.heads)}")
    touched = [h for h in rows.heads if h in options.reported or f"label_{h}_at" in data.rows.column_names]
    if not touched:
        return rows
    part = data.rows.slice(first, len(rows))
    ts = part["ts"].to_numpy()
    out = copy.copy(rows)
    out.columns = dict(rows.columns)
    label, seen = rows["label"].copy(), np.ones((len(rows), len(rows.heads)), np.float32)
    for i, h in enumerate(rows.heads):
        if h in touched:
            at = part[f"label_{h}_at"] if f"label_{h}_at" in part.column_names else None
            when = ts if at is None else at.combine_chunks().fill_null(0).to_numpy(zero_copy_only=False)
            who = _advertisers(data, part) if h in options.reported else None
            known = as_of(rows.labels(h), ts, when, cutoff, who, options.delay_days if at is not None else 0.0)
            label[:, 1 + i], seen[:, i] = known.label, known.seen
    out.columns["label"], out.columns["seen"] = Column.of(label), Column.of(seen)
    return out


def as_of(
    label: NDArray[np.int8], ts: NDArray[np.int64], when: NDArray[np.int64], cutoff: int,
    advertiser: NDArray[np.int64] | None = None, delay_days: float = 0.0, chance: float = 0.05,
) -> Known:  # fmt: skip
    """What is known at `cutoff` of labels that became visible at `when` [rows]. Rows from the cutoff on stay as they are.

    `advertiser`: number of each row's, -1 none. It is silent where it has no positive and the others' rate makes that less likely
    than `chance`. `delay_days`: how old a row is whose labels are all taken to be here; 0: a late one that isn't here is a 0.
    """
    past = ts < cutoff
    now = label.copy()
    now[past & (label == 1) & (when >= cutoff)] = 0
    silent = 0
    if advertiser is not None:
        use = past & (now >= 0) & (advertiser >= 0)
        n = np.bincount(advertiser[use], minlength=int(advertiser.max(initial=-1)) + 1)
        k = np.bincount(advertiser[use], now[use] == 1, minlength=len(n))
        rate = k.sum() / max(1.0, n[k > 0].sum())
        mute = (k == 0) & (n > 0) & ((1.0 - rate) ** n < chance)
        silent = int(mute.sum())
        if silent:
            now[(advertiser >= 0) & mute[advertiser] & past] = -1
    seen = np.ones(len(label), np.float32)
    if delay_days > 0:
        old = past & (now == 1) & (ts < cutoff - int(delay_days * DAY_MS))
        if old.sum() >= ENOUGH:
            delays = np.sort(when[old] - ts[old])
            share = np.searchsorted(delays, cutoff - ts, side="right") / len(delays)
            seen = np.where(past, np.maximum(share, LEAST), 1.0).astype(np.float32)
    return Known(now, seen, silent)


def fit_late(logits: NDArray[np.floating], labels: NDArray[np.int8], seen: NDArray[np.float32]) -> tuple[float, float]:
    """Platt parameters where a 0 may still become a 1: each round takes for it the chance that it will."""
    slope, offset = fit_platt(logits, labels)
    if bool((seen >= 1).all()):
        return slope, offset
    for _ in range(50):
        p = sigmoid(slope * logits.astype(np.float64) + offset)
        hoped = np.where(labels == 1, 1.0, p * (1.0 - seen) / (1.0 - p * seen))
        before = slope, offset
        slope, offset = fit_platt(logits, hoped)
        if max(abs(slope - before[0]), abs(offset - before[1])) < 1e-4:
            break
    return slope, offset


def head_measures(
    logits: Mapping[str, NDArray[np.float32]], calibration: Calibration, rows: TrainingRows, requests: NDArray[np.int64],
    by_user: bool,
) -> dict[str, Any]:  # fmt: skip
    """Per head: rows, rate, and AUC, logloss, ECE, GAUC of the calibrated probabilities on these requests. `logits`: as
    `loop.predict` gives them."""
    take = rows.rows_of(requests)
    per_request = np.repeat(np.arange(rows.requests), rows["r_rows"])
    found: dict[str, Any] = {}
    for head, z in logits.items():
        y = rows.labels(head)[take]
        known = y >= 0
        p, y = calibration.apply(head, z[take][known]), y[known]
        unit = (rows.keys() if by_user else per_request)[take][known]
        found[head] = {"rows": len(y), "rate": float(np.mean(y == 1)) if len(y) else 0.0, **summary(y, p, unit)}
        if len(y):
            found[head]["predicted"] = float(p.mean())
            found[head]["ece_noise"] = ece_floor(p, draws=50)[0]
    return found


def _advertisers(data: Dataset, part: Any) -> NDArray[np.int64]:
    names = data.items["advertiser"].combine_chunks().dictionary_encode().indices
    at = pc.index_in(part["item_id"], value_set=data.items["item_id"].combine_chunks())
    found: NDArray[np.int64] = pc.fill_null(names.take(at.combine_chunks()), -1).to_numpy(zero_copy_only=False)
    return found.astype(np.int64)
