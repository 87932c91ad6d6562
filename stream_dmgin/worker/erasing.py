"""Carries out the erasures of dmgin.control on the partitions of this worker. Control path, on the loop's thread.

An order names a user by digest, so the user is looked for among the ids of the store, some milliseconds a turn: about a second
for a million users, while the fold goes on. From the moment it is known, what the log still holds of the user from before is
not folded any more. A store that comes with an order not in it (a restored snapshot, a store from before) answers no request
until it is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from stream_dmgin import audit
from stream_dmgin.control import Control, Erasure, digest_of
from stream_dmgin.log.base import Log
from stream_dmgin.state.erased import Erased, mark_of
from stream_dmgin.state.ops.erase import Gone, as_dict, carry_out, pending
from stream_dmgin.worker.health import Health
from stream_dmgin.worker.partitions import Owned

log_ = logging.getLogger(__name__)

SLICE_S = 0.005  # of a turn, while requests are answered beside it
HELD_SLICE_S = 0.1  # while none are
KEYS = 1000  # ids looked at between two looks at the clock

Commit = Callable[[Owned, Sequence[tuple[bytes, bytes]]], None]


class _Search:
    """Erasures to be found in one partition, and the id after which to go on looking."""

    def __init__(self, owned: Owned, wanted: dict[str, Erasure]) -> None:
        self.owned, self.wanted, self.after = owned, wanted, b""


class Erasing:
    """`opened` as a store is opened, `turn` between two turns of the loop."""

    def __init__(
        self, log: Log, prefix: str, data_dir: Path, control: Control, health: Health, commit: Commit, forget: Callable[[bytes], None],
    ) -> None:  # fmt: skip
        """`commit(owned, rows)`; `forget(user id)`: drop what is cached of a user elsewhere."""
        self._log, self._prefix, self._data_dir, self._control, self._health = log, prefix, data_dir, control, health
        self._commit, self._forget = commit, forget
        self._seen = control.version
        self._searches: dict[int, _Search] = {}

    def opened(self, o: Owned) -> None:
        """Tell a store that was just opened what is erased; what it has not in it yet holds its requests back."""
        wanted = self._tell(o)
        if not wanted:
            return
        log_.info("partition %d: %d erasures are to be applied to its store first", o.partition, len(wanted))
        o.hold = len(wanted)
        if not o.restoring:  # a bounded run in stream time doesn't wait later on
            search = self._searches.pop(o.partition)
            while not self._go_on(search):
                pass
            o.hold = 0

    def turn(self, owned: Mapping[int, Owned]) -> None:
        """Take up new orders, and go on with the search for users."""
        if self._control.version != self._seen:
            self._seen = self._control.version
            for o in owned.values():
                if self._control.erasures.get(o.partition):
                    self._commit(o, ())  # everything there is lies in the store then
                    self._tell(o)
        if not self._searches:
            return
        p, search = next(iter(self._searches.items()))
        if owned.get(p) is not search.owned:
            del self._searches[p]
        elif self._go_on(search):
            search.owned.hold = 0
            del self._searches[p]

    def _tell(self, o: Owned) -> dict[str, Erasure]:
        orders = self._control.erasures.get(o.partition, {})
        self._searches.pop(o.partition, None)
        if not orders:
            return {}
        o.engine.ignore(Erased(orders.values()))
        wanted = pending(o.engine, orders.values())
        if wanted:
            self._searches[o.partition] = _Search(o, wanted)
        return wanted

    def _go_on(self, search: _Search) -> bool:
        """Look at some more users; whether all erasures are carried out."""
        o, wanted = search.owned, search.wanted
        until = time.monotonic() + (HELD_SLICE_S if o.hold else SLICE_S)
        while wanted and time.monotonic() < until:
            found, after = o.engine.find(lambda user: digest_of(user) in wanted, search.after, KEYS)
            self._health.progress()
            for user in found:
                self._apply(o, wanted.pop(digest_of(user)), user)
            if after is None:
                for e in wanted.values():
                    self._say(e, Gone())
                self._commit(o, [mark_of(e) for e in wanted.values()])
                wanted.clear()
            else:
                search.after = after
        return not wanted

    def _apply(self, o: Owned, e: Erasure, user: bytes) -> None:
        self._commit(o, ())
        gone = carry_out(
            o.engine, self._log, self._prefix, e, user.decode(), self._health.progress, self._control.skips
        )
        self._commit(o, [mark_of(e)])
        self._forget(user)
        self._say(e, gone)

    def _say(self, e: Erasure, gone: Gone) -> None:
        self._health.metrics.erasures.labels("erased" if gone.rows else "unknown").inc()
        audit.record(
            self._data_dir, "erased", digest=e.digest, partition=e.partition, offsets=e.offsets, **as_dict(gone)
        )
        log_.info(
            "partition %d: an erasure was carried out: %d rows, %d groups went", e.partition, gone.rows, gone.groups
        )
