"""Health and metrics over HTTP where there is no Faust: the embedded log, and bounded runs. aiohttp in a thread of its own."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from stream_dmgin.errors import UnavailableError
from stream_dmgin.worker.health import Health

log_ = logging.getLogger(__name__)


def free_address(address: str, chosen: bool) -> str:
    """The address to serve at. Where it is taken: UnavailableError if the user chose it, else another port of the same host,
    so that a second worker on a machine starts without further ado."""
    host, _, port = address.rpartition(":")
    for wanted in (int(port), 0):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind((host.strip("[]"), wanted))
            except OSError as e:
                if chosen or wanted == 0:
                    raise _taken(address, e) from None
                continue
            found = f"{host}:{s.getsockname()[1]}"
            if found != address:
                log_.warning("%s is taken: health and metrics are at http://%s", address, found)
            return found
    raise AssertionError("unreachable")


def _taken(address: str, e: OSError) -> UnavailableError:
    return UnavailableError(
        f"worker.http: {address} can't be listened on ({e.strerror}): give another --http, or `off`"
    )


class HealthServer:
    """Serves /health/live, /health/ready and /metrics at HOST:PORT until the `with` block ends. Raises UnavailableError."""

    def __init__(self, address: str, health: Health) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port, self._health = host, int(port), health
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="http", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._run(self._start())
        except OSError as e:
            self._close()
            raise _taken(f"{self._host}:{self._port}", e) from None
        return self

    def __exit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._run(self._runner.cleanup())
        self._close()

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def _close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_get("/health/live", self._json(self._health.live))
        app.router.add_get("/health/ready", self._json(self._health.ready))
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError:
            await self._runner.cleanup()
            raise

    @staticmethod
    def _json(answer: Any) -> Any:
        async def handle(_: web.Request) -> web.Response:
            status, body = answer()
            return web.Response(text=json.dumps(body), status=status, content_type="application/json")

        return handle

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=self._health.metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )
