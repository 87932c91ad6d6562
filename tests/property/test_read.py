"""`StateEngine.read` against the oracle: the arrays from which features are made, for any sizes, from memory and from disk."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_dmgin.features.spec import BEHAVIOUR_CLASSES, CLASS_OF_TYPE
from stream_dmgin.state.arrays import UserArrays
from tests.effort import examples
from tests.oracle import HOT_GROUPS, Kept, hash64
from tests.streams import TRICKY_IDS, Pair, Shape, groups_of, random_log

TYPES = (*list(CLASS_OF_TYPE)[2:], "never heard of", "é")
SHAPES = {
    "a few groups": Shape(n=300, items=tuple("abcdefg"), types=TYPES, users=("u", "v", "w")),
    "spilled groups": Shape(n=700, items=tuple(f"i{k}" for k in range(400)), types=TYPES, ts_range=10**6),
    "ties": Shape(n=400, items=tuple(f"i{k}" for k in range(200)), types=TYPES, ts_range=2),
    "tricky ids": Shape(n=300, users=TRICKY_IDS, items=TRICKY_IDS, types=TYPES),
    "duplicates": Shape(n=300, items=("a", "b"), types=TYPES, duplicates=0.3),
}


def klass(kind: str) -> int:
    return BEHAVIOUR_CLASSES.index(CLASS_OF_TYPE.get(kind, "other"))


def check(pair: Pair, users: list[str], a: UserArrays, at: int) -> None:
    """Rows `at`.. of the arrays say of these users what the oracle says."""
    most_groups, most_events = a.g_key.shape[1], a.e_item.shape[2]
    o = pair.oracle
    for b, u in enumerate(users, at):
        shown = o.show(u)
        if shown is None:
            assert (
                a.n_events[b],
                a.n_impressions[b],
                a.n_groups_total[b],
                a.n_groups[b],
                a.s_len[b],
                a.m_len[b],
                a.version[b],
            ) == (0,) * 7
            continue
        assert a.n_events[b] == shown["events"] and a.n_impressions[b] == shown["impressions"]
        clicks = [n for g in shown["groups"] for kind, n in g["counts"].items() if klass(kind) == klass("click")]
        assert a.n_clicks[b] == sum(clicks)
        assert a.n_groups_total[b] == len(shown["groups"])
        assert a.version[b] == pair.engine.version(u.encode()) != 0
        events, impressions = o.short(u), o.impressions(u)
        if events:
            assert a.last_event_ts[b] == events[0].ts
        if impressions:
            assert a.last_impression_ts[b] == impressions[0].ts
        assert a.last_ts[b] == max(e.ts for e in events[:1] + impressions[:1])
        assert a.n_groups[b] == min(most_groups, HOT_GROUPS, len(shown["groups"]))
        for g, want in enumerate(shown["groups"][: a.n_groups[b]]):
            group = want["group"]
            assert int(a.g_key[b, g]) == o.group_key(group)
            counts = [0] * len(BEHAVIOUR_CLASSES)
            for kind, n in want["counts"].items():
                counts[klass(kind)] += n
            assert a.g_counts[b, g].tolist() == counts
            both = o.users[u].events + o.users[u].impressions
            values = sum(e.value or 0 for e in both if o.group(e.item_id) == group)
            got = (a.g_dwell_sum[b, g], a.g_dwell_max[b, g], a.g_value_sum[b, g], a.g_first[b, g], a.g_last[b, g])
            assert got == (want["dwell_ms"]["sum"], want["dwell_ms"]["max"], values, want["first_ts"], want["last_ts"])
            recent = o.recent(u, group)
            assert a.g_len[b, g] == min(most_events, len(recent))
            for e, k in enumerate(recent[:most_events]):
                assert (a.e_item[b, g, e], a.e_cls[b, g, e], a.e_ts[b, g, e]) == (
                    hash64(k.item_id),
                    klass(k.type),
                    k.ts,
                )
                assert a.e_dwell[b, g, e] == _or_none(k.dwell_ms)
        assert a.s_len[b] == len(events) and a.m_len[b] == len(impressions)
        for e, k in enumerate(events):
            assert (a.s_item[b, e], a.s_cls[b, e], a.s_ts[b, e], a.s_dwell[b, e]) == _short(k)
        for e, k in enumerate(impressions):
            assert (a.m_item[b, e], a.m_ts[b, e]) == (hash64(k.item_id), k.ts)


def check_interests(pair: Pair, users: list[str], a: UserArrays, at: int) -> None:
    """What profiles are made of: of all groups with a number, also cold ones, the newest four events of interest."""
    o, yes = pair.oracle, {klass(c) for c in ("click", "share", "like", "order")}
    for b, u in enumerate(users, at):
        want = []
        for g in sorted(
            (g for g in (o.show(u) or {"groups": []})["groups"] if isinstance(g["group"], int)),
            key=lambda g: g["group"],
        ):
            life = sum(n for kind, n in g["counts"].items() if klass(kind) in yes)
            newest = [k for k in o.recent(u, g["group"]) if klass(k.type) in yes][:4]
            want += [(hash64(k.item_id), life / len(newest)) for k in newest]
        want = want[: a.i_item.shape[1]]
        n = int(a.i_len[b])
        if len(want) == a.i_item.shape[1]:  # the last group may be cut
            assert n == len(want) and a.i_item[b, :n].tolist() == [i for i, _ in want]
        else:
            assert [*zip(a.i_item[b, :n].tolist(), a.i_weight[b, :n].tolist(), strict=True)] == want


def _or_none(x: int | None) -> int:
    return -1 if x is None else x


def _short(k: Kept) -> tuple[int, int, int, int]:
    return hash64(k.item_id), klass(k.type), k.ts, _or_none(k.dwell_ms)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@examples(12)
@given(seed=st.integers(0, 2**32 - 1), tiny=st.booleans(), late=st.booleans())
def test_the_arrays_say_what_the_oracle_says(shape: Shape, seed: int, tiny: bool, late: bool) -> None:
    r = random.Random(seed)
    groups = groups_of(shape.items, r.choice((2, 50)), 0.4, r)
    with tempfile.TemporaryDirectory(prefix="dmgin-read-") as d:
        pair = Pair(Path(d) / "p", {} if late else groups, 1 if tiny else 64 << 20)
        pair.write(random_log(r, shape))
        sizes = [(128, 32), (r.randrange(1, 129), r.randrange(1, 33))]
        users = [*shape.users, "nobody", "u" * 1024]
        while pair.pending():
            rest = pair.pending()
            r.shuffle(rest)
            pair.fold(rest[: r.randrange(1, 300)])
            if late and r.random() < 0.3:
                pair.regroup(groups)
            some = r.sample(users, r.randrange(1, len(users) + 1))
            at = r.randrange(3)
            for g, e in sizes:
                a = UserArrays.allocate(len(some) + at, g, e, room := r.choice([0, 5, 4096]))
                pair.engine.read([u.encode() for u in some], a, at)
                check(pair, some, a, at)
                if room:
                    check_interests(pair, some, a, at)
            if r.random() < 0.5:
                pair.commit()
        one, two = UserArrays.allocate(len(users), 128, 32), UserArrays.allocate(len(users), 3, 2)
        ids = [u.encode() for u in users]
        pair.engine.read(ids, one)
        pair.commit()
        pair.restart()
        pair.engine.read(ids, two)
        assert np.array_equal(
            one.digest, two.digest
        )  # of the state, not of what was asked for, nor of where it came from
        pair.close()


def test_the_version_changes_with_each_counted_event_only() -> None:
    pair = Pair(None)
    log = random_log(random.Random(1), Shape(n=40, duplicates=0.0))
    seen = {pair.engine.version(b"u")}
    assert seen == {0}
    for event in log:
        pair.write([event])
        pair.fold(pair.pending())
        version = pair.engine.version(b"u")
        assert version not in seen
        seen.add(version)
        pair.write([event])  # a duplicate
        pair.fold(pair.pending())
        assert pair.engine.version(b"u") == version
    pair.close()
