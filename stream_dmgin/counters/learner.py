"""The online model of one process: memory for what `counters/online.py`, `counters/audience.py` and `counters/rhythm.py` learn, and its
rows in the store of checkpoints.

Where models read only rhythms, these alone are learnt, in 0.5 MiB. Else, whatever the log holds, 20 MiB more: 2^20 weights (8 MiB), 2^16
rows of 8 factors (4 MiB), 2^18 cells of residuals (8 MiB), each beside what its learning rate needs; and 9 MiB for the audiences of 2^16
items. What is new in a page of 4 KiB is saved with the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_dmgin.counters.audience import AUDIENCE_PAGES, ITEM_BITS, ITEMS, WIDTH, WORDS, learn_audience
from stream_dmgin.counters.increments import Increments
from stream_dmgin.counters.online import (
    CELL_BITS,
    CELL_WORDS,
    FACTOR_BITS,
    FACTOR_PAGES,
    FACTOR_WORDS,
    FACTORS,
    LINEAR_BITS,
    LINEAR_PAGES,
    LINEAR_WORDS,
    M_AUDIENCE,
    M_AUDIENCE_DIRTY,
    M_CELLS,
    M_DIRTY,
    M_FACTORS,
    M_LINEAR,
    M_RHYTHM,
    M_RHYTHM_DIRTY,
    N_MODEL,
    PAGE_WORDS,
    PAGES,
    begin,
    learn,
    predict,
)
from stream_dmgin.counters.rhythm import RHYTHM_BITS, RHYTHM_PAGES, RHYTHM_WORDS, learn_rhythm
from stream_dmgin.errors import FormatError

FORMAT = 1
# Events that a replay, and a worker that takes a backlog in order, bring into the counters at once: what is learnt depends on it a little.
# The engine's table of increments stays as small as it began, and is cheap to empty
STRETCH = 200
META = PREFIX = b"w"  # keys: of what describes the rows, and at the beginning of those of pages
_OF_ITEMS = (LINEAR_BITS, FACTOR_BITS, FACTORS, CELL_BITS, ITEM_BITS, WIDTH)
RHYTHM_FIRST = PAGES + AUDIENCE_PAGES
ALL_PAGES = RHYTHM_FIRST + RHYTHM_PAGES


class _Meta(msgspec.Struct, array_like=True):
    point: (
        bytes  # what the counters' checkpoint says of how far it is: the weights are of the same moment, or of no use
    )
    sizes: tuple[int, ...]
    v: int = FORMAT


class OnlineModel:
    """Rhythms; where it learns `items`, weights, factors, residuals and audiences too. `addresses` is how kernels find them. One thread."""

    def __init__(self, items: bool = True) -> None:
        self.items = items
        self._linear: NDArray[np.float32] = np.zeros((items << LINEAR_BITS, LINEAR_WORDS), np.float32)
        self._factors: NDArray[np.float32] = np.zeros((items << FACTOR_BITS, FACTOR_WORDS), np.float32)
        self._cells: NDArray[np.float32] = np.zeros((items << CELL_BITS, CELL_WORDS), np.float32)
        self._audiences: NDArray[np.float32] = np.zeros((items * ITEMS, WORDS), np.float32)
        self._rhythms: NDArray[np.float32] = np.zeros((1 << RHYTHM_BITS, RHYTHM_WORDS), np.float32)
        self._dirty: NDArray[np.uint8] = np.zeros(ALL_PAGES, np.uint8)
        begin(self._factors)
        self.addresses: NDArray[np.int64] = np.zeros(N_MODEL, np.int64)
        for at, array in (
            (M_LINEAR, self._linear), (M_FACTORS, self._factors), (M_CELLS, self._cells), (M_DIRTY, self._dirty),
            (M_AUDIENCE, self._audiences), (M_AUDIENCE_DIRTY, self._dirty[PAGES:]),
            (M_RHYTHM, self._rhythms), (M_RHYTHM_DIRTY, self._dirty[RHYTHM_FIRST:]),
        ):  # fmt: skip
            self.addresses[at] = array.ctypes.data

    @classmethod
    def of(cls, online: bool, rhythm: bool) -> OnlineModel | None:
        """What learns all, rhythms alone, or (None) nothing."""
        return cls(online) if online or rhythm else None

    @property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(self.items * n for n in _OF_ITEMS) + (RHYTHM_BITS,)

    def learn(self, table: NDArray[np.int64], x: Increments) -> None:
        """Learn a range of events; `table`: the addresses of the counters, which have taken it already."""
        learn_rhythm(self.addresses.ctypes.data, *x.columns())
        if not self.items:
            return
        surface = np.zeros(len(x), np.uint8) if x.surface is None else x.surface
        learn(self.addresses.ctypes.data, table.ctypes.data, *x.columns(), surface)
        if x.audience is not None:
            a = x.audience
            learn_audience(self.addresses.ctypes.data, a.hash, a.metric, a.count, a.sum)

    def logit(self, h: int, surface: int, ts: int, first: int) -> float:
        """What it would say now of an item (by hash, first counted at `first` in ms, -1: never) on a surface (its number) at
        `ts`."""
        return float(predict(self.addresses.ctypes.data, np.uint64(h), surface, ts, first))

    def canonical(self) -> bytes:
        """Bytes of everything learnt, equal if and only if two models are the same."""
        return b"".join(a.tobytes() for a in (self._linear, self._factors, self._cells, self._audiences, self._rhythms))

    def to_rows(self, point: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Rows of the pages changed since the last call, and of `point`, the moment they belong to. Consume it whole before
        anything more is learnt."""
        changed = np.flatnonzero(self._dirty).tolist()
        self._dirty[:] = 0
        yield META, msgspec.msgpack.encode(_Meta(point, self._sizes))
        for n in changed:
            yield PREFIX + n.to_bytes(4, "big"), self._page(n).tobytes()

    def _page(self, n: int) -> NDArray[np.float32]:
        array, first = self._linear, 0
        if n >= RHYTHM_FIRST:
            array, first = self._rhythms, RHYTHM_FIRST
        elif n >= PAGES:
            array, first = self._audiences, PAGES
        elif n >= LINEAR_PAGES + FACTOR_PAGES:
            array, first = self._cells, LINEAR_PAGES + FACTOR_PAGES
        elif n >= LINEAR_PAGES:
            array, first = self._factors, LINEAR_PAGES
        page: NDArray[np.float32] = array.reshape(-1, PAGE_WORDS)[n - first]
        return page

    @classmethod
    def from_rows(
        cls, rows: Iterable[tuple[bytes, bytes]], point: bytes | None, items: bool = True
    ) -> OnlineModel | None:
        """From the rows of a store; None where they aren't those of `point`, or of another format or size, or of rhythms alone where
        `items` are wanted too. Raises FormatError where a page is damaged."""
        out = cls(items)
        fits = False
        for key, value in rows:
            if key == META:
                fits = out._known(value, point)
                continue
            n = int.from_bytes(key[len(PREFIX) :], "big")
            if len(key) != len(PREFIX) + 4 or n >= ALL_PAGES or len(value) != 4 * PAGE_WORDS:
                raise FormatError(
                    "a page of the online model can't be read: remove the counters' directory, it is read again from the log"
                )
            if items or n >= RHYTHM_FIRST:
                out._page(n)[:] = np.frombuffer(value, "<f4")
        return out if fits else None

    def _known(self, value: bytes, point: bytes | None) -> bool:
        try:
            meta: Any = msgspec.msgpack.decode(value, type=_Meta)
        except msgspec.MsgspecError:
            return False
        enough = len(meta.sizes) == len(self._sizes) and all(
            n in (0, m) for n, m in zip(self._sizes, meta.sizes, strict=True)
        )
        return bool(meta.v == FORMAT and enough and meta.point == point)
