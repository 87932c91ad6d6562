"""Microseconds from one user's state to the model's inputs, for short and long lives: state read plus features, as when scoring.

Users are in memory (they just had an event), as those who ask for scores mostly are; `us_from_disk_at_N` is the first read
after a restart. Each figure is a median over users and requests, the least of several blocks that alternate between the lives, so
that other work on the machine falls out of it. A life of N events has N clicks and post-click events.
"""

from __future__ import annotations

import gc
import random
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from stream_dmgin.bench import machine
from stream_dmgin.bench.population import Population, populate
from stream_dmgin.features.build import FeatureBuilder
from stream_dmgin.features.inputs import Inputs
from stream_dmgin.features.spec import InputSpec, Reads
from stream_dmgin.state.arrays import UserArrays
from stream_dmgin.state.engine import StateEngine

BLOCKS, ROUNDS, WARM = 8, 200, 20


def measure(lives: list[int], users: int = 8, candidates: int = 100, spec: InputSpec | None = None) -> dict[str, Any]:
    """`us_at_N` for each life of N events, its parts, and `ratio` of the longest to the shortest."""
    spec = spec or InputSpec()
    about = machine.describe()
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="stream-dmgin-bench-") as tmp:
        path = Path(tmp) / "store"
        people = populate(path, lives, users, reads=Reads.of([spec]))
        reader = _Reader(people, spec, candidates)
        split = machine.cores()
        with machine.pinned(split[1] if split else None):
            blocks = [{life: reader.times(people.users[life]) for life in lives} for _ in range(BLOCKS)]
            for life in lives:
                read, features = min((b[life] for b in blocks), key=sum)
                out[f"us_at_{life}"] = round(read + features, 1)
                out[f"us_read_at_{life}"], out[f"us_features_at_{life}"] = round(read, 1), round(features, 1)
            people.engine.close()
            for life in lives:
                out[f"us_from_disk_at_{life}"] = round(_cold(path, people, spec, life), 1)
    ends = [out[f"us_at_{n}"] for n in (min(lives), max(lives))]
    sizes = {"candidates": candidates, "groups": spec.groups, "events": spec.events, "users": users}
    return {**out, "ratio": round(ends[1] / ends[0], 2), **sizes, "blocks": list(spec.blocks), "machine": about}


class _Reader:
    def __init__(self, people: Population, spec: InputSpec, candidates: int) -> None:
        self._people = people
        self._arrays = UserArrays.of(spec, 1)
        self._inputs = Inputs.allocate(spec, 1, candidates)
        self._builder = FeatureBuilder(spec, people.catalogue, people.counters, people.groups)
        r = random.Random(3)
        self._candidates = [r.sample(people.items, candidates) for _ in range(32)]

    def times(self, users: list[bytes]) -> tuple[float, float]:
        """Median microseconds of (reading the state, building the inputs)."""
        engine, arrays, inputs, builder = self._people.engine, self._arrays, self._inputs, self._builder
        read, features = [], []
        gc.disable()
        for k in range(ROUNDS + WARM):
            user, asked = users[k % len(users)], self._candidates[k % len(self._candidates)]
            t0 = perf_counter()
            engine.read([user], arrays, 0)
            t1 = perf_counter()
            builder.user_side(arrays, 1, inputs)
            builder.request_side(arrays, 1, [(self._people.now, asked, 52.5, 13.4, "lunch", asked[0])], inputs)
            t2 = perf_counter()
            if k >= WARM:
                read.append(t1 - t0)
                features.append(t2 - t1)
        gc.enable()
        return float(np.median(read)) * 1e6, float(np.median(features)) * 1e6


def _cold(path: Path, people: Population, spec: InputSpec, life: int) -> float:
    """Median microseconds of the first read of a user by an engine just opened; RocksDB's files are in the page cache."""
    arrays = UserArrays.of(spec, 1)
    engine = StateEngine.open(path, 0, people.groups)
    engine.read([b"nobody"], arrays, 0)
    spent = []
    for user in people.users[life]:
        t0 = perf_counter()
        engine.read([user], arrays, 0)
        spent.append(perf_counter() - t0)
    engine.close()
    return float(np.median(spent)) * 1e6
