"""The features against an independent reference in plain Python, on made-up states."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from features_checks import SPEC, check_request, check_user
from features_reference import Counters, World, h64
from features_states import HOUR, SURFACES, Arrays, random_state

from stream_dmgin.counters.audience import WIDTH, Audience
from stream_dmgin.counters.increments import Increments
from stream_dmgin.counters.learner import OnlineModel
from stream_dmgin.counters.table import CounterTable
from stream_dmgin.features.build import FeatureBuilder
from stream_dmgin.features.catalogue import Catalogue
from stream_dmgin.features.inputs import REQUEST_SIDE, USER_SIDE, Inputs
from stream_dmgin.features.spec import BEHAVIOUR_CLASSES, BLOCKS, COUNTER_KINDS, COUNTER_METRICS, InputSpec
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.native import hash_ids
from stream_dmgin.records import Item

NOW = 1_750_000_123_456


class Case:
    """A small world, the same for the product and for the reference."""

    def __init__(self, seed: int, users: int = 6) -> None:
        rng = self.rng = np.random.default_rng(seed)
        self.names = [f"s{i}" for i in range(40)]
        self.groups = {n: int(rng.integers(12)) for n in self.names if rng.random() < 0.7}
        self.items = {n: self.item(n) for n in self.names if rng.random() < 0.85}
        self.catalogue = Catalogue(SPEC)
        for item in self.items.values():
            self.catalogue.upsert(item)
        self.table, self.reference = CounterTable(OnlineModel()), Counters()
        self.count(3000)
        self.map = GroupMap(self.groups)
        self.builder = FeatureBuilder(SPEC, self.catalogue, self.table, self.map)
        self.world = World(SPEC, self.items, self.groups, self.reference)
        self.arrays = Arrays(users, SPEC.groups + 3, SPEC.events + 2)
        for b in range(users):
            random_state(self.arrays, b, rng, self.names, self.groups, NOW)

    def item(self, name: str) -> Item:
        r = self.rng
        some = lambda x: x if r.random() < 0.8 else None  # noqa: E731
        return Item(
            name, category=some(f"c{r.integers(4)}"), advertiser=some(f"a{r.integers(9)}"), price=some(float(r.integers(100))),
            **(some({"lat": float(r.uniform(-89, 89)), "lon": float(r.uniform(-180, 180))}) or {}),
            attrs=some({"size": int(r.integers(50)), "other": "x", **(some({"age": 1.5}) or {})}),
            embedding=some([[*r.normal(size=5)], [*r.normal(size=5)], [0.0] * 5, [1.0], [1.0, float("nan"), 0, 0, 0]][r.choice(5, p=[.4, .45, .05, .05, .05])]),
        )  # fmt: skip

    def count(self, n: int) -> None:
        r = self.rng
        kinds, names = [], []
        for kind in r.integers(0, 3, n).tolist():
            kinds.append(kind)
            names.append(h64((self.names[r.integers(40)], f"c{r.integers(4)}", f"a{r.integers(9)}")[kind]))
        age = (10 ** r.uniform(0, 3.7, n)).astype(np.int64) - 3  # buckets; a few lie ahead of now
        buckets, metrics, counts = NOW // 900_000 - age, r.integers(0, 5, n), r.integers(1, 1000, n)
        surfaces = SURFACES[r.integers(0, 4, n)] * (np.array(kinds) == 0)
        known = np.array([h64(n) for n in self.names[:35]], np.uint64)
        met = (r.random(200) < 0.2).astype(np.uint8), r.choice([1, 7, 300], 200).astype(np.int32)
        audience = Audience(
            r.choice(known, 200), *met, (r.uniform(-127, 127, (200, WIDTH)) * met[1][:, None]).astype(np.int32)
        )
        self.table.take(
            Increments(
                np.array(kinds, np.uint8), np.array(names, np.uint64), buckets, metrics.astype(np.uint8), counts,
                surfaces.astype(np.uint8), audience,
            )
        )  # fmt: skip
        columns = (audience.hash, audience.metric, audience.count, audience.sum)
        self.reference.audiences.learn(zip(*(c.tolist() for c in columns), strict=True))
        rows = list(
            zip(kinds, names, buckets.tolist(), metrics.tolist(), counts.tolist(), surfaces.tolist(), strict=True)
        )
        for k, h, b, m, c, _ in rows:
            self.reference.add(COUNTER_KINDS[k], h, b, COUNTER_METRICS[m], c)
        self.reference.online.learn(rows)
        self.reference.rhythms.learn(rows)


@pytest.mark.parametrize("seed", range(6))
def test_inputs_equal_the_reference(seed: int) -> None:
    case = Case(seed)
    inputs = Inputs.allocate(SPEC, 8, 30)
    rows = np.array([3, -1, 0, 5, 2, 1, 4], np.int32)
    candidates = [[*case.rng.choice(case.names, case.rng.integers(1, 28)), "unknown", "ü\0x"] for _ in rows]
    places = [(None, None), (10.0, 20.0), (-33.9, 151.2), (0.0, 0.0), (89.0, -179.5), (48.1, None), (51.5, -0.1)]
    for later in (
        0,
        60_000,
        900_000,
        50 * HOUR,
    ):  # the counters' cache is filled at the first, and partly stale afterwards
        surfaces = ["home", "search", "home", None, "map", "", "elsewhere"]
        pages = [case.names[3], candidates[1][0], None, candidates[3][2], "unknown", "", case.names[7]]
        asks = [(NOW + later, c, *p, s, on) for c, p, s, on in zip(candidates, places, surfaces, pages, strict=True)]
        case.builder.user_side(case.arrays, rows, inputs)
        case.builder.request_side(case.arrays, rows, asks, inputs)
        for i, r in enumerate(rows.tolist()):
            if r >= 0:
                check_user(inputs, i, case.world.user_side(case.arrays, r))
            else:
                assert not inputs["g_mask"][i].any() and not inputs["s_mask"][i].any()
            ts, names, lat, lon, surface, page = asks[i]
            place = (lat, lon) if lat is not None and lon is not None else (None, None)
            check_request(
                inputs, i, case.world.request_side(case.arrays, r, ts, [h64(n) for n in names], *place, surface, page)
            )
        assert not inputs["c_mask"][7].any() and not inputs["u_dense"][7].any() and not inputs["g_mask"][7].any()
        case.count(200)


def test_optional_blocks_change_no_other_input() -> None:
    case, plain = Case(18), replace(SPEC, blocks=())
    asks = [(NOW, case.names, 1.0, 2.0, "home", "s3")] * 6
    builder = FeatureBuilder(plain, case.catalogue, case.table, case.map)
    for blocks in (
        (),
        *((b,) for b in BLOCKS),
        ("surface", "engagement", "taste"),
        ("trend", "fatigue"),
        ("online", "content"),
        ("content", "passed"),
        ("passed", "audience"),
        ("audience", "rhythm"),
        ("audience", "readers"),
        ("readers", "page"),
    ):
        some = replace(SPEC, blocks=blocks)
        a, b, c = (Inputs.allocate(s, 6, 40) for s in (plain, some, SPEC))
        builder.request_side(case.arrays, 6, asks, a)
        FeatureBuilder(some, case.catalogue, case.table, case.map).request_side(case.arrays, 6, asks, b)
        case.builder.request_side(case.arrays, 6, asks, c)
        for name, features in (("u_dense", "user_features"), ("c_dense", "candidate_features")):
            mine, every = getattr(some, features), getattr(SPEC, features)
            assert np.array_equal(a[name], b[name][..., : a[name].shape[-1]]), name
            assert np.array_equal(b[name], c[name][..., [every.index(n) for n in mine]]), (name, blocks)
    for wrong in (("nothing",), ("surface", "session")):
        with pytest.raises(ValueError, match="blocks of inputs"):
            InputSpec(blocks=wrong)


def test_what_was_in_the_buffers_does_not_matter() -> None:
    case = Case(11)
    asks = [(NOW, case.names[:5], 1.0, 2.0, None, "s4"), (NOW, case.names[5:17], None, None, "search", None)]
    a, b = Inputs.allocate(SPEC, 3, 20), Inputs.allocate(SPEC, 3, 20)
    for x in b.values():
        x[...] = True if x.dtype == bool else 77
    for out in (a, b):
        case.builder.user_side(case.arrays, 2, out)
        case.builder.request_side(case.arrays, 2, asks, out)
    for name in [*USER_SIDE, *REQUEST_SIDE]:
        assert np.array_equal(a[name], b[name]), name


def test_batch_size_and_padding_do_not_matter() -> None:
    case = Case(12)
    asks = [(NOW + i * HOUR, list(case.rng.choice(case.names, 3 + i)), 1.0, 2.0, f"p{i}", f"s{i}") for i in range(6)]
    whole = Inputs.allocate(SPEC, 6, 8)
    case.builder.user_side(case.arrays, 6, whole)
    case.builder.request_side(case.arrays, 6, asks, whole)
    one = Inputs.allocate(SPEC, 2, 20)
    for i, ask in enumerate(asks):
        out = one.fit(1, 3 + i)
        row = np.array([i], np.int32)
        case.builder.user_side(case.arrays, row, out)
        case.builder.request_side(case.arrays, row, [ask], out)
        for name in [*USER_SIDE, *REQUEST_SIDE]:
            want = whole[name][i, : 3 + i] if name.startswith("c_") else whole[name][i]
            assert np.array_equal(out[name][0], want), name


def test_candidates_as_hashes_are_the_same() -> None:
    case = Case(13)
    a, b = Inputs.allocate(SPEC, 1, 40), Inputs.allocate(SPEC, 1, 40)
    case.builder.request_side(case.arrays, 1, [(NOW, case.names, None, None, None, None)], a)
    case.builder.request_side(case.arrays, 1, [(NOW, hash_ids(case.names), None, None, None, None)], b)
    assert all(np.array_equal(a[n], b[n]) for n in REQUEST_SIDE)


def test_surface_is_bucketed_and_none_is_zero() -> None:
    case = Case(14)
    x = Inputs.allocate(SPEC, 4, 1)
    case.builder.request_side(
        case.arrays, 4, [(NOW, ["s1"], None, None, s, None) for s in ("home", "", None, "home")], x
    )
    home = int(x["x_cat"][0])
    assert 0 < home < SPEC.surface_buckets and x["x_cat"].tolist() == [home, 0, 0, home]


def test_the_item_of_the_page_is_known_among_the_candidates() -> None:
    case = Case(19)
    x = Inputs.allocate(SPEC, 3, 4)
    names = case.names[:4]
    asks = [(NOW, names, None, None, None, page) for page in (names[1], None, "never counted")]
    case.builder.request_side(case.arrays, 3, asks, x)
    itself = x["c_dense"][:, :, SPEC.candidate_features.index("page_self")]
    assert itself.tolist() == [[0, 1, 0, 0], [0] * 4, [0] * 4]
    known, age = (x["u_dense"][:, SPEC.user_features.index(n)] for n in ("page_known", "page_log1p_item_age_h"))
    assert known.tolist() == [1, 0, 1] and age[0] > 0 and age[1:].tolist() == [0, 0]
    group = x["c_dense"][:, :, SPEC.candidate_features.index("page_group")]
    want = [
        (case.map.lookup(n) is not None and case.map.lookup(n) == case.map.lookup(names[1])) or n == names[1]
        for n in names
    ]
    assert group[0].tolist() == [float(w) for w in want] and not group[1:].any()
    case.count(200)
    every = Inputs.allocate(SPEC, 35, 35)
    met = case.names[:35]
    case.builder.request_side(
        case.arrays, np.full(35, -1, np.int32), [(NOW, met, None, None, None, n) for n in met], every
    )
    of_page = every["c_dense"][:, :, SPEC.candidate_features.index("readers_page")]
    assert (of_page.diagonal() > 0.5).sum() > 5 and (
        of_page.argmax(1)[of_page.diagonal() > 0.5] == np.flatnonzero(of_page.diagonal() > 0.5)
    ).all()


def test_another_group_map_and_a_grown_catalogue_are_seen() -> None:
    case = Case(15)
    x = Inputs.allocate(SPEC, 1, 1)
    case.arrays.n_groups[0], case.arrays.g_key[0, 0] = 1, 7
    ask = [(NOW, ["new"], None, None, None, None)]
    case.builder.request_side(case.arrays, 1, ask, x)
    assert x["c_group"][0, 0] == SPEC.groups and x["c_dense"][0, 0, SPEC.candidate_features.index("item_known")] == 0
    case.builder.groups = case.map.extend({"new": 7})
    case.catalogue.upsert(Item("new"))
    for i in range(5000):
        case.catalogue.upsert(Item(f"more{i}"))  # the catalogue's arrays move
    case.builder.request_side(case.arrays, 1, ask, x)
    assert x["c_group"][0, 0] == 0 and x["c_dense"][0, 0, SPEC.candidate_features.index("item_known")] == 1


def test_too_small_inputs_are_refused() -> None:
    case = Case(16)
    x = Inputs.allocate(SPEC, 2, 3)
    with pytest.raises(ValueError, match="don't fit"):
        case.builder.request_side(case.arrays, 1, [(NOW, ["a"] * 4, None, None, None, None)], x)
    with pytest.raises(ValueError, match="don't fit"):
        case.builder.user_side(case.arrays, 3, x)
    with pytest.raises(ValueError, match="requests for"):
        case.builder.request_side(case.arrays, 2, [(NOW, ["a"], None, None, None, None)], x)
    with pytest.raises(ValueError, match="another InputSpec"):
        case.builder.user_side(case.arrays, 1, Inputs.allocate(InputSpec(), 1, 1))
    with pytest.raises(ValueError, match="model reads"):
        case.builder.user_side(Arrays(1, 4, 4), 1, x)
    for odd in (InputSpec(groups=129), InputSpec(short=65), InputSpec(events=0)):
        with pytest.raises(ValueError, match="can be built"):
            FeatureBuilder(odd, case.catalogue, case.table, case.map)
    with pytest.raises(ValueError, match="fit in these"):
        x.fit(3, 3)
    with pytest.raises(ValueError, match="1 or more"):
        Inputs.allocate(SPEC, 0, 1)


def test_a_users_own_events_ahead_of_the_request_are_of_age_zero() -> None:
    case = Case(17, users=1)
    case.arrays.s_len[0], case.arrays.s_item[0, 0], case.arrays.s_ts[0, 0] = 1, h64("s1"), NOW + HOUR
    case.arrays.s_cls[0, 0] = BEHAVIOUR_CLASSES.index("click")
    x = Inputs.allocate(SPEC, 1, 1)
    case.builder.request_side(case.arrays, 1, [(NOW, ["s1"], None, None, None, None)], x)
    assert x["c_dense"][0, 0, SPEC.candidate_features.index("ui_log1p_click_age_h")] == 0
    assert np.isfinite(x["c_dense"]).all() and np.isfinite(x["u_dense"]).all()
