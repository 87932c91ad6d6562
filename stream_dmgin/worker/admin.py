"""The worker's local door for the people on call: a Unix domain socket under DATA_DIR/admin that only its user may open.

One JSON line in, `{"verb": "ping", ...arguments}`; JSON lines out: any number of `{"progress": ...}`, then `{"result": ...}` or
`{"error": text, "exit_code": n}`. Each connection has a thread of its own; what needs an engine goes to the loop by
`Between.call`. Several workers may share a data directory: each has its own socket, and `workers` finds them all.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from stream_dmgin.errors import StreamDmginError, UnavailableError

log_ = logging.getLogger(__name__)

Tell = Callable[[Any], None]  # a word of progress for the asker
Verb = Callable[[dict[str, Any], Tell], Any]  # (arguments, tell) -> result, both as JSON
LINE_MAX = 1 << 20
_numbers = itertools.count()  # of the workers of this process


class Admin:
    """Serves verbs until the `with` block ends. `verbs` may grow before it begins."""

    def __init__(self, data_dir: Path, verbs: dict[str, Verb] | None = None) -> None:
        self.directory = Path(data_dir) / "admin"
        self.path = self.directory / f"{os.getpid()}-{next(_numbers)}.sock"
        self.verbs: dict[str, Verb] = {"ping": lambda _, tell: {"pid": os.getpid()}, **(verbs or {})}

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.directory.chmod(0o700)
        self.path.unlink(missing_ok=True)  # of a process that had our number before
        with _short(self.path) as address:
            self._server = _Server(address, self)
        self.path.chmod(0o600)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="admin", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.path.unlink(missing_ok=True)

    def answer(self, line: bytes, tell: Tell) -> dict[str, Any]:
        """The last line of the answer to one line."""
        try:
            asked = json.loads(line)
            name = asked.pop("verb")
            verb = self.verbs[name]
        except (ValueError, AttributeError, TypeError):
            return {"error": "not a JSON object", "exit_code": 2}
        except KeyError as e:
            return {"error": f"no such verb ({e}): there are {', '.join(sorted(self.verbs))}", "exit_code": 2}
        try:
            return {"result": verb(asked, tell)}
        except StreamDmginError as e:
            return {"error": str(e), "exit_code": e.exit_code}
        except Exception as e:
            log_.exception("admin: %s failed", name)
            return {"error": f"{name}: {e!r}", "exit_code": 1}


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: str, admin: Admin) -> None:
        self.admin = admin
        super().__init__(address, _Connection)


class _Connection(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        """One line in, the answer out. An asker who went away doesn't stop what was begun."""

        def say(line: dict[str, Any]) -> None:
            with contextlib.suppress(OSError):
                self.wfile.write(json.dumps(line).encode() + b"\n")

        if line := self.rfile.readline(LINE_MAX):
            say(self.server.admin.answer(line, lambda progress: say({"progress": progress})))


def workers(data_dir: Path) -> list[Path]:
    """Sockets of the workers that run on this data directory, on this machine. Those of dead ones are removed."""
    found = []
    for path in sorted((Path(data_dir) / "admin").glob("*.sock")):
        try:
            ask(path, "ping", timeout=30.0)
            found.append(path)
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except FileNotFoundError:  # it has just ended
            continue
    return found


def ask(path: Path, verb: str, tell: Tell = lambda _: None, timeout: float | None = None, **arguments: Any) -> Any:
    """What the worker at this socket answers. Raises the error it tells, with its exit code; UnavailableError when it goes
    away meanwhile; ConnectionRefusedError or FileNotFoundError when none is there."""
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(timeout)
        with _short(path) as address:
            s.connect(address)
        try:
            with s.makefile("rwb") as f:
                f.write(json.dumps({"verb": verb, **arguments}).encode() + b"\n")
                f.flush()
                for line in f:
                    answer = json.loads(line)
                    if "progress" not in answer:
                        break
                    tell(answer["progress"])
                else:
                    raise ConnectionResetError
        except TimeoutError:
            raise UnavailableError(f"{path}: the worker does not answer") from None
        except (ConnectionResetError, BrokenPipeError):
            raise UnavailableError(f"{path}: the worker ended before it had answered") from None
    if "error" in answer:
        error = StreamDmginError(str(answer["error"]))
        error.exit_code = int(answer["exit_code"])
        raise error
    return answer["result"]


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name of this path that fits a socket address (about 100 bytes), however deep the data directory lies."""
    if len(os.fsencode(path)) < 100 or not Path("/proc/self/fd").is_dir():
        yield str(path)
        return
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)
