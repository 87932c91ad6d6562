"""Towers by user and state version: a request of a user without new events costs the head alone.

Allocates the towers of misses; a hit is one dictionary look-up.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds to import
    from stream_dmgin.scoring.engine import UserTower

ENTRY_BYTES = 600  # about what Python keeps for an entry beside the tower's numbers


class TowerCache:
    """Least recently used, bounded in bytes. A user has one entry: a new version replaces the old. Of one engine and
    one group map.
    """

    def __init__(self, limit_bytes: int = 256 << 20) -> None:
        self.limit_bytes, self.bytes = limit_bytes, 0
        self.hits = self.misses = self.evictions = 0
        self._towers: OrderedDict[bytes, tuple[int, UserTower]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._towers)

    def get(self, user: bytes, version: int) -> UserTower | None:
        """The tower of the user at exactly this version; counts a hit or a miss."""
        entry = self._towers.get(user)
        if entry is None or entry[0] != version:
            self.misses += 1
            return None
        self.hits += 1
        self._towers.move_to_end(user)
        return entry[1]

    def put(self, user: bytes, version: int, tower: UserTower) -> None:
        """Keep a tower; drops the least recently used ones over the limit (a tower larger than the limit isn't kept)."""
        old = self._towers.pop(user, None)
        if old is not None:
            self.bytes -= old[1].nbytes + ENTRY_BYTES
        self._towers[user] = (version, tower)
        self.bytes += tower.nbytes + ENTRY_BYTES
        while self.bytes > self.limit_bytes:
            _, (_, dropped) = self._towers.popitem(last=False)
            self.bytes -= dropped.nbytes + ENTRY_BYTES
            self.evictions += 1

    def drop(self, user: bytes) -> None:
        """Forget one user."""
        old = self._towers.pop(user, None)
        if old is not None:
            self.bytes -= old[1].nbytes + ENTRY_BYTES

    def clear(self) -> None:
        """Forget everything: another model or group map."""
        self._towers.clear()
        self.bytes = 0

    def towers(
        self, users: Sequence[tuple[bytes, int]], make: Callable[[list[int]], list[UserTower]]
    ) -> list[UserTower]:
        """Towers of these (user id, state version); `make` gives those of the positions that are missing, in one batch."""
        found = [self.get(user, version) for user, version in users]
        missing = [row for row, tower in enumerate(found) if tower is None]
        if missing:
            for row, tower in zip(missing, make(missing), strict=True):
                found[row] = tower
                self.put(*users[row], tower)
        return [tower for tower in found if tower is not None]
