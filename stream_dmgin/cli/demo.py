"""`demo`: the main job, whole."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from stream_dmgin.cli.common import Context, common_options, log_auto, stderr

if TYPE_CHECKING:
    from stream_dmgin.demo.view import Screen


@click.command()
@click.option("--seconds", type=click.FloatRange(1), default=40, show_default=True, help="how long the live part runs")
@click.option("--events-per-s", type=click.FloatRange(1), default=2000, show_default=True)
@click.option("--requests-per-s", type=click.FloatRange(0.1), default=40, show_default=True)
@click.option("--users", type=click.IntRange(1, 100_000), default=400, show_default=True)
@click.option("--history-days", type=click.IntRange(1, 3650), default=180, show_default=True)
@click.option(
    "--seed", type=click.IntRange(0), default=11, show_default=True, help="who the users are and what they do"
)
@common_options
@log_auto
def command(
    ctx: Context,
    log_auto: bool,
    seconds: float,
    events_per_s: float,
    requests_per_s: float,
    users: int,
    history_days: int,
    seed: int,
) -> None:
    """From click to score in about a minute: log, topics, histories, worker, live traffic and a live view.

    --log auto (the default): the configured brokers, else a local Apache Kafka where Java 17 and Maven are, else the
    embedded log. Ends by itself; nothing is left running.
    """
    from stream_dmgin.demo.report import report
    from stream_dmgin.demo.run import Options, run

    options = Options(seconds, events_per_s, requests_per_s, users, days=history_days, seed=seed)
    done = run(ctx.settings, log_auto, options, _show if stderr().is_terminal else _tell, ctx.say)
    ctx.emit(done.numbers, lambda _: report(done))


@contextlib.contextmanager
def _show(screen: Screen) -> Iterator[None]:
    """The screen, redrawn in place."""
    from rich.live import Live

    with Live(screen, console=stderr(), refresh_per_second=4):
        yield


@contextlib.contextmanager
def _tell(screen: Screen) -> Iterator[None]:
    """No terminal: a line every few seconds."""
    import threading

    stop = threading.Event()

    def lines() -> None:
        begun = time.monotonic()
        while not stop.wait(5):
            q = screen.quality
            auc = (
                f", auc {q.auc:.3f} (oracle {q.oracle_auc:.3f}, floor {q.floor_auc:.3f})"
                if q and q.auc == q.auc
                else ""
            )
            print(
                f"{time.monotonic() - begun:4.0f} s  {screen.phase}: {screen.rates['events'].value:,.0f} events/s, "
                f"{screen.tally.scores:,} of {screen.tally.requests:,} requests scored, lag {screen.lag:,}{auc}",
                file=sys.stderr,
            )

    thread = threading.Thread(target=lines, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
