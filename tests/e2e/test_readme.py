"""What README promises a new user: its Python, as it stands there, against a real Kafka and a worker."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLI = [sys.executable, "-m", "stream_dmgin.cli.main"]


@pytest.mark.kafka
def test_python_of_the_readme_gets_a_score(kafka: str, tmp_path: Path) -> None:
    [snippet] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert "127.0.0.1:9092" in snippet
    log = ["--log", f"kafka://{kafka}"]
    subprocess.run([*CLI, "topics", "apply", *log], check=True, timeout=60)
    with (tmp_path / "worker.log").open("wb") as out:
        worker = subprocess.Popen(
            [*CLI, "worker", *log, "--data-dir", str(tmp_path / "data"), "--http", "off"], stdout=out, stderr=out
        )
    client = subprocess.Popen(
        [sys.executable, "-u", "-c", snippet.replace("127.0.0.1:9092", kafka)], stdout=subprocess.PIPE, text=True
    )
    timer = threading.Timer(100, client.kill)
    timer.start()
    try:
        assert client.stdout is not None
        line = client.stdout.readline()
        assert line.startswith("u1 ok {'s1': 0."), (line, (tmp_path / "worker.log").read_text()[-2000:])
    finally:
        timer.cancel()
        client.kill()
        client.wait()
        worker.terminate()
        assert worker.wait(60) == 0
