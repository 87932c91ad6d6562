"""Asks the demo's worker over HTTP how it is: ready, and how many events it has read."""

from __future__ import annotations

import json
import re
import socket
import urllib.error
import urllib.request

from stream_dmgin.topics import EVENTS

_RECORDS = re.compile(rb'^sdmgin_records_total\{topic="[^"]*?(%s)"\} (\S+)' % "|".join(EVENTS).encode(), re.MULTILINE)


def free_port() -> int:
    """A port of this machine that was free a moment ago."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Probe:
    """Questions to one worker; answers are None while it doesn't listen."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ready(self) -> bool:
        """Whether it has its partitions and has caught up with the log."""
        body = self._get("/health/ready")
        return body is not None and bool(json.loads(body).get("ready"))

    def events_read(self) -> int | None:
        """Records of the three event topics that it has read."""
        body = self._get("/metrics")
        return None if body is None else int(sum(float(n) for _, n in _RECORDS.findall(body)))

    def _get(self, path: str) -> bytes | None:
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=2) as r:
                return bytes(r.read())
        except urllib.error.HTTPError as e:
            return e.read()
        except OSError:
            return None
