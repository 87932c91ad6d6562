"""The worker on Kafka as a Faust application. Faust does what it is good at: the worker's life cycle and signals, web views,
and the control topic's table. The data path does not go through Faust: asyncio per message costs a hundred times the fold
(docs/adr/0005-worker.md); a service owns a thread with its own consumer group and runs `worker/loop.py` in it.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
from collections.abc import Callable, Mapping
from typing import Any

import faust
import msgspec
from mode import Service

from stream_dmgin import topics
from stream_dmgin.errors import ConfigError, StreamDmginError
from stream_dmgin.settings import Settings
from stream_dmgin.worker.health import Health

log_ = logging.getLogger(__name__)

Turns = Callable[[threading.Event], None]  # the data path: runs until the event is set; raises what kills the worker


STOP_S = 60.0


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
    )
    _control(app, settings.prefix, health)
    _views(app, health)
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


def _control(app: faust.App, prefix: str, health: Health) -> None:
    """One worker copies the control topic into a global table; every worker has the whole table."""
    # A Faust application of global tables alone never finishes its first assignment (0.15.3): the agent is needed.
    table = app.GlobalTable("table", partitions=1, recovery_buffer_size=1)
    topic = app.topic(prefix + topics.CONTROL, key_serializer="raw", value_serializer="raw", partitions=1)

    async def copy(stream: Any) -> None:
        async for key, value in stream.items():
            name = key.decode("utf-8", "replace") if key else ""
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
    health.control = table


def _views(app: faust.App, health: Health) -> None:
    @app.page("/health/live")  # type: ignore[untyped-decorator]
    async def live(web: Any, request: Any) -> Any:
        status, body = health.live()
        return web.json(body, status=status)

    @app.page("/health/ready")  # type: ignore[untyped-decorator]
    async def ready(web: Any, request: Any) -> Any:
        status, body = health.ready()
        return web.json(body, status=status)

    @app.page("/metrics")  # type: ignore[untyped-decorator]
    async def metrics(web: Any, request: Any) -> Any:
        return web.bytes(health.metrics.text(), content_type="text/plain")


class DataPath(Service):  # type: ignore[misc]
    """The thread of the data path. Its failure is the worker's: a supervisor restarts both."""

    def __init__(self, turns: Turns, app: faust.App) -> None:
        super().__init__()
        self._turns, self._app = turns, app
        self._stop = threading.Event()
        self.failure: BaseException | None = None

    async def on_start(self) -> None:
        """Start the thread."""
        self._home = asyncio.get_running_loop()
        for table in self._app.tables.values():
            # Otherwise a table belongs to the thread that touches it first. The data path reads the control table: its tasks
            # would sit on a loop that never runs, and the worker would wait for them for ever when told to stop.
            table.loop = self._home
        self._thread = threading.Thread(target=self._run, name="data-path", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._turns(self._stop)
        except BaseException as e:
            self.failure = e
            asyncio.run_coroutine_threadsafe(self.crash(e), self._home)

    async def on_stop(self) -> None:
        """Let the thread commit and leave its group."""
        self._stop.set()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join, STOP_S)


def run(app: faust.App, turns: Turns, log_level: str) -> None:
    """Run until SIGTERM or SIGINT, or until the data path fails: then its error is raised."""
    path = DataPath(turns, app)
    # The data path comes first: it must not wait for Faust's own group to form.
    worker = faust.Worker(app, path, loglevel=log_level, redirect_stdouts=False, quiet=True)
    try:
        worker.execute_from_commandline()
    except SystemExit as e:
        if e.code not in (None, 0) and path.failure is None:
            raise StreamDmginError("the Faust worker failed: see the log above") from None
    if path.failure is not None:
        raise path.failure
