"""The online model once more, in plain Python: what docs/features.md says of it, with dictionaries for its arrays."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

HOUR, QUARTER = 3_600_000, 900_000
_ALL = (1 << 64) - 1
HALF_LIVES = (4, 48, 672)  # quarter hours
F = np.float32


def spread(h: int, salt: int) -> int:
    x = (h ^ salt * 0x9E3779B97F4A7C15 & _ALL) * 0xC2B2AE3D27D4EB4F & _ALL
    x ^= x >> 29
    x = x * 0x165667B19E3779F9 & _ALL
    return x ^ x >> 32


def age_class(ms: int) -> int:
    return min(11, int(math.log2(1 + max(0, ms) // QUARTER)))


class Online:
    """Weights by place; factors by row; [expected, clicks] by horizon and their quarter hour by (item, surface or -1)."""

    def __init__(self) -> None:
        self.weights: dict[int, list[Any]] = defaultdict(lambda: [F(0), F(0)])
        self.rows: dict[int, list[Any]] = {}
        self.cells: dict[tuple[int, int], Any] = {}
        self.first: dict[int, int] = {}  # item -> its first quarter hour

    def places(self, h: int, surface: int, hour: int, age: int) -> list[int]:
        crosses = [
            (h, 1), (0, 2 + 8 * (24 * surface + hour)), (h, 3 + 8 * surface), (h, 4 + 8 * (hour // 4)),
            (0, 5 + 8 * (24 * age + hour)), (0, 6 + 8 * (256 * age + surface)),
        ]  # fmt: skip
        return [0, *(max(1, spread(x, salt) >> 44) for x, salt in crosses)]

    def fields(self, h: int, surface: int, hour: int, age: int) -> list[int]:
        fields = [(h, 0), (0, 1 + surface), (0, 300 + hour), (0, 400 + age)]
        return [spread(x, 7 + 8 * n) >> 48 for x, n in fields]

    def row(self, r: int) -> list[Any]:
        if r not in self.rows:
            start = [(((spread(r, 5 + 8 * j) >> 40) / 2**23) - 1) * 0.0866 for j in range(8)]
            self.rows[r] = [np.array(start, F), np.zeros(8, F)]
        return self.rows[r]

    def parts(self, h: int, surface: int, hour: int, age: int) -> tuple[float, float]:
        linear = -2.0 + sum(float(self.weights[p][0]) for p in self.places(h, surface, hour, age))
        v = [self.row(r)[0].astype(float) for r in self.fields(h, surface, hour, age)]
        pairs = sum(float(v[a] @ v[b]) for a in range(4) for b in range(a))
        return linear, pairs

    def logits(self, h: int, surface: int, ts: int) -> tuple[float, float]:
        first = self.first.get(h)
        return self.parts(h, surface, ts // HOUR % 24, 0 if first is None else age_class(ts - first * QUARTER))

    def p(self, h: int, surface: int, ts: int) -> float:
        return 1 / (1 + math.exp(-sum(self.logits(h, surface, ts))))

    def learn(self, rows: Iterable[tuple[int, int, int, int, int, int]]) -> None:
        """Rows of one range: kind, hash, quarter hour, metric, count, surface."""
        rows = list(rows)
        for kind, h, b, *_ in rows:
            if kind == 0:
                self.first[h] = min(self.first.get(h, b), b)
        for kind, h, b, metric, count, surface in rows:
            if kind != 0 or metric > 1:
                continue
            at = h, surface, b // 4 % 24, age_class((b - self.first[h]) * QUARTER)
            steps = min(32, count)
            share, expected = count / steps, 0.0
            for _ in range(steps):
                p = 1 / (1 + math.exp(-min(30.0, max(-30.0, sum(self.parts(*at))))))
                self.step(at, share * p if metric == 0 else -share)
                expected += share * p if metric == 0 else 0.0
            for place in (-1, surface):
                self.remember((h, place), b, expected, float(count) if metric == 1 else 0.0)

    def step(self, at: tuple[int, int, int, int], g: float) -> None:
        for place in self.places(*at):
            w, seen = self.weights[place]
            more = float(seen) + g * g
            self.weights[place] = [F(float(w) - 0.05 * g / math.sqrt(1 + more)), F(more)]
        rows = [self.row(r) for r in self.fields(*at)]
        total = sum(v.astype(float) for v, _ in rows)
        slopes = [g * (total - v.astype(float)) + 1e-4 * v.astype(float) for v, _ in rows]
        for row, slope in zip(rows, slopes, strict=True):
            more = row[1].astype(float) + slope**2
            row[0], row[1] = (row[0].astype(float) - 0.025 * slope / np.sqrt(1 + more)).astype(F), more.astype(F)

    def remember(self, key: tuple[int, int], b: int, expected: float, clicks: float) -> None:
        stamp, sums = self.cells.get(key, (b, [(0.0, 0.0)] * 3))
        new = max(b, stamp)
        faded = []
        for half, (e, c) in zip(HALF_LIVES, sums, strict=True):
            old, mine = 0.5 ** ((new - stamp) / half), 0.5 ** ((new - b) / half)
            faded.append((old * e + mine * expected, old * c + mine * clicks))
        self.cells[key] = new, faded

    def residual(self, key: tuple[int, int], horizon: int, ts: int) -> float:
        if key not in self.cells:
            return 0.0
        stamp, sums = self.cells[key]
        w = 0.5 ** (max(0, ts // QUARTER - stamp) / HALF_LIVES[horizon])
        expected, clicks = sums[horizon]
        return math.log((w * clicks + 1) / (w * expected + 1))


def ratio(clicks: float, expected: float) -> float:
    return math.log((clicks + 0.5) / (expected + 0.5))
