"""`evaluate`: train, replay and measure on a public log, by the quality protocol."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Any

import click

from stream_dmgin.cli.common import Context, common_options, table
from stream_dmgin.cli.measuring_options import embed_option, measuring_options
from stream_dmgin.datasets import MEASURED
from stream_dmgin.errors import UsageError


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
    "--model",
    metavar="NAME,...",
    help="what to measure, several with commas; all: trees, stack and every peer; peers; ablations. Of several: the differences too"
    " [default: what the log's recipe holds for the best]",
)
@click.option("--train-days", metavar="A-B", help="days to train on, counted from 0")
@click.option("--valid-days", metavar="C-D", help="days to choose and calibrate on")
@click.option("--test-days", metavar="E-F", help="days to measure on")
@click.option(
    "--refit-days",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="fit anew every so many test days; 0: never",
)
@measuring_options
@click.option(
    "--groups",
    "groups_file",
    type=click.Path(path_type=Path),
    help="group map (CSV or Parquet) [default: one group a category]",
)
@click.option(
    "--blocks",
    metavar="A,B",
    help="optional blocks of inputs: those of docs/features.md, or none [default: the log's recipe]",
)
@embed_option
@click.option(
    "--rows",
    "rows_dir",
    type=click.Path(path_type=Path),
    help="folder that keeps the replayed rows; used again if there",
)
@click.option(
    "--report",
    "report_dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="folder for report.md (tables), report.json and reliability.svg",
)
@click.option(
    "--scores-out", type=click.Path(dir_okay=False, path_type=Path), help="Parquet: one line a scored row and seed"
)
@common_options
def command(
    ctx: Context, dataset: str, directory: Path, model: str | None, train_days: str | None, valid_days: str | None, test_days: str | None,
    refit_days: int, seeds: int, first_seed: int, jobs: int, groups_file: Path | None, blocks: str | None, embed: str | None,
    rows_dir: Path | None, keep_dir: Path | None, report_dir: Path | None, scores_out: Path | None,
) -> None:  # fmt: skip
    """Train on some days of DATASET, choose on others, measure on the last; the state goes on through all of them.

    An event counts for a request only if it was visible strictly earlier. MIND has no days: leave them out there. With `own`, --data
    is a log in the normalised form, as `data import` and `simulate --to-dir` write it.
    """
    from stream_dmgin.datasets import load
    from stream_dmgin.groups.map import GroupMap
    from stream_dmgin.training import evaluate as protocol
    from stream_dmgin.training import measure as measuring
    from stream_dmgin.training import recipes
    from stream_dmgin.training.content import as_asked
    from stream_dmgin.training.report import by_segment, write_report
    from stream_dmgin.training.zoo import named

    if model is not None:
        named(model)  # what is not known is said before anything is read
    chosen = None if blocks is None else recipes.block_names(blocks)
    started = time.monotonic()
    data = load(dataset, directory)
    best = recipes.best(data.meta)
    model = model or best.model
    models = named(model)
    if data.meta.splits and not (train_days or valid_days or test_days):
        train, valid, test = ((data.meta.splits[k][0], data.meta.splits[k][1]) for k in ("train", "valid", "test"))
    elif train_days and valid_days and test_days:
        given = (("--train-days", train_days), ("--valid-days", valid_days), ("--test-days", test_days))
        train, valid, test = (protocol.days(data.meta, text, option) for option, text in given)
    else:
        raise UsageError(f"{dataset} needs --train-days, --valid-days and --test-days")
    plan = protocol.Plan(train, valid, test, refit_days, data.meta.day_ms)
    groups = GroupMap.load(groups_file) if groups_file else None
    recipe = recipes.of(data.meta)
    spec = (recipe if chosen is None else recipes.with_blocks(recipe, chosen)).spec
    data = as_asked(data, embed, best.embed, spec, train[0], keep_dir, ctx.say)
    imported = time.monotonic()
    marks = {"replayed": imported}
    with ctx.progress() as bar:
        task = bar.add_task("replay", total=None)
        fitting = bar.add_task("fit", total=None, visible=False)

        def progress(done: int, total: int) -> None:
            marks["replayed"] = time.monotonic()
            bar.update(task, completed=done, total=total)

        def fitted(done: int, total: int) -> None:
            bar.update(fitting, completed=done, total=total, visible=True)

        source, scored = protocol.evaluate_all(
            data, plan, models, seeds, groups, say=ctx.say, progress=progress, blocks=chosen, rows_dir=rows_dir,
            keep=keep_dir, first_seed=first_seed, jobs=jobs, fitted=fitted,
        )  # fmt: skip
    measured = {m: measuring.measure(source, found) for m, found in scored.items()}
    some = scored[models[-1]]
    result: dict[str, Any] = {
        "dataset": data.meta.dataset, "model": model,
        "track": f"refit every {refit_days} days" if refit_days else "frozen", "seeds": len(some.raw),
        "rows": len(some.row), "clicks": int(some.label.sum()),
        "seconds": {"import": imported - started, "replay": marks["replayed"] - imported, "total": time.monotonic() - started},
    }  # fmt: skip
    segments = {m: _segments(found, by_segment) for m, found in scored.items() if found.codes}
    if len(models) > 1:
        result["models"] = {
            m: {
                "seeds": len(scored[m].raw), "seconds": _mean(scored[m].seconds), "metrics": measured[m],
                "segments": segments.get(m, []),
            }
            for m in models
        }  # fmt: skip
        result["differences"] = [
            {"model": d.model, "than": d.than, "scores": d.scores, **{k: i._asdict() for k, i in d.metrics.items()}}
            for d in measuring.differences(source, scored)
        ]
    else:
        result["metrics"], result["segments"] = measured[models[0]], segments.get(models[0], [])
    if scores_out is not None:
        measuring.write_scores(source, scored if len(models) > 1 else some, scores_out)
        result["scores"] = str(scores_out)
    if report_dir is not None:
        shown = {m: next(iter((found.online or found.calibrated).values())) for m, found in scored.items()}
        one = {"seeds": len(some.raw), **result, "seconds": _mean(some.seconds)}
        whole = result if len(models) > 1 else {**result, "models": {models[0]: one}}
        line = shlex.join(["stream-dmgin", *sys.argv[1:]])
        result["report"] = write_report(report_dir, whole, some.label, shown, line)
    ctx.emit(result, lambda d: _tables(d, f"{data.meta.dataset}, {len(some.row)} rows"))


def _mean(seconds: dict[int, float]) -> float | None:
    return sum(seconds.values()) / len(seconds) if seconds else None


def _segments(found: Any, by_segment: Any) -> Any:
    scores = {"calibrated": [*found.calibrated.values()]}
    if found.online:
        scores["online"] = [*found.online.values()]
    return by_segment(found.label, found.codes, scores, found.surfaces)


def _tables(d: dict[str, Any], title: str) -> Any:
    from rich.console import Group

    if "models" not in d:
        return table(
            [{"scores": k, **d["metrics"][k]} for k in ("raw", "calibrated", "online") if k in d["metrics"]], title
        )
    each = [
        {"model": m, "scores": k, **x["metrics"][k]}
        for m, x in d["models"].items()
        for k in ("calibrated", "online")
        if k in x["metrics"]
    ]
    against = [
        {"model": x["model"], "than": x["than"], "scores": x["scores"]}
        | {k: f"{i['diff']:+.4f} [{i['low']:+.4f}, {i['high']:+.4f}]" for k, i in x.items() if isinstance(i, dict)}
        for x in d["differences"]
    ]
    return Group(table(each, title), "", table(against, "differences, 95 % intervals"))
