"""`lifelong`: gap to the truth by length of life, in the simulated city."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from stream_dmgin.cli.common import Context, common_options, table
from stream_dmgin.cli.measuring_options import measuring_options


@click.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="directory for lifelong.md, lifelong.json and lifelong.svg, and for the city",
)
@click.option(
    "--model",
    metavar="NAME,...",
    default="dmgin,no-interest,din,sim,eta,sdim,twin,twin-v2,mirrn,hstu",
    show_default=True,
    help="as `evaluate` knows them; differences are to the first",
)
@click.option(
    "--lives", metavar="LIFExUSERS,...", default="100x2000,1000x400,10000x60,100000x10", show_default=True,
    help="events of a life, and how many users have such",
)  # fmt: skip
@click.option("--items", type=click.IntRange(50, 200_000), default=1000, show_default=True, help="shops of the city")
@click.option("--seed", type=click.IntRange(0), default=7, show_default=True, help="who the users are and what they do")
@measuring_options
@click.option("--epochs", type=click.IntRange(1), help="[default: the city's recipe]")
@click.option("--requests", type=click.IntRange(1), default=400, show_default=True, help="requests of a user at most")
@click.option(
    "--no-pair-counters",
    is_flag=True,
    help="hide the counters of user x candidate, which know the whole life by themselves",
)
@common_options
def command(
    ctx: Context, out: Path, model: str, lives: str, items: int, seed: int, seeds: int, first_seed: int, jobs: int, epochs: int | None,
    requests: int, no_pair_counters: bool, keep_dir: Path | None,
) -> None:  # fmt: skip
    """Simulate users with short and long lives, train models on all of them, and measure each length by itself.

    The measure is the expected logloss less that of the true probabilities, which only the simulator knows. A star marks a
    difference to the first model whose 95 % interval (over users) excludes zero.
    """
    from dataclasses import replace

    from stream_dmgin.ab.plots import lines
    from stream_dmgin.datasets.form import Meta
    from stream_dmgin.training import lifelong, recipes
    from stream_dmgin.training.zoo import named

    trial = lifelong.Trial(lifelong.strata(lives), items, requests=requests, seed=seed, pairs=not no_pair_counters)
    options = recipes.of(Meta(lifelong.RECIPE, 0)).options
    out.mkdir(parents=True, exist_ok=True)
    with ctx.progress() as bar:
        task = bar.add_task("replay", total=None)
        fitting = bar.add_task("fit", total=None, visible=False)
        found, seconds = lifelong.measure(
            trial, named(model), out, seeds, replace(options, epochs=epochs or options.epochs), say=ctx.say,
            progress=lambda done, total: bar.update(task, completed=done, total=total), keep=keep_dir,
            first_seed=first_seed, jobs=jobs, fitted=lambda done, total: bar.update(fitting, completed=done, total=total, visible=True),
        )  # fmt: skip
    result: dict[str, Any] = {
        "seeds": seeds, "pair_counters": trial.pairs, "lives": [[*s] for s in trial.strata],
        "gaps": [{**g._asdict(), "than_first": g.than_first._asdict()} for g in found],
        "seconds": seconds, "plot": str(out / "lifelong.svg"), "report": str(out / "lifelong.md"),
    }  # fmt: skip
    curves: dict[str, list[tuple[float, float]]] = {}
    for g in found:
        curves.setdefault(g.model, []).append((g.life, g.gap))
    (out / "lifelong.svg").write_text(lines(curves, "events of a life", "logloss less the oracle's, nats"))
    line = shlex.join(["stream-dmgin", *sys.argv[1:]])
    (out / "lifelong.md").write_text(lifelong.markdown(found, seconds, line))
    (out / "lifelong.json").write_text(json.dumps(result, indent=1) + "\n")
    ctx.emit(result, lambda d: table(lifelong.by_life(found), f"gap to the oracle, nats; {d['plot']}"))
