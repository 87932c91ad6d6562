"""`state rescale`: the same state over another number of partitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stream_dmgin.cli.common import Context, common_options, dry_run_option, yes_option

DIFFERENT = 1


@click.command()
@click.option("--partitions", type=click.IntRange(1, 10_000), required=True, help="of the new user-keyed topics")
@click.option(
    "--to-prefix", required=True, metavar="TEXT", help="prefix of the new topics; they are made where they are missing"
)
@click.option(
    "--to-data-dir", required=True, type=click.Path(path_type=Path), metavar="DIR", help="where the new stores lie"
)
@click.option("--copy-only", is_flag=True, help="only make the topics and copy what they lack: while everything runs")
@dry_run_option
@yes_option
@common_options
def rescale(
    ctx: Context, partitions: int, to_prefix: str, to_data_dir: Path, copy_only: bool, dry_run: bool, yes: bool
) -> Any:
    """Copy the events to topics of another prefix with another number of partitions, fold them into new stores, and compare every
    user's state with the old stores, bit for bit.

    Nothing of the old is touched; interrupted or called again, it goes on where it stopped. To compare, the old stores must have
    folded all that is copied: stop the producers, then the workers (docs/rescale.md has the whole way, and the way back).
    Exit 0: equal; 1: a difference, or not folded to the end; 2: wrong usage; 3: the log can't be reached.
    """
    from stream_dmgin.log.base import open_log
    from stream_dmgin.state.ops.copying import records_of
    from stream_dmgin.state.ops.stores import Stores
    from stream_dmgin.worker import rescale as job

    old = Stores.of(ctx.settings.data_dir)
    target = job.target_of(ctx.settings, to_prefix, to_data_dir, old)
    with open_log(ctx.settings.log, ctx.settings.kafka) as log:
        data: dict[str, Any] = {
            "from": {"prefix": ctx.settings.prefix, "partitions": old.partitions},
            "to": {"prefix": to_prefix, "partitions": partitions, "data_dir": str(to_data_dir)},
            "groups": old.groups_id, "records": records_of(log, ctx.settings.prefix), "dry_run": dry_run,
        }  # fmt: skip
    if dry_run:
        ctx.emit(data)
        return 0
    ctx.confirm(f"Copy {data['records']:,} records to topics {to_prefix}*, {partitions} partitions?", yes)
    with ctx.progress() as bar:

        def started(what: str, total: int) -> Any:
            task = bar.add_task(what, total=total)
            return lambda n: bar.advance(task, n)

        copied, others = job.copy(ctx.settings, target, partitions, lambda n: started("copy", n))
        data |= {"copied": copied.as_dict(), "items_and_control": others}
        if not copy_only:
            job.check_folded(old, copied)
            data["events_folded"] = job.fold(target, started("fold", copied.copied + copied.before))
            with open_log(ctx.settings.log, ctx.settings.kafka) as log:
                compared = job.compare(log, old, Stores.of(to_data_dir), started("compare", job.users_of(old)))
            data |= {"ok": compared.ok, **compared.as_dict()}
    ctx.emit(data)
    return 0 if copy_only or compared.ok else DIFFERENT
