"""Named tuples of equally long arrays: one function for all columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=tuple[NDArray[Any], ...])


def each(columns: T, change: Callable[[NDArray[Any]], NDArray[Any]]) -> T:
    """The columns, each changed alike."""
    make: Any = type(columns)
    out: T = make(*(change(c) for c in columns))
    return out


def taken(columns: T, rows: NDArray[np.int64]) -> T:
    """These rows of the columns."""
    return each(columns, lambda c: c[rows])


def joined(parts: Sequence[T]) -> T:
    """Parts one after another."""
    make: Any = type(parts[0])
    out: T = make(*(np.concatenate([p[i] for p in parts]) for i in range(len(parts[0]))))
    return out
