"""`model`: the released models at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stream_dmgin.cli.common import Context, common_options, dry_run_option, table, yes_option
from stream_dmgin.errors import StreamDmginError, UsageError


@click.group()
def command() -> None:
    """Released models: a folder each, found in STREAM_DMGIN_MODELS, ./models, DATA_DIR/models and beside the package."""


@command.command("list")
@common_options
def list_(ctx: Context) -> None:
    """All models found, with what they were trained on."""
    from stream_dmgin.models import registry

    found: list[dict[str, Any]] = []
    for folder in registry.list_models(Path(ctx.settings["data_dir"])):
        try:
            found.append(registry.describe(folder, short=True))
        except UsageError as e:
            ctx.say(str(e))
    ctx.emit({"models": found}, lambda d: table(d["models"]) if d["models"] else "no models found")


@command.command()
@click.argument("model")
@common_options
def show(ctx: Context, model: str) -> None:
    """One model: its sizes, heads, training and measures; MODEL is an id, a name or a folder."""
    from stream_dmgin.models import registry

    folder = registry.find_model(model, Path(ctx.settings["data_dir"]))
    ctx.emit(
        registry.describe(folder),
        lambda d: (folder / "card.md").read_text() if (folder / "card.md").is_file() else str(d),
    )


@command.command()
@click.argument("model")
@click.option("--engine", type=click.Choice(["auto", "fused", "eager", "tensorrt"]), default="auto", show_default=True)
@common_options
def check(ctx: Context, model: str, engine: str) -> None:
    """Load a model, hold its engine against the plain network, and time it; exit 1 where something is off."""
    from stream_dmgin.models.registry import load_model
    from stream_dmgin.scoring.check import check as run

    report = run(load_model(model, Path(ctx.settings["data_dir"])), engine)
    ctx.emit(report)
    if not report["ok"]:
        raise StreamDmginError(f"{report['model']} does not hold: {report['reason']}")


@command.command()
@click.argument("model")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder for tower.pt2 and head.pt2")
@common_options
def export(ctx: Context, model: str, out: Path) -> None:
    """Write tower and head as exported programs (torch.export, dynamic shapes), for other runtimes."""
    from stream_dmgin.models.registry import load_model
    from stream_dmgin.scoring.check import export as run

    ctx.emit(run(load_model(model, Path(ctx.settings["data_dir"])), out))


@command.command()
@click.argument("model")
@click.option(
    "--compare",
    "source",
    type=click.Path(path_type=Path),
    help="replay this directory of the normalised form (`log`: the log itself) with the running model and MODEL first, and refuse "
    "MODEL where it is surely worse",
)
@click.option("--days", metavar="A-B", help="of --compare: only requests of these days [default: all]")
@click.option(
    "--against",
    metavar="ID|DIR",
    help="of --compare: the running model [default: what the log says, else worker.model]",
)
@click.option(
    "--groups", "groups_file", type=click.Path(path_type=Path), help="of --compare: group map, CSV or Parquet"
)
@dry_run_option
@yes_option
@common_options
def publish(
    ctx: Context, model: str, source: Path | None, days: str | None, against: str | None, groups_file: Path | None, dry_run: bool,
    yes: bool,
) -> None:  # fmt: skip
    """Make MODEL the one that all workers answer with: a record on the control topic, taken up within a second or two.

    Each worker needs the model at hand (`model list` on its machine); one that lacks it says so and keeps its own.
    """
    from stream_dmgin.models import registry
    from stream_dmgin.worker.publish import publish_model

    model_id = registry.model_id(registry.find_model(model, Path(ctx.settings["data_dir"])))
    compared = _compared(ctx, model, source, days, against, groups_file) if source is not None else {}
    if not dry_run:
        ctx.confirm(f"Let all workers of {ctx.settings.log} answer with {model_id}?", yes)
        publish_model(ctx.settings, model_id)
    ctx.emit({"model": model_id, "published": not dry_run, **compared})


def _compared(
    ctx: Context, model: str, path: Path, days: str | None, against: str | None, groups_file: Path | None
) -> dict[str, Any]:
    """What the replay said, where it lets MODEL through."""
    from stream_dmgin.ab.guard import held_against, refuse_worse
    from stream_dmgin.cli.replay import open_engine, open_groups, open_source
    from stream_dmgin.training.evaluate import days as span
    from stream_dmgin.worker.publish import published_model

    name, running = open_engine(ctx, against or published_model(ctx.settings))
    wanted_name, wanted = open_engine(ctx, model)
    if running is None or wanted is None or name == wanted_name:
        raise UsageError(f"there is nothing to compare {wanted_name} with: the running model is {name}; give --against")
    src = open_source(ctx, None if str(path) == "log" else path)
    r = src.requests
    first, last = r.between(*span(src.meta, days, "--days")) if days else (0, len(r))
    with ctx.progress() as bar:
        task = bar.add_task("replay", total=last - first)
        found = held_against(
            src, open_groups(ctx, groups_file, src), running, wanted, first, last,
            lambda done: bar.update(task, completed=done - first),
        )  # fmt: skip
    refuse_worse(found)
    data = found.to_json()
    return {
        "against": name,
        "rows": found.rows,
        "differences": data["differences"][wanted_name],
        "verdict": found.verdict,
    }


@command.command()
@click.argument("model")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="folder for the model with its new calibration"
)
@click.option(
    "--hours",
    type=click.FloatRange(0, min_open=True),
    default=48.0,
    show_default=True,
    help="how much of the past counts",
)
@click.option(
    "--settle",
    type=click.FloatRange(0),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="scores younger than this don't count: their clicks may be on their way",
)
@click.option("--by", metavar="A,B", help="a shift for each surface, hour, or both [default: none]")
@click.option("--force", is_flag=True, help="write it even where the newest scores say that it is worse")
@dry_run_option
@common_options
def calibrate(
    ctx: Context, model: str, out: Path, hours: float, settle: float, by: str | None, force: bool, dry_run: bool
) -> None:
    """Calibrate MODEL again by its own scores on the log and the clicks that came after; exit 1 where that is worse.

    The newest fifth of the scores judges. `model publish` makes the result live.
    """
    from stream_dmgin.models.registry import load_model
    from stream_dmgin.replay import recalibrate as run

    kinds = tuple(k.strip() for k in by.split(",")) if by else ()
    if not set(kinds) <= set(run.KINDS):
        raise UsageError(f"--by {by!r} can't be used: name {' or '.join(run.KINDS)}, or both with a comma")
    loaded = load_model(model, Path(ctx.settings["data_dir"]))
    with ctx.open_log() as log:
        rows = run.settled(log, ctx.settings.prefix, loaded, hours, settle)
    found = run.recalibrate(rows, loaded.calibration, kinds)
    refused = found.worse and not force
    written = not (refused or dry_run)
    ident = run.write_recalibrated(loaded, found.calibration, out) if written else None
    ctx.emit(
        {
            "from": loaded.id, "model": ident, "path": str(out) if written else None, "rows": found.rows, "judged": found.judged,
            "before": found.before, "after": found.after, "logloss": found.logloss._asdict(), "worse": found.worse,
        }
    )  # fmt: skip
    if refused:
        raise StreamDmginError(
            f"nothing was written: on the newest {found.judged} rows logloss would rise by {found.logloss.diff:.5f} "
            f"[{found.logloss.low:.5f}, {found.logloss.high:.5f}]. Keep {loaded.id}, or give --force"
        )
