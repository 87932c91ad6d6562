"""Towers learn from pairs; pairs come from views and from clicks; behaviour stands in for content."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_dmgin.errors import InputError
from stream_dmgin.groups import contrast
from stream_dmgin.groups.behaviour import behaviour, carried
from stream_dmgin.groups.coclicks import Clicks, Pairs, groups_of, groups_per_user, pairs_of, read_clicks, with_clicked
from stream_dmgin.groups.contrast import Options
from stream_dmgin.groups.items import Items, View, unit


def two_sided(n: int = 600, topics: int = 30, seed: int = 0) -> tuple[Items, np.ndarray]:
    """Items whose name and picture tell the same topic in two spaces that have nothing to do with each other."""
    r = np.random.default_rng(seed)
    of = r.integers(0, topics, n)
    text, image = (r.normal(size=(topics, w))[of] + 0.4 * r.normal(size=(n, w)) for w in (24, 16))
    rows = np.arange(n)
    return Items(
        [f"i{i:04d}" for i in rows],
        {"text": View(rows, text.astype(np.float32)), "image": View(rows, image.astype(np.float32))},
    ), of


def test_towers_bring_both_sides_together_and_the_seed_decides() -> None:
    items, of = two_sided()
    options = Options(width=16, epochs=6, batch=128, lr=5e-3)
    got = contrast.train(items, None, options)
    assert got.pairs == {"text-image": 600} and got.best > 0
    assert got.epochs[got.best].found["text-image"] > got.epochs[0].found["text-image"] + 0.2
    near = got.vectors.vectors @ got.vectors.vectors.T
    same = of[:, None] == of
    assert near[same].mean() > near[~same].mean() + 0.3
    np.testing.assert_allclose(np.linalg.norm(got.vectors.vectors, axis=1), 1, rtol=1e-5)
    again = contrast.train(items, None, options)
    assert (again.vectors.vectors == got.vectors.vectors).all()


def test_the_three_kinds_of_pair() -> None:
    r = np.random.default_rng(0)
    rows = np.arange(40)

    def view(width: int = 8) -> View:
        return View(rows, r.normal(size=(40, width)).astype(np.float32))

    ids = [f"i{i:02d}" for i in rows]
    names = ("text", "image", "category", "description", "keyword", "scene")
    assert contrast.pair_kinds(Items(ids, {n: view() for n in names})) == [
        ("text", "image"), ("category", "description"), ("keyword", "scene"),
    ]  # fmt: skip
    assert contrast.pair_kinds(Items(ids, {"text": view(), "category": view(5)})) == [("category", "text")]
    assert contrast.pair_kinds(Items(ids, {"text": view(), "image": View(rows[:3], view().vectors[:3])})) == []


def test_no_pairs() -> None:
    items, _ = two_sided(50)
    with pytest.raises(InputError, match="no pair to train on"):
        contrast.train(Items(items.ids, {"text": items.views["text"]}), None)


def log(tmp_path, rows, name="clicks.parquet", **more):  # type: ignore[no-untyped-def]
    u, i, t = zip(*rows, strict=True)
    pq.write_table(pa.table({"user_id": u, "item_id": i, "ts": t, **more}), tmp_path / name)
    return tmp_path / name


def test_pairs_lie_within_a_session_and_the_window(tmp_path) -> None:  # type: ignore[no-untyped-def]
    minute = 60_000
    rows = [("u", "a", 0), ("u", "b", minute), ("u", "c", 2 * minute), ("u", "d", 60 * minute), ("v", "a", minute), ("v", "d", 2 * minute), ("v", "d", 3 * minute)]  # fmt: skip
    path = log(tmp_path, rows)
    clicks = read_clicks(path)
    assert len(clicks) == 7 and clicks.session.max() == 2
    ids = ["a", "b", "c", "d"]

    def found(p: Pairs) -> list[str]:
        return sorted(ids[x] + ids[y] for x, y in zip(p.left, p.right, strict=True))

    assert found(pairs_of(clicks, ids, window=1)) == ["ab", "ad", "bc"]
    assert found(pairs_of(clicks, ids, window=2)) == ["ab", "ac", "ad", "ad", "bc"]
    assert found(pairs_of(read_clicks(path, until_ms=2 * minute), ids, window=2)) == ["ab"]
    assert found(pairs_of(clicks, ["a", "c"], window=1)) == [
        "ab"
    ]  # rows 0 and 1: clicks of unknown items don't count as steps
    per_user = groups_per_user(clicks, groups_of(clicks, ids, np.array([0, 0, 1, -1])))
    assert sorted(per_user.tolist()) == [2, 3]


def test_the_directory_of_a_log_and_events_that_count_when_visible(tmp_path) -> None:  # type: ignore[no-untyped-def]
    rows = [("u", "a", 0), ("u", "b", 1), ("u", "c", 2)]
    log(tmp_path, rows, "events.parquet", topic=["clicks", "impressions", "clicks"], visible_at=[5, 5, 9])
    assert len(read_clicks(tmp_path)) == 2 and len(read_clicks(tmp_path, until_ms=9)) == 1


def test_bad_events(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match="holds no events"):
        read_clicks(tmp_path)
    pq.write_table(pa.table({"user_id": ["u"], "ts": [1]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="no column item_id"):
        read_clicks(tmp_path / "x.parquet")
    path = log(tmp_path, [("u", "a", 100)])
    with pytest.raises(InputError, match="no clicks before that time"):
        read_clicks(path, until_ms=100)
    (tmp_path / "y.parquet").write_text("no Parquet")
    with pytest.raises(InputError, match="can't be read"):
        read_clicks(tmp_path / "y.parquet")


def walks(of: np.ndarray, users: int = 200, length: int = 10, seed: int = 0) -> Clicks:
    """Users who each stay with one topic."""
    r = np.random.default_rng(seed)
    topic = r.integers(0, of.max() + 1, users)
    item = np.concatenate([r.choice(np.flatnonzero(of == t), length) for t in topic])
    user = np.repeat(np.arange(users), length)
    return Clicks(user, item, user, [f"i{i:04d}" for i in range(len(of))])


def test_clicks_teach_towers_what_the_encoder_does_not_know() -> None:
    items, of = two_sided(300, topics=10)
    noise = np.random.default_rng(1).normal(size=(300, 24)).astype(np.float32)
    items = Items(items.ids, {"text": View(np.arange(300), noise)})
    pairs = pairs_of(walks(of), items.ids)
    assert 0 < pairs.held_out.mean() < 0.3
    got = contrast.train(items, pairs, Options(width=16, epochs=8, batch=128, lr=5e-3))
    assert list(got.pairs) == ["co-click"] and got.best > 0
    near = got.vectors.vectors @ got.vectors.vectors.T
    assert near[of[:, None] == of].mean() > near[of[:, None] != of].mean() + 0.1


def test_behaviour_tells_topics_apart_and_is_carried_into_the_space_of_content() -> None:
    items, of = two_sided(300, topics=10)
    behaved = behaviour(pairs_of(walks(of), items.ids), 300, width=16)
    assert behaved is not None and len(behaved.rows) > 250
    near, same = behaved.vectors @ behaved.vectors.T, of[behaved.rows][:, None] == of[behaved.rows]
    assert near[same].mean() > near[~same].mean() + 0.5
    text = items.views["text"].vectors
    known = View(np.arange(200), text[:200])
    more = carried(known, behaved)
    assert set(more.rows.tolist()) == set(behaved.rows.tolist()) - set(range(200))
    means = unit(np.stack([unit(text[:200])[of[:200] == t].mean(0) for t in range(10)]))
    assert ((more.vectors @ means.T).argmax(1) == of[more.rows]).mean() > 0.9
    assert behaviour(Pairs(*(np.zeros(0, np.int64),) * 2, np.zeros(0, bool)), 300) is None
    assert len(carried(View(np.arange(3), text[:3]), behaved).rows) == 0


def test_items_known_from_clicks_alone_join_the_others() -> None:
    clicks = Clicks(np.zeros(3, np.int64), np.arange(3), np.zeros(3, np.int64), ["b", "z", "a"])
    got = with_clicked(
        Items(
            ["b", "c"],
            {"text": View(np.array([1]), np.ones((1, 2), np.float32))},
            {"text": ["bee", "sea"]},
            ["k", None],
        ),
        clicks,
    )
    assert got.ids == ["a", "b", "c", "z"] and got.views["text"].rows.tolist() == [2]
    assert got.texts["text"] == [None, "bee", "sea", None] and got.category == [None, "k", None, None]
    assert with_clicked(None, clicks).ids == ["a", "b", "z"]
