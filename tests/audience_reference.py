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

    def met(self, item: int) -> tuple[list[float], list[float]]:
        """How those who clicked it differ from everybody, and those who left it."""
        (shown, saw), (clicked, read), mean = self.sums[item, 0], self.sums[item, 1], self.mean()
        left, n = [a - b for a, b in zip(saw, read, strict=True)], shown - clicked
        of = lambda total, n, w: [(x / 127 - n * c) / (n + w) for x, c in zip(total, mean, strict=True)]  # noqa: E731
        return of(read, clicked, 3), of(left, n, 10) if n > 0 else [0.0] * WIDTH

    def products(self, item: int, mine: list[float], events: float) -> list[list[float]]:
        """By direction: the user's profile times both, each less everybody's."""
        me = [a - b if events else 0.0 for a, b in zip(mine, self.mean(), strict=True)]
        return [[a * b for a, b in zip(me, x, strict=True)] for x in self.met(item)]

    def likeness(self, item: int, mine: list[float], events: float) -> list[float]:
        return [sum(x) for x in self.products(item, mine, events)]

    def readers(self, item: int, mine: list[float], events: float, read: list[int], page: int | None) -> list[float]:
        """`read`: what the user read last, newest first."""
        over = lambda x: [v / (math.hypot(*x) + 0.05) for v in x]  # noqa: E731
        dot = lambda x, y: sum(a * b for a, b in zip(x, y, strict=True))  # noqa: E731
        clicked, left = (over(x) for x in self.met(item))
        near = [dot(over(self.met(i)[0]), clicked) for i in read[:20]]
        far = [dot(over(self.met(i)[0]), left) for i in read[:20]]
        mean = lambda x: sum(x) / len(x) if x else 0.0  # noqa: E731
        of_page = over(self.met(page)[0]) if page else [0.0] * WIDTH
        return [
            *(v for x in self.products(item, mine, events) for v in x),
            near[0] if near else 0.0, mean(near[:5]), mean(near), max(near, default=0.0), mean(far),
            dot(of_page, clicked), dot(of_page, left),
        ]  # fmt: skip
