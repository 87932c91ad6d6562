"""`data import`: public logs and tables to the normalised form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stream_dmgin.cli.common import Context, common_options
from stream_dmgin.errors import InputError, UsageError

if TYPE_CHECKING:
    from stream_dmgin.datasets.content import Embedding
    from stream_dmgin.datasets.form import Dataset

# What a log's recipe reads where its items have no words: how embeddings are made, and the first day that is for training
EMBEDS = {"kuairand": ("clicks", 1), "ebnerd": ("clicks", 0)}


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
@click.option(
    "--embed",
    type=click.Choice(["none", "lsa", "minilm", "clicks"]),
    help="make embeddings of the items, for the inputs `content`, `passed`, `audience` ...: of their words by lsa or minilm (extra "
    "`text`), or of clicks alone [default: clicks for kuairand and ebnerd, whose recipes read them, else none]",
)
@click.option(
    "--embed-width", type=click.IntRange(1, 4096), default=64, show_default=True, help="numbers of an embedding"
)
@click.option(
    "--embed-until",
    type=int,
    metavar="MS",
    help="clicks visible before then bend (make) the embeddings [default: before the log's train part, if it has one]",
)
@click.option(
    "--embed-until-day",
    type=click.IntRange(min=0),
    metavar="N",
    help="the same as a day of the log: N is the first day of --train-days",
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
    embed: str | None,
    embed_width: int,
    embed_until: int | None,
    embed_until_day: int | None,
) -> None:
    """Write events.parquet, rows.parquet, items.parquet, meta.json and groups.parquet (for `worker --groups`) to --out.

    NAME is a public log, and PATH the directory of its files; or `table`, and PATH any CSV (with a header) or Parquet file.
    """
    from stream_dmgin.datasets import content, form, grouping, load, table

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
    if embed_until is not None and embed_until_day is not None:
        raise UsageError("--embed-until and --embed-until-day say the same: give one of them")
    usual = embed is None and name in EMBEDS
    if usual:
        embed, day = EMBEDS[name]
        embed_until_day = day if embed_until is None and embed_until_day is None else embed_until_day
    if embed_until_day is not None:
        embed_until = data.meta.day0_ms + embed_until_day * data.meta.day_ms
    made: dict[str, Any] = {}
    if embed not in (None, "none"):
        try:
            data, made = _embedded(ctx, data, content.Embedding(str(embed), embed_width, embed_until))
        except InputError as e:
            if not usual:
                raise
            ctx.say(f"items get no embeddings, which the recipe of {name} reads: {e}")
    form.write(data, out)
    grouping.group_map(data).save(out / grouping.FILE)
    ctx.emit({"dataset": name, "out": str(out), **data.meta.counts, **made, "dropped": data.meta.dropped})


def _embedded(ctx: Context, data: Dataset, how: Embedding) -> tuple[Dataset, dict[str, Any]]:
    """The log with embeddings of its items, and what is said of them."""
    from stream_dmgin.datasets import content

    with ctx.progress() as bar:
        task = bar.add_task("embed", total=None)
        found = content.embed(data, how, lambda done, total: bar.update(task, completed=done, total=total))
    told = {"embedded": int(found.vectors.any(1).sum()), "taught_by_users": found.taught}
    return content.with_embeddings(data, found.vectors), told
