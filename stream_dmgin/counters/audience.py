"""Who sees and who clicks an item: sums of the profiles of its users, learnt from the counters topic as it is read
(docs/adr/0020-audience.md).

A profile is WIDTH numbers that say what a user reads (`features/profile.py`). Of an item are kept how many impressions and clicks
taught, and the sums of their users' profiles; of everybody the same of all impressions, from which comes the mean profile. Sums are of
whole numbers: whoever applies the same ranges in the same order has the same bits. Of an item shown or clicked OFTEN times the
older half fades.

Memory is fixed: 2^16 items, 9 MiB; of the WAYS that meet in a set the one longest untouched makes room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.counters.online import M_AUDIENCE, M_AUDIENCE_DIRTY, N_MODEL, PAGE_WORDS, spread
from stream_dmgin.features.spec import AUDIENCE_WIDTH
from stream_dmgin.native import f32, f64, i32, i64, kernel, u8

WIDTH = AUDIENCE_WIDTH
SCALE = 127.0  # of profiles in increments: a profile has length 1
ITEM_BITS, WAYS = 16, 4
# Words of 32 bits of an item: key, when it was touched last, impressions, clicks; sums of the profiles of the former, of the latter
WORDS = 4 + 2 * WIDTH
ITEMS = (1 << ITEM_BITS) + 256  # the first after the last set is everybody; the rest fills the last pages
EVERYBODY = 1 << ITEM_BITS
AUDIENCE_PAGES = ITEMS * WORDS // PAGE_WORDS
OFTEN = 32768.0
SHOWN_PRIOR, CLICKED_PRIOR = 10.0, 3.0  # users of the mean profile that every item begins with


@dataclass(frozen=True, slots=True)
class Audience:
    """Columns [n] of item hash, metric (0: impressions, 1: clicks), how many of them, and [n,WIDTH] the sums of their users' profiles, each
    times SCALE and rounded; each (item, metric) once."""

    hash: NDArray[np.uint64]
    metric: NDArray[np.uint8]
    count: NDArray[np.int32]
    sum: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.hash)

    @classmethod
    def joined(cls, parts: Sequence[Audience]) -> Audience:
        """The rows of all parts, one after the other."""
        hashes, metric = np.concatenate([p.hash for p in parts]), np.concatenate([p.metric for p in parts])
        return cls(hashes, metric, np.concatenate([p.count for p in parts]), np.concatenate([p.sum for p in parts]))

    def part(self, rows: slice) -> Audience:
        """Some of the rows."""
        return Audience(self.hash[rows], self.metric[rows], self.count[rows], self.sum[rows])


@kernel
def _cell_of(cells: Any, h: Any) -> tuple[Any, Any, Any]:
    """(cell of an item or -1, its key, first cell of its set)."""
    x = spread(h, 1)
    tag, at = np.int32(x & np.uint64(0x7FFFFFFF)) | np.int32(1), np.int64(x >> np.uint64(66 - ITEM_BITS)) * WAYS
    for cell in range(at, at + WAYS):
        if cells[cell, 0] == tag:
            return np.int64(cell), tag, at
    return np.int64(-1), tag, at


@kernel
def _mark(model: Any, cell: Any) -> None:
    """A cell's pages (one or two) are to be saved."""
    dirty = u8(i64(model, (N_MODEL,))[M_AUDIENCE_DIRTY], (AUDIENCE_PAGES,))
    dirty[WORDS * cell // PAGE_WORDS] = 1
    dirty[(WORDS * cell + WORDS - 1) // PAGE_WORDS] = 1


@kernel
def _add(model: Any, cell: Any, metric: Any, count: Any, sums: Any) -> None:
    m = i64(model, (N_MODEL,))
    x = f32(m[M_AUDIENCE] + 4 * WORDS * cell, (WORDS,))
    if x[2 + metric] >= OFTEN:
        x[2 + metric] *= 0.5
        for k in range(WIDTH):
            x[4 + WIDTH * metric + k] *= 0.5
    x[2 + metric] += count
    for k in range(WIDTH):
        x[4 + WIDTH * metric + k] += sums[k]
    _mark(model, cell)


@kernel
def learn_audience(model: Any, hashes: Any, metric: Any, count: Any, sums: Any) -> None:
    """Take the rows of a range, in their order."""
    at = i64(model, (N_MODEL,))[M_AUDIENCE]
    cells = i32(at, (ITEMS, WORDS))
    cells[EVERYBODY, 1] += 1  # the clock by which cells know what was touched longest ago
    now = cells[EVERYBODY, 1]
    _mark(model, EVERYBODY)
    for i in range(hashes.shape[0]):
        cell, tag, first = _cell_of(cells, hashes[i])
        if cell < 0:
            cell = first
            for other in range(first, first + WAYS):
                if cells[other, 1] < cells[cell, 1]:
                    cell = other
            f32(at + 4 * WORDS * cell, (WORDS,))[:] = 0
            cells[cell, 0] = tag
        cells[cell, 1] = now
        _add(model, cell, metric[i], count[i], sums[i])
        if metric[i] == 0:
            _add(model, EVERYBODY, 0, count[i], sums[i])


@kernel
def put_mean(model: Any, to: Any) -> None:
    """The mean profile of all impressions into WIDTH doubles at an address."""
    x, out = f32(i64(model, (N_MODEL,))[M_AUDIENCE] + 4 * WORDS * EVERYBODY, (WORDS,)), f64(to, (WIDTH,))
    for k in range(WIDTH):
        out[k] = x[4 + k] / (SCALE * x[2]) if x[2] > 0 else 0.0


@kernel
def put_met(model: Any, h: Any, mean: Any, to: Any) -> None:
    """How those who clicked an item, and those who saw and left it, differ from everybody, as two times WIDTH doubles at an address: the
    mean of their profiles less the `mean` (WIDTH doubles at an address), drawn towards 0 where they are few. Zeros where nobody met the
    item."""
    at, out = i64(model, (N_MODEL,))[M_AUDIENCE], f64(to, (2 * WIDTH,))
    cell = _cell_of(i32(at, (ITEMS, WORDS)), h)[0]
    if cell < 0:
        out[:] = 0
        return
    x, everybody = f32(at + 4 * WORDS * cell, (WORDS,)), f64(mean, (WIDTH,))
    shown, clicked = np.float64(x[2]), np.float64(x[3])
    left = shown - clicked
    for k in range(WIDTH):
        saw, read = np.float64(x[4 + k]), np.float64(x[4 + WIDTH + k])
        out[k] = (read / SCALE - clicked * everybody[k]) / (clicked + CLICKED_PRIOR)
        # clicks without impressions: who left it, nobody knows
        out[WIDTH + k] = ((saw - read) / SCALE - left * everybody[k]) / (left + SHOWN_PRIOR) if left > 0 else 0.0
