"""Topics written by transactional producers: their ends lie behind markers that no reader sees as records."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import confluent_kafka as ck
import msgpack
import pytest

from stream_dmgin.log.base import TP, TopicInfo, open_log
from stream_dmgin.log.scan import scan

T = 1_760_000_000_000
CLI = [sys.executable, "-m", "stream_dmgin.cli.main"]


def write(
    bootstrap: str, name: str, committed: list[tuple[str, bytes, bytes]], aborted: list[tuple[str, bytes, bytes]]
) -> None:
    """One transaction that counts and then one that doesn't: (topic, key, value)."""
    p = ck.Producer(
        {"bootstrap.servers": bootstrap, "partitioner": "murmur2_random", "transactional.id": name, "log_level": 0}
    )
    p.init_transactions(30)
    for records, end in ((committed, p.commit_transaction), (aborted, p.abort_transaction)):
        p.begin_transaction()
        for topic, key, value in records:
            p.produce(topic, key=key, value=value)
        p.flush()
        end()


def test_a_reader_says_where_a_partition_ends(kafka: str, prefix: str) -> None:
    topic = prefix + "t"
    with open_log("kafka://" + kafka) as log:
        log.create([TopicInfo(topic, 2)])
        write(kafka, prefix, [(topic, b"k", b"%d" % i) for i in range(20)], [(topic, b"k", b"no")] * 5)
        deadline = time.monotonic() + 20  # the broker writes the last marker after it has answered
        while max((ends := log.ends(topic)).values()) < 27 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert max(ends.values()) == 27  # 20 records, a marker, 5 aborted ones, a marker
        got = [
            b.value(i)
            for b, inside in scan(log, {(topic, p): (0, e) for p, e in ends.items()})
            for i in range(len(b))
            if inside[i]
        ]
        assert got == [b"%d" % i for i in range(20)]
        reader = log.reader([topic])
        reader.assign({(topic, p): 0 for p in ends})
        seen: dict[TP, int] = {}
        deadline = time.monotonic() + 20
        while seen != {(topic, p): e for p, e in ends.items()} and time.monotonic() < deadline:
            if batch := reader.poll(100, 0.5):
                batch.release()
            seen = dict(reader.ended())
        assert seen == {(topic, p): e for p, e in ends.items()}
        reader.assign({(topic, 0): 0})
        assert reader.ended() == {}  # of an assignment, not of the log
        reader.close()


@pytest.mark.timeout(400)
def test_the_worker_takes_such_topics_as_read(kafka: str, prefix: str, tmp_path: Path) -> None:
    """Items, events and requests all written in transactions: everything is folded and answered, and the run ends."""
    args = ["--log", "kafka://" + kafka, "--prefix", prefix, "--data-dir", str(tmp_path)]
    subprocess.run([*CLI, "topics", "apply", "--partitions", "2", *args], check=True, stdout=subprocess.DEVNULL)
    users = [f"u{k}" for k in range(6)]

    def click(u: str, k: int) -> tuple[str, bytes, bytes]:
        e = {"user_id": u, "item_id": "i", "ts": T + k, "event_id": f"{u}-{k}"}
        return prefix + "clicks", u.encode(), msgpack.packb(e)

    items = [(prefix + "items", b"i", msgpack.packb({"item_id": "i"}))]
    asks = [
        (prefix + "requests", u.encode(), msgpack.packb({"request_id": u, "user_id": u, "ts": T, "candidates": ["i"]}))
        for u in users
    ]
    write(
        kafka, prefix, [*items, *asks, *(click(u, k) for u in users for k in range(9))], [click(u, 99) for u in users]
    )
    done = subprocess.run(
        [*CLI, "worker", *args, "--until-end", "--http", "off", "-o", "json"],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    totals = json.loads(done.stdout)
    assert (totals["events"], totals["requests"], totals["scores"], totals["dead_letters"]) == (54, 6, 6, 0)
    shown = subprocess.run(
        [*CLI, "state", "show", "u1", *args, "-o", "json"], capture_output=True, text=True, check=True
    )
    assert json.loads(shown.stdout)["events"] == 9
    assert subprocess.run([*CLI, "state", "verify", *args], capture_output=True, check=False).returncode == 0
