"""`evaluate`: train, replay and measure on a public log, by the quality protocol."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from stream_dmgin.cli.common import Context, common_options, table
from stream_dmgin.errors import UsageError


@click.command()
@click.argument("dataset", type=click.Choice(["kuairand", "ebnerd", "mind"]))
@click.option(
    "--data", "directory", type=click.Path(path_type=Path), required=True, help="directory of the log's files"
)
@click.option(
    "--model",
    type=click.Choice(["dmgin", "no-interest", "item-ctr"]),
    default="dmgin",
    show_default=True,
    help="what to measure",
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
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="how many models to train")
@click.option(
    "--groups",
    "groups_file",
    type=click.Path(path_type=Path),
    help="group map (CSV or Parquet) [default: one group a category]",
)
@click.option("--scores-out", type=click.Path(path_type=Path), help="Parquet: one line a scored row and seed")
@common_options
def command(
    ctx: Context, dataset: str, directory: Path, model: str, train_days: str | None, valid_days: str | None, test_days: str | None,
    refit_days: int, seeds: int, groups_file: Path | None, scores_out: Path | None,
) -> None:  # fmt: skip
    """Train on some days of DATASET, choose on others, measure on the last; the state goes on through all of them.

    An event counts for a request only if it was visible strictly earlier. MIND has no days: leave them out there.
    """
    from stream_dmgin.datasets import load
    from stream_dmgin.groups.map import GroupMap
    from stream_dmgin.training import evaluate as protocol

    started = time.monotonic()
    data = load(dataset, directory)
    if data.meta.splits and not (train_days or valid_days or test_days):
        train, valid, test = ((data.meta.splits[k][0], data.meta.splits[k][1]) for k in ("train", "valid", "test"))
    elif train_days and valid_days and test_days:
        given = (("--train-days", train_days), ("--valid-days", valid_days), ("--test-days", test_days))
        train, valid, test = (protocol.days(data.meta, text, option) for option, text in given)
    else:
        raise UsageError(f"{dataset} needs --train-days, --valid-days and --test-days")
    plan = protocol.Plan(train, valid, test, refit_days, data.meta.day_ms)
    groups = GroupMap.load(groups_file) if groups_file else None
    imported = time.monotonic()
    marks = {"replayed": imported}
    with ctx.progress() as bar:
        task = bar.add_task("replay", total=None)

        def progress(done: int, total: int) -> None:
            marks["replayed"] = time.monotonic()
            bar.update(task, completed=done, total=total)

        source, scored = protocol.evaluate(data, plan, model, seeds, groups, say=ctx.say, progress=progress)
    result: dict[str, Any] = {
        "dataset": dataset, "model": model, "track": f"refit every {refit_days} days" if refit_days else "frozen", "seeds": len(scored.raw),
        "rows": len(scored.row), "clicks": int(scored.label.sum()), "metrics": protocol.measure(source, scored),
        "seconds": {"import": imported - started, "replay": marks["replayed"] - imported, "total": time.monotonic() - started},
    }  # fmt: skip
    if scores_out is not None:
        protocol.write_scores(source, scored, scores_out)
        result["scores"] = str(scores_out)
    ctx.emit(
        result,
        lambda d: table(
            [{"scores": k, **d["metrics"][k]} for k in ("raw", "calibrated")], f"{dataset}, {len(scored.row)} rows"
        ),
    )
