"""Profiles and audiences once more, in plain Python: what docs/features.md says of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import numpy as np

WIDTH = 16
Row = tuple[int, int, int, list[int]]  # item, 0 shown or 1 clicked, how many, sum of the users' profiles times 127


def profile(interests: Iterable[tuple[list[int] | None, float]]) -> tuple[list[float], float]:
    """(profile, events it stands for) of (embedding or None, weight) of each event of interest."""
    out, events = [0.0] * WIDTH, 0.0
    for x, weight in interests:
        if x is not None:
            events += weight
            for d, v in enumerate(x[:WIDTH]):
                out[d] += weight * v / math.hypot(*x)
    length = math.hypot(*out)
    return [v / length for v in out] if length else out, events


def rounded(x: list[float]) -> list[int]:
    return [math.floor(127 * v + 0.5) for v in x]


class Audiences:
    """Per item (None: everybody) and kind, shown or clicked: [how many, sums], with the precision of float32."""

    def __init__(self) -> None:
        self.sums: dict[tuple[int | None, int], list] = defaultdict(lambda: [0.0, [0.0] * WIDTH])

    def learn(self, rows: Iterable[Row]) -> None:
        for item, kind, count, total in rows:
            for name in (item, None) if kind == 0 else (item,):
                mine = self.sums[name, kind]
                if mine[0] >= 32768:
                    mine[:] = [mine[0] / 2, [x / 2 for x in mine[1]]]
                mine[:] = [mine[0] + count, [float(np.float32(a + b)) for a, b in zip(mine[1], total, strict=True)]]

    def mean(self) -> list[float]:
        n, total = self.sums[None, 0]
        return [x / 127 / n if n else 0.0 for x in total]

    def likeness(self, item: int, mine: list[float], events: float) -> list[float]:
        if not events or not (self.sums[item, 0][0] or self.sums[item, 1][0]):
            return [0.0, 0.0]
        (shown, saw), (clicked, read), mean = self.sums[item, 0], self.sums[item, 1], self.mean()
        me = [a - b for a, b in zip(mine, mean, strict=True)]
        of = lambda total, n: sum(m * (x / 127 - n * c) for m, x, c in zip(me, total, mean, strict=True))  # noqa: E731
        left, n = [a - b for a, b in zip(saw, read, strict=True)], shown - clicked
        return [of(read, clicked) / (clicked + 3), of(left, n) / (n + 10) if n > 0 else 0.0]
