"""`state restore`: the stores of a data directory from a snapshot. What is there stays until the new stores are whole; then they
take its place, one rename each."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stream_dmgin.errors import InputError, StoreBusy, StreamDmginError
from stream_dmgin.state.ops.places import META, META_FORMAT, Maps, store_path, write_json
from stream_dmgin.state.ops.stores import Stores
from stream_dmgin.state.snapshots.manifest import Manifest
from stream_dmgin.state.snapshots.place import Place
from stream_dmgin.state.snapshots.restore import candidates, fetch_groups, restore_partition, restoring_path
from stream_dmgin.state.snapshots.run import ToldPartition, silent
from stream_dmgin.state.store import holds_a_store, open_store


@dataclass
class Plan:
    """What a restore would do. `chosen`: the snapshots tried first; an older one takes over where one isn't good."""

    chosen: list[Manifest]
    model: Manifest  # the newest: the others must be of the same topics
    problems: list[str] = field(default_factory=list)
    replaced: dict[int, Path] = field(default_factory=dict)  # stores that would go, by partition
    whole: bool = True  # all partitions, not one

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "partitions": [m.partition for m in self.chosen], "bytes": sum(m.size for m in self.chosen),
            "users": sum(m.users for m in self.chosen), "groups": self.model.groups.id,
            "offsets": {str(m.partition): m.offsets for m in self.chosen},
            "ids": {str(m.partition): m.id for m in self.chosen},
            "replaces": [str(p) for p in self.replaced.values()], "problems": self.problems,
        }  # fmt: skip


def plan(place: Place, data_dir: Path, id_: str | None = None, partition: int | None = None) -> Plan:
    """Choose. Raises InputError where there is nothing to restore, or it doesn't belong to what is there already."""
    directory = Path(data_dir) / "state"
    wanted = place.partitions() if partition is None else [partition]
    found: dict[int, list[Manifest]] = {}
    problems: list[str] = []
    for p in wanted:
        if id_ is not None and id_ not in place.ids(p):
            continue
        found[p], more = candidates(place, p, id_)
        problems += more
    every = [m for ms in found.values() for m in ms]
    if not every:
        what = f"snapshot {id_}" if id_ else "good snapshot"
        of = "" if partition is None else f" of partition {partition}"
        raise InputError("\n".join([f"{place.url} holds no {what}{of}: see `state snapshots`", *problems]))
    model = max(every, key=lambda m: m.created_ms)
    if partition is not None and (directory / META).exists():
        stores = Stores.of(data_dir)
        if (stores.partitions, stores.prefix) != (model.partitions, model.prefix):
            raise InputError(
                f"the stores in {directory} are of {stores.partitions} partitions of {stores.prefix}*, the snapshot is of "
                f"{model.partitions} of {model.prefix}*: restore into another --data-dir"
            )
    chosen = [next((m for m in ms if _same(m, model)), None) for ms in found.values()]
    numbers = range(model.partitions) if partition is None else [partition]
    there = {p: store_path(directory, p) for p in numbers if holds_a_store(store_path(directory, p))}
    return Plan([m for m in chosen if m is not None], model, problems, there, partition is None)


def restore(
    place: Place, data_dir: Path, what: Plan, id_: str | None = None, told: ToldPartition = silent
) -> dict[str, Any]:
    """Carry out a plan; what `state restore -o json` prints: `partitions` has those that were filled. Raises StoreBusy before
    anything is changed when a worker has one of the stores open."""
    directory = Path(data_dir) / "state"
    directory.mkdir(parents=True, exist_ok=True)
    for p, path in what.replaced.items():
        _check_free(path, p)
    done: dict[int, Manifest] = {}
    problems = list(what.problems)
    for p in [m.partition for m in what.chosen]:
        ready = directory / f"restored-p{p:05d}"
        if ready.exists():  # of an earlier run that didn't end: its files are used where they are the right ones
            shutil.rmtree(restoring_path(directory, p), ignore_errors=True)
            ready.rename(restoring_path(directory, p))
        got = restore_partition(
            place, p, directory, id_=id_, target=ready, told=lambda total, p=p: told(p, total),  # type: ignore[misc]
            fits=lambda m: "" if _same(m, what.model) else "it is of other topics than the newest one",
        )  # fmt: skip
        problems += [x for x in got.problems if x not in problems]
        if got.manifest is not None:
            done[p] = got.manifest
    if done:
        newest = max(done.values(), key=lambda m: m.created_ms)
        if what.whole or not (directory / META).exists():
            groups = fetch_groups(place, newest, directory)
            Maps(directory).keep(groups)
            meta = {
                "format": META_FORMAT,
                "partitions": newest.partitions,
                "prefix": newest.prefix,
                "groups": groups.id,
            }
            write_json(
                directory / META, {**meta, "groups_file": Maps(directory).file(groups.id).name, "unmarked": groups.id}
            )
        for p in sorted(done):
            swap_in(directory / f"restored-p{p:05d}", store_path(directory, p))
        for p, path in what.replaced.items():  # of the old state: not to be mixed with the new one
            if p not in done and what.whole:
                shutil.rmtree(path)
    return {
        **what.as_dict(), "partitions": sorted(done), "bytes": sum(m.size for m in done.values()),
        "users": sum(m.users for m in done.values()), "offsets": {str(p): m.offsets for p, m in sorted(done.items())},
        "ids": {str(p): m.id for p, m in sorted(done.items())}, "problems": problems,
        "failed": sorted({m.partition for m in what.chosen} - done.keys()),
    }  # fmt: skip


def swap_in(ready: Path, target: Path) -> None:
    """Give a whole store the name of another, which is deleted. A crash in between leaves no store, or the new one."""
    old = target.parent / f"replaced-{target.name}"
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    ready.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _same(m: Manifest, other: Manifest) -> bool:
    return (m.prefix, m.partitions) == (other.prefix, other.partitions)


def _check_free(path: Path, partition: int) -> None:
    """Raises StoreBusy when a worker has the store open; a store that can't be opened for another reason may go."""
    try:
        open_store(path, partition, read_only=False).close()
    except StoreBusy:
        raise
    except StreamDmginError:
        return
