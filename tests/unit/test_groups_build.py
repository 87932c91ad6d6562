"""Groups from embeddings, and the command line of groups."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from stream_dmgin.cli.groups import command
from stream_dmgin.errors import InputError
from stream_dmgin.groups.build import Embeddings, build, read_embeddings


def blobs(n: int = 300, k: int = 10, seed: int = 0) -> tuple[list[str], np.ndarray, list[str]]:
    r = np.random.default_rng(seed)
    of = r.integers(0, k, n)
    return (
        [f"s{i}" for i in range(n)],
        (r.normal(size=(k, 16))[of] + 0.1 * r.normal(size=(n, 16))).astype(np.float32),
        [f"c{c}" for c in of],
    )


def written(path, ids, vectors, **more):  # type: ignore[no-untyped-def]
    pq.write_table(
        pa.table({"item_id": ids, "embedding": [None if v is None else list(map(float, v)) for v in vectors], **more}),
        path,
    )
    return path


def test_blobs_are_found_again(tmp_path) -> None:  # type: ignore[no-untyped-def]
    ids, x, category = blobs()
    m, q = build(read_embeddings(written(tmp_path / "e.parquet", ids, x, category=category)), 10)
    assert (
        q.items == len(m) == 300
        and q.groups + q.empty == 10
        and q.purity > 0.95
        and q.cohesion > 0.9
        and q.left_out == 0
    )
    assert m.lookup("s0") == 0 and m.id.startswith("kmeans-")


def test_the_order_of_rows_does_not_matter_and_the_seed_decides(tmp_path) -> None:  # type: ignore[no-untyped-def]
    ids, x, _ = blobs()
    order = np.random.default_rng(1).permutation(len(ids))
    a = read_embeddings(written(tmp_path / "a.parquet", ids, x))
    b = read_embeddings(written(tmp_path / "b.parquet", [ids[i] for i in order], x[order]))
    assert build(a, 20, seed=3)[0].items == build(b, 20, seed=3)[0].items


@pytest.mark.parametrize("load", [1.0, 1.5, 3.0])
def test_no_group_is_over_the_cap(load: float) -> None:
    ids, x, _ = blobs(n=200, k=2)
    m, q = build(Embeddings(ids, x, 0, None), 8, max_load=load)
    assert q.largest <= math.ceil(load * 200 / 8) and max(m.sizes().values()) == q.largest and q.purity is None


def test_one_thing_many_times() -> None:
    x = np.ones((50, 4), np.float32)
    m, q = build(Embeddings([f"i{i}" for i in range(50)], x, 0, None), 5)
    assert q.largest <= 30 and len(m) == 50 and q.groups + q.empty == 5
    zero, _ = build(Embeddings(["a", "b"], np.zeros((2, 4), np.float32), 0, None), 1)
    assert zero.items == {"a": 0, "b": 0}


def test_items_without_embedding_are_left_out(tmp_path) -> None:  # type: ignore[no-untyped-def]
    got = read_embeddings(written(tmp_path / "e.parquet", ["b", "x", "a"], [[1, 2], None, [3, 4]]))
    assert got.ids == ["a", "b"] and got.vectors.tolist() == [[3, 4], [1, 2]] and got.left_out == 1


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        (["a", "b"], [[1, 2], [1, 2, 3]], "row 1: an embedding of 3 numbers, where the first has 2"),
        (["a", "a"], [[1, 2], [1, 2]], "'a' is in rows 0 and 1"), (["a", "b"], [[1, 2], [1, math.nan]], "row 1: .* not finite"),
        (["a", "b"], [[1, 2], [1, math.inf]], "row 1: .* not finite"), (["a", ""], [[1, 2], [1, 2]], "row 1: item_id is empty"),
        (["a"], [None], "no item has an embedding"), (["a"], [[]], "no numbers"),
    ],
)  # fmt: skip
def test_bad_embeddings(tmp_path, ids, vectors, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        read_embeddings(written(tmp_path / "e.parquet", ids, vectors))


def test_bad_files_and_sizes(tmp_path) -> None:  # type: ignore[no-untyped-def]
    pq.write_table(pa.table({"item_id": ["a"], "x": [1]}), tmp_path / "x.parquet")
    pq.write_table(pa.table({"item_id": ["a"], "vector": ["b"]}), tmp_path / "y.parquet")
    pq.write_table(pa.table({"item_id": ["a"], "vector": [["b"]]}), tmp_path / "z.parquet")
    for name in ("x.parquet", "y.parquet", "z.parquet", "absent.parquet"):
        with pytest.raises(InputError):
            read_embeddings(tmp_path / name)
    ids, x, _ = blobs(5)
    for k, load in ((0, 3.0), (6, 3.0), (2, 0.5), (2, math.nan)):
        with pytest.raises(InputError):
            build(Embeddings(ids, x, 0, None), k, max_load=load)


def test_the_command_line(tmp_path) -> None:  # type: ignore[no-untyped-def]
    ids, x, _ = blobs(60)
    items = written(tmp_path / "e.parquet", ids, x)

    def run(*args: str) -> dict:
        result = CliRunner().invoke(
            command, [*args, "--data-dir", str(tmp_path / "data"), "-o", "json"], catch_exceptions=False
        )
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    built = run("build", "--items", str(items), "--k", "6")
    (tmp_path / "m.csv").write_text("item_id,group\na,1\nb,1\nc,2\n")
    imported = run("import", str(tmp_path / "m.csv"), "--out", str(tmp_path / "m.parquet"))
    assert imported["items"] == 3 and imported["groups"] == 2
    assert [m["id"] for m in run("list")["groups"]] == [built["id"]]
    shown = run("show", str(tmp_path / "m.parquet"), "--samples", "1")
    assert shown["largest"] == [{"group": 1, "size": 2, "items": ["a"]}, {"group": 2, "size": 1, "items": ["c"]}]
    assert run("show", built["id"], "--item", "s0")["group"] == 0
    with pytest.raises(InputError, match="groups list"):
        run("show", "no-such-map")
