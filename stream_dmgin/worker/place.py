"""Which place among the workers of a data directory a process has, under a name that stays over restarts.

The name is the worker's transactional id: its successor in the same place ends the transaction that it left open at once.
"""

from __future__ import annotations

import fcntl
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from stream_dmgin.errors import ConfigError


@contextmanager
def place(data_dir: Path) -> Iterator[str]:
    """The name of the first free place, held for as long as the block or the process lasts."""
    directory = Path(data_dir) / "places"
    directory.mkdir(parents=True, exist_ok=True)
    for n in count():
        with open(directory / str(n), "a+") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            f.seek(0)
            name = f.read()
            if not name:
                name = uuid.uuid4().hex
                f.write(name)
                f.flush()
            yield name
            return


@contextmanager
def sharing(data_dir: Path, alone: bool) -> Iterator[None]:
    """Workers may share a data directory, but one with standby copies holds all stores of it. Raises ConfigError."""
    directory = Path(data_dir) / "places"
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "lock", "a+") as f:
        try:
            fcntl.flock(f, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                "data_dir",
                str(data_dir),
                "give each worker a directory of its own where one of them has worker.standby",
            ) from None
        yield
