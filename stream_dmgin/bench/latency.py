"""Request written to score read, by a plain client, beside a stream of events: what a caller of the product waits.

The worker is a process of its own, with the model it is told to use; the client of this process writes requests of
`candidates` items at a steady rate (by the clock, whether answers come or not) and reads the scores. All cores are shared.
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from stream_dmgin import records, topics
from stream_dmgin.bench import machine
from stream_dmgin.errors import StreamDmginError, UnavailableError
from stream_dmgin.log.base import Log, Reader, Writer, open_log
from stream_dmgin.topics import PREFIX

START_S = 120.0
HTTP = "127.0.0.1:18088"


def measure(
    on: str = "kafka", requests_per_s: float = 100, events_per_s: float = 2000, seconds: float = 40, candidates: int = 100,
    model: str | None = None, users: int = 2000,
) -> dict[str, Any]:  # fmt: skip
    """`p50_ms`, `p99_ms`, `max_ms` and the rates that were reached. The first eighth of the time is not counted."""
    about = machine.describe()
    split = machine.cores()
    with (
        tempfile.TemporaryDirectory(prefix="stream-dmgin-bench-") as tmp,
        machine.log_url(on, Path(tmp), split[0] | split[1] if split else None) as url,
    ):
        d = Path(tmp)
        machine.run(["topics", "apply", "--log", url])
        lives = ["simulate", "--log", url, "--events-per-s", "20000", "--requests-per-s", "0", "--users", str(users)]
        machine.run([*lives, "--seconds", "10", "--seed", "3"])
        worker = [
            "worker",
            "--log",
            url,
            "--data-dir",
            str(d / "data"),
            "--http",
            HTTP,
            *(["--model", model] if model else []),
        ]
        with machine.running(worker, d / "worker.log") as process, open_log(url) as log:
            known = _events(log)
            _until_ready(process, d / "worker.log")
            client = _Client(log, known, candidates)
            client.drive(3, requests_per_s, events_per_s)  # warms what is lazy in worker and client
            asked = client.drive(seconds, requests_per_s, events_per_s)
            waited = client.collect(asked, 5.0)
            client.close()
    ms = np.array([waited[q] * 1000 for q in asked[len(asked) // 8 :] if q in waited])
    if not len(ms):
        raise StreamDmginError("bench latency: no score came back; run the worker by hand to see why")
    return {
        "p50_ms": round(float(np.percentile(ms, 50)), 2),
        "p99_ms": round(float(np.percentile(ms, 99)), 2),
        "max_ms": round(float(ms.max()), 2),
        "requests_per_s": round(len(asked) / seconds, 1),
        "events_per_s": round(client.events / (seconds + 3), 1),
        "candidates": min(candidates, len(client.items)),
        "requests": len(asked),
        "lost": sum(q not in waited for q in asked),
        "not_ok": client.not_ok,
        "log": on,
        "machine": about,
    }


def _events(log: Log) -> list[tuple[str, records.Event]]:
    """The newest events on the log, at most 200,000: (topic, event)."""
    out: list[tuple[str, records.Event]] = []
    for t in topics.EVENTS:
        name = PREFIX + t
        ends = log.ends(name)
        reader = log.reader([name])
        reader.assign({(name, p): max(0, end - 200_000 // len(ends)) for p, end in ends.items()})
        while batch := reader.poll(10_000, 2.0):
            for i in range(len(batch)):
                out.append((name, records.decode_event(t, batch.key(i), batch.value(i), int(batch.timestamp[i]))))
            batch.release()
        reader.close()
    return out


def _until_ready(process: Any, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise StreamDmginError(f"bench latency: the worker ended: {log.read_text(errors='replace')[-800:]}")
        try:
            with urllib.request.urlopen(f"http://{HTTP}/health/ready", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise UnavailableError(
        f"bench latency: the worker was not ready in {START_S:g} s: {log.read_text(errors='replace')[-800:]}"
    )


class _Client:
    """Writes requests and events by the clock, reads scores in a thread."""

    def __init__(self, log: Log, known: list[tuple[str, records.Event]], candidates: int) -> None:
        self._r = random.Random(5)
        self._known, self._candidates = known, candidates
        self._users = sorted({e.user_id for _, e in known})
        self.items = sorted({e.item_id for _, e in known})
        self._last = max(e.ts for _, e in known)
        self._asks: Writer = log.writer(linger_ms=0)
        self._tells: Writer = log.writer()
        scores = PREFIX + topics.SCORES
        self._reader: Reader = log.reader([scores])
        self._reader.assign({(scores, p): end for p, end in log.ends(scores).items()})
        self._sent: dict[str, float] = {}
        self._got: dict[str, float] = {}
        self._stop = threading.Event()
        self._number = 0
        self.events = self.not_ok = 0
        self._thread = threading.Thread(target=self._read, name="scores", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._stop.is_set():
            batch = self._reader.poll(1000, 0.05)
            if batch is None:
                continue
            now = time.perf_counter()
            for i in range(len(batch)):
                s = records.decode_score(batch.value(i) or b"")
                self._got.setdefault(s.request_id, now)
                self.not_ok += s.status != "ok"
            batch.release()

    def drive(self, seconds: float, requests_per_s: float, events_per_s: float) -> list[str]:
        """Write for so long; the request ids that were asked."""
        asked: list[str] = []
        t0, told = time.perf_counter(), 0
        while (now := time.perf_counter() - t0) < seconds:
            while len(asked) < now * requests_per_s:
                asked.append(self._ask())
            for _ in range(min(50, int(now * events_per_s) - told)):
                self._tell()
                told += 1
            self._tells.poll()
            self._asks.poll()
            time.sleep(0.0005)
        return asked

    def _ask(self) -> str:
        self._number += 1
        q, user = f"q{self._number}", self._r.choice(self._users)
        candidates = self._r.sample(self.items, min(self._candidates, len(self.items)))
        value = records.encode(records.Request(q, user, int(time.time() * 1000), candidates))
        self._sent[q] = time.perf_counter()
        self._asks.append(PREFIX + topics.REQUESTS, user.encode(), value)
        return q

    def _tell(self) -> None:
        topic, e = self._r.choice(self._known)
        self.events += 1
        e.event_id, e.ts = f"l{self.events}", self._last + self.events
        self._tells.append(topic, e.user_id.encode(), records.encode(e))

    def collect(self, asked: list[str], wait: float) -> dict[str, float]:
        """Seconds from request to score, by request id, of what came within `wait` seconds from now."""
        end = time.monotonic() + wait
        while time.monotonic() < end and any(q not in self._got for q in asked):
            time.sleep(0.05)
        return {q: self._got[q] - self._sent[q] for q in asked if q in self._got}

    def close(self) -> None:
        """Stop reading and writing."""
        self._stop.set()
        self._thread.join(5)
        self._reader.close()
        self._asks.close()
        self._tells.close()
