"""Calibration that follows the stream: fitted again and again on what was scored and has been answered by clicks since.

At each moment T of a fixed grid two Platt parameters (and a shift for each segment) are fitted on the rows of the last days whose
label was visible before T, and hold for the requests from T to the next moment. Weights stay as they are. Nothing that became
visible at T or later counts, so that a label never helps to calibrate its own score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.models.calibration import Calibration, fit_platt, fit_shifts
from stream_dmgin.models.segments import KINDS

HOUR_MS = 3_600_000
NEVER = np.iinfo(np.int64).max  # when a label that was never seen became visible


@dataclass(frozen=True)
class OnlineOptions:
    """How often, over how much of the past, and for which kinds of segments (`models/segments.py`) shifts are fitted. ValueError for a kind
    that isn't known."""

    every_ms: int = HOUR_MS
    window_ms: int = 48 * HOUR_MS
    kinds: tuple[str, ...] = ()
    least: int = 2_000  # rows below which what held before goes on

    def __post_init__(self) -> None:
        if not set(self.kinds) <= set(KINDS) or min(self.every_ms, self.window_ms) < 1:
            raise ValueError(f"kinds of segments are {', '.join(KINDS)}; every_ms and window_ms are 1 or more")


@dataclass(frozen=True)
class Answered:
    """Scored rows: request time and raw logit, label, when the label was visible (NEVER), codes of segments."""

    ts: NDArray[np.int64]
    logit: NDArray[np.float64]
    label: NDArray[np.int8]
    visible: NDArray[np.int64]
    codes: Mapping[str, NDArray[np.int64]]


def fit_window(rows: Answered, at: int, start: Calibration, options: OnlineOptions) -> Calibration:
    """The calibration of `ctr` at a moment, from rows whose label was visible before it; `start` where they are too few."""
    some = np.flatnonzero((rows.visible < at) & (rows.ts >= at - options.window_ms) & (rows.label >= 0))
    y = rows.label[some]
    if len(some) < options.least or y.min() == y.max():
        return start
    slope, offset = fit_platt(rows.logit[some], y)
    codes = {k: rows.codes[k][some] for k in options.kinds}
    shifts = fit_shifts(slope * rows.logit[some] + offset, y, codes) if codes else {}
    return Calibration({**start.platt, "ctr": (slope, offset)}, shifts)


def follow(
    rows: Answered, start: Calibration, low: int, high: int, options: OnlineOptions = OnlineOptions()
) -> NDArray[np.float64]:
    """Probabilities of the rows with low <= ts < high (nan elsewhere), each by the calibration of its moment."""
    out = np.full(len(rows.ts), np.nan)
    held = start
    for at in range(low, high, options.every_ms):
        here = np.flatnonzero((rows.ts >= at) & (rows.ts < min(high, at + options.every_ms)))
        if not len(here):
            continue
        held = fit_window(rows, at, held, options)
        out[here] = held.apply("ctr", rows.logit[here], {k: v[here] for k, v in rows.codes.items()})
    return out
