"""`state erase`: forget one user, everywhere and for good, but for what the log itself still holds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from stream_dmgin.cli.common import Context, common_options, dry_run_option, moment, yes_option
from stream_dmgin.errors import InputError

if TYPE_CHECKING:
    from stream_dmgin.control import Erasure
    from stream_dmgin.log.base import Log
    from stream_dmgin.settings import Settings
    from stream_dmgin.state.ops.stores import Stores

POLL_S = 0.2


@click.command()
@click.argument("user")
@click.option(
    "--wait", type=click.FloatRange(0), default=60.0, show_default=True, metavar="S",
    help="seconds to wait until the store in this data directory has it",
)  # fmt: skip
@dry_run_option
@yes_option
@common_options
def erase(ctx: Context, user: str, wait: float, dry_run: bool, yes: bool) -> None:
    """Erase USER: state and caches of every worker, and what any rebuild, restored snapshot or replay would bring back.

    An order goes to dmgin.control, with a digest of the id and the offsets at which the topics end now: every worker that owns
    the user's partition takes the user out of its store, and records below these offsets are never folded again. Later
    events begin a new life. The log itself keeps its records until retention or its operator removes them (docs/erase.md).
    """
    from stream_dmgin import audit, control, topics
    from stream_dmgin.log.murmur2 import partition_of
    from stream_dmgin.state.ops import erase as ops

    settings = ctx.settings
    stores = _stores(ctx)
    found = ops.here(stores, user) if stores is not None else {}
    with ctx.open_log() as log:
        there = log.topics()
        name = settings.topic(topics.CLICKS)
        for t in (name, settings.topic(topics.CONTROL)):
            if t not in there:
                raise InputError(f"{log.url} has no topic {t}: check --log and --prefix")
        home = partition_of(user.encode(), there[name].partitions)
        orders = [ops.order(log, settings.prefix, user, p) for p in sorted({home, *found})]
        data: dict[str, Any] = {
            "user_id": user,
            "digest": orders[0].digest,
            "dry_run": dry_run,
            "ordered": not dry_run,
            "snapshots": _snapshots(settings, orders[0].at),
            "partitions": [],
        }
        if not dry_run:
            ctx.confirm(f"Erase what is known of {user!r}, {_said(found)}? It can't be brought back.", yes)
            control.give(log, settings.prefix, {e.key: control.encode(e) for e in orders})
        for e in orders:
            gone = found.get(e.partition, ops.Gone())
            line = {"partition": e.partition, "offsets": e.offsets, **ops.as_dict(gone)}
            if not dry_run:
                audit.record(
                    settings.data_dir,
                    "erase ordered",
                    digest=e.digest,
                    snapshots_free_by=data["snapshots"]["free_by"],
                    **line,
                )
                line["erased_here"] = _carry_out(stores, log, e, user, wait)
            data["partitions"].append(line)
    ctx.emit(data, lambda d: _shown(d, found))


def _stores(ctx: Context) -> Stores | None:
    """The stores of the data directory, if there are any: the order needs none."""
    from stream_dmgin.state.ops.stores import Stores

    try:
        return Stores.of(ctx.settings.data_dir)
    except InputError:
        return None


def _carry_out(stores: Stores | None, log: Log, e: Erasure, user: str, wait: float) -> bool | None:
    """Do it on a store that no worker holds, else wait for its worker; whether it is done. None: no store of it is here."""
    from stream_dmgin import audit
    from stream_dmgin.state.ops import erase as ops

    if stores is None or e.partition not in stores.present():
        return None
    until = time.monotonic() + wait
    while True:
        if ops.is_done(stores, e):
            return True
        gone = ops.erase_stopped(stores, log, e, user)
        if gone is not None:
            audit.record(
                stores.directory.parent,
                "erased",
                digest=e.digest,
                partition=e.partition,
                offsets=e.offsets,
                **ops.as_dict(gone),
            )
            return True
        if time.monotonic() > until:
            return False
        time.sleep(POLL_S)


def _snapshots(settings: Settings, at: int) -> dict[str, Any]:
    """Where workers keep snapshots, and the time (ms UTC) by which none there holds the user any more; None without any place."""
    to = str(settings["snapshot.to"])
    by = at + int(settings["snapshot.erase_within_days"] * 86_400_000)
    return {"to": to or None, "free_by": by if to and settings["snapshot.every_s"] else None}


def _snapshots_said(d: dict[str, Any], dry_run: bool) -> str:
    if d["free_by"] is None:
        return "no worker with these settings takes snapshots: those taken by hand go by `state forget --from URL` (docs/erase.md)"
    return f"snapshots at {d['to']} {'would be' if dry_run else 'are'} free of it by {moment(d['free_by'])} (snapshot.erase_within_days)"


def _said(found: dict[int, Any]) -> str:
    if not found:
        return "of whom this data directory holds nothing"
    n = sum(g.events + g.impressions for g in found.values())
    return f"{n:,} events in {sum(g.groups for g in found.values()):,} groups, {sum(g.rows for g in found.values()):,} rows of the store"


def _shown(d: dict[str, Any], found: dict[int, Any]) -> str:
    if d["dry_run"]:
        return f"would erase {d['user_id']!r} (digest {d['digest']}): {_said(found)}\n{_snapshots_said(d['snapshots'], True)}"
    lines = [f"ordered: {d['user_id']!r} (digest {d['digest']}) is erased, {_said(found)}"]
    for line in d["partitions"]:
        done = {
            True: "the store here has it",
            False: "the worker of the store here has not carried it out yet: look at its log, and at /health/ready",
            None: "no store of it is here: the worker that owns it carries it out",
        }
        lines.append(f"partition {line['partition']}: {done[line['erased_here']]}")
    return "\n".join([*lines, _snapshots_said(d["snapshots"], False)])
