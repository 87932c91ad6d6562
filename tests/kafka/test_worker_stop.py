"""SIGTERM to a worker on Kafka whose Faust application is wholly up: it commits, leaves and exits 0, soon."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
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


def ready(at: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{at}/health/ready", timeout=5) as r:
            return bool(r.status == 200)
    except (urllib.error.URLError, OSError):
        return False
