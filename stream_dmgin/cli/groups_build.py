"""`groups build / sweep / compare / effect / cut`: making maps, and telling how good they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from stream_dmgin.cli.common import Context, common_options, table
from stream_dmgin.cli.groups_options import clustering, clustering_options, making_options
from stream_dmgin.cli.groups_options import space as make_space
from stream_dmgin.cli.measuring_options import embed_option, measuring_options
from stream_dmgin.datasets import MEASURED
from stream_dmgin.errors import UsageError


@click.command()
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


@click.command("sweep")
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


@click.command()
@click.argument("before", metavar="FILE or ID")
@click.argument("after", metavar="FILE or ID")
@common_options
def compare(ctx: Context, before: str, after: str) -> None:
    """How much one map differs from another: items that stay, pairs that stay together, mutual information."""
    from stream_dmgin.groups import stability
    from stream_dmgin.groups.shelf import find

    a, b = (find(ctx.settings.data_dir, name) for name in (before, after))
    ctx.emit({"before": a.id, "after": b.id, **stability.compare(a, b).as_dict()})


@click.command()
@click.argument("dataset", type=click.Choice(MEASURED))
@click.option(
    "--data",
    "directory",
    type=click.Path(path_type=Path),
    required=True,
    help="directory of the log's files (own: of the normalised form)",
)
@click.option(
    "--map", "names", metavar="MAP", multiple=True, help="file or id of a map, or own (the log's); give two or more"
)
@click.option("--model", default="dmgin", show_default=True, help="a model of `evaluate`")
@measuring_options
@embed_option
@click.option("--train-days", metavar="A-B", help="days to train on, counted from 0")
@click.option("--valid-days", metavar="C-D", help="days to choose and calibrate on")
@click.option("--test-days", metavar="E-F", help="days to measure on")
@common_options
def effect(
    ctx: Context, dataset: str, directory: Path, names: tuple[str, ...], model: str, seeds: int, first_seed: int, keep_dir: Path | None,
    jobs: int, embed: str | None, train_days: str | None, valid_days: str | None, test_days: str | None,
) -> None:  # fmt: skip
    """What maps do to a model's AUC: it is trained and measured under each, and the differences have paired intervals.

    The protocol is that of `evaluate`. Maps made of clicks must be made of the train days' (`build --until`).
    """
    from rich.console import Group as Together

    from stream_dmgin.datasets import load
    from stream_dmgin.groups.shelf import find
    from stream_dmgin.training import evaluate as protocol
    from stream_dmgin.training import recipes
    from stream_dmgin.training.content import as_asked
    from stream_dmgin.training.map_effect import OWN, compare_maps

    maps = {n: None if n == OWN else find(ctx.settings.data_dir, n) for n in names}
    data = load(dataset, directory)
    given = {"--train-days": train_days, "--valid-days": valid_days, "--test-days": test_days}
    if all(given.values()):
        spans = [protocol.days(data.meta, str(text), option) for option, text in given.items()]
    elif data.meta.splits and not any(given.values()):
        spans = [(data.meta.splits[k][0], data.meta.splits[k][1]) for k in ("train", "valid", "test")]
    else:
        raise UsageError(f"{dataset} needs --train-days, --valid-days and --test-days")
    plan = protocol.Plan(spans[0], spans[1], spans[2], 0, data.meta.day_ms)
    data = as_asked(
        data, embed, recipes.best(data.meta).embed, recipes.of(data.meta).spec, spans[0][0], keep_dir, ctx.say
    )
    with ctx.progress() as bar:
        tasks: dict[str, Any] = {}

        def shown(what: str) -> Callable[[str, int, int], None]:
            def progress(name: str, done: int, total: int) -> None:
                of = f"{what}, {name}"
                if of not in tasks:
                    tasks[of] = bar.add_task(of, total=total)
                bar.update(tasks[of], completed=done, total=total)

            return progress

        found = compare_maps(
            data,
            plan,
            maps,
            model,
            seeds,
            say=ctx.say,
            progress=shown("replay"),
            keep=keep_dir,
            first_seed=first_seed,
            jobs=jobs,
            fitted=shown("fit"),
        )

    def human(d: dict[str, Any]) -> Any:
        against = [
            {"map": x["map"], "than": x["than"]}
            | {k: f"{i['diff']:+.4f} [{i['low']:+.4f}, {i['high']:+.4f}]" for k, i in x.items() if isinstance(i, dict)}
            for x in d["differences"]
        ]
        each = table(
            ({"map": n, **m} for n, m in d["maps"].items()), f"{data.meta.dataset}, {d['rows']:,} rows, calibrated"
        )
        return Together(each, "", table(against, "differences, 95 % intervals"))

    ctx.emit({"dataset": data.meta.dataset, **found}, human)


@click.command()
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
