"""SIGTERM to a worker on Kafka, at whatever moment: it commits, leaves and exits 0, soon."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

CLI = [sys.executable, "-m", "stream_dmgin.cli.main"]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.mark.timeout(400)
def test_a_worker_that_ran_for_a_while_stops(kafka: str, prefix: str, tmp_path: Path) -> None:
    args = ["--log", "kafka://" + kafka, "--prefix", prefix, "--data-dir", str(tmp_path / "data")]
    subprocess.run([*CLI, "topics", "apply", "--partitions", "2", *args], check=True, stdout=subprocess.DEVNULL)
    at = f"127.0.0.1:{free_port()}"
    with open(tmp_path / "log", "wb") as out:
        worker = subprocess.Popen([*CLI, "worker", *args, "--http", at], stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while not ready(at):
            assert worker.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[-2000:]
            time.sleep(0.5)
        time.sleep(12)  # Faust's own group and its tables come up some seconds after the data path
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(45) == 0
    finally:
        worker.kill()
    assert "released partitions [0, 1]" in (tmp_path / "log").read_text()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("seconds", [0.0, 0.6, 1.0])
def test_a_worker_stops_while_faust_is_still_starting(kafka: str, prefix: str, tmp_path: Path, seconds: float) -> None:
    """Faust 0.15.3 itself never ends when it is stopped in its first second or so."""
    args = ["--log", "kafka://" + kafka, "--prefix", prefix, "--data-dir", str(tmp_path / "data")]
    subprocess.run([*CLI, "topics", "apply", "--partitions", "2", *args], check=True, stdout=subprocess.DEVNULL)
    with open(tmp_path / "log", "wb") as out:
        worker = subprocess.Popen([*CLI, "worker", *args, "--http", "off"], stdout=out, stderr=subprocess.STDOUT)
    stopped_in_time(worker, tmp_path / "log", "counters of", seconds)


@pytest.mark.timeout(400)
def test_a_faust_that_never_stops_is_left_behind(kafka: str, prefix: str, tmp_path: Path) -> None:
    hang = """
        import asyncio
        from stream_dmgin.worker import faust_app
        async def stop(self): await asyncio.sleep(1000)
        faust_app._Worker.stop = stop
        faust_app.STOP_S = 2
        from stream_dmgin.cli.main import main
        main()
    """
    args = ["--log", "kafka://" + kafka, "--prefix", prefix, "--data-dir", str(tmp_path / "data")]
    subprocess.run([*CLI, "topics", "apply", "--partitions", "2", *args], check=True, stdout=subprocess.DEVNULL)
    command = [sys.executable, "-c", textwrap.dedent(hang), "worker", *args, "--http", "off"]
    with open(tmp_path / "log", "wb") as out:
        worker = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    stopped_in_time(worker, tmp_path / "log", "assigned partitions [0, 1]", 3.0)
    assert "left behind" in (tmp_path / "log").read_text()
    assert "released partitions [0, 1]" in (tmp_path / "log").read_text()


def stopped_in_time(worker: subprocess.Popen[bytes], log: Path, line: str, seconds: float) -> None:
    """SIGTERM so many seconds after this line of the log: exit 0 within 45 seconds."""
    try:
        deadline = time.monotonic() + 120
        while line not in log.read_text():
            assert worker.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.05)
        time.sleep(seconds)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(45) == 0, log.read_text()[-2000:]
    finally:
        worker.kill()


def ready(at: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{at}/health/ready", timeout=5) as r:
            return bool(r.status == 200)
    except (urllib.error.URLError, OSError):
        return False
