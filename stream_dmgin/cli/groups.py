"""`groups build / sweep / import / list / show / compare / effect / cut / publish / prune`: the map from items to interest groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stream_dmgin.cli.common import Context, common_options, dry_run_option, table, yes_option
from stream_dmgin.cli.groups_build import build, compare, cut, effect, sweep_
from stream_dmgin.errors import UsageError


@click.group()
def command() -> None:
    """Item groups: which items count as the same interest."""


for verb in (build, sweep_, compare, effect, cut):
    command.add_command(verb)


@command.command("import")
@click.argument("file", metavar="CSV", type=click.Path(path_type=Path))
@click.option("--out", metavar="FILE", help="where to save the map [default: groups/ID.parquet in the data directory]")
@common_options
def import_(ctx: Context, file: Path, out: str | None) -> None:
    """Check a CSV file with the header item_id,group and save it as a map."""
    from stream_dmgin.groups.map import GroupMap
    from stream_dmgin.groups.shelf import keep

    found = GroupMap.from_csv(file)
    path = keep(ctx.settings.data_dir, found, out)
    ctx.emit({"id": found.id, "file": str(path), "items": len(found), "groups": len(found.sizes())})


@command.command("list")
@common_options
def list_(ctx: Context) -> None:
    """The maps kept in the data directory."""
    from stream_dmgin.groups.shelf import kept

    ctx.emit({"groups": kept(ctx.settings.data_dir)}, lambda d: table(d["groups"]) if d["groups"] else "no maps yet")


@command.command()
@click.argument("name", metavar="FILE or ID")
@click.option("--item", metavar="ID", help="only the group of this item")
@click.option("--samples", type=click.IntRange(0), default=3, show_default=True, help="items shown of each group")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="groups shown, the largest first")
@click.option("--html", "page", type=click.Path(path_type=Path), metavar="FILE", help="write a page of pictures, too")
@click.option(
    "--items",
    type=click.Path(path_type=Path),
    help="for --html: embeddings, as `build --embeddings-out` writes them; shows where groups stand, and their neighbours",
)
@common_options
def show(
    ctx: Context, name: str, item: str | None, samples: int, limit: int, page: Path | None, items: Path | None
) -> None:
    """Sizes and samples of a map's groups; with --html, a page of pictures."""
    from stream_dmgin.groups import shelf
    from stream_dmgin.groups.describe import describe

    file = shelf.where(ctx.settings.data_dir, name)
    found = shelf.find(ctx.settings.data_dir, name)
    if item is not None:
        ctx.emit({"id": found.id, "item": item, "group": found.lookup(item)})
        return
    data: dict[str, Any] = {"id": found.id, "items": len(found), "groups": len(found.sizes())}
    if found.levels:
        data["levels"] = list(found.levels)
    data["largest"] = describe(found, samples)[:limit]
    if page is not None:
        from stream_dmgin.groups.contrast import as_they_are
        from stream_dmgin.groups.items import read_items
        from stream_dmgin.groups.page import html

        shown = None if items is None else read_items(items)
        vectors = None if shown is None or not shown.views else as_they_are(shown)
        shelf.write_text(page, html(found, shelf.report_of(file), shown, vectors))
        data["page"] = str(page)
    elif items is not None:
        raise UsageError("--items is for the page: give --html FILE")
    ctx.emit(data, lambda d: table({**g, "items": ", ".join(g["items"])} for g in d["largest"]))


@command.command()
@click.argument("name", metavar="FILE or ID")
@dry_run_option
@yes_option
@common_options
def publish(ctx: Context, name: str, dry_run: bool, yes: bool) -> None:
    """Make a map the one that all workers go by, while they serve: its content and its name go to the control topic.

    Where items only gained a group, partitions merge at once. Where items moved, each partition's state is built anew from the
    log in the background, and goes over when it has caught up; `regroup` in /health/ready tells how far that is. Publishing
    the old map again is the way back, quick as long as the old stores are kept (`groups prune`).
    """
    from stream_dmgin.groups.shelf import find
    from stream_dmgin.worker.publish import compare_groups, publish_groups

    found = find(ctx.settings.data_dir, name)
    data = compare_groups(ctx.settings, found)
    if not dry_run:
        what = (
            f"{data['moved']:,} items moved, {data['added']:,} added" if data["active"] else "the first map published"
        )
        ctx.confirm(f"Let all workers of {ctx.settings.log} go by group map {found.id} ({what})?", yes)
        publish_groups(ctx.settings, found)
    ctx.emit({**data, "published": not dry_run})


@command.command()
@dry_run_option
@yes_option
@common_options
def prune(ctx: Context, dry_run: bool, yes: bool) -> None:
    """Remove the stores of other group maps than those served: kept for the way back, or half built and given up.

    A worker may be running: what it builds at the moment stays.
    """
    from stream_dmgin.state.ops.prune import prunable, remove

    found = prunable(ctx.settings.data_dir)
    if found and not dry_run:
        ctx.confirm(f"Remove {len(found)} stores of {sum(f['bytes'] for f in found):,} bytes?", yes)
        remove(found)
    ctx.emit(
        {"removed": not dry_run, "stores": found}, lambda d: table(d["stores"]) if d["stores"] else "nothing to remove"
    )
