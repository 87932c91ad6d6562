"""Room on the disk of the data directory: below a reserve the worker takes no more events, while RocksDB can still write.

What is folded by then still has to be committed, flushed and compacted: the reserve is for that. With room again (a tenth more
than the reserve, so that it doesn't switch to and fro) the worker goes on by itself.
"""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from stream_dmgin.errors import DiskFull

log_ = logging.getLogger(__name__)

MB = 1_000_000
ROOM = 1.1  # of the reserve, to go on
NO_ROOM = ("No space left on device", "Disk quota exceeded", "Max allowed space was reached")


def usage(path: Path) -> tuple[int, int]:
    """(bytes free for this account, bytes in all) of the file system of `path`."""
    found = shutil.disk_usage(path)
    return found.free, found.total


def disk_full(error: BaseException, path: Path) -> DiskFull | None:
    """What to say of an error that comes from a disk without any room; None for others. RocksDB's have only words."""
    e: BaseException | None = error
    seen: set[int] = set()
    while e is not None and id(e) not in seen:
        seen.add(id(e))
        if getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(w in str(e) for w in NO_ROOM):
            break
        e = e.__cause__ or e.__context__
    else:
        return None
    try:
        room = f"{usage(path)[0] / MB:.1f} MB are free"
    except OSError:
        room = "how much is free can't be told"
    return DiskFull(
        f"the disk of {path} is full: {room}. What failed: {e}. Nothing is lost: what was not written is folded again from the log. "
        "Make room there (state stats -o json has the size of each store), and start the worker again"
    )


class Disk:
    """The file system of one directory, and how much of it must stay free."""

    def __init__(
        self, path: Path, min_mb: int, min_percent: float, ask: Callable[[Path], tuple[int, int]] = usage
    ) -> None:
        self.path, self._min_mb, self._min_percent, self._ask = path, min_mb, min_percent, ask
        self.free = 0
        self.full = False
        self.looked = float("-inf")  # when it was last looked at, by time.monotonic

    def look(self) -> str:
        """Why no events may be taken now, or "". A system call: a few microseconds."""
        try:
            self.free, total = self._ask(self.path)
        except OSError as e:  # a network file system that is away: its writes will say more
            log_.warning("%s: how much room there is can't be told: %s", self.path, e)
            return ""
        reserve = max(self._min_mb * MB, total * self._min_percent / 100)
        full = self.free < reserve * (ROOM if self.full else 1.0)
        if full != self.full:
            self.full = full
            word = "no more events are taken until there is room" if full else "there is room again: events are taken"
            log_.warning(
                "%s: %d MB free, %d MB are kept in reserve: %s", self.path, self.free // MB, reserve // MB, word
            )
        if not full:
            return ""
        return f"disk: {self.free // MB} MB free at {self.path}, {reserve // MB:.0f} MB are kept in reserve"
