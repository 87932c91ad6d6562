"""Child processes of the demo: each in a session of its own, under the guard that ends it when the demo is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from stream_dmgin.errors import StreamDmginError
from stream_dmgin.log import guard

TERM_S = 40.0  # the guard itself gives its child 20 s before it kills


class Child:
    """One `stream-dmgin` command, its output in `log`."""

    def __init__(self, name: str, arguments: Sequence[str], log: Path, environ: Mapping[str, str]) -> None:
        self.name, self.log = name, log
        command = [sys.executable, "-m", "stream_dmgin.cli.main", *arguments]
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, str(log), "--", *command],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **environ},
        )  # fmt: skip

    def done(self) -> int | None:
        """Exit code, or None while it runs."""
        return self._guard.poll()

    def check(self) -> None:
        """Raises StreamDmginError with the end of its log when it has failed."""
        code = self.done()
        if code:
            raise StreamDmginError(
                f"the {self.name} ended with exit code {code}; the end of {self.log}:\n{self.tail()}"
            )

    def tail(self, lines: int = 12) -> str:
        """The last lines it wrote."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return "(no log)"

    def stop(self) -> None:
        """Ask it to end (SIGTERM, then SIGKILL) and wait, at most TERM_S seconds. Idempotent."""
        if self._guard.stdin and not self._guard.stdin.closed:
            self._guard.stdin.close()
        try:
            self._guard.wait(TERM_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._guard.pid, signal.SIGKILL)  # guard and child share a process group
            self._guard.wait()
