"""Embeddings as the blocks `content`, `passed`, `audience` and `readers` read them: whole numbers of one byte, whose products are the same
on every machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LARGEST = 127


def quantised(embedding: Sequence[float], width: int) -> tuple[NDArray[np.int8], np.float32] | None:
    """(int8[width]: the embedding scaled so that its largest number is 127, and rounded; 1 / the length of that). None where it has
    another width, or holds what is no finite number, or only zeros. A cosine of two of them is within .01 of the exact one."""
    if len(embedding) != width:
        return None
    x = np.asarray(embedding, np.float64)
    largest = float(np.abs(x).max())
    if not 0.0 < largest < np.inf:  # nor NaN
        return None
    whole = np.rint(x / largest * LARGEST)
    return whole.astype(np.int8), np.float32(1.0 / np.sqrt((whole * whole).sum()))
