"""The catalogue: upserts, deletions, the topic, Parquet."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_dmgin.errors import InputError, RecordError, UsageError
from stream_dmgin.features.catalogue import KNOWN, PLACED, Catalogue, find_item
from stream_dmgin.features.spec import InputSpec, Reads
from stream_dmgin.native import hash_ids
from stream_dmgin.records import Item, encode
from stream_dmgin.state.hash import item_hash

ITEM = Item(
    "a",
    name="A",
    category="food",
    advertiser="x",
    lat=0.0,
    lon=90.0,
    price=9.0,
    embedding=[1.0],
    attrs={"size": 3, "kind": "k"},
)


def row(c: Catalogue, name: str) -> dict:
    r = int(find_item(c.addresses.ctypes.data, np.uint64(item_hash(name))))
    return (
        {k: c._arrays[k][r].tolist() for k in ("category", "advertiser", "place", "flags", "numbers")} if r >= 0 else {}
    )


def test_what_an_item_becomes() -> None:
    c = Catalogue(InputSpec(item_numbers=("size", "kind", "absent")))
    c.upsert(ITEM)
    got = row(c, "a")
    assert (
        got["category"] == item_hash("food") and got["advertiser"] == item_hash("x") and got["flags"] == KNOWN | PLACED
    )
    assert got["place"] == pytest.approx([0, 1, 0], abs=1e-15)
    assert got["numbers"] == pytest.approx([math.log(10), math.log(4), 0, 0])
    known = c.get("a")
    assert known is not None and known.embedding is None and known.attrs == ITEM.attrs and len(c) == 1


def test_upsert_replaces_and_delete_forgets() -> None:
    c = Catalogue()
    c.upsert(ITEM)
    c.upsert(Item("a", category="other"))
    assert row(c, "a") | {"place": 0} == {
        "category": item_hash("other"),
        "advertiser": 0,
        "place": 0,
        "flags": KNOWN,
        "numbers": [0.0],
    }
    c.delete("a")
    c.delete("never there")
    assert len(c) == 0 and c.get("a") is None and row(c, "a")["flags"] == 0
    c.upsert(ITEM)
    assert len(c) == 1 and row(c, "a")["flags"] == KNOWN | PLACED and [i.item_id for i in c.items()] == ["a"]


def test_the_topic() -> None:
    c = Catalogue()
    c.fold(b"a", encode(ITEM))
    assert len(c) == 1
    c.fold(b"a", None)
    assert len(c) == 0
    for key, value in ((None, None), (b"a", b"\xc1"), (b"a", b""), (b"a", encode({"item_id": "a", "price": math.nan}))):
        with pytest.raises(RecordError):
            c.fold(key, value)


def test_growth_and_owners() -> None:
    c = Catalogue()
    names = [f"i{k}" for k in range(3000)]
    for k, n in enumerate(names):
        c.upsert(Item(n, category=f"c{k % 7}", advertiser=f"a{k}" if k % 2 else None))
    category, advertiser = c.owners(hash_ids([*names, "unknown"]))
    assert [int(x) for x in category] == [*(item_hash(f"c{k % 7}") for k in range(3000)), 0]
    assert [int(x) for x in advertiser] == [*(item_hash(f"a{k}") if k % 2 else 0 for k in range(3000)), 0]


def test_a_model_may_ask_for_more_numbers() -> None:
    c = Catalogue()
    c.upsert(ITEM)
    c.upsert(Item("b", attrs={"size": -1, "n": True}))
    c.require(InputSpec(item_numbers=("size", "n")))
    c.require(InputSpec(item_numbers=("n",)))
    assert c.numbers == ("size", "n")
    assert row(c, "a")["numbers"] == pytest.approx([math.log(10), math.log(4), 0])
    assert row(c, "b")["numbers"] == pytest.approx([0, 0, math.log(2)])


def embedded(c: Catalogue, name: str) -> list[float]:
    """The embedding as it is kept, of length 1; empty where there is none."""
    r = int(find_item(c.addresses.ctypes.data, np.uint64(item_hash(name))))
    inverse = float(c._arrays["inverse"][r])
    return [x * inverse for x in c._arrays["embedding"][r].tolist()] if inverse else []


def test_embeddings_are_kept_where_a_model_reads_them(caplog) -> None:  # type: ignore[no-untyped-def]
    c = Catalogue()
    c.upsert(Item("a", embedding=[1.0, 2.0]))
    assert c._arrays["embedding"].size == c._arrays["inverse"].size == 0
    reads = InputSpec(blocks=("content",), embedding=2)
    with pytest.raises(UsageError, match=r"worker\.embedding = 2"):
        c.require(reads)
    c.require(InputSpec(embedding=9))  # which doesn't read them
    c = Catalogue()
    c.require(reads)
    r = np.random.default_rng(1).normal(size=(2000, 2))
    for k, x in enumerate(r):
        c.upsert(Item(f"i{k}", embedding=x.tolist()))
    for k in (0, 1500):
        assert embedded(c, f"i{k}") == pytest.approx((r[k] / np.linalg.norm(r[k])).tolist(), abs=0.01)
    c.upsert(Item("i0"))
    c.delete("i1")
    assert not embedded(c, "i0") and not embedded(c, "i1") and c.unfit == 0
    bad = ([], [1.0], [1.0, 2.0, 3.0], [0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0])
    for x in bad:
        c.upsert(Item("i2", embedding=[3.0, 4.0]))
        c.upsert(Item("i2", embedding=x))
        assert not embedded(c, "i2")
    assert c.unfit == len(bad) and len(caplog.records) == 1 and "'i2'" in caplog.text
    c.upsert(Item("i2", embedding=[3e300, -4e300]))
    assert embedded(c, "i2") == pytest.approx([0.6, -0.8], abs=0.01)
    c.require(InputSpec(item_numbers=("n",)))  # makes columns anew
    assert embedded(c, "i2") == pytest.approx([0.6, -0.8], abs=0.01)
    with pytest.raises(UsageError, match="those of 2 numbers"):
        c.require(InputSpec(blocks=("content",), embedding=3))


def test_models_that_read_embeddings_of_two_widths_dont_go_together() -> None:
    content = InputSpec(blocks=("content",), embedding=3)
    assert Reads.of([InputSpec(), content, InputSpec(embedding=5)]) == Reads(embedding=3)
    assert Reads.of([InputSpec(blocks=("online",))]) == Reads(online=True)
    with pytest.raises(UsageError, match="3 and 5 numbers"):
        Reads.of([content, InputSpec(blocks=("content",), embedding=5)])
    for width in (0, 5000):
        with pytest.raises(ValueError, match="embedding"):
            InputSpec(embedding=width)


def test_from_parquet(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "items.parquet"
    table = {
        "item_id": ["a", "b"], "category": ["food", None], "price": [9.0, math.nan], "lat": [1.0, None], "lon": [2.0, 3.0],
        "embedding": [[1.0], None], "attrs": [json.dumps({"size": 3}), None], "group": [1, None],
    }  # fmt: skip
    pq.write_table(pa.table(table), path)
    c = Catalogue.from_parquet(path, InputSpec(item_numbers=("size",)))
    b = c.get("b")
    assert (
        len(c) == 2
        and b is not None
        and b.price is None
        and row(c, "a")["numbers"] == pytest.approx([math.log(10), math.log(4)])
    )
    assert row(c, "a")["flags"] == KNOWN | PLACED and row(c, "b")["flags"] == KNOWN


@pytest.mark.parametrize(
    ("columns", "message"),
    [({"x": ["a"]}, "no column item_id"), ({"item_id": [None]}, "row 0"), ({"item_id": ["a"], "attrs": ["{"]}, "row 0"), ({"item_id": ["a"], "price": ["dear"]}, "row 0")],
)  # fmt: skip
def test_bad_parquet(tmp_path, columns, message) -> None:  # type: ignore[no-untyped-def]
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=message):
        Catalogue.from_parquet(tmp_path / "x.parquet")


def test_no_parquet(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "x").write_text("no")
    for name in ("x", "absent"):
        with pytest.raises(InputError, match="can't be read"):
            Catalogue.from_parquet(tmp_path / name)
