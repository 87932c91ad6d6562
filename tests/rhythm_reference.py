"""Rhythms once more, in plain Python: what docs/adr/0021-rhythm.md says of them, with a dictionary for the array."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import numpy as np
from online_reference import QUARTER, spread

F = np.float32


class Rhythms:
    """Weights by place."""

    def __init__(self) -> None:
        self.weights: dict[int, list[Any]] = defaultdict(lambda: [F(0), F(0)])

    def places(self, category: int, quarter: int) -> list[int]:
        at = datetime.fromtimestamp(quarter * QUARTER / 1000, UTC)
        hour, weekend = at.hour, int(at.weekday() >= 5)
        crosses = [
            (category, 1), (0, 100 + 24 * weekend + hour), (category, 200 + 6 * weekend + hour // 4), (category, 300 + 24 * weekend + hour),
        ]  # fmt: skip
        return [0, *(max(1, spread(x, salt) >> 48) for x, salt in crosses)]

    def at(self, category: int, quarter: int) -> list[float]:
        """[the crosses with the time, the whole logit]"""
        w = [float(self.weights[p][0]) for p in self.places(category, quarter)]
        return [w[3] + w[4], -2.0 + w[0] + w[1] + w[2] + (w[3] + w[4])]

    def learn(self, rows: Iterable[tuple[int, ...]]) -> None:
        """Rows of one range: kind, hash, quarter hour, metric, count."""
        for kind, h, b, metric, count, *_ in rows:
            if kind != 1 or metric > 1:
                continue
            steps = min(32, count)
            for _ in range(steps):
                p = 1 / (1 + math.exp(-min(30.0, max(-30.0, self.at(h, b)[1]))))
                g = (p if metric == 0 else -1.0) * count / steps
                for place in self.places(h, b):
                    w, seen = self.weights[place]
                    more = float(seen) + g * g
                    self.weights[place] = [F(float(w) - 0.05 * g / math.sqrt(1 + more)), F(more)]
