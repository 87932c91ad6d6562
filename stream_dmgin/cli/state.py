"""`state users / show / stats / verify`: what is known of users, on a stopped or a running worker's store. The verbs for stores
as wholes are in `cli/state_stores.py`."""

from __future__ import annotations

import time
from typing import Any

import click

from stream_dmgin.cli.common import Context, common_options, moment, table
from stream_dmgin.cli.state_erase import erase
from stream_dmgin.cli.state_forget import forget
from stream_dmgin.cli.state_rescale import rescale
from stream_dmgin.cli.state_stores import compact, diff, rebuild, restore, snapshot, snapshots
from stream_dmgin.errors import UsageError

DIFFERENT = 1  # exit code: a check found a difference


@click.group()
def command() -> None:
    """What is known of users: look at it, and check that it is the fold of the log. A worker may be running."""


for verb in (erase, forget, rescale, snapshot, snapshots, restore, rebuild, compact, diff):
    command.add_command(verb)


@command.command()
@click.argument("user")
@click.option("--limit", type=click.IntRange(0), help="groups to show, newest first [default: all; 20 as text]")
@common_options
def show(ctx: Context, user: str, limit: int | None) -> Any:
    """Everything known of one user as last committed, and the offsets up to which the log is in it."""
    from stream_dmgin.state.ops.inspect import show_user
    from stream_dmgin.state.ops.stores import Stores

    stores = Stores.of(ctx.settings.data_dir)
    found = show_user(stores, user, limit if ctx.json else None)
    if found is None:
        p = stores.partition_of(user)
        why = "no event of it has been folded yet" if p in stores.present() else f"partition {p} has no store here"
        error = {"error": f"user {user!r} is unknown: {why}", "user_id": user, "partition": p}
        ctx.emit(error, lambda d: d["error"])
        return DIFFERENT
    ctx.emit(found, lambda d: _user(d, 20 if limit is None else limit))
    return 0


@command.command()
@click.option("--limit", type=click.IntRange(0), default=100, show_default=True, help="users to list; 0: all")
@click.option("--partition", type=click.IntRange(0), help="only of this partition")
@common_options
def users(ctx: Context, limit: int, partition: int | None) -> None:
    """User ids, partition by partition."""
    from stream_dmgin.state.ops.inspect import list_users
    from stream_dmgin.state.ops.stores import Stores

    stores = Stores.of(ctx.settings.data_dir)
    if partition is not None and partition >= stores.partitions:
        raise UsageError(f"--partition {partition}: there are {stores.partitions}, counted from 0")
    data = list_users(stores, limit or None, partition)
    ctx.emit(data, _users)


@command.command()
@click.option(
    "--sample", type=click.IntRange(1), default=2000, show_default=True, help="users of a partition looked into"
)
@common_options
def stats(ctx: Context, sample: int) -> None:
    """Users, groups, spill, sizes on disk, offsets, the hottest users, what RocksDB says of its levels; and of running workers
    write stalls, compactions and memory."""
    from stream_dmgin.errors import UnavailableError
    from stream_dmgin.state.ops.inspect import statistics
    from stream_dmgin.state.ops.stores import Stores
    from stream_dmgin.worker.admin import ask, workers

    found = statistics(Stores.of(ctx.settings.data_dir), sample)
    running: dict[str, Any] = {}
    for path in workers(ctx.settings.data_dir):
        try:
            running |= ask(path, "stats", timeout=30.0)
        except (UnavailableError, OSError) as e:  # it hangs, or has just ended: what lies on disk is told all the same
            ctx.say(str(e))
    for p in found["partitions"]:
        p["running"] = running.get(str(p["partition"]))
    ctx.emit(found, _stats)


@command.command()
@click.option(
    "--users", type=click.IntRange(1), metavar="N", help="check about N users [default: all up to 100,000, else 20,000]"
)
@click.option("--all", "everyone", is_flag=True, help="check all users, however many")
@click.option("--seed", type=int, default=0, show_default=True, help="which users are in a sample")
@common_options
def verify(ctx: Context, users: int | None, everyone: bool, seed: int) -> Any:
    """Fold the log again up to exactly the stores' offsets and compare, bit for bit.

    Exit 0: equal; 1: a difference, or the log no longer holds what was folded; 3: the log can't be reached.
    """
    from stream_dmgin.state.ops.stores import Stores
    from stream_dmgin.state.ops.verify import verify as check

    if users and everyone:
        raise UsageError("give --users or --all, not both")
    stores = Stores.of(ctx.settings.data_dir)
    t0 = time.monotonic()
    with ctx.open_log() as log, ctx.progress() as bar:

        def told(partition: int, records: int) -> Any:
            task = bar.add_task(f"partition {partition}", total=records)
            return lambda n: bar.advance(task, n)

        report = check(stores, log, users=users, everyone=everyone, seed=seed, told=told)
    ctx.emit({**report.as_dict(), "seconds": round(time.monotonic() - t0, 3)}, _verified)
    return 0 if report.ok else DIFFERENT


def _user(d: dict[str, Any], limit: int) -> Any:
    from rich.console import Group

    head = (
        f"user {d['user_id']}, partition {d['partition']}: {d['events']:,} clicks and post-click events, "
        f"{d['impressions']:,} impressions, {len(d['groups']):,} groups\n"
        f"folded up to {', '.join(f'{t} {o:,}' for t, o in d['offsets'].items()) or 'nothing'}\n"
    )
    rows = [
        {
            "group": str(g["group"]),
            "counts": ", ".join(f"{t} {n:,}" for t, n in sorted(g["counts"].items(), key=lambda x: -x[1])),
            "dwell s": round(g["dwell_ms"]["sum"] / 1000, 1),
            "value": float(g["value_sum"]),
            "first": moment(g["first_ts"]),
            "last": moment(g["last_ts"]),
            "newest": ", ".join(f"{e['type']} {e['item_id']}" for e in g["recent"][:3]),
        }
        for g in d["groups"][:limit]
    ]
    more = len(d["groups"]) - len(rows)
    return Group(head, table(rows), *([f"and {more:,} older groups (--limit)"] if more else []))


def _users(d: dict[str, Any]) -> Any:
    more = d["total"] - len(d["users"])
    lines = [f"{u['user_id']}  (partition {u['partition']})" for u in d["users"]]
    return "\n".join([*lines, f"and {more:,} more (--limit 0 lists all)" if more else f"{d['total']:,} users"])


def _stats(d: dict[str, Any]) -> Any:
    from rich.console import Group

    rows = [
        {"partition": str(p["partition"]), "users": p["users"], "MB": round(p["bytes"] / 1e6, 2), "SST files": p["sst_files"],
         "offsets": ", ".join(f"{t} {o:,}" for t, o in p["offsets"].items())}
        for p in d["partitions"]
    ]  # fmt: skip
    for row, p in zip(rows, d["partitions"], strict=True):
        now = p["running"] or {}
        row["stall"] = "stopped" if now.get("write_stopped") else "slowed" if now.get("delayed_write_rate") else ""
        row["cached"] = f"{now['users_cached']:,} users, {now['memory_bytes'] / 1e6:.0f} MB" if now else "no worker"
    hottest = [table(d[k], k.replace("_", " ")) for k in ("hottest_by_events", "hottest_by_groups") if d[k]]
    rest = {k: v for k, v in d.items() if k not in ("partitions", "hottest_by_events", "hottest_by_groups")}
    return Group(table(rows), "", *hottest, "\n".join(f"{k}: {v}" for k, v in rest.items()))


def _verified(d: dict[str, Any]) -> str:
    checked = f"{d['checked']:,} of {d['users']:,} users" if d["sampled"] else f"all {d['checked']:,} users"
    lines = [f"checked {checked}, {d['events']:,} events folded again in {d['seconds']:.1f} s: "]
    found = {k: d[k] for k in ("differing", "missing", "extra", "undecided") if d[k]}
    lines[0] += "no difference" if d["ok"] and not found else ", ".join(f"{n:,} {k}" for k, n in found.items())
    for x in d["differences"]:
        lines.append(f"  {x['what']}: {x['user_id']} (partition {x['partition']})")
        lines += [f"    {f}" for f in x["fields"]]
    if d["malformed"]:
        lines.append(f"{d['malformed']:,} records are no events (see `dead-letters list`)")
    if d["erasing"]:
        lines.append(f"{d['erasing']:,} users are not compared: their erasure is ordered, but not in the store yet")
    if d["misplaced"]:
        lines.append(
            f"{d['misplaced']:,} users lie in another partition than murmur2 of their id says: a producer uses another "
            "partitioner (librdkafka needs partitioner=murmur2_random), and their state is split"
        )
    return "\n".join(lines)
