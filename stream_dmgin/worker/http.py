"""Health and metrics over HTTP where there is no Faust: the embedded log, and bounded runs. aiohttp in a thread of its own."""

from __future__ import annotations

import asyncio
import json
import threading
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from stream_dmgin.errors import UnavailableError
from stream_dmgin.worker.health import Health


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
            raise UnavailableError(
                f"worker.http: {self._host}:{self._port} can't be listened on ({e.strerror}): give another --http, or `off`"
            ) from None
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
