"""Asks the demo's worker over HTTP how it is: ready, and how many events it has folded."""

from __future__ import annotations

import json
import re
import socket
import urllib.error
import urllib.request

_FOLDED = re.compile(rb"^sdmgin_events_folded_total (\S+)", re.MULTILINE)


def free_port() -> int:
    """A port of this machine that was free a moment ago."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


WARM = "warm-"  # begins the ids of requests that only wake the worker


class Probe:
    """Questions to one worker; answers are None while it doesn't listen."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ready(self) -> bool:
        """Whether it has its partitions and has caught up with the log."""
        body = self._get("/health/ready")
        return body is not None and bool(json.loads(body).get("ready"))

    def events_folded(self) -> int | None:
        """Events that it has counted into state since it started; the demo writes no event twice."""
        found = _FOLDED.search(self._get("/metrics") or b"")
        return None if found is None else int(float(found[1]))

    def _get(self, path: str) -> bytes | None:
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=2) as r:
                return bytes(r.read())
        except urllib.error.HTTPError as e:
            return e.read() if e.code == 503 else None  # 503: listening, not ready
        except OSError:
            return None
