"""A changed group map goes live under a worker: what its requests notice, and how fast partitions are folded again.

python bench/regroup.py [--events 800000]

A worker of its own process on the embedded log, 4 partitions, 20,000 users and 5,000 items (both Zipf); 20 requests a second of 100
candidates each. Prints milliseconds from a request written to its score read, and what the worker's log says.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from stream_dmgin import topics
from stream_dmgin.log import manage
from stream_dmgin.log.base import open_log

T0 = 1_760_000_000_000
USERS, ITEMS, PARTITIONS = 20_000, 5_000, 4
PORT = 28_999
CLI = [sys.executable, "-m", "stream_dmgin.cli.main"]


def fill(url: str, n: int) -> None:
    """Write n events."""
    r = np.random.default_rng(1)
    users, items, which = r.zipf(1.3, n) % USERS, r.zipf(1.2, n) % ITEMS, r.choice(3, n, p=[0.5, 0.3, 0.2])
    with open_log(url) as log:
        manage.apply(log, manage.plan(log, topics.PREFIX, PARTITIONS))
        w = log.writer()
        for k in range(n):
            e = {
                "user_id": f"u{users[k]}",
                "item_id": f"i{items[k]}",
                "ts": T0 + k,
                "event_id": f"e{k}",
                "type": "order",
            }
            key = e["user_id"].encode()
            w.append(topics.PREFIX + topics.EVENTS[which[k]], key, msgpack.packb(e), timestamp=T0 + 10**9)
        w.close()


def ready() -> dict[str, Any]:
    """The body of /health/ready."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health/ready", timeout=5) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as e:
        return json.loads(e.read())
    except OSError:
        return {}


def ask(url: str, name: str, seconds: float, done: Callable[[], bool] = lambda: False) -> None:
    """Requests for so long or until `done`, and what they took."""
    r = np.random.default_rng(2)
    took: list[float] = []
    open_: dict[str, float] = {}
    with open_log(url) as log:
        w, reader = log.writer(linger_ms=0), log.reader([topics.PREFIX + "scores"])
        reader.assign({(topics.PREFIX + "scores", p): end for p, end in log.ends(topics.PREFIX + "scores").items()})
        begin = following = looked = time.monotonic()
        ending = False
        while open_ or not ending:
            now = time.monotonic()
            if now - looked > 0.5:
                looked = now
                ending = ending or now - begin > seconds or done()
            if now >= following and not ending:
                following = now + 0.05
                user, number = f"u{r.integers(2000)}", f"{name}{now}"
                request = {
                    "request_id": number, "user_id": user, "ts": T0 + 10**9, "candidates": [f"i{x}" for x in r.integers(ITEMS, size=100)],
                }  # fmt: skip
                open_[number] = now
                w.append(
                    topics.PREFIX + "requests", user.encode(), msgpack.packb(request), timestamp=int(time.time() * 1000)
                )
                w.flush()
            batch = reader.poll(100, 0.003)
            for i in range(len(batch) if batch is not None else 0):
                number = msgpack.unpackb(batch.value(i))["request_id"]
                if number in open_:
                    took.append((time.monotonic() - open_.pop(number)) * 1000)
            if batch is not None:
                batch.release()
        reader.close()
        w.close()
    p50, p99 = np.quantile(took, (0.5, 0.99))
    print(
        f"{name}: {len(took)} requests in {time.monotonic() - begin:.1f} s, p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {max(took):.1f} ms"
    )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=800_000)
    n = parser.parse_args().events
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        url = f"file:{root / 'log'}"
        fill(url, n)
        for name, groups in (("old", 400), ("new", 311)):
            rows = "".join(f"i{k},{k % groups}\n" for k in range(ITEMS))
            (root / f"{name}.csv").write_text("item_id,group\n" + rows)
        place = ["--log", url, "--data-dir", str(root / "data")]
        with open(root / "worker.log", "w") as errors:
            worker = subprocess.Popen(
                [*CLI, "worker", *place, "--groups", str(root / "old.csv"), "--http", f"127.0.0.1:{PORT}"],
                stderr=errors,
            )
        while not ready().get("ready"):
            time.sleep(0.2)
        ask(url, "warm", 8)
        ask(url, "before", 10)
        old = ready()["groups"]
        subprocess.run(
            [*CLI, "groups", "publish", str(root / "new.csv"), *place, "--yes"], check=True, capture_output=True
        )
        ask(url, "during", 120, lambda: (h := ready()).get("groups", old) != old and h.get("regroup") is None)
        ask(url, "after", 10)
        worker.terminate()
        worker.wait(60)
        for line in (root / "worker.log").read_text().splitlines():
            if "built in" in line or "went over" in line:
                print(line)


if __name__ == "__main__":
    main()
