"""What happens when the broker is not there, goes away, or no longer keeps what is asked for."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from stream_dmgin.errors import ConfigError, LogUnavailable, UnavailableError
from stream_dmgin.log import broker
from stream_dmgin.log import kafka as kafka_module
from stream_dmgin.log.base import TP, TopicInfo, open_log

pytestmark = pytest.mark.kafka


def test_no_broker_at_start_is_a_clear_error_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kafka_module.OPEN_S < 10
    monkeypatch.setattr(kafka_module, "OPEN_S", 1.0)
    start = time.monotonic()
    with pytest.raises(LogUnavailable, match=r"no broker answers at 127\.0\.0\.1:1: is Kafka running there\?") as e:
        open_log("kafka://127.0.0.1:1")
    assert time.monotonic() - start < 12
    assert e.value.exit_code == 3


@pytest.mark.parametrize("url", ["kafka://", "kafka://somewhere", "kafka://a:1,b", "redis://x:1"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ConfigError, match="kafka://HOST:PORT"):
        open_log(url)


def test_a_setting_librdkafka_does_not_know_is_named(kafka: str, prefix: str) -> None:
    with pytest.raises(ConfigError, match=r"no\.such\.setting"):
        open_log("kafka://" + kafka, {"no.such.setting": "1"})
    with open_log("kafka://" + kafka, {"fetch.wait.max.ms": "soon"}) as log:
        log.create([TopicInfo(prefix + "t", 1, {})])
        with pytest.raises(ConfigError, match=r"kafka\.fetch\.wait\.max\.ms: 'soon'"):
            log.reader([prefix + "t"])


def test_retention_ahead_of_the_reader_goes_on_at_the_first_kept(
    kafka: str, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    topic = prefix + "t"
    with open_log("kafka://" + kafka) as log:
        log.create([TopicInfo(topic, 1, {})])
        writer = log.writer()
        for i in range(100):
            writer.append(topic, b"k", b"%d" % i)
        writer.close()
        admin = AdminClient({"bootstrap.servers": kafka})
        for f in admin.delete_records([TopicPartition(topic, 0, 60)]).values():
            f.result()
        assert log.begins(topic) == {0: 60}
        reader = log.reader([topic])
        reader.assign({(topic, 0): 10})
        with caplog.at_level(logging.WARNING):
            batch = reader.poll(100, 10.0)
        assert batch is not None and batch.offset.tolist() == list(range(60, 100))
        assert "offset 10 is no longer kept, going on at 60" in caplog.text
        reader.close()


class Nobody:
    """Owns and forgets."""

    mine = False

    def assigned(self, partitions: list[TP]) -> dict[TP, int]:
        self.mine = True
        return dict.fromkeys(partitions, 0)

    def revoked(self, partitions: list[TP]) -> None:
        self.mine = False

    lost = revoked


def test_a_broker_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    if not broker.available():
        pytest.skip("no local Kafka: Java 17 or newer is not here, or neither Maven nor the jars are")
    first = broker.LocalKafka(tmp_path)
    port = int(first.start().rsplit(":", 1)[1])
    with open_log("kafka://" + first.bootstrap) as log:
        log.create([TopicInfo("t", 1, {})])
        reader, writer, told = log.reader(["t"]), log.writer(linger_ms=0), list[object]()
        reader.assign({("t", 0): 0})
        writer.append("t", b"k", b"before")
        writer.flush()
        batch = reader.poll(10, 10.0)
        assert batch is not None and batch.value(0) == b"before"
        member = log.group_reader("g", ["t"], owner := Nobody())
        while not owner.mine:
            member.poll(1, 0.1)
        first.stop()
        member.commit({("t", 0): 1})
        assert reader.poll(10, 0.5) is None  # no error: it is retried inside
        writer.append("t", b"k", b"during", on_delivery=lambda *a: told.append(a))
        with pytest.raises(LogUnavailable, match="1 records were not written"):
            writer.flush(0.5)
        start = time.monotonic()
        member.close()
        assert time.monotonic() - start < 15  # not the minute that librdkafka takes
        second = broker.LocalKafka(tmp_path, port=port)
        second.start()
        try:
            batch = reader.poll(10, 30.0)
            assert batch is not None and (batch.value(0), int(batch.offset[0])) == (b"during", 1)
            writer.flush()
            assert told == [(None, ("t", 0), 1)]
            writer.close()
            reader.close()
        finally:
            second.stop()


START = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where this runs in the background
from stream_dmgin.log.broker import LocalKafka
print(LocalKafka(sys.argv[1]).start(), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_broker_ends_with_the_process_that_started_it(tmp_path: Path, number: signal.Signals) -> None:
    if not broker.available():
        pytest.skip("no local Kafka: Java 17 or newer is not here, or neither Maven nor the jars are")
    child = subprocess.Popen([sys.executable, "-c", START, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    host, port = child.stdout.readline().strip().split(":")
    socket.create_connection((host, int(port)), 5).close()
    os.kill(child.pid, number)
    child.wait(30)
    end = time.monotonic() + 20
    while processes(tmp_path):
        assert time.monotonic() < end, f"left behind: {processes(tmp_path)}"
        time.sleep(0.1)
    child.stdout.close()


def processes(directory: Path) -> list[str]:
    out = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in out.splitlines() if str(directory) in line and "kafka" in line]


def test_a_broker_that_does_not_come_up_shows_its_log(tmp_path: Path) -> None:
    if not broker.available():
        pytest.skip("no local Kafka: Java 17 or newer is not here, or neither Maven nor the jars are")
    (tmp_path / "log").mkdir()  # as another node left it
    (tmp_path / "log" / "meta.properties").write_text("version=1\nnode.id=7\ncluster.id=x\n")
    with pytest.raises(UnavailableError, match=r"(?s)the local Kafka ended at once.*Stored node id 7"):
        broker.LocalKafka(tmp_path).start()


def test_without_java_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert not broker.available()
    with pytest.raises(UnavailableError, match="needs Java 17 or newer"):
        broker.LocalKafka(tmp_path).start()
