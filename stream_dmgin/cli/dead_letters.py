"""`dead-letters list / show / replay / skip`: what could not be processed, why, and back to where it came from."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from stream_dmgin.cli.common import Context, common_options, dry_run_option, table, yes_option
from stream_dmgin.errors import UsageError

if TYPE_CHECKING:
    from stream_dmgin.worker.dead_letters import DeadLetter


@click.group()
def command() -> None:
    """Records that could not be processed: which, why, and sending them back once the cause is mended."""


@command.command("list")
@click.option("--limit", type=click.IntRange(0), default=50, show_default=True, help="the newest so many; 0: all")
@click.option("--topic", metavar="NAME", help="only of this topic, with or without prefix")
@click.option("--reason", metavar="WORD", help="only with this reason (decode, schema, range, ts, id, key, type, ...)")
@common_options
def list_(ctx: Context, limit: int, topic: str | None, reason: str | None) -> None:
    """The newest dead letters, and how many there are by topic and reason."""
    from stream_dmgin.worker.dead_letter_topic import DeadLetters, summary

    counts: dict[tuple[str, str], int] = {}
    newest: deque[DeadLetter] = deque(maxlen=limit or None)
    with ctx.open_log() as log:
        letters = DeadLetters(log, ctx.settings.prefix)
        for letter in letters:
            if _wanted(letter, topic, reason, ctx.settings.prefix):
                key = letter.original.topic, letter.reason
                counts[key] = counts.get(key, 0) + 1
                newest.append(letter)
    data = {
        "topic": letters.topic,
        "total": sum(counts.values()),
        "counts": [{"topic": t, "reason": r, "count": n} for (t, r), n in sorted(counts.items())],
        "letters": [summary(letter) for letter in newest],
    }
    ctx.emit(data, _listed)


@command.command()
@click.argument("offset", type=click.IntRange(0))
@common_options
def show(ctx: Context, offset: int) -> None:
    """One dead letter whole: where it lay, why it was refused, its headers and bytes."""
    from stream_dmgin.worker.dead_letter_topic import DeadLetters, full

    with ctx.open_log() as log:
        letter = DeadLetters(log, ctx.settings.prefix).at(offset)
    ctx.emit(full(letter), lambda d: "\n".join(f"{k}: {_cut(v)}" for k, v in d.items() if k != "key_base64"))


@command.command()
@click.argument("offsets", type=click.IntRange(0), nargs=-1)
@click.option("--all", "everything", is_flag=True, help="all letters that are kept")
@click.option("--topic", metavar="NAME", help="only of this topic, with or without prefix")
@click.option("--reason", metavar="WORD", help="only with this reason")
@click.option("--keep-timestamp", is_flag=True, help="send with the original timestamp, not as visible from now on")
@dry_run_option
@yes_option
@common_options
def replay(
    ctx: Context, offsets: tuple[int, ...], everything: bool, topic: str | None, reason: str | None, keep_timestamp: bool,
    dry_run: bool, yes: bool,
) -> None:  # fmt: skip
    """Send originals back to their topics: the same key, value and headers. The letters stay where they are.

    Name letters by OFFSETS, or choose with --topic, --reason or --all. A record that was dead-lettered twice is sent once.
    """
    from stream_dmgin.control import read_control
    from stream_dmgin.worker.dead_letter_topic import DeadLetters, choose, summary

    if offsets and (everything or topic or reason):
        raise UsageError("give OFFSETS, or choose with --topic, --reason or --all, not both")
    if not (offsets or everything or topic or reason):
        raise UsageError("which letters? Give OFFSETS, or --topic, --reason or --all")
    prefix = ctx.settings.prefix
    with ctx.open_log() as log:
        letters = DeadLetters(log, prefix)
        chosen = (
            [letters.at(o) for o in offsets] if offsets else [d for d in letters if _wanted(d, topic, reason, prefix)]
        )
        choice = choose(chosen, prefix, read_control(log, prefix)[0])
        if not dry_run and choice.send:
            ctx.confirm(f"Send {len(choice.send)} records back to their topics?", yes)
            letters.send_back(choice.send, keep_timestamp=keep_timestamp)
    data = {
        "replayed": 0 if dry_run else len(choice.send), "would_replay": len(choice.send), "dry_run": dry_run,
        "left_out": {
            "repeated": choice.repeated, "not_ours": choice.foreign, "without_value": choice.valueless, "user_erased": choice.erased,
        },
        "letters": [summary(letter) for letter in choice.send],
    }  # fmt: skip
    ctx.emit(data, _replayed)


@command.command()
@click.argument("place", metavar="TOPIC/PARTITION/OFFSET")
@click.option("--reason", required=True, metavar="TEXT", help="why; goes into the dead letter and the audit log")
@dry_run_option
@yes_option
@common_options
def skip(ctx: Context, place: str, reason: str, dry_run: bool, yes: bool) -> None:
    """Order all workers not to process one record, on which they fail: it goes to the dead letters as it is.

    Only for a record that the worker names when it stops ("the processing fails on this record"). The order is kept on
    dmgin.control, so that every rebuild skips the record too, and in DATA_DIR/audit.log. TOPIC with or without the prefix.
    """
    from stream_dmgin.worker.skip import order_skip

    with ctx.open_log() as log:
        order, found = order_skip(log, ctx.settings, place, reason)
        if not dry_run:
            ctx.confirm(f"Let all workers divert {place} ({found['bytes']} bytes) unprocessed?", yes)
            order()
    ctx.emit(
        {**found, "reason": reason, "dry_run": dry_run, "ordered": not dry_run},
        lambda d: f"{place}: {'would be' if dry_run else 'is'} skipped ({d['bytes']} bytes, key {d['key']!r})",
    )


def _wanted(letter: DeadLetter, topic: str | None, reason: str | None, prefix: str) -> bool:
    if topic and letter.original.topic not in (topic, prefix + topic):
        return False
    return not reason or letter.reason == reason


def _listed(d: dict[str, Any]) -> Any:
    if not d["total"]:
        return f"{d['topic']} holds no such dead letters"
    from rich.console import Group

    rows = [
        {
            "offset": str(r["offset"]),
            "record": f"{r['topic']}/{r['partition']} offset {r['at']}" if r["topic"] else "not ours",
            "written": _moment(r["timestamp"]),
            "reason": r["reason"],
            "bytes": r["bytes"],
            "message": _cut(r["message"], 80),
        }
        for r in d["letters"]
    ]
    return Group(table(d["counts"], f"{d['total']:,} dead letters"), "", table(rows, f"the newest {len(rows):,}"))


def _replayed(d: dict[str, Any]) -> Any:
    said = f"would replay {d['would_replay']:,}" if d["dry_run"] else f"replayed {d['replayed']:,}"
    left = ", ".join(f"{n:,} {what.replace('_', ' ')}" for what, n in d["left_out"].items() if n)
    return said + (f"; left out: {left}" if left else "")


def _moment(ms: int) -> str:
    """Milliseconds since the epoch for people, UTC."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return str(ms)


def _cut(v: Any, n: int = 2000) -> str:
    s = str(v)
    return s if len(s) <= n else s[:n] + "…"
