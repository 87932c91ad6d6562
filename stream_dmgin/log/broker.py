"""A real one-node Apache Kafka (KRaft) on this machine, without Docker: for `demo`, tests and benchmarks.

The jars come from Maven once (`pom.xml` beside this file) and stay in `~/.cache/stream-dmgin/kafka-jars`, or where
`STREAM_DMGIN_KAFKA_JARS` points. The broker runs under `guard.py`, so that it ends with the process that started it.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import fcntl
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from stream_dmgin.errors import UnavailableError

logger = logging.getLogger(__name__)

VERSION = "4.4.0"  # as in pom.xml
JAVA_MIN = 17
HERE = Path(__file__).parent
MESSAGE_MAX = 12 << 20  # bytes of a record batch: values of 10 MB pass

_FEATURES = Path("__cluster_metadata-0") / "00000000000000000000-0000000000.checkpoint"
_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={logs}
auto.create.topics.enable=false
message.max.bytes={message_max}
num.network.threads=2
num.io.threads=4
background.threads=2
num.recovery.threads.per.data.dir=2
log.cleaner.dedupe.buffer.size=16777216
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
group.consumer.min.heartbeat.interval.ms=100
group.consumer.heartbeat.interval.ms=300
group.consumer.session.timeout.ms=6000
"""


def available() -> bool:
    """Whether Java 17+ is here, and Maven or jars it resolved earlier."""
    return _missing() is None


class LocalKafka:
    """One broker with its data under `directory`, kept over restarts. Heap in MB.

    >>> with LocalKafka(tmp) as k:                                              # doctest: +SKIP
    ...     open_log("kafka://" + k.bootstrap)
    """

    def __init__(self, directory: str | Path, port: int | None = None, heap_mb: int = 512) -> None:
        self.directory = Path(directory).absolute()
        self._port, self._heap_mb = port, heap_mb
        self._guard: subprocess.Popen[bytes] | None = None
        self.bootstrap = ""

    def start(self, timeout: float = 120.0) -> str:
        """Start and wait until the broker answers; returns "127.0.0.1:PORT". Raises UnavailableError with the reason."""
        missing = _missing()
        if missing:
            raise UnavailableError(missing)
        jars = resolve_jars()
        logs, broker_log = self.directory / "log", self.directory / "broker.log"
        logs.mkdir(parents=True, exist_ok=True)
        port, controller = _free_ports(self._port)
        properties = self.directory / "server.properties"
        properties.write_text(_PROPERTIES.format(port=port, controller=controller, logs=logs, message_max=MESSAGE_MAX))
        _format(logs, _features(jars, properties))
        command = [
            _java(), f"-Xms{min(256, self._heap_mb)}m", f"-Xmx{self._heap_mb}m", "-XX:+UseSerialGC",
            "-XX:-UsePerfData", "-Djava.awt.headless=true", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-cp", f"{jars}/*", "kafka.Kafka", str(properties),
        ]  # fmt: skip
        broker_log.unlink(missing_ok=True)
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(HERE / "guard.py"), str(broker_log), "--", *command],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        atexit.register(self.stop)
        try:
            self._wait(port, timeout, broker_log)
        except BaseException:
            self.stop()
            raise
        self.bootstrap = f"127.0.0.1:{port}"
        return self.bootstrap

    def stop(self, timeout: float = 30.0) -> None:
        """Stop cleanly (seconds at most). Idempotent. Raises UnavailableError when it doesn't end."""
        guard, self._guard = self._guard, None
        atexit.unregister(self.stop)
        if guard is None:
            return
        if guard.stdin:
            guard.stdin.close()
        try:
            guard.wait(timeout)
        except subprocess.TimeoutExpired:
            raise UnavailableError(f"the local Kafka (guard pid {guard.pid}) did not stop in {timeout:g} s") from None

    def _wait(self, port: int, timeout: float, log: Path) -> None:
        assert self._guard is not None
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self._guard.poll() is not None:
                raise UnavailableError(f"the local Kafka ended at once. The end of {log}:\n{_tail(log)}")
            if _answers(port):
                return
            time.sleep(0.05)
        raise UnavailableError(
            f"the local Kafka did not answer on port {port} in {timeout:g} s. The end of {log}:\n{_tail(log)}"
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


def resolve_jars() -> Path:
    """The folder with Kafka's jars, resolved by Maven on the first call (a minute). Raises UnavailableError."""
    jars = _jars_dir()
    if _complete(jars):
        return jars
    jars.parent.mkdir(parents=True, exist_ok=True)
    with open(jars.parent / (jars.name + ".lock"), "w") as lock:  # two processes: one downloads, the other waits
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _complete(jars):
            return jars
        mvn = shutil.which("mvn")
        if mvn is None:
            raise UnavailableError(_missing() or "Maven (mvn) is not on the PATH")
        logger.info("resolving Apache Kafka %s with Maven into %s (once)", VERSION, jars)
        with tempfile.TemporaryDirectory(dir=jars.parent) as tmp:
            shutil.copy(HERE / "pom.xml", tmp)  # Maven wants to write beside the pom
            goal = ["dependency:copy-dependencies", f"-DoutputDirectory={tmp}/jars"]
            done = subprocess.run(
                [mvn, "-q", "-B", "-f", f"{tmp}/pom.xml", *goal], capture_output=True, text=True, check=False
            )
            if done.returncode:
                why = (done.stdout + done.stderr)[-1500:]
                raise UnavailableError(
                    f"Maven could not resolve Apache Kafka {VERSION} (is a Maven repository reachable?):\n{why}"
                )
            shutil.rmtree(jars, ignore_errors=True)
            (Path(tmp) / "jars").rename(jars)
    if not _complete(jars):
        raise UnavailableError(
            f"{jars} lacks kafka_2.13-{VERSION}.jar after Maven ran: delete the folder and try again"
        )
    return jars


def _jars_dir() -> Path:
    given = os.environ.get("STREAM_DMGIN_KAFKA_JARS")
    if given:
        return Path(given).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "stream-dmgin" / "kafka-jars"


def _complete(jars: Path) -> bool:
    return (jars / f"kafka_2.13-{VERSION}.jar").exists()


def _java() -> str:
    home = os.environ.get("JAVA_HOME")
    if home and (Path(home) / "bin" / "java").exists():
        return str(Path(home) / "bin" / "java")
    return shutil.which("java") or ""


def _missing() -> str | None:
    java = _java()
    if not java:
        return f"Java is not on the PATH: a local Kafka needs Java {JAVA_MIN} or newer (Debian, Ubuntu: openjdk-{JAVA_MIN}-jre-headless)"
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False, timeout=30).stderr
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"{java} -version failed: {e}"
    found = re.search(r'version "(\d+)', said)
    if not found or int(found.group(1)) < JAVA_MIN:
        return f"{java} is not Java {JAVA_MIN} or newer: {(said.splitlines() or ['it says nothing'])[0]}"
    if not _complete(_jars_dir()) and shutil.which("mvn") is None:
        return f"Maven (mvn) is not on the PATH, and {_jars_dir()} holds no Kafka jars (STREAM_DMGIN_KAFKA_JARS points elsewhere)"
    return None


def _features(jars: Path, properties: Path) -> Path:
    """The file in which `kafka-storage format` says which features a new cluster begins with (consumer groups of KIP-848
    among them). It is the same for every cluster of this version: made once, kept beside the jars."""
    kept = jars / _FEATURES.name
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=jars.parent) as tmp:
            own = Path(tmp) / "server.properties"
            own.write_text(re.sub(r"(?m)^log\.dirs=.*$", f"log.dirs={tmp}/log", properties.read_text()))
            tool = [
                _java(),
                "-XX:TieredStopAtLevel=1",
                "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
                "-cp",
                f"{jars}/*",
                "kafka.tools.StorageTool",
            ]
            done = subprocess.run(
                [*tool, "format", "-t", _fresh_id(), "-c", str(own)], capture_output=True, text=True, check=False
            )
            made = Path(tmp) / "log" / _FEATURES
            if done.returncode or not made.exists():
                raise UnavailableError(
                    f"Kafka's storage could not be formatted:\n{(done.stdout + done.stderr)[-1500:]}"
                )
            made.rename(kept)
    return kept


def _format(logs: Path, features: Path) -> None:
    """What `kafka-storage format` writes, without the seconds of a second Java."""
    path = logs / "meta.properties"
    if not path.exists():
        (logs / _FEATURES).parent.mkdir(exist_ok=True)
        shutil.copy(features, logs / _FEATURES)
        path.write_text(f"version=1\ncluster.id={_fresh_id()}\ndirectory.id={_fresh_id()}\nnode.id=1\n")


def _fresh_id() -> str:
    """A Kafka Uuid: 16 bytes as base64, which must not begin with a dash."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A", 1)


def _free_ports(port: int | None) -> tuple[int, int]:
    """`port` (or a free one) and another free one; both were free a moment ago."""
    with contextlib.ExitStack() as stack:
        found = []
        for want in (port or 0, 0):
            s = stack.enter_context(socket.socket())
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("127.0.0.1", want))
            except OSError as e:
                raise UnavailableError(f"port {want} can't be used for a local Kafka: {e.strerror}") from None
            found.append(int(s.getsockname()[1]))
        return found[0], found[1]


def _answers(port: int) -> bool:
    """Whether a broker answers an ApiVersions request (v0): an open port alone comes earlier."""
    request = b"\x00\x12\x00\x00\x00\x00\x00\x01\x00\x05probe"
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as s:
            s.sendall(len(request).to_bytes(4, "big") + request)
            return len(s.recv(8)) > 0
    except OSError:
        return False


def _tail(path: Path, lines: int = 15) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"
