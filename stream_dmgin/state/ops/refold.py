"""The events of one partition from the log again, up to exactly the offsets of its store, and their fold in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from stream_dmgin import topics
from stream_dmgin.control import Control, mask_skipped
from stream_dmgin.errors import StreamDmginError
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import Log
from stream_dmgin.log.scan import scan
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.erased import Erased
from stream_dmgin.state.hash import hash64
from stream_dmgin.state.ops.stores import Stores
from stream_dmgin.state.parse import EventColumns, parse_events

Told = Callable[[int], None]  # records read since it was last called
KEYS = 1 << 64


def keys_of(hashes: NDArray[np.uint64], salt: int) -> NDArray[np.uint64]:
    """User hashes in an order that depends on `salt` only (the finaliser of splitmix64)."""
    x = hashes ^ np.uint64(salt)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hashes_of(users: Iterable[str]) -> NDArray[np.uint64]:
    """XXH64 of each user id."""
    return np.fromiter((hash64(u.encode()) for u in users), np.uint64)


class Refold:
    """Reads partition `p` from the first offset to the next ones in `offsets` (full topic name -> offset)."""

    def __init__(
        self, stores: Stores, log: Log, p: int, offsets: dict[str, int], groups: GroupMap, told: Told, control: Control,
    ) -> None:  # fmt: skip
        """`groups`: the map to fold with; the orders of `control` are honoured. Raises StreamDmginError where the log doesn't
        hold these records (any more)."""
        self._erasures, self._skips = list(control.erasures.get(p, {}).values()), control.skips
        self._groups, self._log, self._p, self._offsets, self._told = groups, log, p, offsets, told
        self._prefix = stores.prefix
        self._number = {stores.prefix + t: k for k, t in enumerate(topics.EVENTS)}
        self.malformed = 0  # records of the last reading that are no events
        for topic, following in offsets.items():
            begin, end = log.begins(topic).get(p, 0), log.ends(topic).get(p, 0)
            if begin > 0:
                raise StreamDmginError(
                    f"{topic}/{p} begins at offset {begin}: what was folded from before is gone and can't be verified"
                )
            if end < following:
                raise StreamDmginError(
                    f"{topic}/{p} ends at offset {end}, but the state holds records up to {following}: this is another log, "
                    "or it has lost records. Check --log and --data-dir"
                )

    def fold(self, salt: int, low: int, high: int) -> tuple[StateEngine, int]:
        """An engine in memory with the users whose key lies in low..high (inclusive), and the number of events counted."""
        engine = StateEngine.open(None, self._p, self._groups)
        engine.ignore(Erased(self._erasures))
        counted = 0
        for columns, rows in self._events():
            keys = keys_of(_users(columns, rows), salt)
            counted += engine.fold(columns, rows[(keys >= np.uint64(low)) & (keys <= np.uint64(high))])
            engine.commit()
        return engine, counted

    def with_repeated_ids(self, users: Iterable[str]) -> set[str]:
        """Those of the (few) users who have an event id more than once, among impressions or among the other events."""
        by_hash = {hash64(u.encode()): u for u in users}
        if not by_hash:
            return set()
        hashes = np.array(list(by_hash), np.uint64)
        seen: set[tuple[int, int, bool]] = set()
        out: set[str] = set()
        for columns, rows in self._events():
            of = _users(columns, rows)
            here = np.isin(of, hashes)
            for i, user in zip(rows[here].tolist(), of[here].tolist(), strict=True):
                event = user, int(columns.eid_hash[i]), int(columns.topic[i]) == 0
                if event in seen:
                    out.add(by_hash[user])
                seen.add(event)
        return out

    def _events(self) -> Iterator[tuple[EventColumns, NDArray[np.int32]]]:
        self.malformed = 0
        for batch, inside in scan(self._log, {(t, self._p): (0, end) for t, end in self._offsets.items()}):
            mask_skipped(batch, self._prefix, self._skips)
            columns, bad = parse_events(batch, np.array([self._number[t] for t in batch.topics], np.uint8))
            self.malformed += sum(1 for i, _ in bad if inside[i])
            yield columns, np.flatnonzero(inside & (columns.status == 0)).astype(np.int32)
            self._told(int(np.count_nonzero(inside)))


def _users(columns: EventColumns, rows: NDArray[np.int32]) -> NDArray[np.uint64]:
    hashes: NDArray[np.uint64] = columns.user_hash[rows].astype(np.uint64, copy=False)
    return hashes
