"""Maps from vectors: clustering, the cap, residual codes, items without content, a map after another."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stream_dmgin.errors import InputError, UsageError
from stream_dmgin.groups import kmeans, stability
from stream_dmgin.groups.balance import balance, relieve
from stream_dmgin.groups.build import Built, Clustering, build
from stream_dmgin.groups.coclicks import Clicks, groups_of
from stream_dmgin.groups.items import Items, View, unit
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.groups.quality import remembered
from stream_dmgin.groups.residual import parse_levels, split
from stream_dmgin.groups.space import Making, Space, make_space
from stream_dmgin.groups.sweep import choose, default_ks, sweep


def blobs(n: int = 300, k: int = 10, seed: int = 0) -> tuple[list[str], np.ndarray, list[str]]:
    r = np.random.default_rng(seed)
    of = r.integers(0, k, n)
    return (
        [f"s{i:04d}" for i in range(n)],
        (r.normal(size=(k, 16))[of] + 0.1 * r.normal(size=(n, 16))).astype(np.float32),
        [f"c{c}" for c in of],
    )


def space_of(ids, x, category=None, clicks=None) -> Space:  # type: ignore[no-untyped-def]
    return make_space(
        Items(list(ids), {"embedding": View(np.arange(len(x)), x)}, {}, category), clicks, Making(towers="off")
    )


def made(ids, x, k, category=None, **how) -> Built:  # type: ignore[no-untyped-def]
    return build(space_of(ids, x, category), Clustering(k=k, **how))


def test_blobs_are_found_again_and_the_seed_decides() -> None:
    ids, x, category = blobs()
    got = made(ids, x, 10, category)
    q = got.quality
    assert q.items == len(got.groups) == 300 and q.groups + q.empty == 10 and q.left_out == 0
    assert q.purity is not None and q.purity > 0.95 and q.cohesion > 0.9 and 0.8 < q.balance <= 1
    assert got.groups.lookup("s0000") == 0 and got.groups.id.startswith("kmeans-")
    assert made(ids, x, 10, category).groups.id == got.groups.id
    assert got.report["sources"] == {"content": 300, "behaviour": 0, "category": 0, "singleton": 0}


@pytest.mark.parametrize("load", [1.0, 1.5, 3.0])
def test_no_group_is_over_the_cap(load: float) -> None:
    ids, x, _ = blobs(n=200, k=2)
    got = made(ids, x, 8, max_load=load)
    assert got.quality.largest <= math.ceil(load * 200 / 8) and max(got.groups.sizes().values()) == got.quality.largest
    assert len(got.groups.sizes()) <= 8 and got.quality.purity is None


def test_an_overfull_group_is_split_and_the_number_of_groups_stays() -> None:
    r = np.random.default_rng(0)
    x = unit(
        np.concatenate([r.normal(size=(1, 8)) + 0.2 * r.normal(size=(150, 8)), r.normal(size=(50, 8))]).astype(
            np.float32
        )
    )
    labels, centres = kmeans.kmeans(x, 10)
    cap = 30
    assert np.bincount(labels).max() > cap
    got = balance(x, labels, centres, cap, 10)
    assert np.bincount(got.labels).max() <= cap and len(np.unique(got.labels)) == 10 and got.split >= 1
    again, moved = relieve(x, labels, centres, cap)
    assert np.bincount(again).max() <= cap and moved > 0


def test_one_thing_many_times() -> None:
    x = np.ones((50, 4), np.float32)
    got = made([f"i{i:02d}" for i in range(50)], x, 5)
    assert got.quality.largest <= 30 and len(got.groups) == 50 and got.quality.groups + got.quality.empty == 5
    assert made(["a", "b"], np.zeros((2, 4), np.float32), 1).groups.items == {"a": 0, "b": 0}


@pytest.mark.parametrize("library", ["sklearn", "faiss"])
def test_large_problems_go_in_two_levels(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if library == "faiss":
        pytest.importorskip("faiss")
    monkeypatch.setattr(kmeans, "_LEVELS", 1000)
    ids, x, category = blobs(n=1500, k=25)
    got = made(ids, x, 36, category, library=library)
    assert got.quality.groups + got.quality.empty == 36 and got.quality.purity is not None and got.quality.purity > 0.9
    assert got.report["library"] == library
    assert kmeans._shares(np.array([10, 0, 90, 1]), 12).tolist() == [1, 0, 10, 1]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"k": 0}, "between 1 and 5"), ({"k": 6}, "6 groups of 5 items"), ({"k": 2, "max_load": 0.5}, "a cap of 0.5"),
        ({"k": 2, "max_load": math.nan}, "a cap of nan"), ({"k": 2, "library": "cuml"}, "cuml"), ({"k": 2, "method": "dbscan"}, "dbscan"),
        ({"only_new": True}, "--previous"), ({"method": "residual", "levels": (8, 2)}, "8 codes of 5 items"),
    ],
)  # fmt: skip
def test_what_cannot_be_built(how: dict, message: str) -> None:
    ids, x, _ = blobs(5)
    with pytest.raises(UsageError, match=message):
        build(space_of(ids, x), Clustering(**how))


def test_residual_codes_are_a_hierarchy() -> None:
    ids, x, _ = blobs(400, k=12)
    got = build(space_of(ids, x), Clustering("residual", levels=(6, 4), max_load=3.0))
    m = got.groups
    assert m.levels == (6, 4) and m.id.startswith("residual-") and max(m.items.values()) < 24
    assert got.quality.largest <= math.ceil(3.0 * 400 / 1)
    parent = m.cut(1)
    assert all(parent.items[n] == g // 4 for n, g in m.items.items()) and parent.levels == ()
    assert split(np.array([4 * 16 + 11]), (32, 16)).tolist() == [[4, 11]]
    for wrong in (0, 2):
        with pytest.raises(InputError, match="can't be cut"):
            m.cut(wrong)
    with pytest.raises(InputError, match="it is flat"):
        parent.cut(1)
    assert parse_levels("32x16") == (32, 16)
    for text in ("32", "0x3", "ax3", "65536x65536"):
        with pytest.raises(InputError):
            parse_levels(text)


def test_the_levels_of_a_map_are_kept_in_its_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    m = GroupMap({"a": 17, "b": 3}, "residual", (4, 8))
    m.save(tmp_path / "m.parquet")
    again = GroupMap.load(tmp_path / "m.parquet")
    assert again.levels == (4, 8) and again.id == m.id and again.extend({"c": 1}).levels == (4, 8)


def clicked(of: np.ndarray, ids: list[str], users: int = 300, length: int = 12) -> Clicks:
    r = np.random.default_rng(0)
    topic = r.integers(0, of.max() + 1, users)
    item = np.concatenate([r.choice(np.flatnonzero(of == t), length) for t in topic])
    user = np.repeat(np.arange(users), length)
    return Clicks(user, item, user, ids)


def test_items_without_content_get_a_group_by_behaviour_then_category_or_stay_single() -> None:
    ids, x, category = blobs()
    of = np.array([int(c[1:]) for c in category])
    bare = ["t-category", "t-nothing"]
    some: list[str | None] = [*category, "c3", None]
    items = Items([*ids, *bare], {"embedding": View(np.arange(200), x[:200])}, {}, some)
    got = build(make_space(items, clicked(of, ids), Making(towers="off")), Clustering(k=10))
    by = dict(zip([*ids, *bare], got.source, strict=True))
    assert by["s0000"] == "content" and by["t-category"] == "category" and by["t-nothing"] == "singleton"
    late = [i for i in range(200, 300) if by[ids[i]] == "behaviour"]
    assert len(late) > 80
    home = {c: got.groups.items[ids[i]] for i, c in enumerate(category[:200])}
    assert np.mean([got.groups.items[ids[i]] == home[category[i]] for i in late]) > 0.8
    assert got.groups.items["t-category"] >= 10 and got.groups.lookup("t-nothing") is None and got.quality.left_out == 1
    assert got.report["sources"]["singleton"] == 1 and got.report["clicks"]["foretold"] > 0.5
    hierarchical = build(make_space(items, None, Making(towers="off")), Clustering("residual", levels=(4, 4)))
    assert hierarchical.groups.items["t-category"] // 4 >= 4  # a first-level code of its own


def test_clicks_alone_and_categories_alone_make_maps() -> None:
    ids, _, category = blobs()
    of = np.array([int(c[1:]) for c in category])
    got = build(make_space(None, clicked(of, ids)), Clustering(k=10))
    assert set(got.source) <= {"behaviour", "singleton"} and got.source.count("behaviour") > 250
    groups = [got.groups.items.get(i, -1) for i in ids]
    assert np.mean([groups[i] == groups[j] for i in range(100) for j in range(100) if of[i] == of[j]]) > 0.6
    flat = build(make_space(Items(["a", "b", "c"], category=["x", "y", "x"])), Clustering(k=5))
    assert flat.groups.items == {"a": 0, "b": 1, "c": 0} and flat.quality.cohesion == 0.0
    three = make_space(Items(["a", "b", "d", "e"], category=["y", "y", "z", "x"]))
    assert build(three, Clustering(k=5), flat.groups).groups.items == {"a": 0, "b": 0, "d": 3, "e": 2}
    assert build(three, Clustering(only_new=True), flat.groups).groups.items == {"a": 0, "b": 1, "c": 0, "d": 3, "e": 2}
    with pytest.raises(InputError, match="nothing to group by"):
        build(make_space(None, Clicks(*(np.zeros(1, np.int64),) * 3, ["a"])), Clustering(k=1))
    with pytest.raises(UsageError, match="nothing to group"):
        make_space(None)
    with pytest.raises(InputError, match="no embeddings"):
        make_space(Items(["a"], {}, {"text": ["words"]}))
    with pytest.raises(InputError, match="no embeddings to train"):
        make_space(None, clicked(of, ids), Making(towers="on"))


def test_a_map_after_another_moves_little() -> None:
    ids, x, category = blobs(400, k=20)
    cloud = np.random.default_rng(4).normal(size=x.shape).astype(np.float32)  # no clusters: any division is as good
    was = made(ids, cloud, 20).groups
    nearly = space_of(ids, (cloud + 0.05 * np.random.default_rng(5).normal(size=x.shape)).astype(np.float32))
    fresh, kept = (build(nearly, Clustering(k=20, seed=3), p) for p in (None, was))
    a, b = stability.compare(was, fresh.groups), stability.compare(was, kept.groups)
    assert b.stayed > 0.85 and b.stayed > a.stayed + 0.2  # type: ignore[operator]
    assert b.ami > a.ami + 0.2 and b.together > a.together + 0.2  # type: ignore[operator]
    old = made(ids[:380], x[:380], 20).groups
    space = space_of(ids, x)
    kept = build(space, Clustering(k=20, seed=3), old)
    b = stability.compare(old, kept.groups)
    assert (b.shared, b.added, b.removed) == (380, 20, 0) and kept.report["previous"]["id"] == old.id
    only = build(space, Clustering(only_new=True), old)
    assert all(only.groups.items[n] == g for n, g in old.items.items()) and len(only.groups) == 400
    home = {c: old.items[n] for n, c in zip(ids[:380], category[:380], strict=True)}
    assert np.mean([only.groups.items[ids[i]] == home[category[i]] for i in range(380, 400)]) > 0.8
    more = build(space, Clustering(k=25), old)
    assert stability.compare(old, more.groups).stayed > 0.8 and len(more.groups.sizes()) == 25  # type: ignore[operator]
    with pytest.raises(InputError, match="none of the items is in map"):
        build(space, Clustering(only_new=True), GroupMap({"other": 1}))
    with pytest.raises(UsageError, match="residual codes can't be matched"):
        build(space, Clustering("residual", levels=(4, 4)), old)


def test_maps_that_share_nothing() -> None:
    got = stability.compare(GroupMap({"a": 1}), GroupMap({"b": 1}))
    assert got.shared == 0 and got.stayed is None and got.added == got.removed == 1


def test_what_is_remembered_of_a_user() -> None:
    def clicks(user: list[int], item: list[int]) -> Clicks:
        new = np.zeros(len(user), np.int64)
        return Clicks(np.array(user), np.array(item), new, [f"i{k}" for k in range(max(item, default=0) + 1)])

    def told(c: Clicks, groups: list[int]) -> float:
        return remembered(c, groups_of(c, c.ids, np.array(groups)))

    assert told(clicks([0, 1, 2], [0, 1, 2]), [0, 1, 2]) == 0.0  # nobody clicks twice: nothing is known beforehand
    # two users of one group each, by items in turn: the group is known, the item isn't
    c = clicks([0] * 40 + [1] * 40, [k % 4 for k in range(40)] + [4 + k % 4 for k in range(40)])
    right, one, crossed = told(c, [0] * 4 + [1] * 4), told(c, [0] * 8), told(c, [0, 0, 1, 1] * 2)
    assert one == 0.0 and 0.5 < right < np.log(2) + 0.1 and abs(crossed) < 0.05
    # what comes later tells nothing: a habit that is taken up at the end is no habit yet
    late = clicks([0, 0, 0, 0, 1, 1, 1, 1], [0, 1, 2, 3, 3, 2, 1, 0])
    assert told(late, [0, 1, 2, 3]) <= 0.0
    assert groups_of(c, c.ids[:6], np.array([0, 0, 0, 0, 1, -1]))[-4:].tolist() == [1, 2, 3, 4]  # 5, 6, 7 by themselves


def test_the_choice_of_k_by_what_it_foretells_or_by_cohesion() -> None:
    ids, x, category = blobs(480, k=12)
    of = np.array([int(c[1:]) for c in category])
    trials = sweep(space_of(ids, x, category, clicked(of, ids)), Clustering(), [2, 6, 12, 24, 200])
    told = {t.k: t.foretold for t in trials}
    assert told[12] > told[2] and told[12] > told[200]  # type: ignore[operator]
    habits = {t.k: t.remembered for t in trials}
    assert habits[12] > habits[2] and habits[12] > habits[200] and choose(trials)[0] == 12  # type: ignore[operator]
    for without in ("remembered", "foretold"):  # nobody came twice; no session has two clicks
        k, why = choose([t._replace(**{without: None}) for t in trials])
        assert k in (12, 24) and "about the next click" in why
    assert trials[0].purity < trials[2].purity and trials[0].cohesion < trials[2].cohesion  # type: ignore[operator]
    k, why = choose(sweep(space_of(ids, x), Clustering(), [2, 6, 12, 24, 200]))
    assert k in (12, 24) and "cohesion" in why
    assert default_ks(1000) == [16, 32, 64] and default_ks(3) == [1]
    for wrong in ([0, 5], [481]):
        with pytest.raises(InputError, match="can't be built"):
            sweep(space_of(ids, x), Clustering(), wrong)
