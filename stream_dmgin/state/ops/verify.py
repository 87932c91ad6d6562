"""Is the state the fold of the log? Fold the log again, up to exactly the stores' offsets, and compare canonical bytes.

Partition after partition: open its store read-only (its offsets and states are those of one commit, whatever a running
worker does meanwhile), choose users, fold their events from the log into an engine in memory, compare. Users are chosen by
a hash of their id, so that a sample also finds those who are in the log but not in the store.

One thing can't be told from the log: which of a click and a post-click, records of two topics, was folded first. It matters
only for an event that was written twice with more than a ring of others in between. Users with repeated event ids whose
states differ are counted as `undecided`, not as differing.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from stream_dmgin.control import Control, digest_of, read_control
from stream_dmgin.log.base import Log
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.ops.erase import pending
from stream_dmgin.state.ops.refold import KEYS, Refold, Told, hashes_of, keys_of
from stream_dmgin.state.ops.stores import Stores

ALL_UP_TO = 100_000  # users; above, a sample is checked unless everyone is asked for
SAMPLE = 20_000
USERS_A_PASS = 20_000  # bounds memory: the log is read once for each so many users of a partition
SHOWN = 20  # differences described


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

    users: int = 0  # in the stores
    checked: int = 0
    differing: int = 0
    missing: int = 0
    extra: int = 0
    undecided: int = 0
    erasing: int = 0  # users whose erasure is ordered, but not in the store yet: not compared
    misplaced: int = 0  # users in another partition than their key says: a producer uses another partitioner
    sampled: bool = False
    partitions: list[int] = field(default_factory=list)
    events: int = 0  # events counted again, of the users checked
    malformed: int = 0  # records that are no events
    offsets: dict[str, dict[str, int]] = field(default_factory=dict)  # partition -> topic -> next offset
    differences: list[Difference] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """No difference was found."""
        return not (self.differing or self.missing or self.extra)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"ok": self.ok, **asdict(self)}


def verify(
    stores: Stores, log: Log, *, users: int | None = None, everyone: bool = False, seed: int = 0,
    told: Callable[[int, int], Told] = lambda partition, records: lambda n: None,
) -> Report:  # fmt: skip
    """Check all users of small stores, about `SAMPLE` of large ones, about `users` if given, all with `everyone`.

    `told(partition, records to read)` gives a function that is told how many records were read since. Raises
    LogUnavailable, and StreamDmginError where the log no longer holds what was folded.
    """
    report = Report(partitions=stores.present())
    names: dict[int, int] = {}
    for p in report.partitions:
        engine = stores.open(p)
        names[p] = engine.count_users()
        engine.close()
    report.users = sum(names.values())
    want = users if users is not None else SAMPLE if report.users > ALL_UP_TO and not everyone else report.users
    report.sampled = want < report.users
    share = want / report.users if report.sampled else 1.0
    salt = random.Random(seed).getrandbits(64)
    for p in report.partitions:
        engine = stores.open(p)
        try:
            control, _, _ = read_control(log, stores.prefix)  # after the store was opened: it has no other orders in it
            _partition(stores, log, p, engine, share, salt, control, report, told)
        finally:
            engine.close()
    return report


def _partition(
    stores: Stores, log: Log, p: int, engine: StateEngine, share: float, salt: int, control: Control, report: Report,
    told: Callable[[int, int], Told],
) -> None:  # fmt: skip
    report.offsets[str(p)] = offsets = stores.offsets(engine)
    names = list(engine.users())
    report.misplaced += sum(stores.partition_of(u) != p for u in names)
    keys = keys_of(hashes_of(names), salt)
    limit = KEYS - 1 if share >= 1 else int(share * KEYS)  # users with a key up to this one are checked
    passes = max(1, -(-int(np.count_nonzero(keys <= np.uint64(limit))) // USERS_A_PASS))
    orders = control.erasures.get(p, {})
    refold = Refold(stores, log, p, offsets, engine.groups, told(p, passes * sum(offsets.values())), control)
    waiting = pending(engine, orders.values())
    erasing = {u for u in names if digest_of(u.encode()) in waiting} if waiting else set()
    report.erasing += len(erasing)
    for k in range(passes):
        low, high = limit * k // passes + (k > 0), limit * (k + 1) // passes
        again, counted = refold.fold(salt, low, high)
        report.events += counted
        report.malformed += refold.malformed if k == 0 else 0
        mine = [u for u, x in zip(names, keys.tolist(), strict=True) if low <= x <= high]
        _compare(p, engine, again, mine, erasing, refold, report)
        again.close()


def _compare(
    p: int, engine: StateEngine, again: StateEngine, mine: list[str], erasing: set[str], refold: Refold, report: Report
) -> None:
    here, there = set(mine) - erasing, set(again.users()) - erasing
    report.checked += len(here | there)
    differ = {u for u in here & there if engine.canonical(u) != again.canonical(u)}
    undecided = refold.with_repeated_ids(differ)
    groups = {"missing": there - here, "extra": here - there, "differs": differ - undecided, "undecided": undecided}
    report.missing += len(groups["missing"])
    report.extra += len(groups["extra"])
    report.differing += len(groups["differs"])
    report.undecided += len(groups["undecided"])
    for what, users in groups.items():
        for u in sorted(users)[: max(0, SHOWN - len(report.differences))]:
            fields = _fields(again.show(u), engine.show(u)) if u in differ else []
            report.differences.append(Difference(u, p, what, fields))


def _fields(want: Any, got: Any, at: str = "", limit: int = 5) -> list[str]:
    """The first few places where the shown state is not what the log says."""
    pairs: list[tuple[str, Any, Any]] = []
    if isinstance(want, dict) and isinstance(got, dict):
        pairs = [
            (f"{at}.{k}" if at else str(k), want.get(k), got.get(k)) for k in sorted(want.keys() | got.keys(), key=str)
        ]
    elif isinstance(want, list) and isinstance(got, list):
        if len(want) != len(got):
            return [f"{at}: {len(got)} entries in the state, {len(want)} by the log"]
        pairs = [(f"{at}[{k}]", w, g) for k, (w, g) in enumerate(zip(want, got, strict=True))]
    elif want != got:
        return [f"{at}: {got!r} in the state, {want!r} by the log"]
    out: list[str] = []
    for name, w, g in pairs:
        if len(out) < limit:
            out += _fields(w, g, name, limit - len(out))
    return out
