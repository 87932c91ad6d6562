"""Another number of partitions: events copied to topics of another prefix, state folded from them into stores of another data
directory, and compared with the old ones user by user. Offline for the state, control path; nothing of the old is touched.

The log decides: the new stores are what any worker would make of the new topics. Every step can be repeated and goes on
where it stopped. docs/rescale.md has the whole way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from stream_dmgin import settings as _settings
from stream_dmgin import topics
from stream_dmgin.control import read_control
from stream_dmgin.errors import StreamDmginError, UsageError
from stream_dmgin.groups import wire
from stream_dmgin.log import manage
from stream_dmgin.log.base import Log, Record, open_log
from stream_dmgin.log.scan import scan
from stream_dmgin.settings import Settings
from stream_dmgin.state.hash import hash64
from stream_dmgin.state.ops.copying import Copied, Told, copy_events, ends_of, records_of
from stream_dmgin.state.ops.refold import Refold
from stream_dmgin.state.ops.stores import Stores
from stream_dmgin.worker.run import worker

CHUNK = 10_000  # users compared before the engines' memory is given back
SHOWN = 20
MASK = (1 << 64) - 1


@dataclass
class Side:
    """One side of the comparison."""

    users: int = 0
    checksum: int = 0  # sum of the hashes of user id and canonical state, modulo 2^64: independent of where users lie

    def add(self, user: str, canonical: bytes) -> None:
        """One user."""
        self.users += 1
        self.checksum = (self.checksum + hash64(user.encode() + b"\0" + canonical)) & MASK


@dataclass
class Compared:
    """The old stores against the new ones. `undecided`: an event id twice with more than a ring between; which copy counted
    depends on how the topics interleaved. `misplaced`: users whose events lay in another partition than their key says, or in
    several; the copy has put them right, so that their state is another one."""

    before: Side = field(default_factory=Side)
    after: Side = field(default_factory=Side)
    differing: int = 0
    missing: int = 0
    extra: int = 0
    undecided: int = 0
    misplaced: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Every user has the same state, but for those that can't."""
        return not (self.differing or self.missing or self.extra)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        d = asdict(self)
        for side in ("before", "after"):
            d[side]["checksum"] = f"{d[side]['checksum']:016x}"
        return d


def target_of(settings: Settings, to_prefix: str, to_data_dir: Path, stores: Stores) -> Settings:
    """Settings of the new side: its prefix, its directory, the group map of the old stores, a group of its own for the fold."""
    if to_prefix == settings.prefix or Path(to_data_dir).resolve() == settings.data_dir.resolve():
        raise UsageError(
            "--to-prefix and --to-data-dir must differ from --prefix and --data-dir: nothing old is touched"
        )
    stores.maps.load(stores.groups_id)  # InputError where it is missing
    changed = {
        "log": settings.log, "prefix": to_prefix, "data_dir": str(to_data_dir), "worker.group": settings["worker.group"] + ".rescale",
        "worker.groups": str(stores.maps.file(stores.groups_id)) if stores.groups_id != "none" else "",
    }  # fmt: skip
    values = {**settings.values, **changed}
    return _settings.Settings(values, settings.origin, settings.kafka, settings.kafka_origin)


def copy(settings: Settings, target: Settings, partitions: int, started: Callable[[int], Told]) -> tuple[Copied, int]:
    """Make the new topics and copy events, catalogue and control records. Returns what was copied of the events, and how many
    items and control records. Raises LogUnavailable, UsageError, InputError."""
    with open_log(settings.log, settings.kafka) as log:
        manage.apply(log, manage.plan(log, target.prefix, partitions))
        control, _, _ = read_control(log, settings.prefix)
        done = copy_events(log, settings.prefix, target.prefix, control, started(records_of(log, settings.prefix)))
        others = _copy_compacted(log, settings.prefix, target.prefix, topics.ITEMS)
        others += _copy_compacted(log, settings.prefix, target.prefix, topics.CONTROL)
    return done, others


def _copy_compacted(log: Log, prefix: str, to_prefix: str, topic: str) -> int:
    """The newest record of each key, where the target has another. Erasures and skips concern places in the old topics: what
    they name was not copied."""
    now, there = _newest(log, prefix + topic), _newest(log, to_prefix + topic)
    writer = log.writer()
    n = 0
    for key, record in now.items():
        if topic == topics.CONTROL and key != b"model" and not key.startswith(wire.KEY.encode()):
            continue
        if key not in there or there[key].value != record.value:
            writer.append(
                to_prefix + topic, key, record.value, timestamp=record.timestamp, headers=record.headers, partition=0
            )
            n += 1
    writer.close()
    return n


def _newest(log: Log, topic: str) -> dict[bytes, Record]:
    begins, ends = log.begins(topic), log.ends(topic)
    out: dict[bytes, Record] = {}
    for batch, inside in scan(log, {(topic, p): (begins[p], ends[p]) for p in ends}):
        for i in range(len(batch)):
            if inside[i] and (key := batch.key(i)) is not None:
                out[key] = batch.record(i)
    return {k: r for k, r in out.items() if r.value}


def check_folded(stores: Stores, copied: Copied) -> None:
    """Raises StreamDmginError where the old stores are not exactly what was copied: nothing could be compared."""
    if missing := sorted(set(range(stores.partitions)) - set(stores.present())):
        raise StreamDmginError(
            f"{stores.directory} has no stores of partitions {missing}: give the directory that has all of them"
        )
    ends = ends_of(copied, stores.prefix)
    for p in stores.present():
        engine = stores.open(p)
        offsets = stores.offsets(engine)
        engine.close()
        for t, at in offsets.items():
            if at != ends[t, p]:
                raise StreamDmginError(
                    f"{t}/{p} is folded up to {at}, and copied up to {ends[t, p]}: stop the producers, have "
                    "`worker --until-end` fold the rest into the old stores, and call this again"
                )


def fold(target: Settings, told: Told) -> int:
    """Fold the new topics into the new stores, to their ends; the shared counters are published anew. How many events."""
    with worker(target, score=False) as w:
        w.until_end(threading.Event(), told)
        return w.loop.totals.events


def compare(log: Log, old: Stores, new: Stores, told: Callable[[int], None]) -> Compared:
    """Canonical bytes of every user, before and after; `told` gets users. Raises LogUnavailable."""
    out = Compared()
    misplaced = {u for p in old.present() for u in _users(old, p) if old.partition_of(u) != p}
    out.misplaced = len(misplaced)
    for p in old.present():
        users = (u for u in _users(old, p) if u not in misplaced)
        while chunk := list(islice(users, CHUNK)):
            _compare(log, old, new, p, chunk, out)
            told(len(chunk))
    there = 0
    for q in new.present():
        with closing(new.open(q)) as engine:
            there += engine.count_users()
            there -= sum(bool(engine.canonical(u)) for u in misplaced if new.partition_of(u) == q)
    out.extra = there - out.after.users - out.differing - out.undecided
    return out


def users_of(stores: Stores) -> int:
    """How many users the stores hold."""
    n = 0
    for p in stores.present():
        with closing(stores.open(p)) as engine:
            n += engine.count_users()
    return n


def _users(stores: Stores, p: int) -> Iterator[str]:
    with closing(stores.open(p)) as engine:
        yield from engine.users()


def _compare(log: Log, old: Stores, new: Stores, p: int, users: list[str], out: Compared) -> None:
    by_place: dict[int, list[str]] = {}
    for u in users:
        by_place.setdefault(new.partition_of(u), []).append(u)
    differing = set()
    with closing(old.open(p)) as before:
        for q, mine in by_place.items():
            with closing(new.open(q)) as after:
                for u in mine:
                    a, b = before.canonical(u), after.canonical(u)
                    if a == b:
                        out.before.add(u, a)
                        out.after.add(u, b)
                    elif b:
                        differing.add(u)
                    else:
                        out.missing += 1
                        out.examples += [u][: SHOWN - len(out.examples)]
        if differing:
            again = Refold(
                old, log, p, old.offsets(before), before.groups, lambda n: None, read_control(log, old.prefix)[0]
            )
            undecided = again.with_repeated_ids(differing)
            out.undecided += len(undecided)
            out.differing += len(differing - undecided)
            out.examples += sorted(differing - undecided)[: SHOWN - len(out.examples)]
