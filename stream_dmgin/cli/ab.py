"""`ab`: several models over one replay, compared row by row."""

from __future__ import annotations

from pathlib import Path

import click

from stream_dmgin.cli.common import Context, common_options
from stream_dmgin.errors import UsageError


@click.command()
@click.argument("source", type=click.Path(path_type=Path), required=False)
@click.option("--champion", required=True, metavar="ID|DIR", help="the model in service; item-ctr is the floor")
@click.option(
    "--challenger",
    "challengers",
    multiple=True,
    required=True,
    metavar="ID|DIR",
    help="the model to compare; may be given again",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="directory for report.html, report.json and scores.parquet",
)
@click.option("--groups", "groups_file", type=click.Path(path_type=Path), help="group map, CSV or Parquet")
@click.option(
    "--days", metavar="A-B", help="only requests of these days, counted from the source's first [default: all]"
)
@click.option(
    "--draws", type=click.IntRange(50), default=500, show_default=True, help="resamples of users for the intervals"
)
@common_options
def command(
    ctx: Context, source: Path | None, champion: str, challengers: tuple[str, ...], out: Path, groups_file: Path | None,
    days: str | None, draws: int,
) -> None:  # fmt: skip
    """Replay SOURCE (a directory of the normalised form; the log where there is none) once for all models, and compare them.

    Intervals are paired bootstraps over users: a difference is claimed only where the whole interval lies on one side of zero.
    """
    import numpy as np
    import pyarrow.parquet as pq

    from stream_dmgin.ab import report
    from stream_dmgin.ab.compare import compare
    from stream_dmgin.cli.replay import open_engine, open_groups, open_source
    from stream_dmgin.replay.score import score, table
    from stream_dmgin.training.evaluate import days as span

    engines = dict(open_engine(ctx, m) for m in (champion, *challengers))
    if len(engines) != 1 + len(challengers):
        raise UsageError("the champion and the challengers must be different models")
    src = open_source(ctx, source)
    r = src.requests
    first, last = r.between(*span(src.meta, days, "--days")) if days else (0, len(r))
    with ctx.progress() as bar:
        task = bar.add_task("replay", total=last - first)
        scored = score(
            src,
            open_groups(ctx, groups_file, src),
            engines,
            first,
            last,
            lambda done: bar.update(task, completed=done - first),
        )
    rows = slice(int(r.first[first]), int(r.first[last]))
    label, known = r.label[rows], r.label[rows] >= 0
    users = np.unique(np.array(r.user, object), return_inverse=True)[1][r.request_of_rows()[rows]]
    found = compare(label[known], users[known], {s.model: s.ctr[known] for s in scored}, next(iter(engines)), draws)
    report.write(found, out)
    pq.write_table(table(r, scored, first, last), out / "scores.parquet")
    data = found.to_json()
    kept = {k: data[k] for k in ("champion", "challengers", "rows", "users", "metrics", "differences", "verdict")}
    ctx.emit({**kept, "report": str(out / "report.html")}, lambda d: f"{d['verdict']}\n{d['report']}")
