"""A folder that keeps what long measurements have made, so that the next one makes only what is missing.

    KEEP/rows-DIGEST/                       the replayed rows of a log under a group map
    KEEP/scores/MODEL-seedN-DIGEST.scores   what a model, fitted with a seed, says of the valid and test rows (`outcome.py`)

A digest is of everything that decides the content: the log, the days, the inputs, the recipe and the code that makes it. Whatever
differs has another name, so that nothing is ever taken for something else; and everything appears whole, so that several processes may
share a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from stream_dmgin.datasets.form import Dataset
from stream_dmgin.errors import InputError
from stream_dmgin.training.outcome import Outcome
from stream_dmgin.training.rows import TrainingRows

PACKAGE = Path(__file__).parents[1]
INPUTS = ("datasets", "state", "counters", "features", "replay", "training/rows.py")
CITY = ("simulator",)
MODELS = ("models", *(f"training/{n}.py" for n in (
    "contest", "zoo", "loop", "objective", "start", "items", "heads", "lives", "rows", "trees", "teacher", "refit", "further"
)))  # fmt: skip


class Keep:
    """A folder, made where it is missing. `say` is told what is used again and what is damaged."""

    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        self.directory, self._say = directory, say
        (directory / "scores").mkdir(parents=True, exist_ok=True)

    def folder(self, kind: str, facts: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """The folder that `make` fills (given its path, not there yet), filled by now or by an earlier run."""
        path = self.directory / f"{kind}-{digest(facts)}"
        if path.is_dir():
            self._say(f"{path} is there: used again")
            return path
        half = path.with_name(f"{path.name}.{os.getpid()}.part")
        shutil.rmtree(half, ignore_errors=True)
        make(half)
        try:
            half.rename(path)
        except OSError:
            if not path.is_dir():  # else another process was first, with the same content
                raise
            shutil.rmtree(half)
        return path

    def rows(self, facts: Mapping[str, Any], make: Callable[[], TrainingRows]) -> TrainingRows:
        """Training rows, made once."""
        path = self.folder("rows", facts, lambda half: make().save(half))
        try:
            return TrainingRows.load(path)
        except InputError as e:
            self._say(f"{e}; replaying again")
            shutil.rmtree(path)
            return TrainingRows.load(self.folder("rows", facts, lambda half: make().save(half)))

    def outcome(
        self, model: str, seed: int, facts: Mapping[str, Any], make: Callable[[], Outcome], say: Callable[[str], None]
    ) -> Outcome:
        """What a model says, fitted once. `say` is told in place of the folder's own."""
        path = self.directory / "scores" / f"{model}-seed{seed}-{digest(facts)}.scores"
        try:
            found = Outcome.unpacked(path.read_bytes())
            say(f"{model}, seed {seed}: kept in {path}")
            return found
        except FileNotFoundError:
            pass
        except InputError as e:
            say(f"{path} is {e}: {model}, seed {seed} is fitted again")
        made = make()
        half = path.with_name(f"{path.name}.{os.getpid()}.part")
        with half.open("wb") as f:
            f.write(made.packed())
            f.flush()
            os.fsync(f.fileno())
        half.replace(path)
        return made


def digest(facts: Mapping[str, Any]) -> str:
    """Of values that JSON or `str` can show."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def of_code(*parts: str) -> str:
    """Of the sources of some packages and modules of the product."""
    found = hashlib.sha256()
    for part in parts:
        path = PACKAGE / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found.update(file.read_bytes())
    return found.hexdigest()


class _Hashing(Protocol):
    def update(self, data: Any, /) -> None: ...


class _Sink:
    """A file that only hashes what is written."""

    closed = False

    def __init__(self, into: _Hashing) -> None:
        self._into = into

    def write(self, data: Any) -> int:
        """Hash some bytes."""
        self._into.update(data)
        return len(data)

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""


def of_data(data: Dataset) -> str:
    """Of a log: its events, rows, items and what is said of it."""
    found = hashlib.sha256(json.dumps(asdict(data.meta), sort_keys=True).encode())
    for table in (data.events, data.rows, data.items):
        with pa.ipc.new_stream(pa.PythonFile(_Sink(found), "w"), table.schema) as out:
            out.write_table(table.combine_chunks())
    return found.hexdigest()


def of_rows(rows: TrainingRows) -> str:
    """Of training rows: every column."""
    found = hashlib.sha256()
    for name in sorted(rows.columns):
        values = np.ascontiguousarray(rows[name])
        found.update(f"{name} {values.dtype} {values.shape}".encode())
        found.update(values.data if values.size else b"")
    return found.hexdigest()
