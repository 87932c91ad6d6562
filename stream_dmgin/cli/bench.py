"""`bench fold / read / score / train / latency / recover`: the product's own measurements. The measuring is in `stream_dmgin/bench/`."""

from __future__ import annotations

from pathlib import Path

import click

from stream_dmgin.cli.common import Context, common_options

on_option = click.option(
    "--on", default="kafka", show_default=True, metavar="kafka|file|URL",
    help="the log to measure on: a local Kafka of its own, an embedded log of its own, or an empty log that is there",
)  # fmt: skip


@click.group()
def command() -> None:
    """Measure this machine: each prints its figures, with the rival of the same run.

    Other work on the machine makes the figures worse; `load_1m` in the output tells how busy it was before.
    """


@command.command()
@on_option
@click.option("--events", default=2_000_000, show_default=True, type=click.IntRange(10_000), help="events to fold")
@click.option("--users", default=20_000, show_default=True, type=click.IntRange(1), help="users (Zipf)")
@common_options
def fold(ctx: Context, on: str, events: int, users: int) -> None:
    """Events per second from the log into RocksDB on one core, against a plain Python dict fold."""
    from stream_dmgin.bench.fold import measure
    from stream_dmgin.bench.workload import Workload

    ctx.emit(measure(on, events, Workload(users=users)))


@command.command()
@click.option("--lives", default="100,100000", show_default=True, metavar="N,N,...", help="events in a life")
@click.option("--users", default=8, show_default=True, type=click.IntRange(1), help="users of each length of life")
@click.option("--candidates", default=100, show_default=True, type=click.IntRange(1, 1000), help="candidates a request")
@click.option("--blocks", default="none", show_default=True, help="optional blocks of inputs, with commas between them")
@common_options
def read(ctx: Context, lives: str, users: int, candidates: int, blocks: str) -> None:
    """Microseconds from one user's state to the model's inputs."""
    from stream_dmgin.bench.read import measure
    from stream_dmgin.features.spec import InputSpec
    from stream_dmgin.training.recipes import block_names

    try:
        lengths = [int(x) for x in lives.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"{lives!r}: give whole numbers with commas between them", param_hint="--lives"
        ) from None
    ctx.emit(measure(lengths, users, candidates, InputSpec(blocks=block_names(blocks))))


@command.command()
@click.option("--model", metavar="ID|DIR", help="the model [default: as the worker's]")
@click.option(
    "--beside", metavar="ID|DIR", multiple=True, help="another model of the same inputs, in turn with it; several times"
)
@click.option("--requests", default=300, show_default=True, type=click.IntRange(10), help="requests to time")
@click.option("--candidates", default=100, show_default=True, type=click.IntRange(1, 1000), help="candidates a request")
@common_options
def score(ctx: Context, model: str | None, beside: tuple[str, ...], requests: int, candidates: int) -> None:
    """Milliseconds from state to probabilities, against the whole model run anew for each request."""
    from stream_dmgin.bench.score import measure

    ctx.emit(measure(model or ctx.settings["worker.model"], ctx.settings.data_dir, requests, candidates, beside))


@command.command()
@click.option(
    "--rows",
    "rows_dir",
    type=click.Path(path_type=Path),
    help="folder that `train --rows` wrote [default: made-up rows]",
)
@click.option("--batches", default=12, show_default=True, type=click.IntRange(1), help="batches of each loop to time")
@click.option("--batch", default=512, show_default=True, type=click.IntRange(1), help="rows of a batch")
@common_options
def train(ctx: Context, rows_dir: Path | None, batches: int, batch: int) -> None:
    """Training rows per second of one core, against a loop over padded batches of the same network and rows."""
    from stream_dmgin.bench.train import measure

    ctx.emit(measure(rows_dir, batches, batch))


@command.command()
@on_option
@click.option("--requests-per-s", default=100.0, show_default=True, type=click.FloatRange(0.1), help="score requests")
@click.option("--events-per-s", default=2000.0, show_default=True, type=click.FloatRange(0), help="events beside them")
@click.option("--seconds", default=40.0, show_default=True, type=click.FloatRange(1), help="how long")
@click.option("--candidates", default=100, show_default=True, type=click.IntRange(1, 1000), help="candidates a request")
@click.option("--model", metavar="ID|DIR", help="the worker's model [default: its own default]")
@common_options
def latency(
    ctx: Context,
    on: str,
    requests_per_s: float,
    events_per_s: float,
    seconds: float,
    candidates: int,
    model: str | None,
) -> None:
    """Milliseconds from request written to score read, beside a stream of events."""
    from stream_dmgin.bench.latency import measure

    ctx.emit(measure(on, requests_per_s, events_per_s, seconds, candidates, model))


@command.command()
@on_option
@click.option("--events", default=1_000_000, show_default=True, type=click.IntRange(1000), help="events on the log")
@common_options
def recover(ctx: Context, on: str, events: int) -> None:
    """Seconds until a worker with an empty data directory has folded the whole log, or a snapshot's tail."""
    from stream_dmgin.bench.recover import measure

    ctx.emit(measure(on, events))
