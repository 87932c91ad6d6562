"""What scores of test rows are worth: metrics raw and calibrated, differences between models, a file of all scores."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stream_dmgin.replay.source import DatasetSource
from stream_dmgin.training.metrics import Interval, ece_floor, intervals, summary


@dataclass
class Scored:
    """Scores of the test rows: `row` counts the source's candidates; probabilities per seed.

    `calibrated` on the valid days, `online` from hour to hour; `frozen`: as `calibrated`, with the user-only inputs as at the user's
    first test row. `codes`: segments (`models/segments.py`); `surfaces`: the names of those codes.
    """

    row: NDArray[np.int64]
    label: NDArray[np.int8]
    raw: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    calibrated: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    online: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    frozen: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    codes: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    surfaces: dict[int, str] = field(default_factory=dict)
    heads: list[dict[str, Any]] = field(
        default_factory=list
    )  # of a network, a fit and seed each: metrics of every head
    seconds: dict[int, float] = field(default_factory=dict)  # of CPU for fitting and scoring, per seed


class Difference(NamedTuple):
    """One model against another, by their `calibrated` or `online` scores: an interval for each metric."""

    model: str
    than: str
    metrics: dict[str, Interval]
    scores: str = "calibrated"


def differences(source: DatasetSource, scored: Mapping[str, Scored], draws: int = 500) -> list[Difference]:
    """Every pair of models, the later minus the earlier, calibrated on the valid days and online, means over seeds: 95 % intervals of a
    paired bootstrap over users (KuaiRand) or impressions."""
    some = next(iter(scored.values()))
    unit = _units(source, some)
    names = ("auc", "logloss") if source.meta.gauc == "user" else ("auc", "logloss", "gauc_mean")
    out = []
    for kind in ("calibrated", "online"):
        seeds = {m: list(getattr(s, kind).values()) for m, s in scored.items() if getattr(s, kind)}
        found = {k: intervals(some.label, seeds, unit, k, draws) for k in names}
        out += [Difference(b, a, {k: found[k][a, b] for k in names}, kind) for a, b in itertools.combinations(seeds, 2)]
    return out


def _units(source: DatasetSource, scored: Scored) -> NDArray[Any]:
    request = source.requests.request_of_rows()[scored.row]
    return np.array(source.requests.user)[request] if source.meta.gauc == "user" else request


def measure(source: DatasetSource, scored: Scored) -> dict[str, Any]:
    """Metrics of raw and calibrated scores, mean and deviation over seeds.

    `gauc` groups by the log's own unit. Where that is the user, the user-only inputs are frozen at the user's first test row,
    because a live user rate distorts an AUC within users; `gauc_live` is without that. `heads`: calibrated, of a network's post-click
    heads, on the rows whose label is known.
    """
    unit = _units(source, scored)
    result: dict[str, Any] = {}
    for name, found in (("raw", scored.raw), ("calibrated", scored.calibrated), ("online", scored.online)):
        if not found:
            continue
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
    if scored.heads:
        result["heads"] = {
            h: {k: float(np.mean([m[h][k] for m in scored.heads if k in m[h]])) for k in scored.heads[0][h]}
            for h in scored.heads[0]
            if h != "ctr"
        }
    mean, low, high = ece_floor(next(iter(scored.calibrated.values())))
    result["ece_noise"] = {"mean": mean, "low": low, "high": high}
    return result


def write_scores(source: DatasetSource, scored: Scored | Mapping[str, Scored], path: Path) -> None:
    """Parquet with one line per scored row and seed: user_id, item_id, ts, impression_id (where any), label, ctr, ctr_raw, ctr_online,
    seed; for several models also `model`.
    """
    several = isinstance(scored, Mapping)
    r = source.requests
    parts = []
    for model, found in scored.items() if isinstance(scored, Mapping) else [("", scored)]:
        request = pa.array(r.request_of_rows()[found.row])
        for seed in found.calibrated:
            columns: dict[str, Any] = {
                "user_id": pa.array(r.user, pa.string()).take(request),
                "item_id": pa.array([r.item[k] for k in found.row.tolist()], pa.string()),
                "ts": r.ts[request.to_numpy()], "label": found.label,
                "ctr": found.calibrated[seed], "ctr_raw": found.raw[seed], "ctr_online": found.online.get(seed, found.calibrated[seed]),
                "seed": np.full(len(found.row), seed, np.int32),
            }  # fmt: skip
            if r.impression is not None:
                columns["impression_id"] = pa.array(r.impression, pa.string()).take(request)
            if several:
                columns["model"] = pa.repeat(model, len(found.row))
            parts.append(pa.table(columns))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.concat_tables(parts), path)
