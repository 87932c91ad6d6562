"""Live traffic: rates, order, ids, and what goes onto a log."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stream_dmgin import topics
from stream_dmgin.log.base import open_log
from stream_dmgin.records import decode_event, decode_item, decode_request
from stream_dmgin.settings import load
from stream_dmgin.simulator.live import simulate
from stream_dmgin.simulator.traffic import IMPRESSION_LAG_S, TICK_S, Pace, Tick, traffic
from stream_dmgin.simulator.words import SURFACES
from stream_dmgin.simulator.world import DAY_MS, Plan, build_world, history

PLAN = Plan(users=60, items=200, days=20, life=(50, 500), start_ms=1_760_000_000_000)
PACE = Pace(events_per_s=3000, requests_per_s=30, seconds=3, candidates=15, speed=600)


def ticks(plan: Plan = PLAN, pace: Pace = PACE) -> list[Tick]:
    world = build_world(plan)
    for _ in history(world, keep=True):
        pass
    return list(traffic(world, pace))


@pytest.fixture(scope="module")
def run() -> list[Tick]:
    return ticks()


def test_rates_are_kept(run: list[Tick]) -> None:
    assert sum(len(t.requests) for t in run) == 90
    assert sum(len(t.events.ts) for t in run) == pytest.approx(9000, rel=0.05)
    assert [t.index for t in run] == list(range(150))


def test_content_follows_from_the_plan(run: list[Tick]) -> None:
    for a, c in zip(run, ticks(), strict=True):
        assert a.requests == c.requests
        assert all(np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in zip(a.events, c.events, strict=True))


def test_no_outcome_is_written_before_or_soon_after_its_request(run: list[Tick]) -> None:
    asked = {a.number: t.index for t in run for a in t.requests}
    for t in run[:-1]:  # the last tick carries what is left
        for request in t.events.request.tolist():
            if request in asked:
                assert (t.index - asked[request]) * TICK_S >= IMPRESSION_LAG_S


def test_event_numbers_are_unique_and_go_on_after_the_history(run: list[Tick]) -> None:
    numbers = np.concatenate([t.events.number for t in run])
    assert len(np.unique(numbers)) == len(numbers)
    start = PLAN.start_ms + PLAN.days * DAY_MS
    assert min(a.ts for t in run for a in t.requests) >= start
    views = {(a.number >> 24, a.number & 0xFFFFFF) for t in run for a in t.requests}
    world = build_world(PLAN)
    _, past, _ = next(history(world, keep=True))
    before = dict(enumerate(np.bincount(past.user, minlength=PLAN.users).tolist()))
    assert all(n >= before[u] for u, n in views)


def test_labels_are_those_of_the_clicks(run: list[Tick]) -> None:
    clicked = {
        (r, i)
        for t in run
        for r, i, k in zip(t.events.request.tolist(), t.events.item.tolist(), t.events.kind.tolist())
        if k == 1
    }
    for t in run:
        for a in t.requests:
            assert len(a.items) == len(a.p) >= len(a.labels)
            assert all(0 <= p <= 1 for p in a.p)
            for item, label in zip(a.items, a.labels):
                assert ((a.number, item) in clicked) == bool(label)


def test_onto_a_log(tmp_path: Path) -> None:
    settings = load({"data_dir": str(tmp_path), "log": f"file:{tmp_path / 'log'}"})
    with open_log(settings.log) as log:
        pace = Pace(events_per_s=2000, requests_per_s=20, seconds=1)
        said = simulate(
            log, settings, PLAN, pace, oracle_out=tmp_path / "oracle.jsonl", groups_out=tmp_path / "groups.csv"
        )
        counts = dict.fromkeys(topics.ALL, 0)
        asked, where = {}, set()
        names = (*topics.EVENTS, topics.REQUESTS, topics.ITEMS)
        reader = log.reader([settings.topic(t) for t in names])
        reader.assign({(settings.topic(t), p): 0 for t in names for p in log.ends(settings.topic(t))})
        while (batch := reader.poll(10_000, 0.5)) is not None:
            for i in range(len(batch)):
                r = batch.record(i)
                topic = r.topic.removeprefix(settings.prefix)
                counts[topic] += 1
                if topic == topics.ITEMS:
                    decode_item(r.key, r.value)
                elif topic == topics.REQUESTS:
                    q = decode_request(r.key, r.value, r.timestamp)
                    asked[q.request_id] = q.candidates
                    assert q.context and q.context["surface"] in SURFACES
                else:
                    where.add(decode_event(topic, r.key, r.value, r.timestamp).surface)
            batch.release()
        reader.close()
    assert counts["items"] == 200 and where == set(SURFACES)
    assert sum(counts[t] for t in topics.EVENTS) == said["events"] + said["history_events"]
    assert counts["requests"] == said["requests"] == 20
    truth = [json.loads(line) for line in (tmp_path / "oracle.jsonl").read_text().splitlines()]
    assert {t["request_id"]: t["items"] for t in truth} == asked
    assert len((tmp_path / "groups.csv").read_text().splitlines()) == 201
