"""A disk that is slow now and then: an ext4 file system on a loop device whose writes the kernel throttles (blkio of cgroup v1, which
knows devices for all processes). Needs root; `why_not` says what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

BLKIO = Path("/sys/fs/cgroup/blkio")
SIZE_MB = 1024
SLOW = {"write_bps": 200_000, "write_iops": 10}  # bytes and writes a second, of all workers together


def why_not() -> str:
    """What keeps this machine from it; "" nothing."""
    if os.geteuid() != 0:
        return "a slow disk needs root"
    if not (BLKIO / "blkio.throttle.write_bps_device").exists():
        return f"a slow disk needs the controller blkio of cgroup v1 at {BLKIO}"
    missing = [tool for tool in ("losetup", "mkfs.ext4", "mount") if not shutil.which(tool)]
    return f"a slow disk needs {', '.join(missing)}" if missing else ""


class SlowDisk:
    """Mounted at `at` for as long as the context lasts."""

    def __init__(self, at: Path) -> None:
        self.at, self._image = at, at.with_suffix(".img")
        self._device = self._number = ""
        self.until = 0.0  # throttled till then, in the caller's clock

    def __enter__(self) -> Self:
        self.at.mkdir()
        with self._image.open("wb") as f:
            f.truncate(SIZE_MB << 20)
        self._device = _said("losetup", "-f", "--show", str(self._image))
        self._number = _said("lsblk", "-dno", "MAJ:MIN", self._device)
        _said("mkfs.ext4", "-q", self._device)
        _said("mount", self._device, str(self.at))
        return self

    def __exit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.throttle(0.0)
        _said("umount", "-l", str(self.at))
        _said("losetup", "-d", self._device)

    def throttle(self, until: float) -> None:
        """Slow from now on; 0: as fast as it can again."""
        self.until = until
        for what, limit in SLOW.items():
            (BLKIO / f"blkio.throttle.{what}_device").write_text(f"{self._number} {limit if until else 0}")


def _said(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
