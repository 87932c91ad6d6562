"""Runs a command and ends it when the process that asked for it is gone, however that went (SIGKILL included).

Started by `log/broker.py` as a script of its own, without the package: `python guard.py LOGFILE -- COMMAND...`.
Its standard input is a pipe whose other end the parent holds: end of file means that the parent is done or dead.
"""

import os
import select
import signal
import subprocess
import sys
import types

GRACE_S = 20.0  # for a clean stop, then SIGKILL


def main(argv: list[str]) -> int:
    """Run `argv[2:]` with its output in `argv[0]`; returns its exit code."""
    log, command, parent = argv[0], argv[2:], os.getppid()
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_w, False)
    signal.set_wakeup_fd(wake_w)

    def note(number: int, frame: types.FrameType | None) -> None:  # the byte in the pipe is what wakes the loop
        return None

    for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(s, note)
    with open(log, "ab") as out:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    while child.poll() is None:
        ready = select.select([0, wake_r], [], [], 1.0)[0]
        woken = os.read(wake_r, 64) if wake_r in ready else b""
        asked = any(b != signal.SIGCHLD for b in woken)
        if 0 in ready or asked or os.getppid() != parent:  # nothing is ever written to the pipe: readable means closed
            child.terminate()
            try:
                child.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
    return child.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
