"""A model's calibration from the log: its own scores held against the clicks that came after, over the last hours.

Nothing is scored again. Two parameters, and a shift for each surface and part of the day where asked for, are fitted on top of the
calibration that the scores were made with. The oldest four fifths of the rows are fitted first and the newest judge: what doesn't
hold on them is refused. A new calibration is a new release, with an id of its own, so that each score still names exactly what
it came from (docs/adr/0011-calibration.md).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin import topics
from stream_dmgin.errors import InputError, RecordError, StreamDmginError
from stream_dmgin.features.scales import bucket
from stream_dmgin.log.base import Log
from stream_dmgin.models.calibration import Calibration, fit_platt, fit_shifts, sigmoid
from stream_dmgin.models.registry import Model, model_id
from stream_dmgin.models.segments import HOURS
from stream_dmgin.records import decode_request, decode_score
from stream_dmgin.replay.logsource import feedback, read_all
from stream_dmgin.state.hash import item_hash
from stream_dmgin.training.metrics import Interval, ece, ece_floor, logloss, paired_bootstrap

HOUR_MS = 3_600_000
KINDS = ("surface", "hour")  # what request and score tell; how well user and item are known only the state does
JUDGED = 0.2  # newest share of the rows
LEAST = 1_000


@dataclass(frozen=True)
class Settled:
    """Shown candidates with the scores of one model, in order of time: request time, logit as served, label, user, codes."""

    ts: NDArray[np.int64]
    logit: NDArray[np.float64]
    label: NDArray[np.int8]
    user: NDArray[Any]
    codes: Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Recalibrated:
    """The new calibration, and what the newest rows said of one that was fitted without them."""

    calibration: Calibration
    rows: int
    judged: int
    before: dict[str, float]
    after: dict[str, float]
    logloss: Interval  # after less before

    @property
    def worse(self) -> bool:
        """Whether the newest rows are surely predicted worse than before."""
        return self.logloss.low > 0


def settled(log: Log, prefix: str, model: Model, hours: float, settle_s: float) -> Settled:
    """The model's scores of the last hours before the newest, but for the last `settle_s`, whose clicks may be on their way.

    Raises InputError for a missing topic or a record that is no score.
    """
    shown, clicked = feedback(read_all(log, [prefix + t for t in topics.EVENTS]))
    surfaces = _surfaces(log, prefix, model.config.spec.surface_buckets)
    rows: list[tuple[int, float, int, str, int]] = []
    seen: set[tuple[str, str]] = set()
    nothing: set[str] = set()
    for value in read_all(log, [prefix + topics.SCORES]).values:
        try:
            s = decode_score(value or b"")
        except Exception as e:
            raise InputError(f"{prefix + topics.SCORES} holds a record that is no score: {e}") from None
        if s.status != "ok" or s.model != model.id or (s.user_id, s.request_id) in seen:
            continue
        seen.add((s.user_id, s.request_id))
        hit, visible = clicked.get(s.request_id, nothing), shown.get(s.request_id, nothing)
        surface = surfaces.get((s.user_id, s.request_id), 0)
        for item, p in zip(s.candidates, s.ctr, strict=True):
            if item in hit or item in visible:
                rows.append((s.ts, float(np.log(p) - np.log1p(-p)), int(item in hit), s.user_id, surface))
    rows.sort(key=lambda r: r[0])
    end = rows[-1][0] if rows else 0
    rows = [r for r in rows if end - hours * HOUR_MS <= r[0] <= end - settle_s * 1000]
    ts = np.array([r[0] for r in rows], np.int64)
    return Settled(
        ts, np.array([r[1] for r in rows]), np.array([r[2] for r in rows], np.int8), np.array([r[3] for r in rows], object),
        {"surface": np.array([r[4] for r in rows], np.int64), "hour": ts // HOUR_MS % 24 // HOURS},
    )  # fmt: skip


def recalibrate(rows: Settled, before: Calibration, kinds: Sequence[str] = ()) -> Recalibrated:
    """Fit on top of `before`. InputError where the rows are too few or of one class."""
    n = len(rows.ts)
    cut = int(n * (1 - JUDGED))
    if n < LEAST or any(part.min() == part.max() for part in (rows.label[:cut], rows.label[cut:])):
        raise InputError(
            f"{n} shown candidates of this model with clicks and without are on the log: calibration needs {LEAST} or more, and both "
            "kinds among the newest fifth. Give more --hours, or wait"
        )
    part = _fit(rows, slice(0, cut), kinds)
    newest = slice(cut, n)
    y, old = rows.label[newest], sigmoid(rows.logit[newest])
    new = part.apply("ctr", rows.logit[newest], {k: v[newest] for k, v in rows.codes.items()})
    gap = paired_bootstrap(y, old, new, rows.user[newest], "logloss")
    whole = _fit(rows, slice(0, n), kinds)
    return Recalibrated(on_top(before, whole), n, n - cut, _said(y, old), _said(y, new), gap)


def write_recalibrated(model: Model, calibration: Calibration, out: Path) -> str:
    """A copy of the model's folder with another calibration; its id. StreamDmginError where `out` is there already."""
    if out.exists():
        raise StreamDmginError(f"{out} is there already: give another --out, or remove it")
    shutil.copytree(model.directory, out)
    calibration.save(out / "calibration.json")
    card = out / "card.md"
    if card.is_file():
        said = json.dumps({k: [round(x, 4) for x in v] for k, v in calibration.platt.items()})
        card.write_text(f"{card.read_text()}\n## Calibrated again\nFrom `{model.id}`, on the log: {said}.\n")
    return model_id(out)


def _fit(rows: Settled, at: slice, kinds: Sequence[str]) -> Calibration:
    z, y = rows.logit[at], rows.label[at]
    slope, offset = fit_platt(z, y)
    codes = {k: rows.codes[k][at] for k in kinds}
    return Calibration({"ctr": (slope, offset)}, fit_shifts(slope * z + offset, y, codes) if codes else {})


def on_top(before: Calibration, after: Calibration) -> Calibration:
    """One calibration that does what both do, one after the other."""
    a, b = before.platt.get("ctr", (1.0, 0.0))
    slope, offset = after.platt["ctr"]
    shifts = {k: {c: slope * x for c, x in v.items()} for k, v in before.shifts.items()}
    for kind, found in after.shifts.items():
        old = shifts.get(kind, {})
        shifts[kind] = {c: old.get(c, 0.0) + found.get(c, 0.0) for c in sorted({*old, *found})}
    return Calibration({**before.platt, "ctr": (slope * a, slope * b + offset)}, shifts)


def _said(y: NDArray[np.int8], p: NDArray[np.float64]) -> dict[str, float]:
    _, low, high = ece_floor(p, draws=100)
    return {
        "rate": float(np.mean(y == 1)), "predicted": float(p.mean()), "logloss": logloss(y, p), "ece": ece(y, p),
        "ece_low": low, "ece_high": high,
    }  # fmt: skip


def _surfaces(log: Log, prefix: str, buckets: int) -> dict[tuple[str, str], int]:
    """Bucket of the surface of each request, by user and request id; those without one left out."""
    asked = read_all(log, [prefix + topics.REQUESTS])
    found: dict[tuple[str, str], int] = {}
    for key, value, at in zip(asked.keys, asked.values, asked.timestamp.tolist(), strict=True):
        try:
            r = decode_request(key, value, at)
        except RecordError:
            continue  # rejected by the worker, too
        surface = (r.context or {}).get("surface")
        if isinstance(surface, str) and surface:
            found[r.user_id, r.request_id] = int(bucket(np.uint64(item_hash(surface)), buckets))
    return found
