"""The command line as a user calls it, and the JSON it prints."""

from __future__ import annotations

import json
import subprocess
import sys

CLI = [sys.executable, "-m", "stream_dmgin.cli.main"]


def js(*args: object, ok: tuple[int, ...] = (0,), timeout: float = 600) -> dict:
    """What `stream-dmgin ARGS -o json` prints; its exit status must be one of `ok`."""
    p = subprocess.run(
        [*CLI, *map(str, args), "-o", "json"], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert p.returncode in ok, f"{args}: exit {p.returncode}: {p.stderr[-2000:]}"
    return json.loads(p.stdout)
