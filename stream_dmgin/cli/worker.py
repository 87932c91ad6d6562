"""`worker`: the processor."""

from __future__ import annotations

import click

from stream_dmgin.cli.common import Context, common_options, setting_flags


@click.command(name="worker")
@click.option("--groups", metavar="FILE", help="group map: CSV with item_id,group, or a map of `groups build`")
@click.option("--model", metavar="ID|DIR", help="model that scores [default: demo]")
@click.option("--no-score", is_flag=True, help="fold events only, answer no requests")
@click.option(
    "--until-end",
    is_flag=True,
    help="stop at the ends the topics have now, everything flushed, and print what was done",
)
@click.option(
    "--ordered", is_flag=True, help="with --until-end: in the order of record timestamps, for an imported backlog"
)
@click.option(
    "--exactly-once",
    is_flag=True,
    default=None,
    help="scores and dead letters in Kafka transactions: consumers see each once",
)
@click.option(
    "--standby",
    metavar="[N]",
    is_flag=False,
    flag_value="all",
    default=None,
    help="keep copies of partitions that other workers own: N of each, over all workers; without a number all on every worker",
)
@click.option("--http", metavar="HOST:PORT", help="health and metrics, or `off` [default: 127.0.0.1:8088]")
@common_options
@setting_flags(
    groups="worker.groups",
    model="worker.model",
    http="worker.http",
    exactly_once="worker.exactly_once",
    standby="worker.standby",
)
def command(
    ctx: Context,
    groups: str | None,
    model: str | None,
    no_score: bool,
    until_end: bool,
    ordered: bool,
    exactly_once: bool | None,
    standby: str | None,
    http: str | None,
) -> None:
    """Fold events into state and answer score requests, until SIGTERM.

    SIGTERM and SIGINT commit, leave the consumer group and exit 0. A second worker with the same --log shares the partitions.
    """
    from stream_dmgin.errors import UsageError
    from stream_dmgin.worker.run import run

    if ordered and not until_end:
        raise UsageError("--ordered needs --until-end: a merge by time has to know where the log ends")
    done = run(ctx.settings, score=not no_score, until_end=until_end, ordered=ordered)
    if until_end:
        ctx.emit(done)
