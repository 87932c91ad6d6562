"""How a whole city changes from week to week, where it is asked to: what everybody wants more or less of, and what counts how much.

Each thing that moves is a stationary series, week by week, which forgets half of where it was in HALF_LIFE weeks; between weeks it goes
straight. Equal arguments give the same weeks, whatever is simulated of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WEEKS = 520  # after which the series begins again
FIRST_DAY = 20_270.0  # day (since the epoch) of week 0: the start of a history that is given no other
HALF_LIFE = 6.0
# deviation, at drift 1, of: clicks in all (logit), then of the logarithm of how much these count: tastes, hours, distance, price, visits
CLICKS, TASTE, RHYTHM, DISTANCE, PRICE, LOYALTY = range(6)
MOVES = np.array([0.25, 0.2, 0.4, 0.4, 0.4, 0.4])
FASHION = 0.6  # of what all people think of a concept (logit)


def moods(concepts: int, seed: int, drift: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(weights [weeks, 6] of MOVES, the first added and the others multiplied; fashion [weeks, concepts] logit). Without a drift one week,
    in which nothing moves."""
    if drift <= 0:
        return np.array([[0, 1, 1, 1, 1, 1]], np.float32), np.zeros((1, concepts), np.float32)
    r = np.random.default_rng([seed, concepts, 31])
    keep = 0.5 ** (1.0 / HALF_LIFE)
    z = r.normal(0, 1, (WEEKS, len(MOVES) + concepts))
    for week in range(1, WEEKS):
        z[week] = keep * z[week - 1] + np.sqrt(1.0 - keep**2) * z[week]
    moves = drift * MOVES * z[:, : len(MOVES)]
    moves[:, TASTE:] = np.exp(moves[:, TASTE:])
    return moves.astype(np.float32), (drift * FASHION * z[:, len(MOVES) :]).astype(np.float32)
