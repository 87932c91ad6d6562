"""How long partitions pause when a worker joins, leaves or dies: `python -m tests.chaos.pauses [--standby] [--protocol consumer]`.

A real broker, workers with a data directory each, a log of some hundred thousand events, then requests at a steady rate to all
partitions. The pause of an accident is the longest time from a request to its answer, both by the broker's records; apart for
partitions that moved and those that did not.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import msgpack
from confluent_kafka import Producer

from stream_dmgin.log.broker import LocalKafka
from stream_dmgin.topics import EVENTS
from tests.chaos.checks import read_all
from tests.chaos.fleet import CLI, ROOT, Fleet, Member, environment

PARTITIONS, USERS, PREFIX = 8, 2000, "pause."
WINDOW_S = 14.0  # what is looked at after an accident
RATE = 80  # requests a second


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--standby", action="store_true")
    p.add_argument("--protocol", default="classic")
    p.add_argument("--exactly-once", action="store_true")
    p.add_argument("--events", type=int, default=300_000)
    a = p.parse_args()
    with tempfile.TemporaryDirectory(prefix="pauses-") as d, LocalKafka(Path(d) / "kafka") as kafka:
        print(json.dumps({**vars(a), **measure(a, Path(d), kafka.bootstrap)}))
    return 0


def measure(a: argparse.Namespace, d: Path, bootstrap: str) -> dict[str, Any]:
    env = environment(
        STREAM_DMGIN_WORKER_STANDBY=str(a.standby).lower(), STREAM_DMGIN_WORKER_GROUP_PROTOCOL=a.protocol,
        STREAM_DMGIN_WORKER_EXACTLY_ONCE=str(a.exactly_once).lower(), STREAM_DMGIN_WORKER_COMMIT_INTERVAL_S="1",
    )  # fmt: skip
    for short in ("SESSION_TIMEOUT_MS", "MAX_POLL_INTERVAL_MS"):  # the product's own
        env.pop("STREAM_DMGIN_KAFKA_" + short, None)
    own = ["--log", "kafka://" + bootstrap, "--prefix", PREFIX]
    subprocess.run(
        [*CLI, "topics", "apply", *own, "--data-dir", str(d), "--partitions", str(PARTITIONS)],
        env=env, cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    producer = Producer({"bootstrap.servers": bootstrap, "partitioner": "murmur2_random", "linger.ms": 2})
    r = random.Random(1)
    for n in range(a.events):
        event(producer, r, n)
        if n % 5000 == 0:
            producer.poll(0)
    producer.flush()
    fleet = Fleet([Member(n, [*own, "--data-dir", str(d / n)], d / f"{n}.log", env) for n in "abc"])
    stop = threading.Event()
    sent: list[tuple[float, str]] = []
    thread = threading.Thread(target=ask, args=(producer, stop, sent), daemon=True)
    out: dict[str, Any] = {}
    try:
        for m in fleet.members:  # everyone's store is warm: c has been here before
            m.start()
        first, second, third = fleet.members
        until(lambda: all(owned(m) for m in fleet.members) and sum(len(owned(m)) for m in fleet.members) == PARTITIONS)
        thread.start()
        time.sleep(20)
        for name, what in (
            ("leave", lambda: third.send(signal.SIGTERM)), ("join", third.start), ("kill", lambda: second.send(signal.SIGKILL)),
        ):  # fmt: skip
            before = {m.name: owned(m) for m in fleet.members if m.alive}
            begin = time.time()
            what()
            if name == "join":
                until(lambda: third.said("assigned partitions"))
            time.sleep(WINDOW_S)
            after = {m.name: owned(m) for m in fleet.members if m.alive}
            kept = set().union(*(before.get(n, set()) & after[n] for n in after))
            out[name] = begin, time.time() - 2, kept
        stop.set()
        thread.join()
        time.sleep(3)
        producer.flush()
    finally:
        stop.set()
        fleet.kill()
    asked = {msgpack.unpackb(m.value())["request_id"]: m for m in read_all(bootstrap, PREFIX + "requests")}
    answers: dict[str, int] = {}
    for m in read_all(bootstrap, PREFIX + "scores", committed=True):
        answers.setdefault(msgpack.unpackb(m.value())["request_id"], m.timestamp()[1])
    return {name: pauses(asked, answers, *window) for name, window in out.items()}


def pauses(asked: dict[str, Any], answers: dict[str, int], begin: float, end: float, kept: set[int]) -> dict[str, Any]:
    longest = {"kept": 0.0, "moved": 0.0}
    unanswered = 0
    for q, m in asked.items():
        at = m.timestamp()[1]
        if begin * 1000 <= at < end * 1000:
            unanswered += q not in answers
            of = "kept" if m.partition() in kept else "moved"
            longest[of] = max(longest[of], (answers.get(q, at) - at) / 1000)
    return {
        "partitions_kept": len(kept),
        "kept_s": longest["kept"],
        "moved_s": longest["moved"],
        "unanswered": unanswered,
    }


def event(producer: Producer, r: random.Random, n: int) -> None:
    user = f"u{r.randrange(USERS)}"
    e = {"user_id": user, "item_id": f"i{r.randrange(500)}", "ts": int(time.time() * 1000), "event_id": f"e{n}"}
    topic = r.choices(EVENTS, (6, 3, 1))[0]
    if topic == "post-clicks":
        e["type"] = "order"
    while True:
        try:
            producer.produce(PREFIX + topic, msgpack.packb(e), user.encode())
            return
        except BufferError:
            producer.poll(0.1)


def ask(producer: Producer, stop: threading.Event, sent: list[tuple[float, str]]) -> None:
    r, n = random.Random(2), 0
    while not stop.wait(1 / RATE):
        user = f"u{r.randrange(USERS)}"
        q = {"request_id": f"q{n}", "user_id": user, "ts": int(time.time() * 1000), "candidates": ["i1", "i2"]}
        producer.produce(PREFIX + "requests", msgpack.packb(q), user.encode())
        for k in range(5):
            event(producer, r, 10_000_000 + 5 * n + k)
        producer.poll(0)
        n += 1


def owned(m: Member) -> set[int]:
    """What the worker has, by the last line of its log that says so."""
    lines = (
        re.findall(r"(assigned|released|lost) partitions \[([\d, ]*)\]", m.log.read_text()) if m.log.exists() else []
    )
    have: set[int] = set()
    for word, numbers in lines:
        these = {int(x) for x in numbers.split(",") if x.strip()}
        have = have | these if word == "assigned" else have - these
    return have


def until(what: Any, seconds: float = 180.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
