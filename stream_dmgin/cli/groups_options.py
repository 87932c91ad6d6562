"""Options that the verbs of `groups` share, and what they become."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stream_dmgin.cli.common import Context, F
from stream_dmgin.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import Progress

    from stream_dmgin.groups.build import Clustering
    from stream_dmgin.groups.space import Space


def _all(*options: F) -> F:
    def mark(f: F) -> F:
        for option in reversed(options):
            f = option(f)
        return f

    return mark


making_options = _all(
    click.option(
        "--items", type=click.Path(path_type=Path),
        help="Parquet with item_id and text_embedding, image_embedding, ... or one embedding, or with words; or a log's directory",
    ),
    click.option(
        "--encoder", type=click.Choice(["none", "minilm", "lsa"]), default="none", show_default=True,
        help="for words: minilm (extra `text`), or lsa (no extra)",
    ),
    click.option(
        "--events", type=click.Path(path_type=Path),
        help="clicks, for pairs of items clicked together: a log's directory, or Parquet of `topics export`",
    ),
    click.option("--until", metavar="MS|ISO", help="leave out events from then on (what is to be measured must not teach)"),
    click.option("--session-minutes", type=click.IntRange(1), default=30, show_default=True, help="a longer pause ends a session"),
    click.option("--window", type=click.IntRange(1), default=5, show_default=True, help="clicks ahead that make a pair"),
    click.option(
        "--towers", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True,
        help="train towers; auto: where there are pairs to train on",
    ),
    click.option("--width", type=click.IntRange(2, 4096), default=64, show_default=True, help="numbers of a trained embedding"),
    click.option("--epochs", type=click.IntRange(1), default=20, show_default=True, help="at most; held-out pairs stop it sooner"),
)  # fmt: skip
clustering_options = _all(
    click.option("--method", type=click.Choice(["kmeans", "residual"]), default="kmeans", show_default=True),
    click.option("--levels", metavar="AxB", help="residual: codes of each level, as in 32x16"),
    click.option("--max-load", type=float, default=3.0, show_default=True, help="largest group, in multiples of the mean size"),
    click.option(
        "--library", type=click.Choice(["auto", "faiss", "sklearn"]), default="auto", show_default=True,
        help="what clusters; auto: faiss (extra `groups`) for large problems, where it is installed",
    ),
    click.option("--seed", type=int, default=0, show_default=True),
)  # fmt: skip


def clustering(rest: dict[str, Any], k: str | None, only_new: bool) -> Clustering:
    """The clustering that the options ask for. Raises UsageError."""
    from stream_dmgin.groups.build import Clustering
    from stream_dmgin.groups.residual import parse_levels

    method, levels = rest["method"], rest["levels"]
    if (method == "residual") != (levels is not None):
        raise UsageError(
            "--method residual needs --levels, as in 32x16" if levels is None else "--levels is for --method residual"
        )
    if method == "residual" and k not in (None, "auto"):
        raise UsageError("--k is for --method kmeans: --levels says how many groups residual codes make")
    if k is None and method == "kmeans" and not only_new:
        raise UsageError("give --k: a number of groups, or auto")
    if k not in (None, "auto") and not str(k).isdigit():
        raise UsageError(f"--k {k!r} can't be used: give a whole number, or auto")
    return Clustering(
        method, int(k) if k not in (None, "auto") else 0, parse_levels(levels) if levels else (), rest["max_load"], rest["seed"],
        rest["library"], only_new,
    )  # fmt: skip


def space(ctx: Context, rest: dict[str, Any], bar: Progress) -> Space:
    """Read what the options name, and make its vectors, with progress. Raises UsageError, InputError."""
    from stream_dmgin.groups.coclicks import read_clicks
    from stream_dmgin.groups.contrast import Epoch, Options
    from stream_dmgin.groups.items import read_items
    from stream_dmgin.groups.space import Making, make_space

    tasks: dict[str, Any] = {}

    def seen(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total)
        bar.update(tasks[what], completed=done, total=total)

    def said(e: Epoch) -> None:
        found = ", ".join(f"{k} {v:.3f}" for k, v in e.found.items())
        ctx.say(
            f"towers, epoch {e.epoch}: held-out loss {e.held_out_loss:.4f}; partner among the 10 nearest of 500: {found}"
        )

    items = None if rest["items"] is None else read_items(rest["items"])
    clicks = None
    if rest["events"] is not None:
        clicks = read_clicks(rest["events"], _moment(rest["until"]), rest["session_minutes"] * 60_000)
    elif rest["until"] is not None:
        raise UsageError("--until is about --events: give both")
    training = Options(width=rest["width"], epochs=rest["epochs"], seed=rest["seed"])
    return make_space(items, clicks, Making(rest["encoder"], rest["towers"], rest["window"], training), seen, said)


def _moment(text: str | None) -> int | None:
    from datetime import UTC, datetime

    if text is None or text.isdigit():
        return None if text is None else int(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--until {text!r} is no time: write milliseconds, or 2026-11-22T08:00:00 (UTC)") from None
    return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
