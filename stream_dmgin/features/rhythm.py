"""Kernel of the block `rhythm`: how a candidate's category is clicked at this time of the week, over all users. 0.02 us a candidate."""

from __future__ import annotations

from typing import Any

import numpy as np

from stream_dmgin.counters.layout import C_ONLINE, CLOCK_MS, N_ADDRESSES
from stream_dmgin.counters.rhythm import rhythm
from stream_dmgin.features.spec import CANDIDATE_BLOCKS
from stream_dmgin.native import f32, i64, kernel

N_RHYTHM = len(CANDIDATE_BLOCKS["rhythm"])


@kernel
def put_rhythm(counters: Any, category: Any, now: Any, to: Any) -> None:
    """The block of a candidate of the category with this hash (0: none) into N_RHYTHM floats at an address."""
    out = f32(to, (N_RHYTHM,))
    out[:] = 0
    if category != np.uint64(0):
        out[0], out[1] = rhythm(i64(counters, (N_ADDRESSES,))[C_ONLINE], category, now // CLOCK_MS)
