"""Reading the files of public logs: errors that name the missing file or column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stream_dmgin.errors import InputError


def parquet(path: Path, columns: Sequence[str], what: str) -> pa.Table:
    """These columns of a Parquet file. Raises InputError that says what the file should be."""
    if not path.is_file():
        raise InputError(f"{path} is missing: {what}")
    try:
        missing = sorted(set(columns) - set(pq.read_schema(path).names))
        if missing:
            raise InputError(f"{path} has no column {', '.join(missing)}: {what}")
        return pq.read_table(path, columns=list(columns))
    except (OSError, pa.ArrowException) as e:
        raise InputError(f"{path} can't be read as Parquet: {e}") from None


def directory(path: Path, what: str) -> Path:
    """The directory itself. Raises InputError where it is none."""
    if not path.is_dir():
        raise InputError(f"{path} is not a directory: {what}")
    return path
