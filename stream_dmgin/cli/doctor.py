"""`doctor`: what is wrong, and the fix."""

from __future__ import annotations

from typing import Any

import click

from stream_dmgin.cli.common import Context, common_options


@click.command(name="doctor")
@click.option("--all", "everything", is_flag=True, help="also what is as it should be, as text")
@common_options
def command(ctx: Context, everything: bool) -> int:
    """Look at broker, topics, partitions, retention, partitioner, clock, versions, disk, permissions, stores and the location of snapshots.

    Prints what is wrong and how to mend it; exit 1 when something is. Reads only, but for a small file at
    snapshot.to, to see whether it can be written; also beside a running worker.
    """
    from dataclasses import asdict

    from stream_dmgin.worker.doctor import examine

    found = examine(ctx.settings)
    ok = all(f.ok for f in found)

    def shown(d: dict[str, Any]) -> str:
        lines = []
        for f in found:
            if not f.ok:
                lines += [f"WRONG  {f.check}: {f.found}", f"       fix: {f.fix}"]
            elif everything:
                lines.append(f"ok     {f.check}: {f.found}")
        wrong = sum(not f.ok for f in found)
        return "\n".join([*lines, f"{len(found)} checks, {wrong or 'nothing'} wrong"])

    ctx.emit({"ok": ok, "findings": [asdict(f) for f in found]}, shown)
    return 0 if ok else 1
