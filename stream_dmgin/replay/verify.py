"""Can a score be reproduced? From the log alone, by what the score says it was computed from.

For each score of a sample: the state of its user from the events below `provenance.offsets`, the counters from the records
below `provenance.counters`, the catalogue as it was when the score was made, the request from its topic, the model that the
score names. The state must be the same bit for bit (its digest), the probabilities within 1e-6.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stream_dmgin import topics
from stream_dmgin.control import digest_of, read_control
from stream_dmgin.counters.chains import SharedCounters
from stream_dmgin.errors import InputError, RecordError, UsageError
from stream_dmgin.features.catalogue import Catalogue
from stream_dmgin.features.spec import Reads
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import Log, Record, batch_of
from stream_dmgin.records import Request, Score, decode_request, decode_score
from stream_dmgin.replay.logsource import Columns, read_all
from stream_dmgin.scoring.context import read_context
from stream_dmgin.scoring.engine import Engine, choose_engine
from stream_dmgin.scoring.scorer import Ask, Scorer
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.layout import STATE_FORMAT
from stream_dmgin.state.parse import parse_events

CLOSE = 1e-6


@dataclass
class Outcome:
    """What `replay --verify` prints. `skipped`: reason -> scores that can't be checked (fallbacks, requests gone from the log)."""

    checked: int = 0
    reproduced: int = 0
    state_identical: int = 0
    max_abs_diff: float = 0.0
    unexplained: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)  # of what is unexplained, without user ids

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class _Case:
    partition: int
    score: Score
    request: Request | None


def verify(log: Log, prefix: str, n: int, groups: GroupMap | None, data_dir: Path, seed: int = 0) -> Outcome:
    """Check `n` scores, drawn evenly from the topic by seed. Group maps and models are those that the scores name, from
    `data_dir`, or `groups` where that is the one. Raises UsageError where one can't be found."""
    if n < 1:
        raise UsageError("--verify needs the number of scores to check, 1 or more")
    out = Outcome()
    cases = _cases(log, prefix, n, seed, out)
    if not cases:
        return out
    maps = {name: _map(name, groups, data_dir) for name in {c.score.groups for c in cases}}
    histories = _histories(log, prefix, cases)
    can = [c for c in cases if c.request is not None and c.score.provenance.state == STATE_FORMAT]
    engines = _engines({c.score.model for c in can}, data_dir)
    world = _Shared(log, prefix, Reads.of(e.spec for e in engines.values()))
    scorers: dict[tuple[str, str], Scorer] = {}
    # counters and catalogue only go forward, so the cases are taken in the order of what they had seen
    for c in sorted(cases, key=lambda c: (world.counters_seen(c.score), c.score.scored_at)):
        world.forward(c.score)
        if c.request is None:
            out.skipped["the request is no longer in the log"] = (
                out.skipped.get("the request is no longer in the log", 0) + 1
            )
            continue
        if c.score.provenance.state != STATE_FORMAT:
            out.skipped["another state format"] = out.skipped.get("another state format", 0) + 1
            continue
        both = c.score.model, c.score.groups
        if both not in scorers:
            scorers[both] = _scorer(engines[c.score.model], world, maps[c.score.groups])
        engine = _state(c, prefix, maps[c.score.groups], histories.get((c.partition, c.score.user_id.encode()), []))
        try:
            _check(c, scorers[both], engine, out)
        finally:
            engine.close()
    return out


def _map(name: str, given: GroupMap | None, data_dir: Path) -> GroupMap:
    """The group map that a score names: the one given, none, or one that the worker or `groups` keeps in the data directory."""
    if given is not None and given.id == name:
        return given
    if name == GroupMap.empty().id:
        return GroupMap.empty()
    for path in (data_dir / "state" / f"groups-{name}.parquet", data_dir / "groups" / f"{name}.parquet"):
        if path.is_file():
            return GroupMap.load(path)
    raise UsageError(f"scores name the group map {name}, which is not in {data_dir}: give its file with --groups")


def _check(c: _Case, scorer: Scorer, engine: StateEngine, out: Outcome) -> None:
    assert c.request is not None
    request = c.request
    ask = Ask(engine, c.score.user_id.encode(), request.ts, request.candidates, *read_context(request.context))
    scorer.towers.clear()  # versions of a rebuilt state are not those of the worker's
    answer = scorer.score([ask])[0]
    ours = {"ctr": answer.heads["ctr"], **{h: answer.heads.get(h, []) for h in c.score.heads}}
    theirs = {"ctr": c.score.ctr, **c.score.heads}
    same_shape = all(len(ours[h]) == len(theirs[h]) for h in theirs)
    diff = max((abs(a - b) for h in theirs for a, b in zip(ours[h], theirs[h], strict=False)), default=0.0)
    identical = f"{answer.digest:016x}" == c.score.provenance.digest
    out.checked += 1
    out.state_identical += identical
    out.max_abs_diff = max(out.max_abs_diff, diff)
    if identical and same_shape and diff <= CLOSE:
        out.reproduced += 1
        return
    out.unexplained += 1
    if len(out.examples) < 5:
        out.examples.append(
            {"request_id": c.score.request_id, "partition": c.partition, "state_identical": identical, "abs_diff": diff}
        )


def _cases(log: Log, prefix: str, n: int, seed: int, out: Outcome) -> list[_Case]:
    records = read_all(log, [prefix + topics.SCORES])
    order = np.random.default_rng(seed).permutation(len(records))
    control, _, _ = read_control(log, prefix)
    erased = {d for of in control.erasures.values() for d in of}
    chosen: list[tuple[int, Score]] = []
    for i in order.tolist():
        if len(chosen) == n:
            break
        value = records.values[i]
        try:
            score = decode_score(value or b"")
        except Exception as e:
            raise InputError(f"{prefix + topics.SCORES} holds a record that is no score: {e}") from None
        if erased and digest_of(score.user_id.encode()) in erased:
            out.skipped["the user was erased"] = out.skipped.get("the user was erased", 0) + 1
        elif score.status == "ok":
            chosen.append((int(records.partition[i]), score))
        else:
            out.skipped[score.status] = out.skipped.get(score.status, 0) + 1
    requests = _requests(log, prefix, {s.request_id for _, s in chosen})
    return [_Case(p, s, requests.get((s.user_id, s.request_id))) for p, s in chosen]


def _requests(log: Log, prefix: str, wanted: set[str]) -> dict[tuple[str, str], Request]:
    """The requests with these ids, by (user, request id); the first of each, as it was answered first."""
    records = read_all(log, [prefix + topics.REQUESTS])
    found: dict[tuple[str, str], Request] = {}
    for i in np.lexsort((records.offset, records.partition)).tolist():
        try:
            r = decode_request(records.keys[i], records.values[i], int(records.timestamp[i]))
        except RecordError:
            continue
        if r.request_id in wanted:
            found.setdefault((r.user_id, r.request_id), r)
    return found


def _histories(log: Log, prefix: str, cases: list[_Case]) -> dict[tuple[int, bytes], list[Record]]:
    """All events of the cases' users, by (partition, user)."""
    wanted = {(c.partition, c.score.user_id.encode()) for c in cases}
    e = read_all(log, [prefix + t for t in topics.EVENTS], sorted({p for p, _ in wanted}))
    out: dict[tuple[int, bytes], list[Record]] = {}
    for i, (key, p) in enumerate(zip(e.keys, e.partition.tolist(), strict=True)):
        if key is not None and (p, key) in wanted:
            out.setdefault((p, key), []).append(_record(e, i))
    return out


def _record(e: Columns, i: int) -> Record:
    return Record(
        topics.EVENTS[e.topic[i]], int(e.partition[i]), int(e.offset[i]), int(e.timestamp[i]), e.keys[i], e.values[i]
    )


def _state(c: _Case, prefix: str, groups: GroupMap, history: list[Record]) -> StateEngine:
    """A store in memory that has folded the user's events below the score's offsets."""
    engine = StateEngine.open(None, c.partition, groups)
    upto: Mapping[str, int] = c.score.provenance.offsets
    records = [r for r in history if r.offset < upto.get(prefix + r.topic, 0)]
    if records:
        records.sort(key=lambda r: (r.topic, r.offset))
        batch = batch_of(topics.EVENTS, records)
        columns, _ = parse_events(batch, np.arange(len(topics.EVENTS), dtype=np.uint8))
        engine.fold(columns, np.flatnonzero(columns.status == 0).astype(np.int32))
        batch.release()
    return engine


class _Shared:
    """Counters and catalogue, brought forward over their topics, with what models need as `reads` says."""

    def __init__(self, log: Log, prefix: str, reads: Reads) -> None:
        self.topic = prefix + topics.COUNTERS
        self.counters = SharedCounters(reads.online, reads.rhythm)
        self.catalogue = Catalogue(embedding=reads.embedding)
        self._counters = read_all(log, [self.topic])
        self._items = read_all(log, [prefix + topics.ITEMS])
        self._counter_order = np.argsort(self._counters.offset, kind="stable").tolist()
        self._item_order = np.lexsort((self._items.offset, self._items.partition, self._items.timestamp)).tolist()
        self._c = self._i = 0

    def counters_seen(self, score: Score) -> int:
        """Offset of the counters topic up to which the score had folded."""
        return score.provenance.counters.get(self.topic, 0)

    def forward(self, score: Score) -> None:
        """To what the score had seen: counters exactly, items by the time of their records."""
        while self._c < len(self._counter_order):
            k = self._counter_order[self._c]
            if int(self._counters.offset[k]) >= self.counters_seen(score):
                break
            try:
                self.counters.fold(self._counters.values[k], int(self._counters.offset[k]))
            except RecordError:
                pass  # the worker left it out, too
            self._c += 1
        while (
            self._i < len(self._item_order) and int(self._items.timestamp[self._item_order[self._i]]) <= score.scored_at
        ):
            k = self._item_order[self._i]
            try:
                self.catalogue.fold(self._items.keys[k], self._items.values[k])
            except RecordError:
                pass
            self._i += 1


def _engines(models: Iterable[str], data_dir: Path) -> dict[str, Engine]:
    from stream_dmgin.models.registry import load_model

    return {m: choose_engine(load_model(m, data_dir))[0] for m in models}


def _scorer(engine: Engine, world: _Shared, groups: GroupMap) -> Scorer:
    world.catalogue.require(engine.spec)
    return Scorer(engine, world.catalogue, world.counters.table, groups)
