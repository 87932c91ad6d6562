"""`train`: a released model from a log in the normalised form."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import click

from stream_dmgin.cli.common import Context, common_options
from stream_dmgin.cli.measuring_options import jobs_option


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
    help="optional blocks of inputs: those of docs/features.md, or none [default: the log's recipe]",
)
@click.option(
    "--recipe", metavar="NAME|FILE", help="sizes and rates, a TOML file [default: models/recipes/, by the log's name]"
)
@click.option(
    "--model",
    "wanted",
    metavar="dmgin|trees|stack|NAME,NAME",
    default="dmgin",
    show_default=True,
    help="the network; boosted trees (or lightgbm); the recipe's stack.members as one, or these (trees: extra `trees`)",
)
@click.option(
    "--from", "parent", metavar="ID|DIR",
    help="begin with the weights of a released model, whose sizes and inputs are taken; --epochs and --lr are then the recipe's of [refit]",
)  # fmt: skip
@click.option("--epochs", type=click.IntRange(1), help="passes over the rows [default: the log's recipe]")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="learning rate [default: the log's recipe]")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option(
    "--rows",
    "rows_dir",
    type=click.Path(path_type=Path),
    help="folder that keeps the replayed rows, which then never lie in memory; used again if there",
)
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="file written as training goes; gone on from if there"
)
@click.option(
    "--checkpoint-steps", type=click.IntRange(1), default=200, show_default=True, help="steps between two checkpoints"
)
@jobs_option
@common_options
def command(
    ctx: Context, data: Path, train_days: str, valid_days: str, out: Path, groups: Path | None, recipe: str | None, epochs: int | None,
    lr: float | None, seed: int, blocks: str | None, rows_dir: Path | None, checkpoint: Path | None, checkpoint_steps: int,
    wanted: str, parent: str | None, jobs: int,
) -> None:  # fmt: skip
    """Replay a log, train a model on it, calibrate it, and write its folder with a card.

    A stack is a weighted sum of several models, fitted as `evaluate` fits them, one after another or --jobs at a time: of dmgin,
    no-interest, din, lightgbm, and dmgin-no-MODULE. Its weights are fitted on the valid days.

    By several processes together: torchrun --nproc-per-node 2 -m stream_dmgin.cli.main train ... --rows DIR
    """
    from dataclasses import replace

    from stream_dmgin.datasets import form
    from stream_dmgin.datasets.grouping import group_map
    from stream_dmgin.errors import UsageError
    from stream_dmgin.groups.map import GroupMap
    from stream_dmgin.models.registry import load_model
    from stream_dmgin.training import recipes, release
    from stream_dmgin.training.checkpoint import usable
    from stream_dmgin.training.evaluate import days
    from stream_dmgin.training.options import Point
    from stream_dmgin.training.parallel import joined
    from stream_dmgin.training.parent import begun_with

    if checkpoint is not None:
        usable(checkpoint)
        if checkpoint.is_file():
            ctx.say(f"goes on from {checkpoint}")
    log = form.read(data)
    chosen = recipes.read(recipes.find(recipe), log.meta) if recipe else recipes.of(log.meta)
    architecture, members = release.made_of(wanted, chosen)
    chosen = recipes.with_stack(chosen, members)
    if blocks is not None:
        chosen = recipes.with_blocks(chosen, recipes.block_names(blocks))
    options, begun = chosen.options, None
    if parent is not None:
        if architecture == "trees":
            raise UsageError("--from is for networks; trees are grown anew: leave it out, or use `stream-dmgin refit`")
        begun = load_model(parent, ctx.settings.data_dir)
        asked = chosen.config if recipe or blocks is not None else None
        config = begun_with(begun, chosen.config.heads, chosen.config.spec.item_numbers, asked)
        config = replace(config, spec=replace(config.spec, flat=chosen.spec.flat))
        chosen = replace(chosen, config=config)
        options = replace(options, epochs=chosen.refit.epochs, lr=chosen.refit.lr)
    options = replace(options, seed=seed, epochs=epochs or options.epochs, lr=lr or options.lr)
    spans = release.Spans(
        days(log.meta, train_days, "--train-days"), days(log.meta, valid_days, "--valid-days"), train_days, valid_days
    )
    mapped = GroupMap.load(groups) if groups else group_map(log)
    with joined() as ranks, ctx.progress() as progress:
        if ranks.world > 1 and rows_dir is None:
            raise UsageError("several processes share the replayed rows in a folder: give --rows DIR")
        replayed = progress.add_task("replay", total=None)
        rows = release.rows_for(
            log, mapped, chosen.config, spans, lambda done, total: progress.update(replayed, completed=done, total=total), rows_dir,
            ranks,
        )  # fmt: skip
        fitting = progress.add_task("train", total=None)

        def report(name: str, point: Point) -> None:
            if ranks.first:
                loss = "" if math.isnan(point.train_loss) else f"loss {point.train_loss:.4f}, "  # trees tell none
                ctx.say(
                    f"{name}: epoch {point.epoch:.2f}: {loss}valid logloss {point.valid_logloss:.4f}, "
                    f"auc {point.valid_auc:.4f}, {point.seconds:.0f} s"
                )

        done = release.release(
            log, mapped, rows, chosen.config, options, spans, out, ["stream-dmgin", *sys.argv[1:]], checkpoint, report, ranks,
            checkpoint_steps, lambda step, steps: progress.update(fitting, completed=step, total=steps), architecture, chosen.trees, begun,
            members, jobs, lambda ready, of: progress.update(fitting, completed=ready, total=of),
        )  # fmt: skip
    if ranks.first:
        ctx.emit(done, lambda d: f"{d['model']} in {d['path']}: " + ", ".join(
            f"{h} auc {m['auc']:.4f} logloss {m['logloss']:.4f} ece {m['ece']:.4f}" for h, m in d["valid"].items() if m["rows"]
        ))  # fmt: skip
