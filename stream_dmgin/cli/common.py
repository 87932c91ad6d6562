"""What the nouns of the command line share: options, output, progress, the way errors become exit codes.

@click.command()
@common_options            # --log --data-dir --prefix -o/--output --config; gives the function `ctx: Context`
def list_(ctx, ...): ctx.emit({"topics": [...]}, human=lambda d: table(d["topics"]))
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stream_dmgin import settings as _settings
from stream_dmgin.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from stream_dmgin.log.base import Log

F = Callable[..., Any]
PIPED = 200  # columns of a table that goes to a pipe or a file


class Context:
    """What a command works with: the settings in force, and where its output goes."""

    def __init__(self, settings: _settings.Settings, output: str) -> None:
        self.settings = settings
        self.json = output == "json"
        self._stdout = sys.stdout  # Faust redirects sys.stdout later on

    def open_log(self) -> Log:
        """The log of the settings. Raises LogUnavailable, ConfigError."""
        from stream_dmgin.log.base import open_log

        return open_log(self.settings.log, self.settings.kafka)

    def emit(self, data: Any, human: Callable[[Any], Any] | None = None) -> None:
        """Print the result: one JSON document with -o json; otherwise what `human` returns (text or a rich renderable),
        or `key: value` lines."""
        if self.json:
            self._stdout.write(json.dumps(_finite(data), ensure_ascii=False, default=_plain) + "\n")
            self._stdout.flush()
            return
        shown = (
            human(data)
            if human
            else "\n".join(f"{k}: {v}" for k, v in data.items())
            if isinstance(data, Mapping)
            else data
        )
        from rich.console import Console

        # a pipe or file has no width: 80 columns would break the numbers of a table
        width = None if self._stdout.isatty() or "COLUMNS" in os.environ else PIPED
        Console(file=self._stdout, highlight=False, soft_wrap=isinstance(shown, str), width=width).print(
            shown, markup=False
        )

    def say(self, text: str) -> None:
        """A line for the person at the terminal; never on stdout."""
        click.echo(text, err=True)

    def confirm(self, question: str, yes: bool) -> None:
        """Ask before something is destroyed or published; `yes` is the --yes flag. Raises UsageError without a terminal."""
        if yes:
            return
        if not sys.stdin.isatty():
            raise UsageError(f"{question} Nobody is there to answer: give --yes, or look first with --dry-run")
        if not click.confirm(question, err=True):
            raise click.Abort

    def progress(self) -> Progress:
        """A progress bar on stderr (a context manager; `add_task(description, total=...)`), silent where it is no terminal."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        return Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
            console=stderr(), disable=not sys.stderr.isatty(),
        )  # fmt: skip


def stderr() -> Console:
    """A rich console on stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def _finite(x: Any) -> Any:
    """JSON knows no nan: what has no value (the AUC of one class) is null."""
    if isinstance(x, Mapping):
        return {k: _finite(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [_finite(v) for v in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def _plain(x: Any) -> Any:
    if hasattr(x, "item") and callable(x.item) and getattr(x, "ndim", 0) == 0:
        return x.item()  # a numpy scalar
    if hasattr(x, "tolist"):
        return x.tolist()
    if isinstance(x, bytes):
        return x.decode("utf-8", "backslashreplace")
    if isinstance(x, Path):
        return str(x)
    raise TypeError(f"can't be written as JSON: {type(x).__name__}")


def common_options(f: F) -> F:
    """--log, --data-dir, --prefix, -o, --log-level; the command is called with `ctx: Context` first."""

    @click.option(
        "--log",
        "log",
        metavar="URL",
        help="kafka://HOST:PORT[,HOST:PORT] or file:DIR [default: file: under the data directory]",
    )
    @click.option("--bootstrap-server", metavar="HOST:PORT", help="the same as --log kafka://HOST:PORT")
    @click.option("--data-dir", metavar="DIR", help="everything local [default: .stream-dmgin]")
    @click.option("--prefix", metavar="TEXT", help="prefix of topic names [default: dmgin.]")
    @click.option(
        "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="how much is logged, on stderr"
    )
    @click.option(
        "-o", "--output", type=click.Choice(["text", "json"]), default="text", help="json: one document on stdout"
    )
    @functools.wraps(f)
    def run(
        log: str | None, bootstrap_server: str | None, data_dir: str | None, prefix: str | None, log_level: str | None,
        output: str, **rest: Any,
    ) -> Any:  # fmt: skip
        if bootstrap_server:
            if log:
                raise UsageError("give --log or --bootstrap-server, not both")
            log = "kafka://" + bootstrap_server
        if log == "auto" and not getattr(f, "log_auto", False):
            raise UsageError("--log auto is for the demo; give kafka://HOST:PORT[,HOST:PORT] or file:DIR")
        flags = {"data_dir": data_dir, "prefix": prefix, "log_level": log_level}
        if log != "auto":
            flags["log"] = log
        flags |= {k: rest[p] for p, k in getattr(f, "setting_flags", {}).items()}
        s = _settings.load(flags)
        setup_logging(s["log_level"], s["log_format"])
        if getattr(f, "log_auto", False):
            rest["log_auto"] = log in (None, "auto") and not s["log"]
        return f(Context(s, output), **rest)

    return run


def setting_flags(**keys: str) -> Callable[[F], F]:
    """Parameters of a command that override settings: `@setting_flags(http="worker.http")`; put it below @common_options."""

    def mark(f: F) -> F:
        f.setting_flags = keys  # type: ignore[attr-defined]
        return f

    return mark


def log_auto(f: F) -> F:
    """The command takes --log auto (the demo): it gets `log_auto`, whether no log was chosen. Below @common_options."""
    f.log_auto = True  # type: ignore[attr-defined]
    return f


yes_option = click.option("--yes", is_flag=True, help="don't ask")
dry_run_option = click.option("--dry-run", is_flag=True, help="only say what would be done")


def setup_logging(level: str, fmt: str) -> None:
    """Logs go to stderr, as text or one JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _JsonLines() if fmt == "json" else logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("aiokafka", "faust", "mode", "aiohttp.access", "numba", "aiobotocore", "botocore"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "ts": round(record.created * 1000),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def moment(ms: int | None) -> str:
    """Milliseconds since the epoch for people, UTC."""
    from datetime import UTC, datetime

    return "" if ms is None else datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def table(rows: Iterable[Mapping[str, Any]], title: str | None = None) -> Any:
    """Rows of equal keys as a rich table; numbers are right-aligned."""
    from rich.table import Table

    rows = list(rows)
    t = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for c in rows[0] if rows else ():
        t.add_column(c, justify="right" if isinstance(rows[0][c], (int, float)) else "left", overflow="fold")
    for r in rows:
        t.add_row(
            *(
                f"{v:,}"
                if isinstance(v, int) and not isinstance(v, bool)
                else f"{v:.4g}"
                if isinstance(v, float)
                else str(v)
                for v in r.values()
            )
        )
    return t
