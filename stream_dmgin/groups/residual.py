"""Residual codes: each level clusters what the level before left unexplained, so that a group has a path of codes.

The group's number is the path in a mixed radix: with levels 32, 16 the group 75 is code 4 of the first level and 11 of the second
(4 * 16 + 11), and `number // 16` is its parent. A map can be cut to fewer levels without clustering anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from stream_dmgin.errors import InputError
from stream_dmgin.groups.balance import relieve
from stream_dmgin.groups.items import Matrix
from stream_dmgin.groups.kmeans import Labels, kmeans
from stream_dmgin.groups.map import GROUP_MAX

_LEAVES = 65_536


def parse_levels(text: str) -> tuple[int, ...]:
    """`32x16` as codes of each level. Raises InputError."""
    parts = text.lower().split("x")
    if not all(p.isdigit() and int(p) >= 1 for p in parts) or len(parts) < 2:
        raise InputError(f"--levels {text!r} can't be used: write the codes of each level, as in 32x16")
    levels = tuple(int(p) for p in parts)
    if math.prod(levels) > GROUP_MAX:
        raise InputError(f"--levels {text} makes {math.prod(levels):,} groups: at most {GROUP_MAX:,} can be numbered")
    return levels


def residual(
    x: Matrix, levels: Sequence[int], seed: int = 0, library: str = "auto", max_load: float = math.inf
) -> tuple[Labels, Labels, int]:
    """(number of each row's group, codes int64[N,levels], rows moved because their group was full). The cap is `max_load` times
    the mean size of the groups that have rows. Raises InputError."""
    if max(levels) > len(x):
        raise InputError(f"{max(levels)} codes of {len(x)} items can't be built: choose fewer codes a level")
    left = x.copy()
    codes = np.zeros((len(x), len(levels)), np.int64)
    books: list[Matrix] = []
    for level, k in enumerate(levels):
        codes[:, level], book = kmeans(left, k, seed + level, library)
        books.append(book)
        left = left - book[codes[:, level]]
    number = joined(codes, levels)
    if math.isinf(max_load):
        return number, codes, 0
    leaves, at = np.unique(number, return_inverse=True)
    if len(leaves) < _LEAVES:
        # codes that no row has yet are room as well, where there are few enough of them to look at
        whole = math.prod(levels)
        known = np.arange(whole) if whole <= _LEAVES else leaves
        path = split(known, levels)
        centres = np.sum([b[path[:, i]] for i, b in enumerate(books)], axis=0).astype(np.float32)
        cap = max(1, math.ceil(max_load * len(x) / len(leaves)))
        placed, moved = relieve(x, number if whole <= _LEAVES else at.reshape(-1), centres, cap)
        number = known[placed]
        return number, split(number, levels), moved
    return number, codes, 0


def joined(codes: Labels, levels: Sequence[int]) -> Labels:
    """Numbers of groups from their codes."""
    number = np.zeros(len(codes), np.int64)
    for i, k in enumerate(levels):
        number = number * k + codes[:, i]
    return number


def split(numbers: Labels, levels: Sequence[int]) -> Labels:
    """Codes of groups, int64[N,levels], from their numbers."""
    out = np.empty((len(numbers), len(levels)), np.int64)
    for i in range(len(levels) - 1, -1, -1):
        numbers, out[:, i] = np.divmod(numbers, levels[i])
    return out
