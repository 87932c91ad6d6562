"""Segments of traffic whose calibration is watched, and mended, apart: by surface, by hour, by how well user and item are known.

All of them are read from the model's own inputs, so that live serving and evaluation cut in the same way.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.features.spec import InputSpec

Codes = NDArray[np.int64]
HOURS = 3  # of a part of the day
KNOWN = (10, 100)  # events of a user, impressions of an item, for life: below the first cold, below the second new
KINDS = ("surface", "hour", "user", "item")
_NAMES = ("cold", "new", "known")


def segment_codes(
    spec: InputSpec, c_dense: NDArray[np.floating], u_dense: NDArray[np.floating], x_cat: NDArray[np.integer], counts: NDArray[np.integer]
) -> dict[str, Codes]:  # fmt: skip
    """Kind -> code of each row. Rows as `Forest.scores` takes them: `counts` [requests] candidates each, one after another."""
    user = spec.user_features

    def of(name: str) -> NDArray[np.float64]:
        return u_dense[:, user.index(name)].astype(np.float64)

    turn = np.arctan2(of("hour_sin"), of("hour_cos")) / (2 * np.pi) % 1.0
    # a hair is added, since sine and cosine are float32: twelve o'clock sharp is twelve
    hour = np.floor((turn * 24 + 1e-4) % 24 / HOURS).astype(np.int64)
    return {
        "surface": np.repeat(x_cat.astype(np.int64), counts), "hour": np.repeat(hour, counts),
        "user": np.repeat(_known(of("log1p_events")), counts), "item": item_codes(spec, c_dense),
    }  # fmt: skip


def item_codes(spec: InputSpec, c_dense: NDArray[np.floating]) -> Codes:
    """How well the item of each row is known: 0 cold, 1 new, 2 known."""
    return _known(c_dense[:, spec.candidate_features.index("item_log1p_impressions_life")].astype(np.float64))


def segment_name(kind: str, code: int) -> str:
    """What people call a segment; a surface is its bucket's number here."""
    if kind == "hour":
        return f"{code * HOURS:02d}-{code * HOURS + HOURS:02d} UTC"
    return _NAMES[code] if kind in ("user", "item") else str(code)


def _known(log1p: NDArray[np.float64]) -> Codes:
    return np.searchsorted(np.log1p(np.array(KNOWN, np.float64)) - 1e-4, log1p, side="right").astype(np.int64)
