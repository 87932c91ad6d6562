"""The ad policy's mix of sources, which shifts from week to week: popular, nearby, interest, again, explore.

The draws themselves are in `behaviour.py`, next to the rest of the kernel. The policy knows what an ad server knows (clicks,
places, popularity, budgets), never a click probability.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SOURCES = ("popular", "nearby", "interest", "again", "explore")
SHARES = (0.24, 0.24, 0.26, 0.08, 0.18)
MIX_DAYS = 728  # the table repeats after two years


def policy_mix(r: np.random.Generator) -> NDArray[np.float64]:
    """[MIX_DAYS, 5] cumulative shares. Each week is a new plan that moves some way from the last; days slide between plans."""
    weeks = MIX_DAYS // 7
    walk = np.zeros((weeks + 1, len(SOURCES)))
    for w in range(1, weeks + 1):
        walk[w] = 0.7 * walk[w - 1] + r.normal(0, 0.35, len(SOURCES))
    day = np.arange(MIX_DAYS)
    part = (day % 7 / 7)[:, None]
    share = np.array(SHARES) * np.exp(walk[day // 7] * (1 - part) + walk[day // 7 + 1] * part)
    return np.asarray(np.cumsum(share / share.sum(1, keepdims=True), axis=1))
