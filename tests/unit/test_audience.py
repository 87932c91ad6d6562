"""Who sees and who clicks an item: records of the counters topic, memory, checkpoints; and profiles of users."""

from __future__ import annotations

import sys
from pathlib import Path

import msgpack
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from audience_reference import Audiences

from stream_dmgin.counters.audience import ITEM_BITS, OFTEN, WIDTH, Audience, put_mean, put_met
from stream_dmgin.counters.chains import SharedCounters
from stream_dmgin.counters.increments import Increments, decode
from stream_dmgin.errors import RecordError, UsageError
from stream_dmgin.features.build import FeatureBuilder
from stream_dmgin.features.catalogue import Catalogue
from stream_dmgin.features.profile import Profiles
from stream_dmgin.features.spec import InputSpec
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import Record, batch_of
from stream_dmgin.records import Event, Item, encode
from stream_dmgin.state.arrays import UserArrays
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.parse import parse_events
from stream_dmgin.topics import EVENTS
from tests.learnt import folded, learnt

BUCKET = 1_900_000


def some(n: int, seed: int, items: int = 30) -> Audience:
    r = np.random.default_rng(seed)
    count = r.integers(1, 5, n).astype(np.int32)
    sums = np.rint(r.uniform(-127, 127, (n, WIDTH)) * count[:, None]).astype(np.int32)
    return Audience(r.integers(1, items, n).astype(np.uint64), (r.random(n) < 0.3).astype(np.uint8), count, sums)


def increments(audience: Audience | None, n: int = 20) -> Increments:
    return Increments(
        np.zeros(n, np.uint8), np.arange(1, n + 1).astype(np.uint64), np.full(n, BUCKET), np.zeros(n, np.uint8), np.ones(n, np.int64),
        None, audience,
    )  # fmt: skip


def says(s: SharedCounters, item: int, mine: np.ndarray) -> tuple[float, float]:
    assert s.table.online is not None
    model, mean, met = s.table.online.addresses.ctypes.data, np.zeros(WIDTH), np.full((2, WIDTH), 7.0)
    put_mean(model, mean.ctypes.data)
    put_met(model, np.uint64(item), mean.ctypes.data, met.ctypes.data)
    clicked, left = met @ (mine - mean)
    return float(clicked), float(left)


def rows(x: Audience) -> list:
    return list(zip(*(c.tolist() for c in (x.hash, x.metric, x.count, x.sum)), strict=True))


def test_what_is_written_is_read_in_one_record_or_in_many() -> None:
    x = some(500, 1)
    (one,) = increments(x).encode(0, {0: 0}, {0: 9}, "a")
    back = decode(one).increments.audience
    assert back is not None and rows(back) == rows(x)
    many = increments(x).encode(0, {0: 0}, {0: 9}, "a", limit=4096)
    assert len(many) > 5 and max(map(len, many)) <= 4096
    assert learnt(folded(many)) == learnt(folded([one]))
    plain = increments(None).encode(0, {0: 0}, {0: 9}, "a")
    assert decode(plain[0]).increments.audience is None and "audience_sum" not in msgpack.unpackb(plain[0])


def test_a_repeated_range_teaches_nothing() -> None:
    first, second = (increments(some(50, k)).encode(0, {0: k}, {0: k + 1}, "a")[0] for k in (0, 1))
    again = increments(some(50, 0)).encode(0, {0: 0}, {0: 1}, "b")[0]
    assert learnt(folded([first, first, again, second, second])) == learnt(folded([first, second]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"audience_metric": b""}, "differ in length"),
        ({"audience_sum": None}, "differ in length, or some are missing"),
        ({"audience_hash": b"\0" * 8}, "out of range"),
        ({"audience_metric": b"\2"}, "out of range"),
        ({"audience_count": bytes(4)}, "out of range"),
        ({"audience_sum": np.full(WIDTH, 10_000, "<i4").tobytes()}, "out of range"),
        ({"audience_sum": "text"}, "bytes"),
    ],
)
def test_malformed_columns_are_refused(change: dict[str, bytes | None], says: str) -> None:
    body = msgpack.unpackb(increments(some(1, 1)).encode(0, {0: 0}, {0: 1}, "a")[0]) | change
    with pytest.raises(RecordError, match=says):
        decode(msgpack.packb({k: v for k, v in body.items() if v is not None}))


def test_likeness_is_that_of_the_reference_also_of_what_is_shown_very_often() -> None:
    reference, values = Audiences(), []
    for k in range(60):
        x = some(200, k, items=6)
        x.count[:] *= 300
        x.sum[:] *= 300
        reference.learn(rows(x))
        values += increments(x).encode(0, {0: k}, {0: k + 1}, "a")
    s = folded(values)
    assert max(n for n, _ in reference.sums.values()) < 2 * OFTEN
    for item in range(1, 8):
        mine = np.random.default_rng(item).normal(size=WIDTH)
        mine /= np.linalg.norm(mine)
        assert says(s, item, mine) == pytest.approx(reference.likeness(item, mine.tolist(), 1.0), rel=1e-5, abs=1e-6)


def test_the_item_longest_untouched_makes_room() -> None:
    s, n = SharedCounters(online=True), 3 << ITEM_BITS
    hashes = np.random.default_rng(1).integers(1, 1 << 63, n).astype(np.uint64)
    ones = np.ones(n, np.int32)
    profile = np.zeros((n, WIDTH), np.int32)
    profile[:, 0] = 127
    for k, part in enumerate(np.array_split(np.arange(n), 24)):
        some = Audience(hashes[part], ones[part].astype(np.uint8), ones[part], profile[part])
        for v in increments(some).encode(0, {0: k}, {0: k + 1}, "a", limit=64 << 20):
            s.fold(v, s.next_offset)
    mine = np.eye(WIDTH)[0]
    kept = np.array([says(s, int(h), mine)[0] > 0 for h in hashes[:: n // 4000]])
    newest = len(kept) // 6  # half of what there is room for
    assert 0.2 < kept.mean() < 0.4 and kept[-newest:].mean() > 0.95 and kept[:newest].mean() < 0.01


def test_a_checkpoint_goes_on_where_it_was() -> None:
    values = [v for k in range(6) for v in increments(some(80, k)).encode(0, {0: k}, {0: k + 1}, "a")]
    whole, half = folded(values), folded(values[:3])
    store = dict(half.checkpoint())
    again = SharedCounters.restore(store.items(), online=True)
    assert again.next_offset == 3 and learnt(again) == learnt(half)
    for v in values[3:]:
        again.fold(v, again.next_offset)
    assert learnt(again) == learnt(whole)
    store |= dict(again.checkpoint())
    assert learnt(SharedCounters.restore(store.items(), online=True)) == learnt(whole)
    clicks = some(9, 1)
    clicks.metric[:] = 1  # a range without impressions: only everybody's clock goes on
    again.fold(increments(clicks).encode(0, {0: 6}, {0: 7}, "a")[0], 6)
    store |= dict(again.checkpoint())
    assert learnt(SharedCounters.restore(store.items(), online=True)) == learnt(again)


def test_a_model_that_reads_it_needs_it_learnt() -> None:
    from stream_dmgin.counters.table import CounterTable

    for block in ("audience", "readers"):
        with pytest.raises(UsageError, match=rf"`{block}`.*worker\.audience = true"):
            FeatureBuilder(InputSpec(blocks=(block,)), Catalogue(embedding=64), CounterTable(), GroupMap.empty())


def test_arrays_without_room_for_interests_are_refused() -> None:
    from stream_dmgin.counters.learner import OnlineModel
    from stream_dmgin.counters.table import CounterTable
    from stream_dmgin.features.inputs import Inputs

    spec = InputSpec(groups=2, events=2, short=2, blocks=("audience",))
    builder = FeatureBuilder(spec, Catalogue(spec), CounterTable(OnlineModel()), GroupMap.empty())
    with pytest.raises(ValueError, match="0 events for profiles, the model reads 4096"):
        builder.user_side(UserArrays.allocate(1, 2, 2), 1, Inputs.allocate(spec, 1, 1))


def fold(engine: StateEngine, *them: tuple[str, str, str]) -> None:
    """Fold (user, item, type): post-clicks, or a click or an impression where that is the type."""
    of = {"impression": "impressions", "click": "clicks"}
    nexts = dict(zip(EVENTS, engine.offsets.values(), strict=True))
    records = []
    for user, item, kind in them:
        topic = of.get(kind, "post-clicks")
        e = Event(user, item, 10**12 + nexts[topic], f"{topic}{nexts[topic]}", kind)
        records.append(Record(topic, 0, nexts[topic], 10**12, user.encode(), encode(e)))
        nexts[topic] += 1
    columns, bad = parse_events(batch_of(EVENTS, records), np.arange(3, dtype=np.uint8))
    assert not bad
    engine.fold(columns, np.arange(len(them), dtype=np.int32))


def world() -> tuple[StateEngine, Profiles]:
    catalogue = Catalogue(embedding=3)
    for name, x in (("a", [1.0, 0, 0]), ("b", [0, 1.0, 0]), ("c", [0, 0, 2.0])):
        catalogue.upsert(Item(name, embedding=x))
    return StateEngine.open(None, 0, GroupMap({"a": 1, "b": 2, "x": 2})), Profiles(catalogue)


def test_a_profile_weighs_groups_by_how_often_they_were_read() -> None:
    engine, profiles = world()
    them = (
        [("u", "a", "history")] * 6
        + [("u", "b", "click")] * 2
        + [("u", "c", "click"), ("u", "x", "hate"), ("u", "b", "impression")]
    )
    fold(engine, *them)
    found = profiles.audience(engine)
    # six of a, two of b; c has an embedding, but the map has no group of it: it is no interest yet
    want = np.zeros(WIDTH)
    want[:2] = np.array([6, 2]) / np.hypot(6, 2)
    met = {
        (int(h), int(m)): (int(n), x)
        for h, m, n, x in zip(found.hash, found.metric, found.count, found.sum, strict=True)
    }
    assert sorted((m, n) for (_, m), (n, _) in met.items()) == [(0, 1), (1, 1), (1, 2)]
    for n, x in met.values():
        assert np.abs(x - n * np.floor(127 * want + 0.5)).max() == 0
    assert len(profiles.audience(engine)) == 0  # each event once
    engine.close()


def test_users_without_a_profile_teach_nothing_and_published_events_nothing_again() -> None:
    engine, profiles = world()
    engine.published = {0: 1, 1: 1, 2: 0}
    fold(engine, ("v", "a", "impression"), ("u", "a", "click"))
    assert len(profiles.audience(engine)) == 0  # below what is published
    fold(engine, ("v", "a", "impression"), ("u", "b", "impression"))
    found = profiles.audience(engine)
    assert found.metric.tolist() == [0] and found.count.tolist() == [1]
    fold(engine, ("u", "a", "impression"), ("u", "a", "click"))
    engine.commit()
    assert len(profiles.audience(engine)) == 0  # whoever commits takes them before
    engine.close()
