"""Is the state the fold of the log? Fold the log again, up to exactly the stores' offsets, and compare canonical bytes.

Partition after partition: open its store read-only (its offsets and states are those of one commit, whatever a running
worker does meanwhile), choose users, fold their events from the log into an engine in memory, compare. Users are chosen by
a hash of their id, so that those who are in the log but not in the store are missed by no sample.

One thing can't be told from the log: which of a click and a post-click of two topics came first. It matters only for an
event that was written twice with more than a ring of others in between. Users with repeated event ids whose states differ
are counted as `undecided`, not as differing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin import topics
from stream_dmgin.errors import StreamDmginError
from stream_dmgin.log.base import Log
from stream_dmgin.log.murmur2 import partition_of
from stream_dmgin.log.scan import scan
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.hash import hash64
from stream_dmgin.state.ops.stores import Stores
from stream_dmgin.state.parse import EventColumns, parse_events

ALL_UP_TO = 100_000  # users; above, a sample is checked unless --all is given
SAMPLE = 20_000
USERS_A_PASS = 20_000  # bounds memory: the log is read once for each so many users of a partition
SHOWN = 20  # differences described

Told = Callable[[int, int], None]  # records of a partition read so far, and in all


@dataclass
class Difference:
    """One user whose state is not the fold of the log."""

    user_id: str
    partition: int
    what: str  # missing: not in the store; extra: not in the log; differs; undecided
    fields: list[str] = field(default_factory=list)


@dataclass
class Report:
    """Outcome of a verification."""

    checked: int = 0
    differing: int = 0
    missing: int = 0
    extra: int = 0
    undecided: int = 0
    misplaced: int = 0  # users in another partition than their key says: a producer uses another partitioner
    users: int = 0
    sampled: bool = False
    partitions: list[int] = field(default_factory=list)
    events: int = 0  # events folded again
    malformed: int = 0
    offsets: dict[str, dict[str, int]] = field(default_factory=dict)  # partition -> topic -> next offset
    differences: list[Difference] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """No difference was found."""
        return not (self.differing or self.missing or self.extra)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"ok": self.ok, **asdict(self)}


def verify(stores: Stores, log: Log, *, users: int | None = None, everyone: bool = False, seed: int = 0,
           told: Callable[[int], Told] = lambda total: lambda done, of: None) -> Report:  # fmt: skip
    """Check all users of small stores, a sample of `SAMPLE` (or `users`) of large ones, all with `everyone`.

    `told(partition)` gives a function that is told the progress. Raises LogUnavailable, StreamDmginError where the log no
    longer holds what was folded.
    """
    report = Report()
    salt = random.Random(seed).getrandbits(64)
    present = stores.present()
    known = {p: _users(stores, p) for p in present}
    report.users = sum(map(len, known.values()))
    want = users if users is not None else None if everyone or report.users <= ALL_UP_TO else SAMPLE
    report.sampled = want is not None and want < report.users
    share = want / report.users if want is not None and report.sampled else 1.0
    for p in present:
        _verify_partition(stores, log, p, share, salt, report, told(p))
    return report


def _users(stores: Stores, p: int) -> list[str]:
    engine = stores.open(p)
    try:
        return list(engine.users())
    finally:
        engine.close()


def _verify_partition(stores: Stores, log: Log, p: int, share: float, salt: int, report: Report, told: Told) -> None:
    engine = stores.open(p)
    try:
        offsets = stores.offsets(engine)
        report.partitions.append(p)
        report.offsets[str(p)] = offsets
        _check_log(log, p, offsets)
        names = list(engine.users())
        report.misplaced += sum(partition_of(u.encode(), stores.partitions) != p for u in names)
        keys = _keys(np.array([hash64(u.encode()) for u in names], np.uint64), salt)
        limit = int(np.uint64(0xFFFF_FFFF_FFFF_FFFF)) if share >= 1 else int(share * 2.0**64)
        chosen = int(np.count_nonzero(keys <= np.uint64(limit)))
        passes = max(1, -(-chosen // USERS_A_PASS))
        for k in range(passes):
            low, high = limit * k // passes + (k > 0), limit * (k + 1) // passes
            mine = [u for u, x in zip(names, keys.tolist(), strict=True) if low <= x <= high]
            again, events, malformed = _fold_again(stores, log, p, offsets, salt, low, high, lambda n, of, k=k: told(k * of + n, passes * of))
            report.events += events
            if k == 0:
                report.malformed += malformed
            try:
                _compare(stores, log, p, engine, again, mine, report)
            finally:
                again.close()
    finally:
        engine.close()


def _check_log(log: Log, p: int, offsets: dict[str, int]) -> None:
    for topic, following in offsets.items():
        begin, end = log.begins(topic).get(p, 0), log.ends(topic).get(p, 0)
        if begin > 0:
            raise StreamDmginError(
                f"{topic}/{p} begins at offset {begin}: what was folded before is no longer in the log, and can't be verified"
            )
        if end < following:
            raise StreamDmginError(
                f"{topic}/{p} ends at offset {end}, but {following} records are in the state: this is another log, or it has "
                "lost records. Check --log and --data-dir"
            )


def _keys(hashes: NDArray[np.uint64], salt: int) -> NDArray[np.uint64]:
    """Users in an order that depends on `salt` only (the finaliser of splitmix64)."""
    x = hashes ^ np.uint64(salt)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _events(log: Log, p: int, offsets: dict[str, int], told: Told) -> Iterator[tuple[EventColumns, NDArray[np.int32], int]]:
    """Columns, the rows of well formed events below the offsets, and the number of malformed records, batch by batch."""
    ranges = {(t, p): (0, following) for t, following in offsets.items()}
    number = {t: k for k, t in enumerate(offsets)}
    total, read = sum(offsets.values()), 0
    for batch, inside in scan(log, ranges):
        numbers = np.array([_topic_number(t, number) for t in batch.topics], np.uint8)
        columns, bad = parse_events(batch, numbers)
        rows = np.flatnonzero(inside & (columns.status == 0)).astype(np.int32)
        yield columns, rows, sum(1 for i, _ in bad if inside[i])
        read += int(np.count_nonzero(inside))
        told(read, total)


def _topic_number(name: str, known: dict[str, int]) -> int:
    return next((k for k, t in enumerate(topics.EVENTS) if name in known and name.endswith(t) and _is(name, t)), 255)


def _is(name: str, topic: str) -> bool:
    return name[len(name) - len(topic) :] == topic and (topic != topics.CLICKS or not name.endswith(topics.POST_CLICKS))


def _fold_again(stores: Stores, log: Log, p: int, offsets: dict[str, int], salt: int, low: int, high: int, told: Told) -> tuple[StateEngine, int, int]:  # fmt: skip
    """An engine in memory with the users whose key lies in low..high; events counted, malformed records."""
    again = StateEngine.open(None, p, stores.groups)
    events = malformed = 0
    for columns, rows, bad in _events(log, p, offsets, told):
        keys = _keys(columns.user_hash[rows].view(np.uint64), salt)
        events += again.fold(columns, rows[(keys >= np.uint64(low)) & (keys <= np.uint64(high))])
        again.commit()
        malformed += bad
    return again, events, malformed


def _compare(stores: Stores, log: Log, p: int, engine: StateEngine, again: StateEngine, mine: list[str], report: Report) -> None:
    here, there = set(mine), set(again.users())
    found = [Difference(u, p, "missing") for u in sorted(there - here)]
    found += [Difference(u, p, "extra") for u in sorted(here - there)]
    found += [Difference(u, p, "differs") for u in sorted(here & there) if engine.canonical(u) != again.canonical(u)]
    report.checked += len(here | there)
    if found:
        repeated = _with_repeated_ids(log, p, report.offsets[str(p)], [d.user_id for d in found if d.what == "differs"])
        for d in found:
            if d.what == "differs" and d.user_id in repeated:
                d.what = "undecided"
    for d in found:
        if d.what in ("differs", "undecided"):
            d.fields = _fields(again.show(d.user_id), engine.show(d.user_id))
        if len(report.differences) < SHOWN:
            report.differences.append(d)
    count = lambda what: sum(d.what == what for d in found)  # noqa: E731
    report.missing += count("missing")
    report.extra += count("extra")
    report.differing += count("differs")
    report.undecided += count("undecided")


def _with_repeated_ids(log: Log, p: int, offsets: dict[str, int], suspects: list[str]) -> set[str]:
    """Those of the users who have an event id more than once in the log (they are few: only users that differ)."""
    by_hash = {hash64(u.encode()): u for u in suspects}
    if not by_hash:
        return set()
    hashes = np.array(list(by_hash), np.uint64)
    seen: set[tuple[int, int, bool]] = set()
    out: set[str] = set()
    for columns, rows, _ in _events(log, p, offsets, lambda done, of: None):
        of = columns.user_hash[rows].view(np.uint64)
        for i in rows[np.isin(of, hashes)].tolist():
            user = int(columns.user_hash[i]) & 0xFFFF_FFFF_FFFF_FFFF
            key = user, int(columns.eid_hash[i]), int(columns.topic[i]) == 0
            if key in seen:
                out.add(by_hash[user])
            seen.add(key)
    return out


def _fields(want: Any, got: Any, at: str = "", limit: int = 5) -> list[str]:
    """The first few places where the shown state is not what the log says."""
    if isinstance(want, dict) and isinstance(got, dict):
        out: list[str] = []
        for k in sorted(want.keys() | got.keys(), key=str):
            if len(out) < limit:
                out += _fields(want.get(k), got.get(k), f"{at}.{k}" if at else str(k), limit - len(out))
        return out
    if isinstance(want, list) and isinstance(got, list) and len(want) == len(got):
        out = []
        for k, (w, g) in enumerate(zip(want, got, strict=True)):
            if len(out) < limit:
                out += _fields(w, g, f"{at}[{k}]", limit - len(out))
        return out
    if isinstance(want, list) and isinstance(got, list):
        return [f"{at}: {len(got)} entries in the state, {len(want)} in the log"]
    return [] if want == got else [f"{at}: {got!r} in the state, {want!r} in the log"]
