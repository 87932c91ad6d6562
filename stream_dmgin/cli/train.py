"""`train`: a released model from a log in the normalised form."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from stream_dmgin.cli.common import Context, common_options


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="a log as `data import` or `simulate --to-dir` writes it",
)
@click.option("--train-days", metavar="A-B", required=True, help="days to learn from; earlier days only warm the state")
@click.option("--valid-days", metavar="C-D", required=True, help="days to choose and calibrate on")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="models/NAME",
    help="the model's folder; NAME names it",
)
@click.option(
    "--groups", type=click.Path(path_type=Path), help="CSV item_id,group [default: the log's own, else its categories]"
)
@click.option(
    "--blocks",
    metavar="A,B",
    help="optional blocks of inputs: session, surface, engagement, or none [default: the log's recipe]",
)
@click.option("--epochs", type=click.IntRange(1), help="passes over the rows [default: the log's recipe]")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="learning rate [default: the log's recipe]")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option(
    "--rows",
    "rows_dir",
    type=click.Path(path_type=Path),
    help="folder that keeps the replayed rows; used again if there",
)
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="file written after each epoch; gone on from if there"
)
@common_options
def command(
    ctx: Context, data: Path, train_days: str, valid_days: str, out: Path, groups: Path | None, epochs: int | None,
    lr: float | None, seed: int, blocks: str | None, rows_dir: Path | None, checkpoint: Path | None,
) -> None:  # fmt: skip
    """Replay a log, train a DMGIN on it, calibrate it, and write its folder with a card."""
    from dataclasses import replace

    from stream_dmgin.datasets import form
    from stream_dmgin.datasets.grouping import group_map
    from stream_dmgin.groups.map import GroupMap
    from stream_dmgin.training import recipes, release
    from stream_dmgin.training.evaluate import days
    from stream_dmgin.training.loop import Point
    from stream_dmgin.training.rows import TrainingRows

    log = form.read(data)
    recipe = recipes.of(log.meta)
    if blocks is not None:
        recipe = recipes.with_blocks(recipe, recipes.block_names(blocks))
    options = replace(recipe.options, seed=seed, epochs=epochs or recipe.options.epochs, lr=lr or recipe.options.lr)
    spans = release.Spans(
        days(log.meta, train_days, "--train-days"), days(log.meta, valid_days, "--valid-days"), train_days, valid_days
    )
    mapped = GroupMap.load(groups) if groups else group_map(log)
    with ctx.progress() as progress:
        if rows_dir is not None and (rows_dir / "rows.json").is_file():
            rows = TrainingRows.load(rows_dir, recipe.spec)
        else:
            replayed = progress.add_task("replay", total=None)
            rows = release.rows_for(
                log,
                mapped,
                recipe.config,
                spans,
                lambda done, total: progress.update(replayed, completed=done, total=total),
            )
            if rows_dir is not None:
                rows.save(rows_dir)
        fitting = progress.add_task("train", total=options.epochs)

        def report(point: Point) -> None:
            progress.update(fitting, completed=point.epoch)
            ctx.say(
                f"epoch {point.epoch:.2f}: loss {point.train_loss:.4f}, valid logloss {point.valid_logloss:.4f}, "
                f"auc {point.valid_auc:.4f}, {point.seconds:.0f} s"
            )

        done = release.release(
            log, mapped, rows, recipe.config, options, spans, out, ["stream-dmgin", *sys.argv[1:]], checkpoint, report
        )
    ctx.emit(done, lambda d: f"{d['model']} in {d['path']}: " + ", ".join(
        f"{h} auc {m['auc']:.4f} logloss {m['logloss']:.4f} ece {m['ece']:.4f}" for h, m in d["valid"].items() if m["rows"]
    ))  # fmt: skip
