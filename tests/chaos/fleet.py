"""Workers as processes: started, killed, paused, told to leave, started again; each with its log and its exit codes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

CLI = [sys.executable, "-m", "stream_dmgin.cli.main"]
ROOT = Path(__file__).parents[2]
MOVED = re.compile(r"(assigned|released|lost) partitions \[([\d, ]*)\]")
MANY = 60  # exits that nobody asked for, after which a campaign says nothing any more


@dataclass
class Member:
    """One place for a worker: its data directory stays, processes come and go."""

    name: str
    args: list[str]
    log: Path
    env: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    paused_until: float = 0.0
    start_at: float = 0.0
    _read: int = 0

    def start(self) -> None:
        with open(self.log, "ab") as out:
            self._read = out.tell()
            self.process = subprocess.Popen(
                [*CLI, "worker", *self.args], stdout=out, stderr=out, env=self.env, cwd=ROOT
            )

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def text(self) -> str:
        """What this process has logged."""
        with open(self.log, "rb") as f:
            f.seek(self._read)
            return f.read().decode(errors="replace")  # it may be in the middle of a character

    def said(self, text: str) -> bool:
        """Whether this process has logged this."""
        return text in self.text()

    def holds(self) -> set[int]:
        """The partitions it has now, by its log. The group may give them one after the other."""
        out: set[int] = set()
        for what, numbers in MOVED.findall(self.text()):
            partitions = {int(n) for n in numbers.split(",") if n}
            out = out | partitions if what == "assigned" else out - partitions
        return out

    def send(self, what: int) -> None:
        assert self.process is not None
        self.process.send_signal(what)


@dataclass
class Fleet:
    """All places; `unexpected` collects exits that nobody asked for."""

    members: list[Member]
    unexpected: list[str] = field(default_factory=list)

    def alive(self) -> list[Member]:
        return [m for m in self.members if m.alive]

    def tend(self, now: float) -> None:
        """Wake who has slept enough, start again who is due, note who ended by itself (and start it again: a supervisor)."""
        for m in self.members:
            if m.alive and m.paused_until and now >= m.paused_until:
                m.paused_until = 0.0
                m.send(signal.SIGCONT)
            elif m.process is not None and not m.alive:
                if m.process.returncode not in (0, -signal.SIGKILL):
                    self.unexpected.append(f"{m.name}: exit {m.process.returncode}")
                    assert len(self.unexpected) < MANY, f"the workers keep ending: {m.log.read_text()[-1000:]}"
                m.process, m.paused_until = None, 0.0
                m.start_at = m.start_at or now
            if m.process is None and m.start_at and now >= m.start_at:
                m.start_at = 0.0
                m.start()

    def stop(self, timeout: float = 90.0) -> list[int]:
        """Wake and end everyone; exit codes."""
        for m in self.alive():
            m.send(signal.SIGCONT)
            m.send(signal.SIGTERM)
        end = time.monotonic() + timeout
        codes = []
        for m in self.members:
            if m.process is not None:
                codes.append(m.process.wait(max(1.0, end - time.monotonic())))
        return codes

    def kill(self) -> None:
        """Whatever is left, at the end of a test."""
        for m in self.alive():
            m.send(signal.SIGKILL)


def environment(**settings: str) -> dict[str, str]:
    """The environment of a worker: short sessions, one thread, item rates instead of a model."""
    own = {
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "STREAM_DMGIN_WORKER_MODEL": "item-ctr", "STREAM_DMGIN_WORKER_HTTP": "off",
        "STREAM_DMGIN_WORKER_COMMIT_INTERVAL_S": "0.4", "STREAM_DMGIN_KAFKA_SESSION_TIMEOUT_MS": "4000",
        "STREAM_DMGIN_KAFKA_MAX_POLL_INTERVAL_MS": "6000",
    }  # fmt: skip
    if settings.get("STREAM_DMGIN_WORKER_GROUP_PROTOCOL") == "consumer":  # the session is the broker's business there
        del own["STREAM_DMGIN_KAFKA_SESSION_TIMEOUT_MS"]
        own["STREAM_DMGIN_KAFKA_MAX_POLL_INTERVAL_MS"] = "45000"  # librdkafka: not below its default of the session
    return {**os.environ, **own, **settings}
