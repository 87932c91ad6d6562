"""The normalised form and the `table` importer, on files made here."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_dmgin.datasets import form, load, table
from stream_dmgin.errors import InputError
from tests.logs import dataset


def _csv(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_table_of_events_by_type(tmp_path: Path) -> None:
    f = _csv(
        tmp_path / "x.csv",
        "uid,iid,time,act,ms,cat\n7,a,1600000002,buy,,c1\n7,b,1600000001,pv,500,c2\n7,b,1600000001.5,impression,,c9\n,b,1600000001,pv,,\n8,a,5,pv,,\n",
    )
    columns = table.parse_map("user_id=uid,item_id=iid,ts=time,type=act,dwell_ms=ms,category=cat")
    d = table.load(f, columns, "s")
    assert d.events["topic"].to_pylist() == ["clicks", "impressions", "post-clicks"]
    assert d.events["ts"].to_pylist() == [1_600_000_001_000, 1_600_000_001_500, 1_600_000_002_000]
    assert d.events["user_id"].to_pylist() == ["7"] * 3
    assert d.events["dwell_ms"].to_pylist() == [500, None, None]
    assert d.meta.dropped == {"no_user_or_item": 1, "no_time": 1}
    assert dict(zip(d.items["item_id"].to_pylist(), d.items["category"].to_pylist(), strict=True)) == {
        "a": "c1",
        "b": "c2",
    }
    form.write(d, tmp_path / "out")
    again = form.read(tmp_path / "out")
    assert again.events.select(d.events.column_names).equals(d.events)
    assert again.meta.counts["events"] == 3 and again.rows.num_rows == 0


def test_table_with_labels_makes_rows_and_feedback(tmp_path: Path) -> None:
    t = pa.table({"u": ["x", "x", "y"], "i": [1, 2, 1], "t": ["2020-01-01T00:00:00Z", "2020-01-01T00:00:00Z", "2020-01-02T00:00:00Z"],
                  "y": [0, 1, 1], "slate": ["r", "r", "s"]})  # fmt: skip
    pq.write_table(t, tmp_path / "x.parquet")
    d = table.load(
        tmp_path / "x.parquet",
        table.parse_map("user_id=u,item_id=i,ts=t,label=y,request_id=slate"),
        "iso",
        visible_after_ms=60_000,
    )
    form.validate(d)
    assert d.rows["label"].to_pylist() == [0, 1, 1] and d.rows["request_id"].to_pylist() == ["r", "r", "s"]
    assert d.rows["ts"].to_pylist()[0] == 1_577_836_800_000
    assert d.events["topic"].to_pylist() == ["impressions", "impressions", "clicks", "impressions", "clicks"]
    assert all(
        v == t + 60_000 for v, t in zip(d.events["visible_at"].to_pylist(), d.events["ts"].to_pylist(), strict=True)
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("user_id=u,item_id=i", "lacks ts"),
        ("user_id", "FIELD=COLUMN"),
        ("nonsense=u", "FIELD=COLUMN"),
        ("user_id=u,item_id=i,ts=nope", "no column nope"),
    ],
)
def test_a_mapping_that_cannot_be_used_is_refused(tmp_path: Path, text: str, says: str) -> None:
    f = _csv(tmp_path / "x.csv", "u,i,t\na,b,1600000000000\n")
    with pytest.raises(InputError, match=says):
        table.load(f, table.parse_map(text))


def test_wrong_unit_and_missing_topic_are_refused(tmp_path: Path) -> None:
    f = _csv(tmp_path / "x.csv", "u,i,t\na,b,1600000000\n")
    columns = {"user_id": "u", "item_id": "i", "ts": "t"}
    with pytest.raises(InputError, match="ts-unit ms"):
        table.load(f, columns, "ms")
    with pytest.raises(InputError, match="no topic"):
        table.load(f, columns, "s")
    assert table.load(f, columns, "s", "clicks").events["topic"].to_pylist() == ["clicks"]


@pytest.mark.parametrize("name", ["kuairand", "ebnerd", "mind", "taobao"])
def test_a_directory_without_the_files_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"behaviors|log_standard|UserBehavior"):
        load(name, tmp_path)
    with pytest.raises(InputError):
        load(name, tmp_path / "nowhere")


def test_reading_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"meta\.json"):
        form.read(tmp_path)
    f = _csv(tmp_path / "x.csv", "u,i,t\na,b,1600000000000\n")
    d = table.load(f, {"user_id": "u", "item_id": "i", "ts": "t"}, "ms", "clicks")
    form.write(d, tmp_path / "out")
    pq.write_table(d.events.drop_columns(["item_id"]), tmp_path / "out" / "events.parquet")
    with pytest.raises(InputError, match="no column item_id"):
        form.read(tmp_path / "out")
    pq.write_table(
        d.events.set_column(d.events.column_names.index("visible_at"), "visible_at", pa.array([5])),
        tmp_path / "out" / "events.parquet",
    )
    with pytest.raises(InputError, match="visible before it happened"):
        form.read(tmp_path / "out")


def test_labels_of_what_follows_a_click_are_checked() -> None:
    made = dataset(20)
    made.meta.heads = ["order"]
    ts = made.rows["ts"].to_numpy()

    def check(label: list[int | None], at: list[int | None]) -> None:
        columns = {"label_order": pa.array(label, pa.int8()), "label_order_at": pa.array(at, pa.int64())}
        rows = made.rows
        for name, column in columns.items():
            rows = rows.append_column(name, column)
        form.validate(form.Dataset(made.events, rows, made.items, made.meta))

    n = len(ts)
    late = [int(t) + 5 for t in ts]
    check([1, None] * (n // 2) + [0] * (n % 2), [t if k % 3 else None for k, t in enumerate(late)])
    with pytest.raises(InputError, match=r"label_order of rows\.parquet must be 0, 1 or null"):
        check([1] * (n - 1) + [2], late)
    skewed = [t - 86_400_000 if k in (1, 4) else t for k, t in enumerate(late)]
    with pytest.raises(InputError, match=r"label_order_at of 2 rows .* before the request.*mend the clocks"):
        check([1] * n, skewed)
