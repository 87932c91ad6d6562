"""Milliseconds from state to probabilities on one core, against the rival: the whole model in eager PyTorch for each request.

Requests come as in life: of a random user; some had an event since their last request (their tower is computed again), the
others' towers are cached. `whole_eager` computes everything each time, padded to the model's sizes; it takes turns with the
product, request by request, on the same users. So do further models, whose p50 and p99 stand `beside`.
"""

from __future__ import annotations

import gc
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from stream_dmgin.bench import machine
from stream_dmgin.bench.population import Population, populate
from stream_dmgin.errors import UsageError
from stream_dmgin.features.build import FeatureBuilder
from stream_dmgin.features.inputs import Inputs
from stream_dmgin.features.spec import Reads
from stream_dmgin.models.members import Member, read_by
from stream_dmgin.models.registry import Model, load_model
from stream_dmgin.scoring.engine import choose_engine
from stream_dmgin.scoring.scorer import Ask, Scorer
from stream_dmgin.state.arrays import UserArrays

LIVES = [100, 1_000, 10_000]
USERS = 40
TOUCHED = 0.5  # share of requests whose user had an event since the last one


def measure(
    model_id: str, data_dir: Path, requests: int = 300, candidates: int = 100, beside: Sequence[str] = ()
) -> dict[str, Any]:  # fmt: skip
    """`p50_ms`, `p99_ms` of one request at a time; `p50_touched_ms` and `p50_cached_ms` apart; the rival; 32 users at once; the
    former of the models `beside`. UsageError where these read other blocks or numbers of items than the first."""
    about = machine.describe()
    split = machine.cores()
    r = random.Random(11)
    with tempfile.TemporaryDirectory(prefix="stream-dmgin-bench-") as tmp:
        model = load_model(model_id, data_dir)
        engine, why = choose_engine(model)
        others = [load_model(m, data_dir) for m in beside]
        for m in others:
            if (m.config.spec.blocks, m.config.spec.item_numbers) != (engine.spec.blocks, engine.spec.item_numbers):
                raise UsageError(f"{m.id} reads other inputs than {model.id}: compare models of one log and recipe")
        people = populate(Path(tmp) / "store", LIVES, USERS, reads=Reads.of([engine.spec]))
        people.catalogue.require(engine.spec)
        scorer = Scorer(engine, people.catalogue, people.counters, people.groups, max_users=32)
        turns = [_Turn(m, people) for m in others]
        users = [u for life in LIVES for u in people.users[life]]

        def ask(user: bytes) -> Ask:
            return Ask(
                people.engine, user, people.now + 10_000, r.sample(people.items, candidates), 52.5, 13.4, "lunch"
            )

        def timed(asks: list[Ask]) -> float:
            t0 = perf_counter()
            scorer.score(asks)
            return (perf_counter() - t0) * 1000

        with machine.pinned(split[1] if split else None):
            warm = [ask(u) for u in users]
            scorer.score(warm)  # every tower is cached once, everything lazy is warm
            for t in turns:
                t.scorer.score(warm)
            gc.disable()
            touched: list[float] = []
            cached: list[float] = []
            whole: list[float] = []
            rival = _Whole(scorer, model.members, people, candidates) if model.members else None
            for n in range(requests):
                user = r.choice(users)
                if hit := r.random() >= TOUCHED:
                    before = [ask(user)]
                    scorer.score(before)
                    for t in turns:
                        t.scorer.score(before)
                else:
                    people.add(user, n)
                (cached if hit else touched).append(timed([ask(user)]))
                for t in turns:
                    t.take(ask(user), hit)
                if rival is not None:
                    whole.append(rival.timed(ask(user)))
            batch = []
            for n in range(max(5, requests // 30)):
                some = r.sample(users, 32)
                for k, user in enumerate(some[: int(32 * TOUCHED)]):
                    people.add(user, requests + n * 32 + k)
                batch.append(timed([ask(u) for u in some]) / 32)
            gc.enable()
        people.engine.close()
    return {
        **_said(touched, cached),
        "whole_eager_p50_ms": round(float(np.median(whole)), 3) if whole else None,  # trees alone have no such rival
        "batch32_ms_per_user": round(float(np.median(batch)), 3),
        "model": model.id,
        "engine": why,
        "candidates": candidates,
        "touched": TOUCHED,
        "beside": [t.said() for t in turns],
        "machine": about,
    }


def _said(touched: list[float], cached: list[float]) -> dict[str, Any]:
    both = touched + cached
    return {
        "p50_ms": round(float(np.percentile(both, 50)), 3),
        "p99_ms": round(float(np.percentile(both, 99)), 3),
        "p50_touched_ms": round(float(np.median(touched)), 3),
        "p50_cached_ms": round(float(np.median(cached)), 3),
    }


class _Turn:
    """Another model, asked the same after the first."""

    def __init__(self, model: Model, people: Population) -> None:
        self._model = model
        self._times: tuple[list[float], list[float]] = ([], [])  # touched, cached
        engine, self._why = choose_engine(model)
        self.scorer = Scorer(engine, people.catalogue, people.counters, people.groups, max_users=32)

    def take(self, a: Ask, hit: bool) -> None:
        """Time one request, whose user's tower is cached where `hit`."""
        t0 = perf_counter()
        self.scorer.score([a])
        self._times[hit].append((perf_counter() - t0) * 1000)

    def said(self) -> dict[str, Any]:
        """What it took."""
        return {"model": self._model.id, "engine": self._why, **_said(*self._times)}


class _Whole:
    """The rival: read, features, and each network's own forward over the padded inputs."""

    def __init__(self, scorer: Scorer, members: Sequence[Member], people: Population, candidates: int) -> None:
        spec = scorer.engine.spec
        self._members = members
        self._arrays = UserArrays.of(spec, 1)
        self._inputs = Inputs.allocate(spec, 1, candidates)
        self._builder = FeatureBuilder(spec, people.catalogue, people.counters, people.groups)

    @torch.inference_mode()
    def timed(self, a: Ask) -> float:
        """Milliseconds of one request."""
        t0 = perf_counter()
        a.engine.read([a.user], self._arrays, 0)
        self._builder.user_side(self._arrays, 1, self._inputs)
        self._builder.request_side(
            self._arrays, 1, [(a.ts, a.candidates, a.lat, a.lon, a.surface, a.page)], self._inputs
        )
        for m in self._members:
            m.network({k: torch.from_numpy(v) for k, v in read_by(m.kind, self._inputs).items()})
        return (perf_counter() - t0) * 1000
