"""Events for measurements: many users (Zipf), items in groups, three topics, types, dwell and spend. By seed, always the same.

Half are impressions, three in ten clicks, two in ten post-click events; some come late, one in a hundred twice. Most pairs of
user and group are seen seldom, which is the hard case for a store.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stream_dmgin import records, topics
from stream_dmgin.log.base import Log

START = 1_760_000_000_000
TYPES = ("order", "cart", "favourite", "share", "dwell", "negative")
CHUNK = 50_000


@dataclass(frozen=True)
class Workload:
    """What to generate: `users`, `items` in `groups` groups, one item in a hundred of `items` without a group."""

    users: int = 20_000
    items: int = 5_000
    groups: int = 400
    seed: int = 7

    def group_of(self, item: int) -> int | None:
        """Group number of an item; None for those without one."""
        return None if item % 100 == 99 else item * 7 % self.groups

    def group_map(self) -> dict[str, int]:
        """Item id to group number."""
        return {f"i{k}": g for k in range(self.items) if (g := self.group_of(k)) is not None}

    def write_groups(self, path: Path) -> None:
        """The map as CSV, as `--groups` takes it."""
        with path.open("w", newline="") as f:
            w = csv.writer(f)
            w.writerow(["item_id", "group"])
            w.writerows(self.group_map().items())

    def events(self, first: int, n: int) -> Iterator[tuple[int, bytes, bytes, int]]:
        """Events number `first` to `first + n`: (topic number, key, value, timestamp). The same numbers give the same events."""
        end = first + n
        for chunk in range(first // CHUNK, -(-end // CHUNK)):
            at = chunk * CHUNK
            for k, event in enumerate(self._chunk(chunk), at):
                if first <= k < end:
                    yield event

    def _chunk(self, chunk: int) -> Iterator[tuple[int, bytes, bytes, int]]:
        r = np.random.default_rng([self.seed, chunk])
        weights = np.cumsum(1 / np.arange(1, self.users + 1))
        user = np.searchsorted(weights, r.random(CHUNK) * weights[-1])
        item = r.integers(0, self.items, CHUNK)
        kind = np.searchsorted([0.5, 0.8], r.random(CHUNK))
        late = np.where(r.random(CHUNK) < 0.05, r.integers(0, 3_500, CHUNK), 0)
        ts = START + (chunk * CHUNK + np.arange(CHUNK)) * 7 - late
        number = chunk * CHUNK + np.arange(CHUNK)
        dwell, spend, type_ = r.integers(0, 60_000, CHUNK), r.random(CHUNK) * 90, r.integers(0, len(TYPES), CHUNK)
        of = np.arange(CHUNK) - (r.random(CHUNK) < 0.01).astype(int).clip(
            max=np.arange(CHUNK)
        )  # the event before, once more
        columns = (user, item, kind, ts, number, dwell, spend, type_)
        for u, i, k, t, e, d, s, y in zip(*(c[of].tolist() for c in columns), strict=True):
            event = records.Event(f"u{u}", f"i{i}", t, event_id=f"e{e}")
            if k:
                event.dwell_ms = d
            if k == 2:
                event.type = TYPES[y]
                if y == 0:
                    event.value = round(s, 2)
            yield k, event.user_id.encode(), records.encode(event), t


def write(log: Log, prefix: str, workload: Workload, first: int, n: int) -> None:
    """Append these events to the log and wait until they are durable. Topics must exist."""
    names = [prefix + t for t in topics.EVENTS]
    writer = log.writer()
    try:
        for k, key, value, ts in workload.events(first, n):
            writer.append(names[k], key, value, timestamp=ts)
        writer.flush(300)
    finally:
        writer.close()
