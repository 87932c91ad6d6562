"""`DATA_DIR/audit.log`: one JSON line for each order that destroys or skips something, and for each time one was carried out.

Users appear by the SHA-256 of their id only. Lines are appended whole, so that several processes can write.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

FILE = "audit.log"


def record(data_dir: Path, action: str, **what: Any) -> dict[str, Any]:
    """Append a line with `what`, the time, and who: the account, the machine and the process. Returns it."""
    line = {"ts": int(time.time() * 1000), "action": action, **what, "by": _who()}
    data_dir.mkdir(parents=True, exist_ok=True)
    fd = os.open(data_dir / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, json.dumps(line, ensure_ascii=False).encode() + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)
    return line


def _who() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in containers
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}:{os.getpid()}"
