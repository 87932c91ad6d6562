"""The group map: look-ups, files, and errors that name line and fix."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_dmgin.errors import InputError
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.native import hash_ids


def test_lookups_by_id_and_by_hash() -> None:
    items = {f"i{k}": k % 97 for k in range(5000)} | {"ü,\n": 2**31 - 1}
    m = GroupMap(items)
    got = m.lookup_hashes(hash_ids([*items, "absent"]))
    assert got.tolist() == [*items.values(), -1] and got.dtype == np.int32
    assert m.lookup("i5") == 5 and m.lookup("absent") is None and len(m) == 5001
    assert m.sizes()[5] == sum(k % 97 == 5 for k in range(5000))


def test_the_empty_map() -> None:
    m = GroupMap.empty()
    assert m.id == "none" and m.lookup("x") is None and m.lookup_hashes(hash_ids(["x"])).tolist() == [-1]


def test_the_id_is_that_of_the_content() -> None:
    a, b = GroupMap({"x": 1, "y": 2}), GroupMap({"y": 2, "x": 1})
    assert a.id == b.id and a.id.startswith("csv-") and len(a.id) == 12
    assert len({a.id, GroupMap({"x": 1}).id, GroupMap({"x": 1, "y": 3}).id, GroupMap({"x1": 1, "y": 2}).id}) == 4


def test_files_give_the_map_back(tmp_path) -> None:  # type: ignore[no-untyped-def]
    m = GroupMap({"a": 1, "b": 0, "ü": 7}, "kmeans")
    m.save(tmp_path / "m.parquet")
    back = GroupMap.load(tmp_path / "m.parquet")
    assert back.items == m.items and back.id == m.id and back.id.startswith("kmeans-")
    GroupMap.empty().save(tmp_path / "none.parquet")
    assert GroupMap.load(tmp_path / "none.parquet").id == "none"
    (tmp_path / "m.csv").write_text('\ufeffitem_id,group\na,1\n"b",0\n\nü,7\na,1\n')
    assert GroupMap.load(tmp_path / "m.csv").items == m.items
    pq.write_table(pa.table({"item_id": pa.array([3, 4]), "group": [1, 1]}), tmp_path / "other.parquet")
    assert GroupMap.load(tmp_path / "other.parquet").items == {"3": 1, "4": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the header"), ("item,group\na,1\n", "line 1: the header"), ("item_id,group\na\n", "line 2: 1 fields"),
        ("item_id,group\na,b,1\n", "line 2: 3 fields"), ("item_id,group\na,x\n", "line 2: group 'x'"),
        ("item_id,group\na,-1\n", "line 2: group '-1'"), ("item_id,group\na,2147483648\n", "line 2: group 2147483648"),
        ("item_id,group\na,1.0\n", "line 2"), ("item_id,group\n,1\n", "line 2: item_id ''"),
        ("item_id,group\na,1\nb,2\na,3\n", "line 4: item 'a' is in group 3, but in 1 on line 2"),
        ("item_id,group\n" + "a" * 1025 + ",1\n", "longer than 1024 bytes"), ('item_id,group\n"a\n', "not CSV"),
    ],
)  # fmt: skip
def test_bad_csv(tmp_path, text, message) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        GroupMap.from_csv(path)


def test_unreadable_files(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "m.csv").write_bytes(b"item_id,group\n\xff,1\n")
    (tmp_path / "m.parquet").write_text("no")
    pq.write_table(pa.table({"item_id": ["a"]}), tmp_path / "short.parquet")
    pq.write_table(pa.table({"item_id": ["a", "a"], "group": [1, 2]}), tmp_path / "twice.parquet")
    pq.write_table(pa.table({"item_id": ["a"], "group": [-1]}), tmp_path / "range.parquet")
    pq.write_table(pa.table({"item_id": ["a"], "group": pa.array([None], pa.int32())}), tmp_path / "null.parquet")
    for name in (
        "m.csv",
        "m.parquet",
        "short.parquet",
        "twice.parquet",
        "range.parquet",
        "null.parquet",
        "absent.csv",
        "absent",
    ):
        with pytest.raises(InputError):
            GroupMap.load(tmp_path / name)


def test_a_map_grows_but_never_changes() -> None:
    m = GroupMap({"a": 1})
    more = m.extend({"b": 2, "a": 1})
    assert more.items == {"a": 1, "b": 2} and m.items == {"a": 1} and more.id != m.id
    with pytest.raises(InputError, match="can't move to 5"):
        m.extend({"a": 5})
    with pytest.raises(InputError):
        m.extend({"c": -1})
