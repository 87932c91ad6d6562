"""The broker goes away at the worst moment: while a worker is being given partitions. It waits, and stops when it is told to."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from stream_dmgin.errors import LogUnavailable
from stream_dmgin.log import kafka as kafka_module
from stream_dmgin.log.base import Log
from stream_dmgin.log.broker import LocalKafka, available
from stream_dmgin.settings import Settings
from stream_dmgin.worker import faust_app, lag
from stream_dmgin.worker.health import Health
from stream_dmgin.worker.run import Worker, worker
from tests.workers import PATIENCE_S, T0, event, make_topics, settings_of, turn_until, write

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalKafka]:
    """A broker of this test alone, to be stopped and started again at the same address."""
    monkeypatch.setattr(kafka_module, "REQUEST_S", 2.0)  # of one attempt
    if not available():
        pytest.skip("no local Kafka: Java 17 or newer is not here, or neither Maven nor the jars are")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    with LocalKafka(tmp_path / "kafka", port=port) as k:
        yield k


def once(w: Worker, first: Callable[[], None]) -> None:
    """Have this done as the worker asks the log about partitions that it was just given, before the log answers."""
    begins, done = w.log.begins, list[None]()

    def ask(topic: str) -> dict[int, int]:
        if not done:
            done.append(None)
            first()
        return begins(topic)

    w.partitions._log = _Asked(w.log, ask)  # type: ignore[assignment]


class _Asked:
    def __init__(self, log: Log, begins: Callable[[str], dict[int, int]]) -> None:
        self.ends, self.begins = log.ends, begins


def waits(w: Worker) -> bool:
    return w.health.ready()[0] == 503 and str(w.health.ready()[1]["waiting"]).startswith("log: opening partitions")


def until(what: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE_S
    while not what() and time.monotonic() < end:
        time.sleep(0.05)
    return what()


def of(k: LocalKafka, root: Path) -> Settings:
    """A worker's settings, with topics and 500 events."""
    s = settings_of(root, log=f"kafka://{k.bootstrap}")
    make_topics(s)
    write(s, [event(f"u{k % 50}", k) for k in range(500)])
    return s


def test_it_waits_for_a_broker_that_is_restarted(own: LocalKafka, tmp_path: Path) -> None:
    seen: list[bool] = []
    with worker(of(own, tmp_path), score=False) as w:

        def back() -> None:
            seen.append(until(lambda: waits(w)))
            own.start()

        thread = threading.Thread(target=back)

        def away() -> None:
            own.stop()
            thread.start()

        once(w, away)
        # its session may have ended meanwhile: then it loses the partitions and is given them anew
        turn_until(w, lambda: w.loop.totals.events >= 500 and w.health.ready()[0] == 200, "the log and its events")
        thread.join(PATIENCE_S)
        assert seen == [True]
        w.loop.commit()
        assert sum(sum(o.engine.offsets.values()) for o in w.partitions.owned.values()) == 500


def test_it_stops_while_the_broker_is_away(own: LocalKafka, tmp_path: Path) -> None:
    stop = threading.Event()
    with worker(of(own, tmp_path), score=False, stop=stop.is_set) as w:

        def tell() -> None:
            if until(lambda: waits(w)):
                stop.set()

        once(w, own.stop)
        threading.Thread(target=tell).start()
        w.turns(stop)  # and no error on the way out
        assert not w.partitions.owned


def test_what_is_lost_takes_its_open_transaction_along(kafka: str, prefix: str, tmp_path: Path) -> None:
    s = settings_of(
        tmp_path, log=f"kafka://{kafka}", prefix=prefix,
        **{"worker.group": prefix + "g", "worker.model": "item-ctr", "worker.exactly_once": True,
           "worker.transaction_ms": 5000, "worker.commit_interval_s": 600},
    )  # fmt: skip
    make_topics(s)
    request = {"request_id": "q", "user_id": "u1", "ts": T0, "candidates": ["i1"]}
    write(s, [("requests", b"u1", msgpack.packb(request))])
    with worker(s, score=True) as w:
        turn_until(w, lambda: w.loop.totals.scores, "the answer")
        delivery: Any = w.loop._delivery
        assert delivery._transactions.open
        w.partitions.lost_all()
        assert not delivery._transactions.open
        w.partitions.reader.rejoin()  # type: ignore[union-attr]
        turn_until(w, lambda: w.loop.totals.scores == 2, "the answer of the next owner")


def test_a_broker_that_is_away_as_the_views_start_is_said_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kafka_module, "OPEN_S", 1.0)
    s = settings_of(tmp_path, log="kafka://127.0.0.1:1")
    s.data_dir.mkdir(parents=True, exist_ok=True)
    ended = threading.Event()
    with (
        pytest.raises(LogUnavailable, match=r"no broker answers at 127\.0\.0\.1:1") as e,
        faust_app.running(s, "off", Health(), ended),
    ):
        assert ended.wait(PATIENCE_S)
    assert e.value.exit_code == 3
    assert not any(r.exc_info for r in caplog.records)


def test_the_lines_of_fausts_client_are_few(caplog: pytest.LogCaptureFixture) -> None:
    with faust_app._relayed():
        for _ in range(100):
            logging.getLogger("aiokafka.consumer.fetcher").error("Failed fetch messages from %d", 1)
    assert [r.getMessage() for r in caplog.records] == ["aiokafka.consumer.fetcher: Failed fetch messages from 1"]


def test_a_running_worker_says_that_the_log_is_away(
    kafka: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_module, "OPEN_S", 1.0)
    monkeypatch.setattr(lag, "EVERY_S", 0.1)
    health = Health(assigned=True)
    with lag.LagWatcher(settings_of(tmp_path, log="kafka://127.0.0.1:1"), health):
        assert until(lambda: str(health.ready()[1]["waiting"]).startswith("log: no broker answers"))
        assert health.ready()[0] == 503 and b"sdmgin_waiting 1.0" in health.metrics.text()
    with lag.LagWatcher(settings_of(tmp_path, log=f"kafka://{kafka}", prefix=prefix), health):
        assert until(lambda: health.ready()[0] == 200) and b"sdmgin_waiting 0.0" in health.metrics.text()
