"""`simulate`: a city of shops and users with a known click probability, to the log or to Parquet."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import click

from stream_dmgin.cli.common import Context, common_options
from stream_dmgin.errors import ConfigError, UsageError


class _Life(click.ParamType):
    name = "MIN:MAX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        low, _, high = str(value).partition(":")
        try:
            out = (int(low), int(high or low))
        except ValueError:
            out = (0, 0)
        if not 1 <= out[0] <= out[1] <= 10_000_000:
            self.fail(f"{value!r}: give MIN:MAX events of a life, such as 100:100000", param, ctx)
        return out


@click.command()
@common_options
@click.option(
    "--events-per-s",
    type=click.FloatRange(0),
    default=2000,
    show_default=True,
    help="events of all three topics together",
)
@click.option("--requests-per-s", type=click.FloatRange(0), default=20, show_default=True, help="score requests")
@click.option("--users", type=click.IntRange(1, 2_000_000), default=1000, show_default=True)
@click.option("--items", type=click.IntRange(50, 200_000), default=2000, show_default=True, help="shops of the city")
@click.option("--seed", type=click.IntRange(0), default=7, show_default=True, help="who the users are and what they do")
@click.option("--city", type=click.IntRange(0), default=1, show_default=True, help="seed of the shops alone")
@click.option(
    "--drift", type=click.FloatRange(0, 5), default=0, show_default=True,
    help="how much the whole city changes from week to week; 1: plainly",
)  # fmt: skip
@click.option(
    "--life",
    type=_Life(),
    default=(100, 100_000),
    help="events of a user's history, heavy-tailed [default: 100:100000]",
)
@click.option("--seconds", type=click.FloatRange(0), default=60, show_default=True, help="how long the live part runs")
@click.option(
    "--candidates", type=click.IntRange(1, 1000), default=20, show_default=True, help="candidates of a request"
)
@click.option("--shown", type=click.IntRange(1, 100), default=10, show_default=True, help="of them, how many are shown")
@click.option("--speed", type=click.FloatRange(0.001), default=1, show_default=True, help="city seconds in a second")
@click.option(
    "--start-ms",
    type=int,
    help="city time at which the history begins (without one: the live part) [default: so that it ends now]",
)
@click.option(
    "--history-days",
    type=click.IntRange(0, 3650),
    help="write that many days of history first [default: 180 with --to-dir, else 0]",
)
@click.option(
    "--hold",
    type=click.Path(path_type=Path, dir_okay=False),
    help="after the history, make FILE.waiting and wait until FILE exists",
)
@click.option(
    "--to-dir", type=click.Path(path_type=Path, file_okay=False), help="write the history as Parquet instead, and end"
)
@click.option(
    "--rows-days", type=click.IntRange(0), help="with --to-dir: labelled rows of the last days only [default: all]"
)
@click.option(
    "--order-delay-days", type=click.FloatRange(0), default=0, show_default=True,
    help="with --to-dir: mean time until an order is reported",
)  # fmt: skip
@click.option(
    "--oracle-out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="true probabilities and labels of the requests, JSON lines",
)
@click.option(
    "--groups-out", type=click.Path(path_type=Path, dir_okay=False), help="the group map (each shop's concept), CSV"
)
def command(
    ctx: Context, events_per_s: float, requests_per_s: float, users: int, items: int, seed: int, city: int, life: tuple[int, int],
    seconds: float, candidates: int, shown: int, speed: float, start_ms: int | None, history_days: int | None, hold: Path | None,
    to_dir: Path | None, rows_days: int | None, order_delay_days: float, oracle_out: Path | None, groups_out: Path | None,
    drift: float,
) -> None:  # fmt: skip
    """A city of shops and users whose click probabilities are known.

    Writes items, then (with --history-days) a history, then live events and score requests at the given rates; ends by
    itself. The content follows from the settings and --start-ms. With --to-dir: a history in the normalised form.
    """
    from stream_dmgin.simulator.world import START_MS, Plan

    if to_dir:
        from stream_dmgin.simulator.parquet import write_history

        wrong = {"--groups-out": groups_out, "--oracle-out": oracle_out, "--hold": hold}
        if given := [option for option, value in wrong.items() if value is not None]:
            raise UsageError(
                f"{' and '.join(given)} are for live traffic: --to-dir writes the map as groups.csv and the true probabilities as"
                " oracle.parquet beside the log"
            )
        days = 180 if history_days is None else history_days
        if days < 1:
            raise ConfigError("--history-days", days, "give 1 or more with --to-dir")
        plan = Plan(
            users,
            items,
            seed,
            city,
            life,
            START_MS if start_ms is None else start_ms,
            days,
            shown,
            order_delay_days,
            drift,
        )
        begun = time.monotonic()
        with ctx.progress() as bar:
            task = bar.add_task("events", total=None)
            counts = write_history(plan, to_dir, rows_days, lambda n: bar.advance(task, n))
        took = time.monotonic() - begun
        ctx.emit(
            {"dir": str(to_dir), **counts, "seconds": round(took, 2), "events_per_s": round(counts["events"] / took)}
        )
        return
    from stream_dmgin.simulator.live import simulate
    from stream_dmgin.simulator.traffic import Pace

    pace = Pace(events_per_s, requests_per_s, seconds, candidates, speed)
    days = history_days or 0
    if start_ms is None:
        start_ms = int(time.time() * 1000 - days * 86_400_000 - max(0.0, speed - 1) * seconds * 1000)
    plan = Plan(users, items, seed, city, life, start_ms, days, shown, drift=drift)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())  # what was made is still flushed
    with ctx.open_log() as log:
        ctx.emit(simulate(log, ctx.settings, plan, pace, hold, oracle_out, groups_out, ctx.say, stop.is_set))
