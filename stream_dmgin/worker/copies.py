"""Which workers keep standby copies of a partition: those to which `range` would give it if its owner went, and if that one went
too, and so on. With one copy a partition, whichever worker goes, every partition that moves finds a warm store
(docs/adr/0008-rebalance.md has the figures). Follows from the list of members alone, so all workers come to the same choice
without a word.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from stream_dmgin.errors import StreamDmginError
from stream_dmgin.log.base import open_log
from stream_dmgin.settings import Settings

log_ = logging.getLogger(__name__)

EVERY_S = 2.0
ALL = -1


def number(text: str) -> int:
    """The setting `worker.standby` as a number of copies; ALL: on every worker. Raises ValueError.

    >>> [number(x) for x in ("false", "0", "2", "all", "true")]
    [0, 0, 2, -1, -1]
    """
    text = text.strip().lower()
    if text in ("all", "true"):
        return ALL
    n = 0 if text == "false" else int(text)
    if not 0 <= n <= 100:
        raise ValueError(text)
    return n


def owner(partition: int, partitions: int, members: Sequence[str]) -> str:
    """The member to which `range` gives a partition. `members` are sorted.

    >>> [owner(p, 8, ["a", "b", "c"]) for p in range(8)]
    ['a', 'a', 'a', 'b', 'b', 'b', 'c', 'c']
    """
    each, more = divmod(partitions, len(members))
    whole = more * (each + 1)  # partitions of the members that have one more
    return members[partition // (each + 1) if partition < whole else more + (partition - whole) // each]


def keepers(partition: int, partitions: int, members: Sequence[str], copies: int) -> list[str]:
    """The members that keep copies of a partition, the next owner first.

    >>> keepers(4, 8, ["a", "b", "c"], 1), keepers(5, 8, ["a", "b", "c"], 2)
    (['c'], ['c', 'a'])
    """
    left = sorted(members)
    out: list[str] = []
    while len(left) > 1 and len(out) < copies:
        left.remove(out[-1] if out else owner(partition, partitions, left))
        out.append(owner(partition, partitions, left))
    return out


class Choice:
    """Which partitions this worker is to keep copies of. A thread asks the group for its members; while it is between two
    assignments, or can't be asked, the last choice stays."""

    def __init__(self, settings: Settings, partitions: int, copies: int, member: Callable[[], str]) -> None:
        """`member()`: this worker's name in the group, "" while it has none."""
        self._settings, self._partitions, self._copies, self._member = settings, partitions, copies, member
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="copies", daemon=True)
        self._members: tuple[str, ...] = ()
        self._asked: tuple[str, tuple[str, ...]] = "", ()  # what the last choice was made of
        self._wanted: set[int] | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(EVERY_S)

    def wanted(self) -> set[int] | None:
        """Partitions to keep copies of; None while nobody knows."""
        asked = self._member(), self._members
        if asked != self._asked:
            me, members = self._asked = asked
            every = range(self._partitions)
            self._wanted = (
                {p for p in every if me in keepers(p, self._partitions, members, self._copies)}
                if me in members
                else None
            )
        return self._wanted

    def _run(self) -> None:
        group = self._settings["worker.group"]
        while not self._stop.wait(EVERY_S):
            try:
                with open_log(self._settings.log, self._settings.kafka) as log:
                    while not self._stop.wait(EVERY_S):
                        members = log.members(group)
                        if members is not None and (found := tuple(sorted(members))) != self._members:
                            self._members = found
                            log_.info("%d workers, standby copies are chosen anew", len(found))
            except StreamDmginError as e:
                log_.warning("who is in group %s can't be told, standby copies stay as they are: %s", group, e)
