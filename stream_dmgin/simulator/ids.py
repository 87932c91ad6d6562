"""Names of users, shops, requests and events. A view is numbered per user, so ids need no counter shared by anyone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.simulator.world import Plan


def tag(plan: Plan) -> str:
    """Tells the ids of one simulation from those of another on the same log; equal plans have equal tags."""
    return f"{plan.seed}.{np.base_repr(plan.start_ms, 36).lower()}."


def request_numbers(user: NDArray[np.integer], number: NDArray[np.int64]) -> NDArray[np.int64]:
    """One number for each (user, view)."""
    return (user.astype(np.int64) << 24) | number


def event_numbers(
    request: NDArray[np.int64], position: NDArray[np.int16], kind: NDArray[np.uint8]
) -> NDArray[np.int64]:
    """One number for each event; kind 0 gives that of the impression."""
    return (((request << 10) | position.astype(np.int64)) << 3) | kind


def lag(event: NDArray[np.int64]) -> NDArray[np.int64]:
    """Milliseconds until an event of the history is known: 200 to 1,700, by its number."""
    mixed = event.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return 200 + (mixed >> np.uint64(33)).astype(np.int64) % 1500


def delay(event: NDArray[np.int64], mean_days: float) -> NDArray[np.int64]:
    """Milliseconds by which a report is late, exponentially distributed, by the event's number."""
    mixed = (event.astype(np.uint64) + np.uint64(1)) * np.uint64(0xD6E8FEB86659FD93)
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    u = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (-np.log1p(-u) * mean_days * 86_400_000).astype(np.int64)
