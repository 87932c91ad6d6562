"""The Faust application of a worker on Kafka: web views and the control topic's table, in a thread beside the data path.

The data path does not go through Faust: asyncio per message costs a hundred times the fold. It does not depend on Faust's
life cycle either: Faust 0.15.3 never ends when told to stop in its first seconds (docs/adr/0005-worker.md). So the data path
has the main thread and the signals, and Faust has a thread of its own and a time limit for stopping.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import faust
import msgspec
from aiokafka.errors import KafkaError
from mode.threads import ServiceThread, WorkerThread

from stream_dmgin import topics
from stream_dmgin.control import ERASE, MAP_PARTS, SKIP
from stream_dmgin.errors import ConfigError, LogUnavailable, StreamDmginError
from stream_dmgin.log.base import open_log
from stream_dmgin.log.rdkafka import RateLimitedLog
from stream_dmgin.settings import Settings
from stream_dmgin.worker.health import Health

log_ = logging.getLogger(__name__)

STOP_S = 10.0  # what Faust gets for stopping: usually a second
SAY_S = 30.0  # of one kind of trouble of Faust's own client, one line in so many seconds


def make_app(settings: Settings, http: str, health: Health) -> faust.App:
    """The application: web views at `http` (HOST:PORT or off) and the control table."""
    bootstrap = settings.log.removeprefix("kafka://")
    host, _, port = ("127.0.0.1", "", "6066") if http == "off" else http.rpartition(":")
    app = faust.App(
        f"{settings['worker.group']}-control",
        broker=";".join(f"kafka://{b}" for b in bootstrap.split(",")),
        broker_credentials=_credentials(settings.kafka),
        broker_session_timeout=6,
        broker_heartbeat_interval=1,
        web_enabled=http != "off",
        web_bind=host,
        web_port=int(port),
        web_host=host,
        topic_disable_leader=True,
        autodiscover=False,
        store="memory://",
        datadir=str(settings.data_dir / "faust"),
    )
    _views(app, health, _control(app, settings.prefix))
    return app


def _credentials(kafka: Mapping[str, str]) -> Any:
    """librdkafka's security settings in Faust's words; None for a plain connection. Raises ConfigError."""
    protocol = kafka.get("security.protocol", "plaintext").lower()
    if protocol == "plaintext":
        return None
    context = None
    if protocol in ("ssl", "sasl_ssl"):
        context = ssl.create_default_context(cafile=kafka.get("ssl.ca.location"))
        if certificate := kafka.get("ssl.certificate.location"):
            context.load_cert_chain(certificate, kafka.get("ssl.key.location"), kafka.get("ssl.key.password"))
    if protocol == "ssl":
        return faust.SSLCredentials(context=context)
    if protocol not in ("sasl_ssl", "sasl_plaintext"):
        raise ConfigError("kafka.security.protocol", protocol, "give plaintext, ssl, sasl_plaintext or sasl_ssl")
    mechanism = kafka.get("sasl.mechanism", kafka.get("sasl.mechanisms", "PLAIN"))
    return faust.SASLCredentials(
        username=kafka.get("sasl.username"),
        password=kafka.get("sasl.password"),
        mechanism=mechanism,
        ssl_context=context,
    )


def _control(app: faust.App, prefix: str) -> Any:
    """One worker copies the control topic into a global table; every worker has the whole table. The data path reads the
    topic itself: a release must not wait for Faust's group."""
    # A Faust application of global tables alone never finishes its first assignment (0.15.3): the agent is needed.
    table = app.GlobalTable("table", partitions=1, recovery_buffer_size=1)
    topic = app.topic(prefix + topics.CONTROL, key_serializer="raw", value_serializer="raw", partitions=1)

    async def copy(stream: Any) -> None:
        async for key, value in stream.items():
            name = key.decode("utf-8", "replace") if key else ""
            if name.startswith((ERASE, SKIP, MAP_PARTS)):  # many in time, or large, and for the data path alone
                continue
            try:
                record = msgspec.msgpack.decode(value) if value else None
            except msgspec.MsgspecError as e:
                log_.error(
                    "%s: the record under key %r is not MessagePack (%s): ignored", prefix + topics.CONTROL, name, e
                )
                continue
            if record is None:
                table.pop(name, None)
            else:
                table[name] = record

    app.agent(topic)(copy)
    return table


def _views(app: faust.App, health: Health, control: Any) -> None:
    @app.page("/health/live")  # type: ignore[untyped-decorator]
    async def live(web: Any, request: Any) -> Any:
        status, body = health.live()
        return web.json(body, status=status)

    @app.page("/health/ready")  # type: ignore[untyped-decorator]
    async def ready(web: Any, request: Any) -> Any:
        status, body = health.ready()
        return web.json(body, status=status)

    @app.page("/control")  # type: ignore[untyped-decorator]
    async def table(web: Any, request: Any) -> Any:
        return web.json(dict(control.items()))

    @app.page("/metrics")  # type: ignore[untyped-decorator]
    async def metrics(web: Any, request: Any) -> Any:
        return web.bytes(health.metrics.text(), content_type="text/plain")


class _DaemonThread(WorkerThread):  # type: ignore[misc]
    """A thread of Faust's that the process doesn't wait for at its end."""

    def __init__(self, service: ServiceThread, **kwargs: Any) -> None:
        super().__init__(service, **kwargs)
        self.daemon = True


ServiceThread.Worker = _DaemonThread  # Faust's consumer has such a thread


class _Worker(faust.Worker):  # type: ignore[misc]
    """A Faust worker in a thread: signals are the main thread's."""

    refused: KafkaError | None = None  # what the broker, or none, said at the start

    def install_signal_handlers(self) -> None:
        """None: only the main thread may have them."""

    async def start(self) -> None:
        """Start; a broker that is away ends Faust without its traceback, which would hide the line that says so."""
        try:
            await super().start()
        except KafkaError as e:
            self.refused = e
            raise asyncio.CancelledError from e


class _Relay(logging.Handler):
    """The lines of Faust's own Kafka client, rate limited: by itself it writes fifty a second while a broker is away."""

    def __init__(self) -> None:
        super().__init__()
        self._limited = RateLimitedLog(log_, SAY_S)

    def emit(self, record: logging.LogRecord) -> None:
        """One line, or none."""
        self._limited(4, record.name, record.getMessage())


@contextmanager
def _relayed() -> Iterator[None]:
    client = logging.getLogger("aiokafka")
    before, relay = client.propagate, _Relay()
    client.addHandler(relay)
    client.propagate = False
    try:
        yield
    finally:
        client.removeHandler(relay)
        client.propagate = before


class _FaustThread(threading.Thread):
    """Runs the application; sets `ended` whenever Faust ends by itself, which a worker doesn't survive."""

    def __init__(self, settings: Settings, http: str, health: Health, ended: threading.Event) -> None:
        super().__init__(name="faust", daemon=True)
        self._arguments = settings, http, health
        self._settings = settings
        self._ended = ended
        self._loop = asyncio.new_event_loop()
        self._worker: _Worker | None = None
        self._stopping = False
        self.failure: BaseException | None = None

    def run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            app = make_app(*self._arguments)
            self._worker = _Worker(
                app,
                loop=self._loop,
                loglevel=self._settings["log_level"],
                redirect_stdouts=False,
                quiet=True,
                override_logging=False,
            )
            self._worker.execute_from_commandline()
        except SystemExit as e:
            if e.code not in (None, 0):
                self.failure = StreamDmginError("the Faust application failed: see the log above")
        except BaseException as e:
            self.failure = e
        finally:
            if not self._stopping:
                self.failure = self._why(self._worker.refused if self._worker is not None else None)
            elif self.failure is not None:  # it holds no state: a worker that ends doesn't fail with it
                log_.warning("Faust failed while it was told to stop: %s", self.failure)
                self.failure = None
            self._ended.set()

    def _why(self, refused: KafkaError | None) -> BaseException:
        """What to say of an application that ended by itself: that the log is away, where that is so."""
        try:
            open_log(self._settings.log, self._settings.kafka).close()
        except StreamDmginError as e:
            return e
        if refused is not None:  # it is back by now
            return LogUnavailable(f"the broker was away while the worker started ({refused}): start it again")
        return self.failure or StreamDmginError("the Faust application ended by itself: see the log above")

    def stop(self) -> None:
        """Stop the application, in STOP_S at most; a thread that is not done by then ends with the process."""
        self._stopping = True
        deadline = time.monotonic() + STOP_S
        # Told to stop before it has started, a Faust worker would start all the same, and then never stop.
        while self.is_alive() and not (self._worker and self._worker.started) and time.monotonic() < deadline:
            time.sleep(0.02)
        if self.is_alive() and self._worker is not None:
            asyncio.run_coroutine_threadsafe(self._worker.stop(), self._loop)
        self.join(max(0.0, deadline - time.monotonic()))
        if self.is_alive():
            log_.warning("Faust has not stopped in %.0f s: left behind (it holds no state)", STOP_S)


@contextmanager
def running(settings: Settings, http: str, health: Health, stop: threading.Event) -> Iterator[None]:
    """The application at work beside the block. When it fails, `stop` is set and leaving the block raises its error."""
    thread = _FaustThread(settings, http, health, stop)
    with _relayed():
        thread.start()
        try:
            yield
        finally:
            thread.stop()
    if thread.failure is not None:
        raise thread.failure
