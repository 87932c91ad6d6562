"""What the watchdog takes for standing still, and what not; and that it ends a process that hangs, also one that holds the lock."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from stream_dmgin.worker.health import Health
from stream_dmgin.worker.watchdog import FRESH_S, Watchdog

N = 100.0


class Clock:
    """A health whose moments a test sets, and a watchdog that is asked second by second."""

    def __init__(self) -> None:
        self.health = Health()
        self.dog = Watchdog(self.health, N)
        self.now = time.monotonic()
        self.lag(0)

    def lag(self, n: int) -> None:
        self.health.lag, self.health.lag_at = {"t": n}, self.now

    def pass_(self, seconds: int, turns: bool = True, records: int = 0, steps: bool = False, ask: bool = True) -> str:
        """Seconds go by; what was found first."""
        for _ in range(seconds):
            self.now += 1
            if turns:
                self.health.turn(self.now, records)
            if steps:
                self.health.stepped = self.now
            if ask:
                self.health.lag_at = self.now
            if found := self.dog.look(self.now):
                return found
        return ""


def test_a_turn_that_hangs_is_found_with_lag_and_without() -> None:
    c = Clock()
    assert "main thread hangs" in c.pass_(102, turns=False)
    c = Clock()
    c.lag(5)
    assert "main thread hangs" in c.pass_(102, turns=False, ask=False)


def test_compiling_is_no_hang() -> None:
    """The first start on a machine compiles kernels inside of a turn."""
    import numba

    health = Health()
    health.stepped = 0.0
    with Watchdog(health, N):
        numba.njit(lambda x: x + 1)(1)
    assert health.stepped > 0.0
    health.stepped = 0.0
    numba.njit(lambda x: x + 2)(1)
    assert health.stepped == 0.0  # no longer watched


def test_a_slow_batch_is_no_hang() -> None:
    c = Clock()
    assert c.pass_(1000, turns=False, steps=True) == ""


def test_a_consumer_that_stalls_with_lag_is_found() -> None:
    c = Clock()
    assert c.pass_(1000) == ""  # nothing to do
    c.lag(7)
    assert c.pass_(100) == ""
    assert "7 wait in the log" in c.pass_(2)


def test_records_that_come_are_progress() -> None:
    c = Clock()
    c.lag(10**6)
    assert c.pass_(1000, records=1) == ""
    assert "stalled" in c.pass_(102)


def test_lag_counts_from_when_it_began() -> None:
    c = Clock()
    for _ in range(20):
        c.lag(3)
        assert c.pass_(90) == ""
        c.lag(0)
        assert c.pass_(90) == ""


def test_waiting_on_purpose_is_no_stall() -> None:
    c = Clock()
    c.lag(7)
    c.health.waiting = "disk"
    assert c.pass_(1000) == ""
    c.health.waiting = ""
    assert c.pass_(90) == ""
    assert "stalled" in c.pass_(20)


def test_a_broker_that_can_not_be_asked_is_not_the_workers_stall() -> None:
    c = Clock()
    c.lag(7)
    assert c.pass_(int(FRESH_S) + 1000, ask=False) == ""


def test_a_process_that_was_stopped_gets_its_time_again() -> None:
    c = Clock()
    c.now += 10_000  # SIGSTOP, SIGCONT
    assert c.dog.look(c.now) == ""
    assert c.pass_(90, turns=False) == ""
    assert "hangs" in c.pass_(20, turns=False)


HANGS = """
import ctypes
from stream_dmgin.settings import load
from stream_dmgin.worker import loop, run, watchdog
watchdog.GRACE_S = 1.0
settings = load({{"log": "file:{log}", "data_dir": "{data}", "worker.http": "off", "worker.stall_s": 2}}, environ={{}})
with run.open_log(settings.log) as log:
    from stream_dmgin.log import manage
    manage.apply(log, manage.plan(log, settings.prefix, 1))
turn, turned = loop.Loop.turn, 0
def hang(self, timeout):
    global turned
    turned += 1
    if turned > 3:
        print("hangs now", flush=True)
        ctypes.{kind}(None).sleep(1000)
    return turn(self, timeout)
loop.Loop.turn = hang
from stream_dmgin.cli.common import setup_logging
setup_logging("info", "text")
run.run(settings, score=False, until_end=False)
"""


@pytest.mark.parametrize("kind", ["CDLL", "PyDLL"])  # as librdkafka is called; and with the interpreter's lock held
def test_it_ends_a_process_that_hangs_in_c(tmp_path: Path, kind: str) -> None:
    code = HANGS.format(log=tmp_path / "log", data=tmp_path / "data", kind=kind)
    p = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90, check=False)
    assert "hangs now" in p.stdout, p.stderr[-3000:]
    assert p.returncode == 1, (p.returncode, p.stderr[-3000:])
    assert " in hang" in p.stderr  # where it stands
    if kind == "CDLL":
        assert "watchdog: nothing has gone on inside a turn" in p.stderr
