"""`replay`: events through the live path's own code, offline; and `--verify`: can scores be reproduced from the log?"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stream_dmgin.cli.common import Context, common_options
from stream_dmgin.errors import UsageError

if TYPE_CHECKING:
    from stream_dmgin.groups.map import GroupMap
    from stream_dmgin.replay.source import Source
    from stream_dmgin.scoring.engine import Engine


@click.command()
@click.argument("source", type=click.Path(path_type=Path), required=False)
@click.option("--out", type=click.Path(path_type=Path), help="directory for scores.parquet and metrics.json")
@click.option("--model", metavar="ID|DIR", help="model to score with, or item-ctr [default: the setting worker.model]")
@click.option("--groups", "groups_file", type=click.Path(path_type=Path), help="group map, CSV or Parquet")
@click.option(
    "--verify", type=int, metavar="N", help="check N scores of the log instead: rebuild what they came from and compare"
)
@click.option(
    "--scored", is_flag=True, help="measure the scores that the log holds by its clicks; nothing is scored again"
)
@click.option("--seed", type=int, default=0, show_default=True, help="which scores --verify draws")
@common_options
def command(
    ctx: Context,
    source: Path | None,
    out: Path | None,
    model: str | None,
    groups_file: Path | None,
    verify: int | None,
    scored: bool,
    seed: int,
) -> int:
    """Score every request of SOURCE, a directory of the normalised form, or of the log where there is no SOURCE.

    An event counts for a request only if it became visible strictly earlier.
    """
    if verify is not None:
        return _verify(ctx, verify, groups_file, seed)
    if scored:
        from stream_dmgin.replay.scored import measure_log

        with ctx.open_log() as log:
            ctx.emit(measure_log(log, ctx.settings.prefix))
        return 0
    if out is None:
        raise UsageError("replay needs --out DIR for scores.parquet and metrics.json (or --verify N, or --scored)")
    import numpy as np
    import pyarrow.parquet as pq

    from stream_dmgin.replay.score import score, table
    from stream_dmgin.training.metrics import summary

    started = time.monotonic()
    src = open_source(ctx, source)
    groups = open_groups(ctx, groups_file, src)
    name, engine = open_engine(ctx, model)
    r = src.requests
    with ctx.progress() as bar:
        task = bar.add_task("replay", total=len(r))
        found = score(src, groups, {name: engine}, progress=lambda done: bar.update(task, completed=done))
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(r, found), out / "scores.parquet")
    known = r.label >= 0
    result: dict[str, Any] = {
        "model": name, "groups": groups.id, "events": src.count, "requests": len(r), "rows": len(r.item), "labelled": int(known.sum()),
        "seconds": round(time.monotonic() - started, 3),
    }  # fmt: skip
    if known.any():
        unit = r.request_of_rows() if src.meta.gauc == "impression" else np.array(r.user, object)[r.request_of_rows()]
        result["metrics"] = summary(r.label[known], found[0].ctr[known], unit[known])
    (out / "metrics.json").write_text(json.dumps(result, indent=1) + "\n")
    ctx.emit({**result, "scores": str(out / "scores.parquet")})
    return 0


def open_source(ctx: Context, path: Path | None) -> Source:
    """A directory of the normalised form, or the log of the settings where no path is given."""
    from stream_dmgin.datasets import form
    from stream_dmgin.replay.logsource import LogSource
    from stream_dmgin.replay.source import DatasetSource

    if path is not None:
        return DatasetSource(form.read(path))
    with ctx.open_log() as log:
        return LogSource(log, ctx.settings.prefix)


def open_groups(ctx: Context, path: Path | None, source: Source) -> GroupMap:
    """The group map that was asked for; else that of the settings; else the source's own."""
    from stream_dmgin.datasets.grouping import group_map
    from stream_dmgin.groups.map import GroupMap
    from stream_dmgin.replay.source import DatasetSource

    chosen = path or ctx.settings["worker.groups"]
    if chosen:
        return GroupMap.load(chosen)
    return group_map(source.data) if isinstance(source, DatasetSource) else GroupMap.empty()


def open_engine(ctx: Context, model: str | None) -> tuple[str, Engine | None]:
    """(id, engine) of a model; the floor has no engine."""
    from stream_dmgin.models.registry import load_model
    from stream_dmgin.replay.score import FLOOR
    from stream_dmgin.scoring.engine import choose_engine

    model = model or ctx.settings["worker.model"]
    if model == FLOOR:
        return FLOOR, None
    loaded = load_model(model, ctx.settings.data_dir)
    return loaded.id, choose_engine(loaded)[0]


def _verify(ctx: Context, n: int, groups_file: Path | None, seed: int) -> int:
    from stream_dmgin.groups.map import GroupMap
    from stream_dmgin.replay.verify import verify

    chosen = groups_file or ctx.settings["worker.groups"]
    groups = GroupMap.load(chosen) if chosen else None
    with ctx.open_log() as log:
        outcome = verify(log, ctx.settings.prefix, n, groups, ctx.settings.data_dir, seed)
    ctx.emit(outcome.to_json())
    return 1 if outcome.unexplained else 0
