"""Users with lives of given lengths in a real store, items in a catalogue and counters over them: what reading and scoring are
measured on."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stream_dmgin import records, topics
from stream_dmgin.bench.workload import START, TYPES
from stream_dmgin.counters.increments import Increments
from stream_dmgin.counters.learner import OnlineModel
from stream_dmgin.counters.table import CounterTable
from stream_dmgin.features.catalogue import Catalogue
from stream_dmgin.features.profile import Profiles
from stream_dmgin.features.spec import NOTHING, Reads
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import Record, batch_of
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.parse import parse_events

ITEMS, GROUPS = 5_000, 400
LIFE_MS = 400 * 86_400_000
CHUNK = 50_000


@dataclass
class Population:
    """A store, and what the features need beside it. `users[n]` have `n` clicks and post-click events, and about as many
    impressions; `now` is after all of them."""

    engine: StateEngine
    catalogue: Catalogue
    counters: CounterTable
    groups: GroupMap
    users: dict[int, list[bytes]]
    items: list[str]
    now: int

    def add(self, user: bytes, number: int) -> None:
        """One more click of this user, as the worker would fold it."""
        r = random.Random(number)
        e = records.Event(
            user.decode(), r.choice(self.items), self.now + number, event_id=f"more-{number}", dwell_ms=900
        )
        _fold(self.engine, [Record("clicks", 0, self.engine.offsets.get(1, 0), e.ts, user, records.encode(e))])


def populate(
    directory: Path | None, lives: list[int], users: int, seed: int = 1, reads: Reads = NOTHING
) -> Population:  # fmt: skip
    """`users` users of each length of life; each likes some dozens of groups (Zipf), and strays into any.

    The length of a life is its clicks and post-click events, as `events` of `state show`; impressions come beside them.
    """
    r = random.Random(seed)
    items = [f"i{k}" for k in range(ITEMS)]
    catalogue = Catalogue(embedding=reads.embedding)
    content = np.random.default_rng(seed).normal(size=(ITEMS, reads.embedding))
    for k, i in enumerate(items):
        lat, lon, price = 52.4 + r.random() / 5, 13.2 + r.random() / 3, r.random() * 40
        catalogue.upsert(
            records.Item(
                i,
                category=f"c{k % 120}",
                advertiser=f"a{k % 900}",
                lat=lat,
                lon=lon,
                price=price,
                embedding=content[k].tolist() or None,
            )
        )
    groups = GroupMap({i: k % GROUPS for k, i in enumerate(items)})
    engine = StateEngine.open(directory, 0, groups)
    counters = CounterTable(OnlineModel.of(reads.online, reads.rhythm))
    profiles = Profiles(catalogue) if reads.audience else None
    by_life: dict[int, list[bytes]] = {}
    for life in lives:
        by_life[life] = [f"u{life}-{n}".encode() for n in range(users)]
        for user in by_life[life]:
            _live(engine, user, life, r.randrange(1 << 30))
            audience = None if profiles is None else profiles.audience(engine)
            counters.take(Increments.from_raw(engine.take_increments(), catalogue, audience))
            engine.commit()
    return Population(engine, catalogue, counters, groups, by_life, items, START + LIFE_MS + 1000)


def _live(engine: StateEngine, user: bytes, life: int, seed: int) -> None:
    r = np.random.default_rng(seed)
    liked = r.permutation(GROUPS)[:40]
    weights = 1 / np.arange(1, len(liked) + 1)
    n = 2 * life
    group = np.where(r.random(n) < 0.9, r.choice(liked, n, p=weights / weights.sum()), r.integers(0, GROUPS, n))
    item = (r.integers(0, ITEMS // GROUPS, n) * GROUPS + group).tolist()
    ts = np.sort(START + r.integers(0, LIFE_MS, n)).tolist()
    kind = np.searchsorted([0.5, 0.8], r.random(n)).tolist()
    dwell, type_ = r.integers(0, 60_000, n).tolist(), r.integers(0, len(TYPES), n).tolist()
    name = user.decode()
    offset = [engine.offsets.get(t, 0) for t in range(3)]
    for start in range(0, n, CHUNK):
        out = []
        for i in range(start, min(start + CHUNK, n)):
            k = kind[i]
            e = records.Event(name, f"i{item[i]}", ts[i], event_id=f"{name}-{i}")
            if k:
                e.dwell_ms = dwell[i]
            if k == 2:
                e.type = TYPES[type_[i]]
            out.append(Record(topics.EVENTS[k], 0, offset[k], e.ts, user, records.encode(e)))
            offset[k] += 1
        _fold(engine, out)


def _fold(engine: StateEngine, out: list[Record]) -> None:
    batch = batch_of(topics.EVENTS, out)
    columns, bad = parse_events(batch, np.arange(3, dtype=np.uint8))
    assert not bad
    engine.fold(columns, np.arange(len(out), dtype=np.int32))
