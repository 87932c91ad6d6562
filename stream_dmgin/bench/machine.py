"""The machine of a measurement: what it is, which core a process may use, a broker to measure against."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stream_dmgin.errors import StreamDmginError, UsageError


def describe() -> dict[str, Any]:
    """Processor, cores, kernel, Python, and the load before the measurement (other work makes figures worse)."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_1m": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def cores() -> tuple[set[int], set[int]] | None:
    """(cores of the broker and the clients, the one core of what is measured); None where there is only one, or no pinning."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    have = sorted(os.sched_getaffinity(0))
    return ({*have[:-1]}, {have[-1]}) if len(have) > 1 else None


@contextlib.contextmanager
def pinned(to: set[int] | None) -> Iterator[None]:
    """This thread, and the threads and processes it starts, on these cores only; as before afterwards. None: no change."""
    if to is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, to)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def log_url(kind: str, directory: Path, on: set[int] | None) -> Iterator[str]:
    """A fresh log for one measurement: `kafka` (a local broker on cores `on`), `file`, or the URL of a log that is there."""
    if kind == "file":
        yield f"file:{directory / 'log'}"
    elif kind == "kafka":
        from stream_dmgin.log.broker import LocalKafka

        broker = LocalKafka(directory / "kafka", heap_mb=1024)
        with pinned(on):
            broker.start()
        try:
            yield "kafka://" + broker.bootstrap
        finally:
            broker.stop()
    elif "://" in kind or kind.startswith("file:"):
        yield kind
    else:
        raise UsageError(f"bench: --on {kind!r}: give kafka (a local broker), file, or the URL of a log")


def command(*args: str) -> list[str]:
    """The product's command line in this interpreter, as a list for subprocess."""
    return [sys.executable, "-m", "stream_dmgin.cli.main", *args]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment of the processes measured: one thread for numeric libraries, no settings of the user's own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("STREAM_DMGIN_") or k == "STREAM_DMGIN_KAFKA_JARS"}
    return {**kept, "OMP_NUM_THREADS": "1", **(extra or {})}


def run(
    args: Sequence[str], on: set[int] | None = None, timeout: float = 1800, env: Mapping[str, str] | None = None
) -> str:
    """Run a command of the product to its end, pinned; its stdout. Raises StreamDmginError with the end of what it said."""
    with pinned(on):
        done = subprocess.run(
            command(*args), capture_output=True, text=True, timeout=timeout, env=environment(env), check=False
        )
    if done.returncode:
        raise StreamDmginError(
            f"stream-dmgin {' '.join(args)}: exit {done.returncode}: {(done.stderr or done.stdout)[-800:]}"
        )
    return done.stdout


@contextlib.contextmanager
def running(args: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A command of the product in the background, its output in `log`; ended with SIGTERM afterwards, killed after 60 s."""
    with log.open("wb") as out:
        process = subprocess.Popen(command(*args), stdout=out, stderr=subprocess.STDOUT, env=environment(env))
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
