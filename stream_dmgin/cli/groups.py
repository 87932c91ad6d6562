"""`groups build / sweep / import / list / show / compare / cut / publish / prune`: the map from items to interest groups."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from stream_dmgin.cli.common import Context, common_options, dry_run_option, table, yes_option
from stream_dmgin.cli.groups_options import clustering, clustering_options, making_options
from stream_dmgin.cli.groups_options import space as make_space
from stream_dmgin.errors import UsageError


@click.group()
def command() -> None:
    """Item groups: which items count as the same interest."""


@command.command()
@making_options
@clustering_options
@click.option("-k", "--k", metavar="N|auto", help="number of groups; auto: chosen by a sweep, as `groups sweep` does")
@click.option("--previous", metavar="MAP", help="the map before: its groups keep their numbers, so that little moves")
@click.option("--only-new", is_flag=True, help="with --previous: no item of it moves, others join the nearest group")
@click.option("--out", metavar="FILE", help="where to save the map [default: groups/ID.parquet in the data directory]")
@click.option(
    "--embeddings-out", type=click.Path(path_type=Path), help="Parquet: what was clustered, to be used as --items again"
)
@common_options
def build(
    ctx: Context,
    k: str | None,
    previous: str | None,
    only_new: bool,
    out: str | None,
    embeddings_out: Path | None,
    **rest: Any,
) -> None:
    """Group items by what is written about them, their pictures, and what users clicked together.

    Words are encoded (--encoder), two towers are trained on pairs of views and of clicks (--towers), the result is
    clustered under a cap. Items without content get their group by behaviour, then by category, or stay single.
    """
    from stream_dmgin.groups.build import build as build_map
    from stream_dmgin.groups.items import write_items
    from stream_dmgin.groups.shelf import find, keep, keep_report
    from stream_dmgin.groups.sweep import as_rows, choose, sweep

    how = clustering(rest, k, only_new)
    old = None if previous is None else find(ctx.settings.data_dir, previous)
    with ctx.progress() as bar:
        space = make_space(ctx, rest, bar)
        swept: dict[str, Any] = {}
        if k == "auto":
            task = bar.add_task("sweep", total=None)
            trials = sweep(space, how, (), lambda done, total: bar.update(task, completed=done, total=total))
            chosen, why = choose(trials)
            how, swept = replace(how, k=chosen), {"k": chosen, "why": why, "trials": as_rows(trials)}
        built = build_map(space, how, old)
    if embeddings_out is not None:
        write_items(space.items, embeddings_out, space.vectors)
    path = keep(ctx.settings.data_dir, built.groups, out)
    report = built.report | ({"sweep": swept} if swept else {})
    keep_report(path, report)
    ctx.emit(
        {"id": built.groups.id, "file": str(path), **built.quality.as_dict()}
        | {x: report[x] for x in ("method", "library", "sources", "clicks", "previous", "sweep") if x in report},
        lambda d: "\n".join(f"{x}: {v}" for x, v in d.items() if x != "sweep"),
    )


@command.command("sweep")
@making_options
@clustering_options
@click.option(
    "--ks", metavar="A,B,C", help="numbers of groups to try [default: powers of two from 16 to an eighth of the items]"
)
@common_options
def sweep_(ctx: Context, ks: str | None, **rest: Any) -> None:
    """What each number of groups costs and gives, and the one to choose.

    Cohesion, purity and balance of the groups; with --events also how many groups users have, and how much the group of one
    click foretells that of the next.
    """
    from stream_dmgin.groups.sweep import as_rows, choose, sweep

    if ks is not None and not all(x.strip().isdigit() for x in ks.split(",")):
        raise UsageError(f"--ks {ks!r} can't be used: write whole numbers, as in 128,512,2048")
    how = clustering(rest, "auto", False)
    with ctx.progress() as bar:
        space = make_space(ctx, rest, bar)
        task = bar.add_task("sweep", total=None)
        tried = [int(x) for x in ks.split(",")] if ks else ()
        trials = sweep(space, how, tried, lambda done, total: bar.update(task, completed=done, total=total))
    chosen, why = choose(trials)
    ctx.emit(
        {"k": chosen, "why": why, "trials": as_rows(trials)},
        lambda d: table(d["trials"], f"choose {d['k']}: {d['why']}"),
    )


@command.command()
@click.argument("before", metavar="FILE or ID")
@click.argument("after", metavar="FILE or ID")
@common_options
def compare(ctx: Context, before: str, after: str) -> None:
    """How much one map differs from another: items that stay, pairs that stay together, mutual information."""
    from stream_dmgin.groups import stability
    from stream_dmgin.groups.shelf import find

    a, b = (find(ctx.settings.data_dir, name) for name in (before, after))
    ctx.emit({"before": a.id, "after": b.id, **stability.compare(a, b).as_dict()})


@command.command()
@click.argument("name", metavar="FILE or ID")
@click.option("--levels", type=click.IntRange(1), required=True, help="how many levels of codes to keep")
@click.option("--out", metavar="FILE", help="where to save the map [default: groups/ID.parquet in the data directory]")
@common_options
def cut(ctx: Context, name: str, levels: int, out: str | None) -> None:
    """A coarser map from a hierarchical one (`build --method residual`): the groups of its first levels."""
    from stream_dmgin.groups.shelf import find, keep

    found = find(ctx.settings.data_dir, name).cut(levels)
    path = keep(ctx.settings.data_dir, found, out)
    ctx.emit({"id": found.id, "file": str(path), "items": len(found), "groups": len(found.sizes())})


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
