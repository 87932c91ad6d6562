"""`data import`: public logs and tables to the normalised form."""

from __future__ import annotations

from pathlib import Path

import click

from stream_dmgin.cli.common import Context, common_options
from stream_dmgin.errors import InputError


@click.group()
def command() -> None:
    """Bring logs of real impressions into the normalised form, a directory of Parquet files."""


@command.command("import")
@click.argument("name", type=click.Choice(["kuairand", "ebnerd", "mind", "taobao", "table"]))
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="directory to write; made where it is missing"
)
@click.option("--map", "mapping", metavar="FIELD=COLUMN,...", help="table only: user_id, item_id, ts and more")
@click.option(
    "--ts-unit",
    type=click.Choice(["s", "ms", "us", "iso"]),
    default="ms",
    show_default=True,
    help="table only: unit of times",
)
@click.option(
    "--topic",
    type=click.Choice(["impressions", "clicks", "post-clicks"]),
    help="table only: topic of all lines, where no type says",
)
@click.option(
    "--visible-after",
    type=int,
    default=0,
    show_default=True,
    metavar="MS",
    help="table only: how long after ts an event becomes known",
)
@common_options
def import_(
    ctx: Context,
    name: str,
    path: Path,
    out: Path,
    mapping: str | None,
    ts_unit: str,
    topic: str | None,
    visible_after: int,
) -> None:
    """Write events.parquet, rows.parquet, items.parquet, meta.json and groups.parquet (for `worker --groups`) to --out.

    NAME is a public log, and PATH the directory of its files; or `table`, and PATH any CSV (with a header) or Parquet file.
    """
    from stream_dmgin.datasets import form, grouping, load, table

    if name == "table":
        if not mapping:
            raise InputError("data import table needs --map user_id=COLUMN,item_id=COLUMN,ts=COLUMN")
        if visible_after < 0:
            raise InputError("--visible-after is 0 or more milliseconds: nothing is known before it happens")
        data = table.load(path, table.parse_map(mapping), ts_unit, topic, visible_after)
    else:
        if mapping:
            raise InputError(f"--map is for `data import table`; the columns of {name} are known")
        data = load(name, path)
    form.validate(data)
    form.write(data, out)
    grouping.group_map(data).save(out / grouping.FILE)
    ctx.emit({"dataset": name, "out": str(out), **data.meta.counts, "dropped": data.meta.dropped})
