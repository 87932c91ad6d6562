"""`lag`: how far stores and group are behind the log."""

from __future__ import annotations

from typing import Any

import click

from stream_dmgin.cli.common import Context, common_options, table


@click.command(name="lag")
@click.option("--all", "everything", is_flag=True, help="also partitions without lag, as text")
@common_options
def command(ctx: Context, everything: bool) -> None:
    """By topic and partition: ends, the store's offset, the group's, and the lag in records and in seconds.

    The store is that of this data directory, as last committed, also beside a running worker; where there is none, the group's
    offset tells.
    """
    from stream_dmgin.worker.lag_report import lag_of

    with ctx.open_log() as log:
        found = lag_of(log, ctx.settings)

    def shown(d: dict[str, Any]) -> Any:
        rows = [r for r in d["partitions"] if everything or r["lag"]]
        title = f"group {d['group']}: {d['lag']:,} records behind, the oldest for {d['lag_s']:,.1f} s"
        return table(({k: "" if v is None else v for k, v in r.items()} for r in rows), title) if rows else title

    ctx.emit(found, shown)
