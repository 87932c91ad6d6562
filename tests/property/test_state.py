"""The state engine against the oracle: any order, any batches, duplicates, restarts, evictions, growing group maps.

Long lives come from a seed (hypothesis picks seeds and shapes), short ones are drawn event by event so that a failure
shrinks to a few lines.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_dmgin.topics import EVENTS
from tests.effort import examples
from tests.streams import T0, TRICKY_IDS, Logged, Pair, Shape, groups_of, random_log

quick = examples(20)
few = examples(12)
seeds = st.integers(0, 2**32 - 1)

SHAPES = {
    "one user, one group": Shape(n=300, items=("a",)),
    "many types": Shape(n=300, items=("a", "b"), types=tuple(f"type-{k}" for k in range(40)), clicks=0.1),
    "ties everywhere": Shape(n=250, ts_range=3),
    "all the same moment": Shape(n=250, ts_range=1, items=("a",)),
    "rings overflow": Shape(n=600, items=("a", "b"), ts_range=10_000, impressions=0.5),
    "many groups": Shape(n=500, items=tuple(f"i{k}" for k in range(300)), ts_range=100_000),
    "many users": Shape(n=400, users=tuple(f"u{k}" for k in range(60)), items=tuple(f"i{k}" for k in range(20))),
    "tricky ids": Shape(n=400, users=TRICKY_IDS, items=TRICKY_IDS, types=("é", "t" * 64, "\0", "漢" * 21)),
    "duplicates nearby": Shape(n=300, duplicates=0.3, ts_range=50_000),
    "duplicates far away": Shape(n=400, duplicates=0.3, duplicate_distance=200, items=("a", "b"), ts_range=50_000),
    "no event ids": Shape(n=300, no_event_id=0.5),
    "only impressions": Shape(n=200, impressions=1.0, duplicates=0.2),
    "only post-clicks": Shape(n=200, impressions=0.0, clicks=0.0),
}


def directory() -> Any:
    return tempfile.TemporaryDirectory(prefix="dmgin-state-")


def drive(
    r: random.Random, shape: Shape, path: Path | None, groups: dict[str, int], cache_bytes: int, late: dict[str, int]
) -> Pair:
    """A life with everything that can happen to a store; ends folded to the end of the log and checked."""
    pair = Pair(path, groups, cache_bytes)
    pair.write(random_log(r, shape))
    regroup_at = r.randrange(shape.n) if late else -1
    rest = pair.pending()
    while rest:
        r.shuffle(rest)
        pair.fold(rest[: r.choice((1, 2, 7, 50, 200))], overlap=r.choice((0, 0, 3)))
        x = r.random()
        if x < 0.35:
            pair.commit()
        elif x < 0.5 and path is not None:
            pair.restart()
        elif x < 0.6:
            pair.check()
        rest = pair.pending()
        if regroup_at >= 0 and len(rest) < shape.n - regroup_at:
            pair.regroup(late)
            regroup_at = -1
    pair.check()
    return pair


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@few
@given(seed=seeds, tiny=st.booleans(), in_memory=st.booleans(), late=st.booleans())
def test_the_state_is_the_oracles(shape: Shape, seed: int, tiny: bool, in_memory: bool, late: bool) -> None:
    r = random.Random(seed)
    all_groups = groups_of(shape.items, r.choice((1, 3, 40, 400)), r.choice((0.0, 0.3, 1.0)), r)
    first = {i: g for i, g in all_groups.items() if r.random() < 0.5} if late else all_groups
    with directory() as d:
        path = None if in_memory else Path(d) / "p"
        pair = drive(r, shape, path, first, 1 if tiny else 64 << 20, all_groups if late else {})
        if path is not None:
            pair.commit()
            before = pair.canonical()
            pair.restart()
            pair.check()
            assert pair.canonical() == before
        pair.close()


@quick
@given(seed=seeds, shape=st.sampled_from([s for s in SHAPES.values() if not s.duplicates]), late=st.booleans())
def test_any_interleaving_of_one_log_gives_the_same_bytes(seed: int, shape: Shape, late: bool) -> None:
    """The same topics, read in two orders, batches and lives; one learns of the groups only at the end."""
    r = random.Random(seed)
    log = random_log(r, shape)
    groups = groups_of(shape.items, 5, 0.2, r)
    one = Pair(None, groups)
    one.write(log)
    one.fold_all(r, 1000)
    with directory() as d:
        two = Pair(Path(d) / "p", {} if late else groups, cache_bytes=1)
        two.write(log)
        while two.pending():
            rest = two.pending()
            r.shuffle(rest)
            two.fold(rest[:37])
            two.commit()
            if r.random() < 0.2:
                two.restart()
        if late:
            two.regroup(groups)
        two.check()
        assert one.canonical() == two.canonical()
        two.close()
    one.close()


@quick
@given(seed=seeds, shape=st.sampled_from([s for s in SHAPES.values() if not s.duplicates and not s.no_event_id]))
def test_any_order_of_arrival_gives_the_same_bytes(seed: int, shape: Shape) -> None:
    """The same set of events written to the topics in two orders: late events end where they belong."""
    r = random.Random(seed)
    log = random_log(r, shape)
    groups = groups_of(shape.items, 7, 0.3, r)
    shuffled = r.sample(log, len(log))
    in_time = sorted(log, key=lambda te: te[1]["ts"])
    canonical = []
    for events in (log, shuffled, in_time, in_time[::-1]):
        pair = Pair(None, groups)
        pair.write(events)
        pair.fold_all(r, 60)
        canonical.append(pair.canonical())
        pair.close()
    assert all(c == canonical[0] for c in canonical)


@quick
@given(seed=seeds, copies=st.integers(2, 3))
def test_duplicates_within_a_ring_change_nothing_in_any_order(seed: int, copies: int) -> None:
    """Up to 32 events a group and 64 impressions: whatever the order of the copies, each counts once."""
    r = random.Random(seed)
    items = ("a", "b", "c")
    log = random_log(r, Shape(n=60, items=items, ts_range=20, impressions=0.5, users=("u", "v")))
    groups = groups_of(items, 2, 0.5, r)
    plain = Pair(None, groups)
    plain.write(log)
    plain.fold_all(r, 50)
    again = Pair(None, groups)
    repeated = log * copies
    r.shuffle(repeated)
    again.write(repeated)
    again.fold_all(r, 9)
    again.check()
    assert again.canonical() == plain.canonical()
    plain.close()
    again.close()


@quick
@given(seed=seeds)
def test_equal_bytes_mean_equal_states(seed: int) -> None:
    """One event more, or one field changed, and the canonical bytes differ."""
    r = random.Random(seed)
    log = random_log(r, Shape(n=30, items=("a", "b")))
    changed: list[Logged] = [(t, dict(e)) for t, e in log]
    k = r.randrange(len(changed))
    what = r.choice(("gone", "ts", "item_id", "type", "value"))
    if what == "gone":
        del changed[k]
    else:
        e = changed[k][1]
        e[what] = {"ts": e["ts"] + 1, "item_id": "c", "type": "another", "value": (e.get("value") or 0) + 0.5}[what]
    out = []
    for events in (log, changed):
        pair = Pair(None)
        pair.write(events)
        pair.fold_all(random.Random(1), 100)
        out.append(pair.canonical().get("u"))
        pair.close()
    assert out[0] != out[1], what


event = st.fixed_dictionaries(
    {"user_id": st.sampled_from(("u", "v")), "item_id": st.sampled_from("abcd"), "ts": st.integers(T0, T0 + 4)},
    optional={
        "event_id": st.sampled_from([f"e{k}" for k in range(12)]),
        "dwell_ms": st.integers(0, 2**32 - 1),
        "value": st.one_of(st.integers(0, 1000), st.floats(0, 1e6)),
    },
)
step = st.one_of(
    st.tuples(st.just("events"), st.lists(st.tuples(st.sampled_from(EVENTS), event), max_size=12)),
    st.sampled_from([("commit",), ("restart",), ("check",), ("regroup",)]),
)


@examples(30)
@given(steps=st.lists(step, max_size=14), tiny=st.booleans())
def test_short_stories(steps: list[tuple[Any, ...]], tiny: bool) -> None:
    with directory() as d:
        pair = Pair(Path(d) / "p", {"a": 1}, 1 if tiny else 1 << 20)
        for what, *rest in steps:
            if what == "events":
                # An id stands for one event: what else the event says follows from it.
                pair.write((t, _typed(t, e)) for t, e in rest[0])
                pair.fold(pair.pending())
            elif what == "regroup":
                pair.regroup({"a": 1, "b": 1, "c": 2})
            else:
                getattr(pair, what)()
        pair.restart()
        pair.fold(pair.pending())
        pair.check()
        pair.close()


def _typed(topic: str, e: dict[str, Any]) -> dict[str, Any]:
    if "event_id" in e:
        k = int(e["event_id"][1:])
        e = {**e, "user_id": "uv"[k % 2], "item_id": "abcd"[k % 4], "ts": T0 + k % 5}
    return {**e, "type": "order"} if topic == "post-clicks" else e


def test_duplicates_count_once_while_in_the_ring_and_again_once_out_of_it() -> None:
    """What the contract promises, and what it doesn't."""
    click = lambda k: ("clicks", {"user_id": "u", "item_id": "a", "ts": T0 + k, "event_id": f"e{k}"})  # noqa: E731
    pair = Pair(None)
    pair.write([click(0), *(click(k) for k in range(1, 32)), click(0)])
    pair.fold(pair.pending())
    assert pair.engine.show("u")["events"] == 32  # type: ignore[index]
    pair.write([click(32), click(0)])  # the 33rd pushes the first out
    pair.fold(pair.pending())
    assert pair.engine.show("u")["events"] == 34  # type: ignore[index]
    pair.check()
    pair.close()


def test_more_types_than_a_deployment_may_have_count_as_other(tmp_path: Path) -> None:
    pair = Pair(tmp_path / "p")
    pair.write(
        [
            ("post-clicks", {"user_id": "u", "item_id": "a", "ts": T0 + k, "type": f"t{k}", "event_id": f"e{k}"})
            for k in range(300)
        ]
    )
    pair.write([("clicks", {"user_id": "u", "item_id": "a", "ts": T0 + k, "event_id": f"c{k}"}) for k in range(3)])
    for _ in range(2):
        pair.fold(pair.pending())
        counts = pair.engine.show("u")["groups"][0]["counts"]  # type: ignore[index]
        assert sum(counts.values()) == 303
        assert counts["other"] >= 45 and 250 <= len(counts) <= 256
        assert all(counts[f"t{k}"] == 1 for k in range(250))
        assert counts["click"] == 3
        pair.commit()
        pair.engine.close()
        pair.engine = pair._open()


def test_the_greatest_values_add_up_without_wrapping() -> None:
    pair = Pair(None)
    pair.write(
        [
            ("clicks", {"user_id": "u", "item_id": "a", "ts": T0 + k, "event_id": f"e{k}", "value": 1e12})
            for k in range(20)
        ]
    )
    pair.fold(pair.pending())
    shown = pair.engine.show("u")["groups"][0]["value_sum"]  # type: ignore[index]
    assert shown >= 9e12  # nine of them reach the limit of 64 bits: it saturates there at the earliest, and never wraps
    pair.close()
