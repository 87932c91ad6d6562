"""The demo from outside: every request answered, figures that fit together, nothing left running."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

KEYS = {
    "log", "events", "requests", "scores", "dead_letters", "events_per_s", "p50_ms", "p99_ms", "auc", "logloss", "ece",
    "oracle_logloss", "floor_logloss",
}  # fmt: skip


def demo(directory: Path, *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "stream_dmgin.cli.main", "demo", "--log", f"file:{directory / 'log'}", "--data-dir", str(directory),
        "--users", "150", "--history-days", "60", "-o", "json", *more,
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def running(directory: Path) -> list[list[str]]:
    """Command lines of processes that name the directory."""
    found = []
    for p in psutil.process_iter():
        try:
            line = p.cmdline()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if any(str(directory) in a for a in line):
            found.append(line)
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_demo_scores_every_request_and_leaves_nothing_running(tmp_path: Path) -> None:
    out, err = demo(tmp_path, "--seconds", "8").communicate(timeout=280)
    said = json.loads(out)
    assert set(said) == KEYS
    assert said["requests"] == pytest.approx(320, rel=0.05) and said["scores"] == said["requests"], err
    assert said["events"] == pytest.approx(16_000, rel=0.1)
    assert said["dead_letters"] == 0
    assert 0 < said["p50_ms"] <= said["p99_ms"]
    assert said["oracle_logloss"] < said["floor_logloss"] and said["oracle_logloss"] < said["logloss"]
    assert 0 <= said["ece"] < 0.2 and not math.isnan(said["auc"])
    assert running(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_demo_leaves_nothing_running(tmp_path: Path, how: signal.Signals) -> None:
    p = demo(tmp_path, "--seconds", "120")
    end = time.monotonic() + 60
    while not any("simulate" in line for line in running(tmp_path)):
        assert p.poll() is None and time.monotonic() < end
        time.sleep(0.2)
    os.kill(p.pid, how)
    code = p.wait(timeout=60)
    assert code == (-signal.SIGKILL if how == signal.SIGKILL else 130)
    end = time.monotonic() + 60
    while running(tmp_path) and time.monotonic() < end:  # after SIGKILL the guards end them
        time.sleep(0.2)
    assert running(tmp_path) == []
