"""The engine at its edges: limits, growth, the store, the counters' increments. (Property tests hold it against an oracle.)"""

import json

import msgpack
import numpy as np
import pytest

from stream_dmgin.errors import ConfigError, FormatError, InputError, StoreBusy, StreamDmginError
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import Record, batch_of
from stream_dmgin.state import layout
from stream_dmgin.state.arrays import UserArrays
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.hash import surface_of
from stream_dmgin.state.parse import parse_events
from stream_dmgin.topics import EVENTS

T0 = 1_760_000_000_000
EMPTY = GroupMap.empty()


class Feed:
    """Appends events to the topics of one partition and folds them."""

    def __init__(self, engine, offsets=(0, 0, 0)):
        self.engine, self.next = engine, list(offsets)

    def __call__(self, *events, topic="clicks", timestamp=T0 + 10**9):
        t = EVENTS.index(topic)
        records = []
        for e in events:
            e = {"user_id": "u", "item_id": "i", "ts": T0, **e} if isinstance(e, dict) else e
            value = msgpack.packb(e) if isinstance(e, dict) else e
            key = e["user_id"].encode() if isinstance(e, dict) else b"u"
            records.append(Record(topic, self.engine.partition, self.next[t], timestamp, key, value))
            self.next[t] += 1
        cols, self.bad = parse_events(batch_of(EVENTS, records), np.arange(3, dtype=np.uint8))
        return self.engine.fold(cols, np.arange(len(records), dtype=np.int32))


@pytest.fixture
def engine():
    e = StateEngine.open(None, 0, EMPTY)
    yield e
    e.close()


def test_offsets_move_over_malformed_and_duplicate_events_and_never_back(engine):
    feed = Feed(engine)
    assert feed({"event_id": "a"}, b"\xc1", {"event_id": "a"}) == 1
    assert len(feed.bad) == 1 and engine.offsets == {0: 0, 1: 3, 2: 0}
    feed.next[1] = 1
    assert feed({"event_id": "b"}, {"event_id": "c"}) == 0
    assert feed({"event_id": "d"}) == 1 and engine.offsets[1] == 4


def test_rows_of_another_partition_are_refused(engine):
    cols, _ = parse_events(
        batch_of(EVENTS, [Record("clicks", 3, 0, T0, b"u", msgpack.packb({"user_id": "u", "item_id": "i", "ts": T0}))]),
        np.arange(3, dtype=np.uint8),
    )
    with pytest.raises(ValueError, match="partition 3"):
        engine.fold(cols, np.arange(1, dtype=np.int32))


def test_sums_are_exact_past_64_bits(engine):
    Feed(engine)(*({"value": 1e12, "dwell_ms": (1 << 32) - 1, "event_id": str(k)} for k in range(40)))
    g = engine.show("u")["groups"][0]
    assert g["value_sum"] == 40e12 and g["dwell_ms"] == {"sum": 40 * ((1 << 32) - 1), "max": (1 << 32) - 1}
    out = UserArrays.allocate(1)
    engine.read([b"u"], out)
    assert out.g_value_sum[0, 0] == (1 << 63) - 1  # saturated there


def test_types_beyond_255_count_as_other(tmp_path):
    engine = StateEngine.open(tmp_path / "s", 0, EMPTY)
    Feed(engine)(*({"type": f"type {k}", "event_id": str(k)} for k in range(300)), {"type": "other", "event_id": "o"})
    want = {f"type {k}": 1 for k in range(255)} | {"other": 46}
    assert engine.show("u")["groups"][0]["counts"] == want
    engine.commit()
    engine.close()
    engine = StateEngine.open(tmp_path / "s", 0, EMPTY)
    assert engine.show("u")["groups"][0]["counts"] == want
    Feed(engine, (0, 301, 0))({"type": "type 7", "event_id": "x"}, {"type": "brand new", "event_id": "y"})
    counts = engine.show("u")["groups"][0]["counts"]
    assert counts["type 7"] == 2 and counts["other"] == 47
    engine.close()


def test_increments_by_item_quarter_and_metric(engine):
    feed = Feed(engine)
    assert (
        feed(
            {"item_id": "a", "event_id": "1"},
            {"item_id": "a", "event_id": "2", "ts": T0 + 900_000},
            topic="impressions",
        )
        == 2
    )
    feed(
        {"item_id": "a", "event_id": "3", "dwell_ms": 7_000_000},
        {"item_id": "b", "event_id": "4"},
        {"item_id": "b", "event_id": "4"},
    )
    feed(
        {"item_id": "b", "type": "order", "event_id": "5"}, {"item_id": "b", "type": "cart", "event_id": "6", "dwell_ms": 5},
        {"item_id": "b", "type": "share", "event_id": "7"}, {"item_id": "b", "type": "what", "event_id": "8"}, topic="post-clicks",
    )  # fmt: skip
    inc = engine.take_increments()
    b = T0 // 900_000
    got = {
        (inc.name_of(int(i)), int(k), int(m)): int(n)
        for i, k, m, n in zip(inc.item, inc.bucket, inc.metric, inc.count, strict=True)
    }
    assert got == {
        ("a", b, 0): 1, ("a", b + 1, 0): 1, ("a", b, 1): 1, ("a", b, 2): 3_600_000,
        ("b", b, 1): 1, ("b", b, 2): 5, ("b", b, 3): 1, ("b", b, 4): 2,
    }  # fmt: skip
    assert len(engine.take_increments()) == 0


def test_increments_keep_surfaces_apart_where_something_is_learnt(engine):
    feed = Feed(engine)
    far = (1 << 47) - 1  # the last ts there can be
    feed(
        *({"item_id": "a", "event_id": f"{s}-{ts}", "surface": s, "ts": ts} for s in ("home", None) for ts in (T0, T0, far)),
        topic="impressions", timestamp=far,
    )  # fmt: skip
    feed({"item_id": "a", "event_id": "c", "surface": "home", "dwell_ms": 5})
    feed({"item_id": "a", "event_id": "o", "surface": "home", "type": "order"}, topic="post-clicks")
    inc, home = engine.take_increments(), surface_of("home")
    got = sorted(zip(inc.bucket.tolist(), inc.surface.tolist(), inc.metric.tolist(), inc.count.tolist(), strict=True))
    b, end = T0 // 900_000, far // 900_000
    assert got == [
        (b, 0, 0, 1), (b, 0, 3, 1), (b, home, 0, 1), (b, home, 1, 1), (b, home, 2, 5), (end, 0, 0, 1), (end, home, 0, 1),
    ]  # fmt: skip


def test_events_that_were_published_add_no_increments(engine):
    engine.published = {1: 2}
    Feed(engine)(*({"event_id": str(k)} for k in range(5)))
    inc = engine.take_increments()
    assert inc.count.tolist() == [3] and engine.show("u")["events"] == 5


def test_everything_grows(engine):
    feed = Feed(engine)
    n = 6000
    feed(*({"user_id": f"user {k}", "item_id": f"item {k}", "event_id": str(k)} for k in range(n)))
    feed(*({"user_id": "one", "item_id": f"item {k}", "ts": T0 + k, "event_id": f"x{k}"} for k in range(n)))
    assert engine.count_users() == n + 1 and len(list(engine.users())) == n + 1
    assert engine.show("user 4321")["groups"][0]["group"] == "item 4321"
    groups = engine.show("one")["groups"]
    assert [g["group"] for g in groups] == [f"item {k}" for k in range(n - 1, -1, -1)]
    assert len(engine.show("one", limit=5)["groups"]) == 5
    assert len(engine.take_increments()) == n * 1 + 0


def test_a_life_with_many_spilled_groups_survives_reopening_and_merging(tmp_path):
    items = [f"item {k}" for k in range(3000)]
    engine = StateEngine.open(tmp_path / "s", 0, EMPTY)
    feed = Feed(engine)
    for first in range(0, 3000, 500):
        feed(*({"item_id": i, "ts": T0 + first + k, "event_id": i} for k, i in enumerate(items[first : first + 500])))
        engine.commit()
    whole = engine.canonical("u")
    engine.close()
    engine = StateEngine.open(tmp_path / "s", 0, EMPTY)
    out = UserArrays.allocate(1)
    engine.read([b"u"], out)
    assert engine.stats()["groups_cached"] == 128  # the rest stays on disk
    assert out.n_groups_total[0] == 3000 and out.g_last[0, :3].tolist() == [T0 + 2999, T0 + 2998, T0 + 2997]
    assert engine.canonical("u") == whole
    engine.close()
    # late events for spilled groups, then a map arrives for half of the items, while most groups are on disk
    engine = StateEngine.open(tmp_path / "s", 0, EMPTY)
    feed = Feed(engine, feed.next)
    feed(*({"item_id": i, "ts": T0 + 5000, "event_id": f"again {i}"} for i in items[:10]))
    engine.commit()
    engine.regroup(GroupMap({i: k % 7 for k, i in enumerate(items) if k % 2}))
    shown = engine.show("u")
    assert len(shown["groups"]) == 1500 + 7 and shown["events"] == 3010
    assert sum(sum(g["counts"].values()) for g in shown["groups"]) == 3010
    feed(*({"item_id": i, "ts": T0 + 6000, "event_id": f"more {i}"} for i in items[:400]))
    engine.commit()
    whole = engine.canonical("u")
    engine.close()
    engine = StateEngine.open(tmp_path / "s", 0, EMPTY)
    assert engine.canonical("u") == whole
    engine.close()


def test_the_cache_keeps_its_cap_and_forgets_nothing(tmp_path):
    engine = StateEngine.open(tmp_path / "s", 0, EMPTY, cache_bytes=300_000)
    feed = Feed(engine)
    for r in range(6):
        feed(*({"user_id": f"user {k}", "event_id": f"{r}-{k}", "ts": T0 + r} for k in range(1000)))
        stats = engine.commit()
        assert engine.cached_bytes() <= 300_000
    assert stats.evicted > 0 and engine.stats()["users_cached"] < 1000
    assert engine.count_users() == 1000 == len(set(engine.users()))
    assert all(engine.show(f"user {k}")["events"] == 6 for k in range(1000))
    engine.close()


def test_uncommitted_events_are_forgotten_together_with_their_offsets(tmp_path):
    engine = StateEngine.open(tmp_path / "s", 0, EMPTY)
    feed = Feed(engine)
    feed({"event_id": "1"})
    engine.commit(puts=[(b"c+1", b"increments")])
    feed({"event_id": "2"}, {"user_id": "new", "event_id": "3"})
    assert sorted(engine.users()) == ["new", "u"] and engine.count_users() == 2
    engine.close()
    engine = StateEngine.open(tmp_path / "s", 0, EMPTY)
    assert engine.offsets == {0: 0, 1: 1, 2: 0} and engine.show("u")["events"] == 1 and engine.show("new") is None
    assert engine.count_users() == 1 and list(engine.users()) == ["u"]
    assert list(engine.scan(b"c+")) == [(b"c+1", b"increments")] and engine.get(b"c+1") == b"increments"
    engine.commit(deletes=[b"c+1"])
    assert engine.get(b"c+1") is None and list(engine.scan(b"")) == []
    engine.close()


def test_side_rows_in_memory(engine):
    engine.commit(puts=[(b"b", b"2"), (b"a", b"1")])
    assert list(engine.scan(b"")) == [(b"a", b"1"), (b"b", b"2")] and engine.get(b"a") == b"1"
    engine.commit(deletes=[b"a", b"zz"])
    assert engine.get(b"a") is None


def test_reading_beside_a_running_worker_sees_what_was_committed(tmp_path):
    engine = StateEngine.open(tmp_path / "s", 0, EMPTY)
    feed = Feed(engine)
    feed({"event_id": "1"})
    engine.commit()
    feed({"event_id": "2"})
    with pytest.raises(StoreBusy, match="another process"):
        StateEngine.open(tmp_path / "s", 0, EMPTY)
    other = StateEngine.open(tmp_path / "s", 0, EMPTY, read_only=True)
    assert other.show("u")["events"] == 1
    with pytest.raises(StreamDmginError, match="read-only"):
        other.commit()
    other.close()
    engine.close()


def test_what_can_not_be_opened(tmp_path):
    with pytest.raises(InputError, match="no state here"):
        StateEngine.open(tmp_path / "nothing", 0, EMPTY, read_only=True)
    StateEngine.open(tmp_path / "s", 4, EMPTY).close()
    with pytest.raises(FormatError, match="partition 4"):
        StateEngine.open(tmp_path / "s", 5, EMPTY)
    engine = StateEngine.open(tmp_path / "s", 4, EMPTY)
    engine.store[layout.ROW_META] = json.dumps({"format": layout.STATE_FORMAT + 1, "partition": 4}).encode()
    engine.close()
    with pytest.raises(FormatError, match="upgrade"):
        StateEngine.open(tmp_path / "s", 4, EMPTY)


def test_a_map_that_moves_items_is_refused_and_changes_nothing(tmp_path):
    first = GroupMap({"i": 1, "j": 2})
    engine = StateEngine.open(tmp_path / "s", 0, first)
    Feed(engine)({"event_id": "1"})
    engine.commit()
    with pytest.raises(ConfigError, match="rebuild"):
        engine.regroup(GroupMap({"i": 5}))
    assert engine.groups is first and engine.show("u")["groups"][0]["group"] == 1
    engine.close()
    with pytest.raises(ConfigError, match="rebuild"):
        StateEngine.open(tmp_path / "s", 0, GroupMap({"i": 5}))
    engine = StateEngine.open(tmp_path / "s", 0, EMPTY)  # an item that left the map keeps its group
    assert engine.show("u")["groups"][0]["group"] == 1
    engine.close()


def test_versions_and_digests_follow_the_state(tmp_path):
    engine = StateEngine.open(tmp_path / "s", 0, EMPTY)
    feed, out = Feed(engine), UserArrays.allocate(2, 3, 2)
    seen = []
    for k in range(4):
        feed({"event_id": str(k), "item_id": f"i{k}"})
        engine.read([b"u", b"unknown"], out)
        seen.append((engine.version(b"u"), int(out.digest[0])))
        assert out.version[0] == seen[-1][0] and out.version[1] == engine.version(b"unknown") == 0 == out.n_groups[1]
    engine.regroup(GroupMap({"i0": 9, "i1": 9}))
    engine.read([b"u"], out, at=1)
    seen.append((engine.version(b"u"), int(out.digest[1])))
    assert len({v for v, _ in seen}) == len({d for _, d in seen}) == 5
    engine.commit()
    engine.close()
    engine = StateEngine.open(tmp_path / "s", 0, EMPTY)
    engine.read([b"u"], out)
    assert (int(out.version[0]), int(out.digest[0])) == seen[-1]
    engine.close()


def test_erase(tmp_path):
    for path in (None, tmp_path / "s"):
        engine = StateEngine.open(path, 0, EMPTY)
        feed = Feed(engine)
        feed(
            *(
                {"user_id": u, "item_id": f"i{k}", "event_id": f"{k}", "ts": T0 + k}
                for k in range(400)
                for u in ("gone", "kept")
            )
        )
        engine.commit()
        feed({"user_id": "gone", "event_id": "last"})
        assert engine.erase("gone") and not engine.erase("gone") and not engine.erase("never")
        assert engine.show("gone") is None and list(engine.users()) == ["kept"] and engine.count_users() == 1
        if path:
            assert not [k for k, _ in engine.store.items() if b"gone" in k]
        feed({"user_id": "gone", "event_id": "back"})
        assert engine.show("gone")["events"] == 1 and engine.count_users() == 2
        engine.close()


def test_read_checks_its_rows(engine):
    with pytest.raises(ValueError, match="don't fit"):
        engine.read([b"a", b"b"], UserArrays.allocate(2), at=1)
    with pytest.raises(ValueError):
        UserArrays.allocate(1, 129)
