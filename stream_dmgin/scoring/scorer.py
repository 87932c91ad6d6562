"""From users' states and candidates to calibrated probabilities: read, features, tower, head. Knows no log and no records.

Live serving, replay and verification call the same `score`. Allocates its buffers once, for `max_users` users and
`max_cells` (user, candidate) pairs; larger calls are cut into several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from stream_dmgin.counters.table import CounterTable
from stream_dmgin.features.build import FeatureBuilder
from stream_dmgin.features.catalogue import Catalogue
from stream_dmgin.features.inputs import Inputs
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.records import CANDIDATES_MAX
from stream_dmgin.scoring.tower_cache import TowerCache
from stream_dmgin.state.arrays import UserArrays
from stream_dmgin.state.engine import StateEngine

if TYPE_CHECKING:  # torch takes seconds to import
    from stream_dmgin.scoring.engine import Engine, UserTower

MAX_USERS = 64
MAX_CELLS = 8192  # at least CANDIDATES_MAX

Observe = Callable[[str, float], None]  # stage, seconds


@dataclass(frozen=True, slots=True)
class Ask:
    """One user and its candidates at a time; `engine` holds the user's state."""

    engine: StateEngine
    user: bytes
    ts: int
    candidates: Sequence[str]
    lat: float | None = None
    lon: float | None = None
    surface: str | None = None
    page: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Probabilities by head (`ctr` first), each in the order of the candidates; `digest` of the state they came from."""

    heads: dict[str, list[float]]
    digest: int


class Scorer:
    """A model on an engine, over given counters, catalogue and groups. One thread."""

    def __init__(
        self, engine: Engine, catalogue: Catalogue, counters: CounterTable, groups: GroupMap, *,
        max_users: int = MAX_USERS, tower_cache: TowerCache | None = None, observe: Observe = lambda stage, seconds: None,
    ) -> None:  # fmt: skip
        self.engine, self.max_users, self._observe = engine, max_users, observe
        self.towers = tower_cache if tower_cache is not None else TowerCache()
        spec = engine.spec
        self._builder = FeatureBuilder(spec, catalogue, counters, groups)
        self._arrays = UserArrays.of(spec, max_users)
        self._inputs = Inputs.allocate(spec, max_users, max(1, MAX_CELLS // max_users))
        self._user_inputs = Inputs.allocate(spec, max_users, 1)  # of the users whose towers are computed

    def score(self, asks: Sequence[Ask]) -> list[Answer]:
        """Answers in the order of the asks, each independent of what else is in the call (within 1e-6)."""
        out: list[Answer] = []
        for part in self._parts(asks):
            out += self._score(part)
        return out

    def _parts(self, asks: Sequence[Ask]) -> Iterator[Sequence[Ask]]:
        start = widest = 0
        for i, a in enumerate(asks):
            if len(a.candidates) > CANDIDATES_MAX:
                raise ValueError(f"{len(a.candidates)} candidates: at most {CANDIDATES_MAX}")
            widest = max(widest, len(a.candidates))
            if i > start and ((i + 1 - start) * widest > MAX_CELLS or i - start >= self.max_users):
                yield asks[start:i]
                start, widest = i, len(a.candidates)
        if start < len(asks):
            yield asks[start:]

    def _score(self, asks: Sequence[Ask]) -> list[Answer]:
        t0 = perf_counter()
        n = len(asks)
        inputs = self._inputs.fit(n, max(len(a.candidates) for a in asks))
        at = 0
        while at < n:  # one read a run of asks of one partition
            end = at
            while end < n and asks[end].engine is asks[at].engine:
                end += 1
            asks[at].engine.read([a.user for a in asks[at:end]], self._arrays, at)
            at = end
        t1 = perf_counter()
        self._builder.request_side(
            self._arrays, n, [(a.ts, a.candidates, a.lat, a.lon, a.surface, a.page) for a in asks], inputs
        )
        t2 = perf_counter()
        users = [(a.user, v) for a, v in zip(asks, self._arrays.version[:n].tolist(), strict=True)]
        towers = self.towers.towers(users, self._make_towers)
        t3 = perf_counter()
        heads = {k: v.tolist() for k, v in self.engine.head(towers, inputs).items()}
        t4 = perf_counter()
        for stage, seconds in (("read", t1 - t0), ("features", t2 - t1), ("tower", t3 - t2), ("head", t4 - t3)):
            self._observe(stage, seconds)
        digests = self._arrays.digest[:n].tolist()
        return [
            Answer({k: v[i][: len(a.candidates)] for k, v in heads.items()}, digests[i]) for i, a in enumerate(asks)
        ]

    def _make_towers(self, rows: list[int]) -> list[UserTower]:
        """Towers of these rows of the state arrays."""
        inputs = self._user_inputs.fit(len(rows), 1)
        self._builder.user_side(self._arrays, np.array(rows, np.int32), inputs)
        return self.engine.tower(inputs)
