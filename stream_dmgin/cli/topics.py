"""`stream-dmgin topics`: create or check the topics of the contract; topics to Parquet and back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from stream_dmgin.cli.common import Context, common_options, dry_run_option, table
from stream_dmgin.errors import UsageError

config_option = click.option(
    "--config",
    "config",
    multiple=True,
    metavar="TOPIC:KEY=VALUE",
    help="another configuration, e.g. scores:retention.ms=86400000",
)


@click.group()
def command() -> None:
    """The topics of the log: apply, list, check, export, import."""


@command.command()
@click.option(
    "--partitions", type=click.IntRange(1, 10_000), help="of the user-keyed topics [default: as they are, else 8]"
)
@config_option
@dry_run_option
@common_options
def apply(ctx: Context, partitions: int | None, config: tuple[str, ...], dry_run: bool) -> None:
    """Create the contract's topics and bring the configuration of those that exist in line. Again: does nothing."""
    from stream_dmgin.log import manage

    with ctx.open_log() as log:
        plan = manage.plan(log, ctx.settings.prefix, partitions, ctx.settings["partitions"], _config(config))
        if not dry_run:
            manage.apply(log, plan)
    ctx.emit({"dry_run": dry_run, **plan.as_dict()}, _show_plan)


@command.command("list")
@click.option("--all", "everything", is_flag=True, help="also topics without the prefix")
@common_options
def list_(ctx: Context, everything: bool) -> None:
    """Partitions, records, ends and configuration of each topic."""
    from stream_dmgin.log import manage

    with ctx.open_log() as log:
        rows = manage.describe(log, "" if everything else ctx.settings.prefix)
    ctx.emit(
        {"topics": rows},
        lambda d: table(_line(r) for r in d["topics"]) if d["topics"] else "no topics: run `stream-dmgin topics apply`",
    )


@command.command()
@config_option
@common_options
def check(ctx: Context, config: tuple[str, ...]) -> int:
    """Compare with the contract: topics, equal partition numbers, cleanup, retention, limits. Exit code 1 if anything differs."""
    from dataclasses import asdict

    from stream_dmgin.log import manage

    with ctx.open_log() as log:
        found = manage.differences(log, ctx.settings.prefix, _config(config))
    text = "\n".join(map(str, found)) or "all topics are as the contract has them"
    ctx.emit({"ok": not found, "differences": [asdict(d) for d in found]}, lambda d: text)
    return 1 if found else 0


@command.command()
@click.argument("topic")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE", help="Parquet file to write")
@common_options
def export(ctx: Context, topic: str, out: Path) -> None:
    """Write what TOPIC holds now to a Parquet file. TOPIC with or without the prefix: `scores` is `dmgin.scores`."""
    from stream_dmgin.log.parquet_export import export_topic

    with ctx.open_log() as log:
        there = log.topics()
        name = topic if topic in there else ctx.settings.topic(topic)
        if name not in there:
            raise UsageError(f"{log.url} has no topic {name}; it has {', '.join(there) or 'none'}")
        with ctx.progress() as bar:
            task = bar.add_task(name, total=sum(log.ends(name).values()) - sum(log.begins(name).values()))
            done = export_topic(log, name, ctx.settings.prefix, out, lambda n: bar.advance(task, n))
    ctx.emit({"topic": name, "file": str(out), **done})


@command.command("import")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--events/--no-events", default=True, help="write events [default: yes]")
@click.option("--requests/--no-requests", default=True, help="write requests [default: yes]")
@click.option("--items/--no-items", default=True, help="write the catalogue [default: yes]")
@click.option(
    "--from-day", type=int, metavar="N", help="first day of the data, of events and requests [default: all before too]"
)
@click.option("--to-day", type=int, metavar="N", help="last day, included")
@click.option("--request-days", metavar="A-B", help="other days for requests")
@click.option("--limit", type=click.IntRange(0), metavar="N", help="events and requests at most")
@dry_run_option
@common_options
def import_(
    ctx: Context, directory: Path, events: bool, requests: bool, items: bool, from_day: int | None, to_day: int | None,
    request_days: str | None, limit: int | None, dry_run: bool,
) -> None:  # fmt: skip
    """Write a directory of the normalised form (`data import`, `simulate --to-dir`) to the log, in time order.

    Record timestamps are the times at which events became visible, so that a replay of the log decides as live.
    """
    from stream_dmgin.datasets import form
    from stream_dmgin.log.parquet_import import Days, Selection, import_dataset, total

    both = Days(from_day, to_day)
    what = Selection(events, requests, items, both, _days(request_days) if request_days else both, limit)
    data = form.read(directory)
    if dry_run:
        ctx.emit(
            {
                "dry_run": True,
                "dataset": data.meta.dataset,
                "at_most": total(data, what),
                "items": data.items.num_rows if items else 0,
            }
        )
        return
    with ctx.open_log() as log, ctx.progress() as bar:
        task = bar.add_task(data.meta.dataset, total=total(data, what))
        counts = import_dataset(log, data, ctx.settings.prefix, what, lambda n: bar.advance(task, n))
    ctx.emit({"dataset": data.meta.dataset, "written": counts})


def _days(text: str) -> Any:
    from stream_dmgin.log.parquet_import import Days

    found = re.fullmatch(r"(-?\d+)(?:-(\d+))?", text)
    if not found:
        raise UsageError(f"--request-days {text!r} can't be used: give A-B, or one day")
    return Days(int(found[1]), int(found[2] or found[1]))


def _config(given: tuple[str, ...]) -> dict[str, dict[str, str]]:
    out: dict[str, dict[str, str]] = {}
    for text in given:
        found = re.fullmatch(r"([a-z-]+):([a-z.]+)=(.+)", text)
        if not found:
            raise UsageError(
                f"--config {text!r} can't be used: give TOPIC:KEY=VALUE, e.g. scores:retention.ms=86400000"
            )
        out.setdefault(found[1], {})[found[2]] = found[3]
    return out


def _show_plan(d: dict[str, Any]) -> str:
    would = "would be " if d["dry_run"] else ""
    lines = [f"{t['topic']}: {would}created, {t['partitions']} partitions" for t in d["created"]]
    lines += [f"{c['topic']}: {c['key']} {would}changed from {c['found']} to {c['wanted']}" for c in d["changed"]]
    return "\n".join([*lines, f"{len(d['unchanged'])} topics were as they should be"])


def _line(r: dict[str, Any]) -> dict[str, Any]:
    c = r["config"]
    return {
        "topic": r["topic"], "partitions": r["partitions"], "records": r["records"], "cleanup": c.get("cleanup.policy", ""),
        "retention": "for ever" if c.get("retention.ms") == "-1" else f"{int(c.get('retention.ms', 0)) / 86_400_000:g} days",
        "ends": " ".join(map(str, r["ends"])),
    }  # fmt: skip
