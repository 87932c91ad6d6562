"""What a worker that learns from the counters topic comes to."""

from __future__ import annotations

from stream_dmgin.counters.chains import SharedCounters


def folded(values: list[bytes]) -> SharedCounters:
    """The counters after these records of the topic."""
    s = SharedCounters(online=True)
    for v in values:
        s.fold(v, s.next_offset)
    return s


def learnt(s: SharedCounters) -> bytes:
    """Bytes of all that was learnt."""
    assert s.table.online is not None
    return s.table.online.canonical()
