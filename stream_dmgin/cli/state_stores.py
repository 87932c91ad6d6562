"""`state snapshot / snapshots / restore / rebuild / compact / diff`: the stores as wholes."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from stream_dmgin.cli.common import Context, common_options, dry_run_option, moment, table, yes_option
from stream_dmgin.errors import InputError, UsageError

DIFFERENT = 1  # exit code: a check found a difference, or a part failed
partition_option = click.option("--partition", type=click.IntRange(0), metavar="P", help="only this one")


@click.command()
@click.option(
    "--to", metavar="URL", help="a directory, or a URL that fsspec knows, as s3://BUCKET/PATH [default: the setting]"
)
@click.option("--keep", type=click.IntRange(1), metavar="N", help="keep the newest N of each partition [default: all]")
@dry_run_option
@common_options
def snapshot(ctx: Context, to: str | None, keep: int | None, dry_run: bool) -> None:
    """Keep a copy of all stores elsewhere: what changed since the last one is uploaded. Workers may run meanwhile."""
    from stream_dmgin.worker.snapshots import snapshot as take

    with ctx.progress() as bar:
        done = take(ctx.settings.data_dir, _location(ctx, to, "--to"), keep, dry_run, _bytes_bar(bar))
    ctx.emit(done, _taken)


@click.command()
@click.option("--from", "from_", metavar="URL", help="where they are kept [default: the setting snapshot.to]")
@common_options
def snapshots(ctx: Context, from_: str | None) -> None:
    """The snapshots that are kept, newest first."""
    from stream_dmgin.state.snapshots.place import Place
    from stream_dmgin.state.snapshots.run import listing

    ctx.emit(listing(Place(_location(ctx, from_, "--from"), "--from")), _listed)


@click.command()
@click.option("--from", "from_", metavar="URL", help="where snapshots are kept [default: the setting snapshot.to]")
@click.option("--id", "id_", metavar="ID", help="this one [default: of each partition the newest good one]")
@partition_option
@dry_run_option
@yes_option
@common_options
def restore(ctx: Context, from_: str | None, id_: str | None, partition: int | None, dry_run: bool, yes: bool) -> Any:
    """Fill the data directory from a snapshot; the next worker folds the rest of the log.

    Stores that are there already are replaced once the new ones are whole. Exit 1: some partitions have no good snapshot; the
    worker folds their whole log.
    """
    from stream_dmgin.state.ops.restore import plan
    from stream_dmgin.state.ops.restore import restore as carry_out
    from stream_dmgin.state.snapshots.place import Place

    place = Place(_location(ctx, from_, "--from"), "--from")
    data_dir = ctx.settings.data_dir
    what = plan(place, data_dir, id_, partition)
    if dry_run:
        ctx.emit({"from": place.url, "dry_run": True, **what.as_dict()}, _restored)
        return 0
    if what.replaced:
        names = ", ".join(p.name for p in what.replaced.values())
        ctx.confirm(f"{data_dir / 'state'} holds stores that will be replaced: {names}. Go on?", yes)
    with ctx.progress() as bar:
        done = carry_out(place, data_dir, what, id_, _bytes_bar(bar))
    ctx.emit({"from": place.url, **done}, _restored)
    return DIFFERENT if done["failed"] else 0


@click.command()
@partition_option
@click.option("--from", "from_", metavar="URL", help="begin from the newest good snapshot there, or `log`: from the first offset "
              "[default: the setting snapshot.to, else log]")  # fmt: skip
@dry_run_option
@yes_option
@common_options
def rebuild(ctx: Context, partition: int | None, from_: str | None, dry_run: bool, yes: bool) -> None:
    """Fold stores again, up to exactly the offsets they have, and put the new ones in their place. Stop the worker first."""
    from stream_dmgin.state.ops.rebuild import rebuild as build
    from stream_dmgin.state.ops.stores import Stores
    from stream_dmgin.state.snapshots.place import Place

    stores = Stores.of(ctx.settings.data_dir)
    wanted = _present(stores.present(), partition)
    url = from_ or ctx.settings["snapshot.to"] or "log"
    place = None if url == "log" else Place(url, "--from")
    if dry_run:
        ctx.emit(
            {"dry_run": True, "from": url, "partitions": wanted, "replaces": [str(stores.path(p)) for p in wanted]}
        )
        return
    ctx.confirm(f"The stores of partitions {wanted} in {stores.directory} will be replaced by new ones. Go on?", yes)
    with ctx.open_log() as log, ctx.progress() as bar:
        done = [build(stores, p, log, place, _records_bar(bar)) for p in wanted]
    ctx.emit({"from": url, "partitions": done}, lambda d: "\n".join(map(_rebuilt, d["partitions"])))


@click.command()
@partition_option
@common_options
def compact(ctx: Context, partition: int | None) -> None:
    """Have RocksDB rewrite the stores without what was deleted or written over; beside a running worker, too."""
    from stream_dmgin.worker.compact import compact_all

    with ctx.progress() as bar:
        tasks: dict[int, Any] = {}

        def told(p: int, done: int, of: int) -> None:
            task = tasks.setdefault(p, bar.add_task(f"partition {p}", total=of)) if p not in tasks else tasks[p]
            bar.update(task, completed=done)

        done = compact_all(ctx.settings.data_dir, partition, told)
    ctx.emit(done, lambda d: f"{d['bytes_before']:,} bytes before, {d['bytes']:,} now, {d['seconds']:.1f} s")


@click.command()
@click.argument("a")
@click.argument("b")
@common_options
def diff(ctx: Context, a: str, b: str) -> Any:
    """Compare two states, each a data directory or a location of snapshots (URL, or URL#ID): users missing in B, extra in B,
    with other bytes; offsets. Exit 1 when there is a difference."""
    from stream_dmgin.state.ops.diff import diff as compare

    with ExitStack() as stack:
        bar = stack.enter_context(ctx.progress())
        left, right = _side(a, stack, bar), _side(b, stack, bar)

        def told(users: int) -> Any:
            task = bar.add_task("users", total=users)
            return lambda n: bar.advance(task, n)

        found = compare(left, right, told)
    ctx.emit({"a": a, "b": b, **found}, _differences)
    return 0 if found["ok"] else DIFFERENT


def _side(name: str, stack: ExitStack, bar: Any) -> Any:
    """The stores of a data directory; of a snapshot, restored into a temporary one."""
    from stream_dmgin.state.ops.places import META
    from stream_dmgin.state.ops.restore import plan, restore
    from stream_dmgin.state.ops.stores import Stores
    from stream_dmgin.state.snapshots.place import Place

    if (Path(name) / "state" / META).exists():
        return Stores.of(Path(name))
    url, _, id_ = name.partition("#")
    temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stream-dmgin-diff-")))
    place = Place(url, "state diff")
    try:
        what = plan(place, temporary, id_ or None)
    except InputError as e:
        raise InputError(f"{name} is neither a data directory with stores nor a location of snapshots: {e}") from None
    done = restore(place, temporary, what, id_ or None, _bytes_bar(bar))
    if done["failed"]:
        raise InputError(f"{name}: partitions {done['failed']} can't be restored: " + "; ".join(done["problems"]))
    return Stores.of(temporary)


def _location(ctx: Context, url: str | None, flag: str) -> str:
    found = url or str(ctx.settings["snapshot.to"])
    if not found:
        raise UsageError(f"give {flag} URL, or set snapshot.to: a directory, or a URL that fsspec knows")
    return found


def _present(present: list[int], partition: int | None) -> list[int]:
    if partition is not None and partition not in present:
        raise UsageError(f"--partition {partition} has no store here: there are {present}")
    return present if partition is None else [partition]


def _bytes_bar(bar: Any) -> Any:
    def told(partition: int, total: int) -> Any:
        task = bar.add_task(f"partition {partition}, kB", total=total // 1000)
        done = 0

        def tell(n: int) -> None:
            nonlocal done
            done += n
            bar.update(task, completed=done // 1000)

        return tell

    return told


def _records_bar(bar: Any) -> Any:
    def told(partition: int, total: int) -> Any:
        task = bar.add_task(f"partition {partition}, records", total=total)
        return lambda n: bar.advance(task, n)

    return told


def _taken(d: dict[str, Any]) -> str:
    deleted = f"; {len(d['deleted'])} older snapshots " if d["deleted"] else ""
    if d.get("dry_run"):
        would = f"{deleted}would be deleted" if deleted else ""
        return f"{len(d['partitions'])} partitions, {d['bytes']:,} bytes, about {d['bytes_uploaded']:,} to upload to {d['to']}{would}"
    was = f"{deleted}deleted" if deleted else ""
    return (
        f"snapshot {d['id']} at {d['to']}: {len(d['partitions'])} partitions, {d['users']:,} users, {d['bytes']:,} bytes, "
        f"{d['bytes_uploaded']:,} uploaded, {d['seconds']:.1f} s{was}"
    )


def _listed(d: dict[str, Any]) -> Any:
    from rich.console import Group

    rows = [
        {"id": s["id"], "taken": moment(s["created_ms"]), "partitions": f"{len(s['partitions'])} of {s['partitions_in_topics']}",
         "users": s["users"], "records": s["records"], "MB": round(s["bytes"] / 1e6, 1), "groups": s["groups"]}
        for s in d["snapshots"]
    ]  # fmt: skip
    body = table(rows) if rows else f"no snapshots at {d['from']}"
    return Group(body, *[f"not usable: {x}" for x in d["damaged"]])


def _restored(d: dict[str, Any]) -> str:
    will = "would be restored" if d.get("dry_run") else "restored"
    lines = [f"partitions {d['partitions']} {will} from {d['from']}: {d['users']:,} users, {d['bytes']:,} bytes"]
    lines += [f"{'would replace' if d.get('dry_run') else 'replaced'}: {p}" for p in d["replaces"]]
    lines += [f"not restored, the worker will fold the whole log: partition {p}" for p in d.get("failed", [])]
    return "\n".join([*lines, *d["problems"]])


def _rebuilt(d: dict[str, Any]) -> str:
    lines = [f"partition {d['partition']}: from {d['from']}, {d['records']:,} records folded"]
    if "users" in d:
        lines[0] += f", {d['users']:,} users ({d['users_before']:,} before), {d['seconds']:.1f} s"
    else:
        lines[0] += f"; what was there is at {d['set_aside']}; {d['next']}"
    return "\n".join([*lines, *d["problems"]])


def _differences(d: dict[str, Any]) -> str:
    lines = [
        f"{d['users_a']:,} users in A, {d['users_b']:,} in B: "
        + (
            "no difference"
            if d["ok"]
            else f"{d['missing']:,} missing, {d['extra']:,} extra, {d['differing']:,} differing"
        )
    ]
    for p, topics in d["offsets"].items():
        lines.append(f"partition {p}: " + ", ".join(f"{t} {x} in A, {y} in B" for t, (x, y) in topics.items()))
    for what, users in d["examples"].items():
        lines += [f"  {what}: {u}" for u in users]
    if d["groups_a"] != d["groups_b"]:
        lines.append(f"group maps differ: {d['groups_a']}, {d['groups_b']}")
    return "\n".join(lines)
