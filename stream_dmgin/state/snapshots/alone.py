"""A file that one process at a time holds, whichever way the others end."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from stream_dmgin.errors import StoreBusy

LOOK_S = 0.05


@contextlib.contextmanager
def alone(path: Path, patience_s: float, busy: str) -> Iterator[None]:
    """Hold the lock of this file, which is made where it isn't there. Raises StoreBusy, saying `busy`, after patience_s seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        until = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise StoreBusy(busy) from None
                time.sleep(LOOK_S)
        yield
