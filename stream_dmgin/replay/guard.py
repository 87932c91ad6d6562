"""No leak by construction: a replay refuses to build an input from what wasn't visible yet.

Three things are held, each by itself: events come in the order in which they became visible; when a request is answered, the
latest event that any state or counter has seen became visible strictly before it; and nothing that names a request became visible
before the request was made.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stream_dmgin.errors import InputError, StreamDmginError


class Leak(StreamDmginError):
    """A request would have been answered from what became visible at its time or later."""


class Guard:
    """Watches one pass: events on their way into the states, requests on their way to their inputs."""

    def __init__(self) -> None:
        self.latest = np.iinfo(np.int64).min  # when the latest folded event became visible
        self._end = self.latest
        self._asked = self.latest

    def chunk(self, at: NDArray[np.int64]) -> None:
        """A chunk of events is next. InputError where it isn't in order."""
        if len(at) and (at[0] < self._end or bool((at[1:] < at[:-1]).any())):
            raise InputError(
                "events are not in the order in which they became visible: sort events.parquet by visible_at"
            )
        self._end = int(at[-1]) if len(at) else self._end

    def folded(self, at: NDArray[np.int64]) -> None:
        """These events are in the states now."""
        self.latest = max(self.latest, int(at.max()))

    def request(self, at: int, ident: str) -> None:
        """A request is answered as of `at`. Raises Leak where an event that was visible only then, or later, is folded."""
        if at < self._asked:
            raise InputError(f"request {ident} comes after later ones: sort rows.parquet by ts")
        self._asked = at
        if self.latest >= at:
            raise Leak(
                f"request {ident} at {at} would see an event that became visible at {self.latest}: scores and training rows from this "
                "replay would know the future; nothing was written"
            )


def own_outcomes(events: pa.Table, ids: pa.Array, at: NDArray[np.int64]) -> None:
    """InputError where an event that names a request (`ids`, answered as of `at`) became visible before the request was made: what
    came of the request would be among its inputs."""
    if not len(ids) or events["request_id"].null_count == events.num_rows:
        return
    named = pc.index_in(events["request_id"], value_set=ids).combine_chunks()
    there = np.flatnonzero(named.is_valid().to_numpy(zero_copy_only=False))
    request = pc.fill_null(named, 0).to_numpy(zero_copy_only=False)[there]
    early = events["visible_at"].to_numpy()[there] < at[request]
    if early.any():
        k = int(np.flatnonzero(early)[0])
        row = events.slice(int(there[k]), 1).to_pylist()[0]
        raise InputError(
            f"{int(early.sum())} events became visible before the requests they came of, as {row['event_id'] or row['topic']} of request "
            f"{row['request_id']} at {row['visible_at']}, asked at {int(at[request[k]])}: mend the clocks of visible_at and ts"
        )
