"""`state diff A B`: the same users, with the same canonical bytes, folded up to the same offsets? Two data directories, whatever their
numbers of partitions. Read-only, also beside running workers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.ops.stores import Stores

SHOWN = 20  # users named of each kind
TRIM = 10_000  # users read between two looks at the memory
Told = Callable[[int], None]


class _Side:
    """The stores of one side, all open."""

    def __init__(self, stores: Stores, stack: ExitStack) -> None:
        self.stores = stores
        self.engines: dict[int, StateEngine] = {}
        for p in stores.present():
            self.engines[p] = stores.open(p)
            stack.callback(self.engines[p].close)

    def of(self, user: str, partition: int, partitions: int) -> StateEngine | None:
        """The engine where a user of a partition of the other side belongs; None where that partition isn't here. With as many
        partitions it is the same one, even for users whose producer used another partitioner."""
        return self.engines.get(partition if partitions == self.stores.partitions else self.stores.partition_of(user))

    def trim(self) -> None:
        """Bring the memory under its cap."""
        for e in self.engines.values():
            e.trim()


def diff(a: Stores, b: Stores, told: Callable[[int], Told] = lambda users: lambda n: None) -> dict[str, Any]:
    """`missing`: users of A that B hasn't; `extra`: of B that A hasn't; `differing`: with other bytes; `offsets`: of partitions
    where they differ, [A, B] (only where both have as many partitions); `ok`: none of these."""
    with ExitStack() as stack:
        left, right = _Side(a, stack), _Side(b, stack)
        counts = [sum(e.count_users() for e in side.engines.values()) for side in (left, right)]
        tell = told(sum(counts))
        found: dict[str, list[str]] = {"missing": [], "extra": [], "differing": []}
        totals = dict.fromkeys(found, 0)

        def note(what: str, user: str) -> None:
            totals[what] += 1
            if len(found[what]) < SHOWN:
                found[what].append(user)

        n = 0
        for side, other in ((left, right), (right, left)):
            for p, engine in side.engines.items():
                for user in engine.users():
                    there = other.of(user, p, side.stores.partitions)
                    if there is None or there.version(user.encode()) == 0:
                        note("missing" if side is left else "extra", user)
                    elif side is left and engine.canonical(user) != there.canonical(user):
                        note("differing", user)
                    n += 1
                    tell(1)
                    if n % TRIM == 0:
                        left.trim()
                        right.trim()
        offsets = _offsets(left, right) if a.partitions == b.partitions else {}
    return {
        "ok": not any(totals.values()) and not offsets, "users_a": counts[0], "users_b": counts[1], **totals, "offsets": offsets,
        "groups_a": a.groups_id, "groups_b": b.groups_id, "examples": found,
    }  # fmt: skip


def _offsets(left: _Side, right: _Side) -> dict[str, dict[str, list[int | None]]]:
    out: dict[str, dict[str, list[int | None]]] = {}
    for p in sorted(left.engines.keys() | right.engines.keys()):
        mine, theirs = (
            {t.removeprefix(s.stores.prefix): o for t, o in s.stores.offsets(s.engines[p]).items()}
            if p in s.engines
            else {}
            for s in (left, right)
        )
        if mine != theirs:
            out[str(p)] = {t: [mine.get(t), theirs.get(t)] for t in sorted(mine.keys() | theirs.keys())}
    return out
