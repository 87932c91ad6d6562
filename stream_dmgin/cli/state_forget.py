"""`state forget`: delete the snapshots that may hold users who were erased."""

from __future__ import annotations

from typing import Any

import click

from stream_dmgin.cli.common import Context, common_options, dry_run_option, yes_option
from stream_dmgin.errors import UsageError

LEFT = 1  # exit code: some can't go yet


@click.command()
@click.option("--from", "from_", metavar="URL", help="where snapshots are kept [default: the setting snapshot.to]")
@dry_run_option
@yes_option
@common_options
def forget(ctx: Context, from_: str | None, dry_run: bool, yes: bool) -> int:
    """Delete the snapshots at a location that may hold rows of erased users, now, where a newer one is free of them.

    Workers do so by themselves at `snapshot.to`, by the time that snapshot.erase_within_days says; this is for other locations, and for
    who can't wait. Exit 1: some are still held, since none is free yet: `state compact`, `state snapshot --to URL`, then this again.
    """
    from stream_dmgin import audit
    from stream_dmgin.control import read_control
    from stream_dmgin.state.snapshots.forget import forget as carry_out
    from stream_dmgin.state.snapshots.place import Place

    url = from_ or str(ctx.settings["snapshot.to"])
    if not url:
        raise UsageError("give --from URL, or set snapshot.to")
    place, prefix = Place(url, "--from"), ctx.settings.prefix
    with ctx.open_log() as log:
        control, _, _ = read_control(log, prefix)
    orders = {p: control.erasures[p].values() for p in place.partitions() if control.erasures.get(p)}
    would = {p: carry_out(place, p, prefix, of, dry_run=True) for p, of in orders.items()}
    n = sum(len(f.deleted) for f in would.values())
    if n and not dry_run:
        ctx.confirm(f"Delete {n} snapshots of single partitions at {url}?", yes)
        would = {p: carry_out(place, p, prefix, of) for p, of in orders.items()}
        ids = {str(p): f.deleted for p, f in would.items() if f.deleted}
        audit.record(ctx.settings.data_dir, "snapshots of erased users deleted", to=url, ids=ids)
    found = {
        what: [{"partition": p, "id": i} for p, f in would.items() for i in getattr(f, what)] for what in ("deleted", "held")
    }  # fmt: skip
    ctx.emit({"from": url, "dry_run": dry_run, **found}, _shown)
    return LEFT if found["held"] else 0


def _shown(d: dict[str, Any]) -> str:
    lines = [
        f"{len(d['deleted'])} snapshots of single partitions {'would be' if d['dry_run'] else 'were'} deleted from {d['from']}"
    ]
    lines += [f"held, none is free of all erased users yet: partition {h['partition']}, {h['id']}" for h in d["held"]]
    if d["held"]:
        lines.append(f"`stream-dmgin state compact`, `stream-dmgin state snapshot --to {d['from']}`, then this again")
    return "\n".join(lines)
