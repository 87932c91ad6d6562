"""From events to inputs through the state engine itself: fold, read, increments, counters, features."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from audience_reference import rounded
from features_checks import SPEC, check_request, check_user
from features_reference import Counters, World, h64

from stream_dmgin.counters.increments import Increments
from stream_dmgin.counters.learner import OnlineModel
from stream_dmgin.counters.table import CounterTable
from stream_dmgin.features.build import FeatureBuilder
from stream_dmgin.features.catalogue import Catalogue
from stream_dmgin.features.inputs import Inputs
from stream_dmgin.features.profile import Profiles
from stream_dmgin.features.spec import BEHAVIOUR_CLASSES, CLASS_OF_TYPE, COUNTER_METRICS
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import Record, batch_of
from stream_dmgin.records import Event, Item, encode
from stream_dmgin.state.arrays import UserArrays
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.parse import parse_events
from stream_dmgin.topics import EVENTS

NOW = 1_750_000_123_456
ITEMS = [f"s{i}" for i in range(30)]
USERS = ["u0", "u1", "u2"]


def events(r: np.random.Generator, n: int) -> list[tuple[str, Event]]:
    out = []
    types = {
        "impressions": [None],
        "clicks": [None, "view"],
        "post-clicks": ["order", "share", "dwell", "hate", "strange"],
    }
    for i in range(n):
        topic = EVENTS[r.integers(3)]
        dwell = int(r.integers(0, 5_000_000)) if r.random() < 0.5 else None
        value = float(r.integers(0, 100)) if topic == "post-clicks" and r.random() < 0.5 else None
        ts = NOW - int(10 ** r.uniform(3, 9))
        e = Event(
            USERS[r.integers(3)],
            ITEMS[r.integers(30)],
            ts,
            f"e{i}",
            str(r.choice(types[topic])) if topic != "impressions" else None,
        )
        e.dwell_ms, e.value = dwell, value
        e.surface = (None, "home", "search")[r.integers(3)]
        if e.type == "None":
            e.type = None
        out.append((topic, e))
    return out


def count(reference: Counters, topic: str, e: Event, item: Item | None) -> None:
    cls = CLASS_OF_TYPE.get(e.type or {"impressions": "impression", "clicks": "click"}.get(topic, ""), "other")
    found = {
        "impressions": cls == "impression",
        "clicks": cls == "click",
        "orders": cls == "payment",
        "engagements": cls in ("weak", "strong"),
    }
    found["dwell_ms"] = 0 if cls == "impression" else min(e.dwell_ms or 0, 3_600_000)
    for metric in COUNTER_METRICS:
        if found[metric]:
            for kind, name in (
                ("item", e.item_id),
                ("category", item and item.category),
                ("advertiser", item and item.advertiser),
            ):
                if name:
                    reference.add(kind, h64(name), e.ts // 900_000, metric, int(found[metric]))


def is_met(topic: str, e: Event) -> bool:
    """Whether the event is an impression or a click, by its type where it has one."""
    return (
        topic == "impressions"
        or CLASS_OF_TYPE.get(e.type or ("click" if topic == "clicks" else "other"), "other") == "click"
    )


@pytest.mark.parametrize("seed", range(3))
def test_events_become_the_inputs_that_the_page_promises(seed: int) -> None:
    r = np.random.default_rng(seed)
    items = {
        n: Item(
            n,
            category=f"c{i % 4}",
            advertiser=f"a{i % 7}" if i % 3 else None,
            price=float(i),
            lat=i / 3,
            lon=-i / 2,
            attrs={"size": i},
            embedding=[*r.normal(size=SPEC.embedding)] if i % 5 else None,
        )
        for i, n in enumerate(ITEMS[:25])
    }
    groups = GroupMap({n: int(r.integers(8)) for n in ITEMS[:20]})
    catalogue, table, reference = Catalogue(SPEC), CounterTable(OnlineModel()), Counters()
    for item in items.values():
        catalogue.upsert(item)
    engine, profiles = StateEngine.open(None, 0, groups), Profiles(catalogue)
    world = World(SPEC, items, groups.items, reference)
    log = events(r, 600)
    next_offset = dict.fromkeys(EVENTS, 0)
    for start in range(0, len(log), 150):
        records = []
        for topic, e in log[start : start + 150]:
            records.append(Record(topic, 0, next_offset[topic], NOW, e.user_id.encode(), encode(e)))
            next_offset[topic] += 1
            count(reference, topic, e, items.get(e.item_id))
        batch = batch_of(EVENTS, records)
        columns, bad = parse_events(batch, np.arange(3, dtype=np.uint8))
        assert not bad and engine.fold(columns, np.arange(len(records), dtype=np.int32)) == len(records)
        x = Increments.from_raw(engine.take_increments(), catalogue, profiles.audience(engine))
        table.take(x)
        engine.read([u.encode() for u in USERS], arrays := UserArrays.allocate(3, 1, 1, SPEC.interests))
        met = [(t, e, rounded(world.profile(arrays, USERS.index(e.user_id))[0])) for t, e in log[start : start + 150]]
        taught = [(h64(e.item_id), int(t == "clicks"), 1, x) for t, e, x in met if is_met(t, e) and any(x)]
        reference.audiences.learn(taught)
        assert x.audience is not None and x.audience.count.sum() == len(taught)
        surface = [0] * len(x) if x.surface is None else x.surface.tolist()
        reference.online.learn(zip(*(c.tolist() for c in x.columns()), surface, strict=True))
        reference.rhythms.learn(zip(*(c.tolist() for c in x.columns()), strict=True))
        batch.release()
    arrays = UserArrays.of(SPEC, 4)
    for name in ("g_key", "e_item", "s_item", "m_item"):  # what lies beyond is undefined: let it be odd
        getattr(arrays, name)[:] = 12345
    for name in ("e_ts", "e_dwell", "g_last", "g_first", "s_ts", "m_ts"):
        getattr(arrays, name)[:] = -(1 << 62)
    arrays.e_cls[:], arrays.s_cls[:], arrays.s_surface[:], arrays.m_surface[:] = 255, 255, 255, 255
    engine.read([*(u.encode() for u in USERS), b"nobody"], arrays)
    builder, inputs = FeatureBuilder(SPEC, catalogue, table, groups), Inputs.allocate(SPEC, 4, 31)
    builder.user_side(arrays, 4, inputs)
    builder.request_side(arrays, 4, [(NOW, [*ITEMS, "unknown"], 10.0, 20.0, "home", "s3")] * 4, inputs)
    for b in range(4):
        check_user(inputs, b, world.user_side(arrays, b))
        candidates = [h64(n) for n in [*ITEMS, "unknown"]]
        check_request(inputs, b, world.request_side(arrays, b, NOW, candidates, 10.0, 20.0, "home", "s3"))
    assert BEHAVIOUR_CLASSES[inputs["s_cls"][0, 0]] in BEHAVIOUR_CLASSES and int(arrays.n_groups[3]) == 0
    engine.close()
