"""Embeddings made of a log's words, and bent to what is read together; what learns from them or refuses to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from stream_dmgin.cli.main import cli
from stream_dmgin.datasets import form
from stream_dmgin.datasets.content import Embedding, check_embeddings, embed, with_embeddings
from stream_dmgin.datasets.grouping import group_map
from stream_dmgin.errors import InputError, UsageError
from stream_dmgin.features.spec import InputSpec
from stream_dmgin.groups import coread
from stream_dmgin.groups.coread import bent, by_readers
from stream_dmgin.groups.items import unit

TOPICS = ("football goal", "cake recipe", "tax budget", "storm rain")
T0 = 1_650_000_000_000
SPEC = InputSpec(blocks=("content",), embedding=8)


def readers(users: int = 800, items: int = 400, seed: int = 1):  # type: ignore[no-untyped-def]
    """Items of four topics, faint in vectors whose other directions vary more; users each read five of one topic."""
    r = np.random.default_rng(seed)
    topic = r.integers(4, size=items)
    x = r.normal(size=(items, 30))
    x[:, 10:] *= 0.3
    x[:, 10:14] += 0.6 * np.eye(4)[topic]
    mine = r.integers(4, size=users)
    item = np.concatenate([r.choice(np.flatnonzero(topic == t), 5, replace=False) for t in mine])
    return unit(x.astype(np.float32)), topic, np.repeat(np.arange(users), 5), item


def told_apart(x: np.ndarray, topic: np.ndarray) -> float:
    """Mean product of two items of one topic, less that of two of different ones."""
    like, same = x @ x.T, topic[:, None] == topic
    np.fill_diagonal(same, False)
    return float(like[same].mean() - like[topic[:, None] != topic].mean())


def test_what_is_read_together_bends_the_embeddings() -> None:
    x, topic, user, item = readers()
    half = len(user) // 2
    y, taught = bent(x, user[:half], item[:half], 8)
    assert taught == 0 and y.shape == (400, 8)  # 400 users are too few: the vectors' own directions
    y, taught = bent(x, user, item, 8)
    assert taught == 800 and y.dtype == np.float32 and np.allclose(np.linalg.norm(y, axis=1), 1, atol=1e-5)
    assert told_apart(y, topic) > 0.4 > 3 * told_apart(x, topic)
    again, _ = bent(x, np.r_[user, user], np.r_[item, item], 8)
    assert np.array_equal(y, again)  # once or more often, it is read


def test_items_that_nobody_read_have_their_place() -> None:
    x, topic, user, item = readers()
    held = np.arange(len(x)) % 4 == 0
    keep = ~held[item]
    y, _ = bent(x, user[keep], item[keep], 8)
    assert told_apart(y[held], topic[held]) > 0.3


def test_there_may_be_less_to_say_than_the_width() -> None:
    x, _, user, item = readers()
    y, _ = bent(x[:, :3], user, item, 8)
    assert y.shape == (400, 8) and not y[:, 3:].any()
    y, taught = bent(x[:1], user[:0], item[:0], 4)
    assert taught == 0 and not y.any()  # one item alone is like nothing


def test_embeddings_of_nothing_but_who_read_what() -> None:
    _, topic, user, item = readers()
    y, taught = by_readers(user, item, 402, 8)
    assert taught == 800 and y.shape == (402, 8) and y.dtype == np.float32
    read = np.isin(np.arange(402), item)
    assert not y[~read].any() and np.allclose(np.linalg.norm(y[read], axis=1), 1, atol=1e-5)
    assert told_apart(y[:400][read[:400]], topic[read[:400]]) > 0.7
    again, _ = by_readers(np.r_[user, user], np.r_[item, item], 402, 8)
    assert np.array_equal(y, again)  # once or more often, it is read
    few, taught = by_readers(user[:5], item[:5], 400, 8)  # one user: fewer directions than the width
    assert taught == 1 and few[item[:5], 0].all() and not few[:, 1:].any()
    nobody, taught = by_readers(user[:0], item[:0], 400, 8)
    assert taught == 0 and nobody.shape == (400, 8) and not nobody.any()


def log_with_words(users: int = 30) -> form.Dataset:
    """Every user reads three items of one topic, an hour apart; the last item has no words."""
    r = np.random.default_rng(2)
    names = [f"{TOPICS[k % 4]} {r.integers(1000)}" for k in range(40)] + [None]
    events = {k: [] for k in ("topic", "user_id", "item_id", "ts", "visible_at", "event_id", "type")}
    for u in range(users):
        for n, k in enumerate(r.choice(10, 3, replace=False).tolist()):
            row = ("clicks", f"u{u}", f"i{4 * k + u % 4}", T0 + n * 3_600_000, T0 + n * 3_600_000, f"e{u}-{n}", "click")
            for name, x in zip(events, row, strict=True):
                events[name].append(x)
    items = form.table(form.ITEMS, {"item_id": [f"i{k}" for k in range(41)], "name": names})
    log = form.in_visible_order(form.table(form.EVENTS, events))
    return form.Dataset(log, form.no_rows(), items, form.Meta("test", T0))


def test_words_become_embeddings_and_only_earlier_clicks_teach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coread, "FEW", 10)
    data = log_with_words()
    seen = []
    made = embed(data, Embedding("lsa", 8, T0 + 10_000_000), lambda done, total: seen.append((done, total)))
    assert made.taught == 30 and made.vectors.shape == (41, 8) and not made.vectors[40].any()
    assert told_apart(made.vectors[:40], np.arange(40) % 4) > 0.3
    for until in (None, T0, T0 + 3_600_000):  # until then each user read nothing, or one item
        assert embed(data, Embedding("lsa", 8, until)).taught == 0
    data.meta.splits = {"train": [T0 + 10_000_000, T0 + 10_000_001]}
    assert embed(data, Embedding("lsa", 8)).taught == 30
    full = with_embeddings(data, made.vectors)
    assert full.items["embedding"].null_count == 1
    check_embeddings(full, SPEC)
    check_embeddings(data, InputSpec())
    for wrong in (data, full):
        with pytest.raises(InputError, match="embeddings of"):
            check_embeddings(wrong, SPEC if wrong is data else replace(SPEC, embedding=9))


def test_clicks_alone_make_embeddings_and_only_earlier_ones() -> None:
    data = log_with_words()
    hated = pa.array(
        [
            "hate" if u == "u0" else t
            for u, t in zip(*(data.events[c].to_pylist() for c in ("user_id", "type")), strict=True)
        ]
    )
    data = replace(data, events=data.events.set_column(data.events.column_names.index("type"), "type", hated))
    made = embed(data, Embedding("clicks", 8, T0 + 10_000_000))
    clicked = np.isin(
        data.items["item_id"].to_pylist(),
        data.events.filter(pc.equal(data.events["type"], "click"))["item_id"].to_pylist(),
    )
    assert made.taught == 29 and np.array_equal(made.vectors.any(1), clicked) and not made.vectors[40].any()
    assert told_apart(made.vectors[clicked], np.flatnonzero(clicked) % 4) > 0.5
    first = embed(data, Embedding("clicks", 8, T0 + 1))
    assert first.taught == 0 and first.vectors.any(1).sum() < clicked.sum()
    with pytest.raises(InputError, match="clicks that were visible before"):
        embed(data, Embedding("clicks", 8))
    check_embeddings(with_embeddings(data, made.vectors), replace(SPEC, blocks=("passed",)))


def test_items_without_groups_or_categories_get_groups_of_like_ones() -> None:
    data = log_with_words()
    made = embed(data, Embedding("clicks", 8, T0 + 10_000_000)).vectors
    full = with_embeddings(data, made)
    group = group_map(full)
    known = made.any(1)
    ids = data.items["item_id"].to_pylist()
    assert set(group.items) == {i for i, k in zip(ids, known, strict=True) if k} and len(group.sizes()) <= 64
    assert group.id == group_map(with_embeddings(data, made)).id  # the same again
    few = with_embeddings(data, np.where(np.arange(41)[:, None] % 4 == 0, made, 0))
    assert len(group_map(few)) == (known & (np.arange(41) % 4 == 0)).sum()
    named = data.items.set_column(data.items.column_names.index("category"), "category", pa.array(["c"] * 40 + [None]))
    assert group_map(with_embeddings(replace(data, items=named), made)).sizes() == {0: 40}


def test_nothing_to_make_embeddings_of() -> None:
    data = log_with_words()
    bare = data.items.drop_columns(["name"])
    with pytest.raises(InputError, match="nothing to make"):
        embed(form.Dataset(data.events, data.rows, bare, data.meta), Embedding("lsa"))
    with pytest.raises(UsageError, match="word2vec"):
        embed(data, Embedding("word2vec"))


def test_data_import_makes_them(tmp_path: Path) -> None:
    source = tmp_path / "x.csv"
    source.write_text("u,i,t,n\n" + "".join(f"u{k % 3},i{k % 7},{T0 + k},title {k % 7} word\n" for k in range(30)))
    args = ["data", "import", "table", str(source), "--map", "user_id=u,item_id=i,ts=t,name=n", "--topic", "clicks"]
    out = tmp_path / "out"
    found = CliRunner().invoke(cli, [*args, "--out", str(out), "--embed", "lsa", "--embed-width", "6", "-o", "json"])
    assert found.exit_code == 0, found.output
    said = json.loads(found.stdout)
    assert said["embedded"] == 7 and said["taught_by_users"] == 0
    assert {len(x) for x in pq.read_table(out / "items.parquet")["embedding"].to_pylist()} == {6}
    check_embeddings(form.read(out), replace(SPEC, embedding=6))
    args += ["--out", str(out), "--embed", "clicks", "--embed-width", "2"]
    for until in (("--embed-until", str(T0 + 20)), ("--embed-until-day", "1")):
        found = CliRunner().invoke(cli, [*args, *until, "-o", "json"])
        assert found.exit_code == 0 and json.loads(found.stdout)["taught_by_users"] == 3, found.output
    refused = CliRunner().invoke(cli, [*args, "--embed-until", "1", "--embed-until-day", "1"])
    assert isinstance(refused.exception, UsageError) and "say the same" in str(refused.exception)
