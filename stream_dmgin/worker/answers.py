"""Requests in, score records out: expired ones, scored ones, fallbacks, rejections; each with its provenance.

Once per request, a few tens of microseconds of Python beside the model's work.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stream_dmgin import topics
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import Headers
from stream_dmgin.records import Provenance, Request, Score, encode
from stream_dmgin.scoring.context import read_context
from stream_dmgin.scoring.floor import item_rates
from stream_dmgin.scoring.scorer import Ask
from stream_dmgin.state.layout import STATE_FORMAT
from stream_dmgin.worker.health import Health
from stream_dmgin.worker.partitions import Owned
from stream_dmgin.worker.releases import Releases, ScorersByMap
from stream_dmgin.worker.shared import Shared

log_ = logging.getLogger(__name__)

FLOOR = "item-ctr"  # the model named in a fallback: the item's own smoothed click rate


@dataclass(frozen=True, slots=True)
class Asked:
    """A well-formed request on its way: where it came from, and whose state answers it."""

    request: Request
    owned: Owned
    offset: int
    timestamp: int
    headers: Headers


Sent = tuple[bytes, bytes, Headers]  # key, value, headers of a score record


class Answers:
    """Makes score records. Without scorers (no model), every answer is a `fallback` by item rates."""

    def __init__(
        self, scorers: ScorersByMap | None, releases: Releases | None, why_fallback: str, shared: Shared, prefix: str,
        health: Health, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._scorers, self._releases, self._why, self._clock = scorers, releases, why_fallback, clock
        self._shared, self._health = shared, health
        self._names = [(n, prefix + t) for n, t in enumerate(topics.EVENTS)]
        self._counters_topic = prefix + topics.COUNTERS
        self._model = scorers.engine.model.id if scorers else FLOOR

    def look(self) -> None:
        """Swap in a newly published model, once it is loaded. Between batches; doesn't block."""
        fresh = self._releases.poll() if self._releases else None
        if fresh is not None:
            self._scorers, self._model = fresh, fresh.engine.model.id
            self._health.model = self._model
            log_.info("model %s answers from here on", self._model)

    def forget(self, user_id: bytes) -> None:
        """Drop what is cached of an erased user: a new life may come to the same version."""
        if self._scorers is not None:
            self._scorers.forget(user_id)

    def settled(self, groups: GroupMap) -> None:
        """Every partition has this group map now."""
        if self._scorers is not None:
            self._scorers.keep_only(groups)

    def answer(self, asked: Sequence[Asked]) -> list[tuple[Asked, Sent]]:
        """A score record for each request, in the same order."""
        now = self._now()
        live = [a for a in asked if a.request.expires_at is None or a.request.expires_at >= now]
        scored = iter(self._score(live))
        out = []
        for a in asked:
            if a.request.expires_at is not None and a.request.expires_at < now:
                r, late = a.request, now - a.request.expires_at
                why = f"expired {late} ms before it could be answered"
                score = self._blank(r.request_id, r.user_id, r.ts, r.candidates, "expired", a.owned, why)
            else:
                score = next(scored)
            out.append((a, self._sent(score, a.headers, a.timestamp)))
        return out

    def rejection(self, identity: tuple[str, str], owned: Owned, reason: str, timestamp: int) -> Sent:
        """The answer to a malformed request that could be identified as (request id, user id)."""
        return self._sent(self._blank(*identity, timestamp, [], "rejected", owned, reason), (), timestamp)

    def _score(self, asked: Sequence[Asked]) -> list[Score]:
        if not asked:
            return []
        if self._scorers is None:
            return [self._fallback(a, self._why) for a in asked]
        maps = {a.owned.engine.groups.id: a.owned.engine.groups for a in asked}
        if len(maps) > 1:  # partitions go over to another group map one by one
            return self._score_by_map(asked)
        order = sorted(range(len(asked)), key=lambda i: (asked[i].owned.partition, len(asked[i].request.candidates)))
        asks = [_ask(asked[i]) for i in order]
        (groups,) = maps.values()
        try:
            scorer = self._scorers.of(groups)
            hits, misses = scorer.towers.hits, scorer.towers.misses
            answers = scorer.score(asks)
        except Exception as e:  # the model must not take the stream down with it: answer by rates, say so, go on
            log_.exception("the model failed on %d requests: they are answered by item rates", len(asked))
            return [self._fallback(a, f"the model failed: {type(e).__name__}") for a in asked]
        m = self._health.metrics
        m.tower_hits.inc(scorer.towers.hits - hits)
        m.tower_misses.inc(scorer.towers.misses - misses)
        out: list[Score | None] = [None] * len(asked)
        for i, answer in zip(order, answers, strict=True):
            a = asked[i]
            ctr = answer.heads.pop("ctr")
            out[i] = self._make(a.request, "ok", ctr, answer.heads, self._model, None, a.owned, f"{answer.digest:016x}")
        return [s for s in out if s is not None]

    def _score_by_map(self, asked: Sequence[Asked]) -> list[Score]:
        out: dict[int, Score] = {}
        for name in {a.owned.engine.groups.id for a in asked}:
            mine = [i for i, a in enumerate(asked) if a.owned.engine.groups.id == name]
            out |= zip(mine, self._score([asked[i] for i in mine]), strict=True)
        return [out[i] for i in range(len(asked))]

    def _fallback(self, a: Asked, why: str) -> Score:
        ctr = item_rates(self._shared.counters, a.request.candidates, a.request.ts)
        return self._make(a.request, "fallback", ctr, {}, FLOOR, why, a.owned, None)

    def _make(self, r: Request, status: str, ctr: list[float], heads: dict[str, list[float]], model: str, reason: str | None,
              owned: Owned, digest: str | None) -> Score:  # fmt: skip
        return Score(r.request_id, r.user_id, r.ts, self._now(), status, r.candidates, ctr, heads, model, owned.engine.groups.id, reason,
                     self._provenance(owned, digest))  # fmt: skip

    def _blank(
        self, request_id: str, user_id: str, ts: int, candidates: list[str], status: str, owned: Owned, reason: str
    ) -> Score:
        return Score(request_id, user_id, ts, self._now(), status, candidates, [], {}, self._model, owned.engine.groups.id, reason,
                     self._provenance(owned, None))  # fmt: skip

    def _provenance(self, owned: Owned, digest: str | None) -> Provenance:
        offsets = owned.engine.offsets
        return Provenance(
            {t: offsets[n] for n, t in self._names},
            {self._counters_topic: self._shared.counters_offset},
            STATE_FORMAT,
            digest,
        )

    def _now(self) -> int:
        return int(self._clock() * 1000)

    def _sent(self, s: Score, headers: Headers, asked_at: int) -> Sent:
        m = self._health.metrics
        m.requests.labels(s.status).inc()
        m.latency.observe(max(0.0, self._clock() - asked_at / 1000))
        out: Headers = (
            ("ce_id", s.request_id.encode()),
            ("ce_type", b"dmgin.score"),
            ("ce_source", b"stream-dmgin"),
            ("content-type", b"application/msgpack"),
            *((k, v) for k, v in headers if k in ("traceparent", "tracestate")),
        )  # fmt: skip
        return s.user_id.encode(), encode(s), out


def _ask(a: Asked) -> Ask:
    r = a.request
    return Ask(a.owned.engine, r.user_id.encode(), r.ts, r.candidates, *read_context(r.context))
