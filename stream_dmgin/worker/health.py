"""What the worker says of itself: live, ready, metrics. The loop writes, the HTTP thread reads; no locks, whole values only."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stream_dmgin.log.base import TP
from stream_dmgin.worker.metrics import Metrics

STALL_S = 60.0  # the loop must come round, or say that it goes on, this often


@dataclass
class Health:
    """State of the worker as far as a supervisor needs it."""

    metrics: Metrics = field(default_factory=Metrics)
    turned: float = field(default_factory=time.monotonic)  # when the loop last came round
    partitions: tuple[int, ...] = ()
    restore_remaining: int = 0
    restore_bytes: int = 0  # of snapshots, on their way here
    lag: dict[str, int] = field(default_factory=dict)
    offsets: dict[TP, int] = field(default_factory=dict)  # next offsets of the owned partitions
    model: str = ""
    groups: str = ""
    regroup: dict[str, Any] | None = None  # while partitions go over to another group map
    assigned: bool = False
    stopping: bool = False
    control: Mapping[str, Any] = field(default_factory=dict)
    stepped: float = field(default_factory=time.monotonic)  # when work last went on, inside a turn too
    moved: float = field(default_factory=time.monotonic)  # when records were last read or taken care of
    lag_at: float = float("-inf")  # when the log was last asked for its ends
    waiting: str = ""  # why the worker takes no records on purpose; "": it does
    log_away: str = ""  # why the log couldn't be asked for its ends; "": it answers

    def waits(self) -> str:
        """What the worker waits for, on purpose or because there is no log; also tells the gauge."""
        why = self.waiting or self.log_away
        self.metrics.waiting.set(bool(why))
        return why

    def step(self) -> None:
        """Work goes on inside a turn: called by whatever takes long. Costs a look at the clock."""
        self.stepped = time.monotonic()

    def progress(self) -> None:
        """The same, of work that brings partitions nearer to the end of the log: opening, restoring, mending their stores."""
        self.stepped = self.moved = time.monotonic()

    def turn(self, now: float, records: int) -> None:
        """The loop came round, with so many records."""
        self.turned = self.stepped = now
        if records:
            self.moved = now

    def live(self) -> tuple[int, dict[str, Any]]:
        """(HTTP status, body): 503 when nothing has gone on in the loop for STALL_S seconds."""
        age = time.monotonic() - max(self.turned, self.stepped)
        return (200 if age < STALL_S else 503), {"live": age < STALL_S, "seconds_since_turn": round(age, 3)}

    def ready(self) -> tuple[int, dict[str, Any]]:
        """(HTTP status, body): 200 once partitions are assigned and their state has caught up with the log, unless the worker
        waits for room on its disk, or for the log."""
        waiting = self.waits()
        ok = self.assigned and not (self.restore_remaining or self.restore_bytes or self.stopping or waiting)
        return (200 if ok else 503), {
            "ready": ok,
            "waiting": waiting,
            "partitions": list(self.partitions),
            "restore_remaining": self.restore_remaining,
            "restore_remaining_bytes": self.restore_bytes,
            "lag": self.lag,
            "model": self.model,
            "groups": self.groups,
            "regroup": self.regroup,
            "control": dict(self.control),
        }
