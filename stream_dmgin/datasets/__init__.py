"""Public logs and tables of one's own, in one normalised form."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from stream_dmgin.errors import InputError

if TYPE_CHECKING:
    from stream_dmgin.datasets.form import Dataset

OWN = "own"  # a directory in the normalised form, as `data import` and `simulate --to-dir` write it
MEASURED = ("kuairand", "ebnerd", "mind", OWN)  # what has rows with labels to measure on
LOGS = ("kuairand", "ebnerd", "mind", "taobao")


def load(name: str, path: str | Path) -> Dataset:
    """A public log by name, from the directory of its files, or one's own in the normalised form (OWN). Raises InputError."""
    if name == OWN:
        from stream_dmgin.datasets.form import read

        return read(path)
    if name not in LOGS:
        raise InputError(f"there is no importer {name!r}: choose one of {', '.join(LOGS)}, or table")
    out: Dataset = importlib.import_module(f"stream_dmgin.datasets.{name}").load(Path(path))
    return out
