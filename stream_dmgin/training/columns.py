"""Arrays that grow at their end, in memory or in a file, and the index arithmetic of ragged rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Column:
    """An array that grows at its end, its capacity doubling."""

    def __init__(self, dtype: str, *shape: int) -> None:
        self._data = np.zeros((1024, *shape), dtype)
        self._n = 0

    def extend(self, values: Array) -> None:
        """Append values [n,...], cast to the column's type."""
        end = self._n + len(values)
        if end > len(self._data):
            grown = np.zeros((max(end, 2 * len(self._data)), *self._data.shape[1:]), self._data.dtype)
            grown[: self._n] = self._data[: self._n]
            self._data = grown
        self._data[self._n : end] = values
        self._n = end

    def view(self) -> Array:
        """What was appended; not a copy."""
        return self._data[: self._n]

    @classmethod
    def of(cls, values: Array) -> Column:
        """A column that starts with these values (not copied)."""
        made = cls.__new__(cls)
        made._data, made._n = values, len(values)
        return made


class FileColumn:
    """A column written to a .npy file as it grows; nothing of it stays in memory. Readable once `close` has been called."""

    def __init__(self, path: Path, like: Array) -> None:
        self._file, self._dtype, self._shape, self._n = path.open("wb"), like.dtype, like.shape[1:], 0
        self._header()

    def _header(self) -> None:
        # numpy pads the header for a first dimension of any size: it takes the same room however many rows there are
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(
            self._file,
            {
                "descr": np.lib.format.dtype_to_descr(self._dtype),
                "fortran_order": False,
                "shape": (self._n, *self._shape),
            },
        )

    def extend(self, values: Array) -> None:
        """Append values [n,...], cast to the column's type."""
        self._file.write(np.ascontiguousarray(values, self._dtype).tobytes())
        self._n += len(values)

    def close(self) -> None:
        """Write what is buffered, and how many rows there are."""
        self._header()
        self._file.close()


def spans(starts: NDArray[np.int64], counts: Array) -> NDArray[np.int64]:
    """start, start + 1, ... (count of them) of each pair, one after another."""
    counts = counts.astype(np.int64)
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    found: NDArray[np.int64] = np.arange(total, dtype=np.int64) + np.repeat(starts - ends + counts, counts)
    return found


def scatter(values: Array, slots: NDArray[np.int64], b: int, width: int, fill: float = 0) -> Array:
    """Values [n,...] at `slots` of a [b,width,...] array."""
    out = np.full((b * width, *values.shape[1:]), fill, values.dtype)
    out[slots] = values
    return out.reshape(b, width, *values.shape[1:])
