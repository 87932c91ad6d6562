"""`refit`: the running model learns from what became visible since, and is released where the newest of it doesn't speak against that."""

from __future__ import annotations

import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stream_dmgin.cli.common import Context, common_options, dry_run_option, moment, yes_option
from stream_dmgin.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import Progress

    from stream_dmgin.datasets.form import Dataset
    from stream_dmgin.groups.map import GroupMap
    from stream_dmgin.models.registry import Model
    from stream_dmgin.replay.source import Source
    from stream_dmgin.training.continual import Split
    from stream_dmgin.training.rows import TrainingRows


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="models/NAME",
    help="the new model's folder; NAME names it",
)
@click.option(
    "--from",
    "parent",
    metavar="ID|DIR",
    help="the model that goes on [default: what the log says is live, else worker.model]",
)
@click.option(
    "--since", metavar="TIME",
    help="what came later is new: YYYY-MM-DD or YYYY-MM-DDTHH:MM, UTC [default: where its training ended]",
)  # fmt: skip
@click.option(
    "--hold",
    type=click.FloatRange(0.02, 0.8),
    default=0.3,
    show_default=True,
    help="newest share of the new, which teaches the weights nothing: its older half calibrates, its newer half judges",
)
@click.option(
    "--settle", type=click.FloatRange(0), default=600.0, show_default=True, metavar="SECONDS",
    help="requests younger than this don't count: their clicks may be on their way",
)  # fmt: skip
@click.option(
    "--older-days", type=click.FloatRange(0), default=28.0, show_default=True,
    help="how far before the new ones older requests are taken from: by lot for the network, all of them for trees",
)  # fmt: skip
@click.option(
    "--groups",
    "groups_file",
    type=click.Path(path_type=Path),
    help="group map [default: worker.groups, else the source's]",
)
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    help="whose [refit] says how a network goes on [default: the one of the log's name]",
)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option(
    "--rows",
    "rows_dir",
    type=click.Path(path_type=Path),
    help="folder for the replayed rows, which then never lie in memory",
)
@click.option("--publish", is_flag=True, help="make it live, where it is released (asks; --yes)")
@dry_run_option
@yes_option
@common_options
def command(
    ctx: Context, source: Path, out: Path, parent: str | None, since: str | None, hold: float, settle: float, older_days: float,
    groups_file: Path | None, recipe: str | None, seed: int, rows_dir: Path | None, publish: bool, dry_run: bool, yes: bool,
) -> None:  # fmt: skip
    """Let the running model learn from SOURCE: a directory of the normalised form, or `log` for the log itself.

    To be run every day or week. Old and new model are replayed over the newest requests; exit 1, and nothing is written, where the new
    one is surely worse.
    """
    from stream_dmgin.cli.replay import open_groups, open_source
    from stream_dmgin.models.registry import load_model
    from stream_dmgin.training import continual, recipes
    from stream_dmgin.training import parent as parents
    from stream_dmgin.training.card import surface_names
    from stream_dmgin.training.heads import rows_as_of
    from stream_dmgin.worker.publish import publish_model, published_model

    if out.exists():
        raise UsageError(f"{out} is there already: each refit is a release of its own. Give another --out")
    model = load_model(parent or published_model(ctx.settings) or ctx.settings["worker.model"], ctx.settings.data_dir)
    src = open_source(ctx, None if str(source) == "log" else source)
    groups = open_groups(ctx, groups_file, src)
    data = _labelled(src, model)
    how = (recipes.read(recipes.find(recipe), src.meta) if recipe else recipes.of(src.meta)).refit
    start = _since(since, parents.learned_until(model), model.id)
    r = src.requests
    at = continual.split(r, start, hold, int(settle * 1000), int(older_days * 86_400_000))
    times = {
        k: moment(int(r.at[i]))
        for k, i in (("since", at.new), ("held_since", at.cut), ("judged_since", at.judge), ("until", at.last - 1))
    }
    plan: dict[str, Any] = {
        "from": model.id, "groups": groups.id, **times,
        "requests": {
            "older": at.new - at.first, "new": at.cut - at.new, "calibrate": at.judge - at.cut, "judge": at.last - at.judge,
        },
    }  # fmt: skip
    if dry_run:
        ctx.emit({**plan, "model": None, "released": False, "published": False, "dry_run": True})
        return
    if publish and not yes:
        ctx.confirm(f"If it is released, let all workers of {ctx.settings.log} answer with it?", yes)
    started = time.monotonic()
    half = out.with_name(f".{out.name}.part")
    shutil.rmtree(half, ignore_errors=True)
    try:
        with ctx.progress() as bar:
            rows = _rows(bar, src, groups, model, at, rows_dir)
            r0 = int(r.first[at.first])
            rows = rows_as_of(rows, data, r0, int(r.at[at.cut]), parents.options_of(model))
            fitting = bar.add_task("learn", total=None)
            made = continual.continued(
                model, rows, at, how, seed, lambda n, of: bar.update(fitting, completed=n, total=of)
            )
            made_by = ["stream-dmgin", *sys.argv[1:]]
            ident = continual.write(
                half,
                out.name,
                made,
                model,
                rows,
                at,
                src.meta,
                groups.id,
                how,
                seed,
                time.monotonic() - started,
                made_by,
                surface_names(rows, r.surface[at.first : at.last]),
            )
            compared = _compared(bar, ctx, model.directory, half, src, groups, at)
        half.replace(out)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    if publish:
        publish_model(ctx.settings, ident)
    ctx.emit(
        {**plan, "model": ident, "path": str(out), "released": True, "published": publish, "dry_run": False, **compared}
    )


def _labelled(src: Source, model: Model) -> Dataset:
    """The labels of the source in the normalised form. InputError where they aren't those the model's network learns."""
    from stream_dmgin.replay.logsource import LogSource
    from stream_dmgin.replay.outcomes import label_heads
    from stream_dmgin.replay.source import DatasetSource
    from stream_dmgin.training.parent import begun_with

    if isinstance(src, DatasetSource):
        if model.architecture != "trees":
            begun_with(model, src.meta.heads, src.meta.item_numbers)
        return src.data
    assert isinstance(src, LogSource)
    return label_heads(src, model.heads)


def _rows(bar: Progress, src: Source, groups: GroupMap, model: Model, at: Split, folder: Path | None) -> TrainingRows:
    from stream_dmgin.replay.rows import training_rows

    task = bar.add_task("replay", total=at.last - at.first)
    seen = lambda done: bar.update(task, completed=done - at.first)  # noqa: E731
    return training_rows(src, groups, model.config.spec, at.first, at.last, seen, folder)


def _compared(
    bar: Progress, ctx: Context, running: Path, wanted: Path, src: Source, groups: GroupMap, at: Split
) -> dict[str, Any]:
    """What the newest requests say, where they let the new model through."""
    from stream_dmgin.ab.guard import held_against, refuse_worse
    from stream_dmgin.cli.replay import open_engine

    (_, old), (name, new) = open_engine(ctx, str(running)), open_engine(ctx, str(wanted))
    assert old is not None and new is not None
    task = bar.add_task("compare", total=at.last - at.judge)
    found = held_against(
        src, groups, old, new, at.judge, at.last, lambda done: bar.update(task, completed=done - at.judge)
    )
    refuse_worse(found)
    data = found.to_json()
    return {
        "rows": found.rows,
        "metrics": data["metrics"],
        "differences": data["differences"][name],
        "verdict": found.verdict,
    }


def _since(text: str | None, known: int | None, model: str) -> int:
    """Time (ms) of `--since`, else that up to which the model has learned."""
    if text is None:
        if known is None:
            raise UsageError(f"{model} doesn't say up to when it has learned: give --since")
        return known
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--since {text!r} can't be used: write YYYY-MM-DD or YYYY-MM-DDTHH:MM, in UTC") from None
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)
