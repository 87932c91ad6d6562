"""KuaiRand and EB-NeRD importers on small files of the same form: what becomes visible when, and what is left out."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from stream_dmgin.cli.data import EMBEDS
from stream_dmgin.cli.main import cli
from stream_dmgin.datasets import ebnerd, form, kuairand
from stream_dmgin.training import recipes

B = kuairand.DAY0_MS


@pytest.fixture
def kuai(tmp_path: Path) -> Path:
    base = {"is_like": 0, "is_follow": 0, "is_comment": 0, "is_forward": 0, "is_hate": 0, "is_profile_enter": 0, "duration_ms": 9000,
            "profile_stay_time": 0, "comment_stay_time": 0, "tab": 1}  # fmt: skip
    log = [
        {
            **base,
            "user_id": 2,
            "video_id": 20,
            "time_ms": B + 5000,
            "is_click": 1,
            "long_view": 1,
            "play_time_ms": 3000,
            "is_like": 1,
        },
        {**base, "user_id": 1, "video_id": 10, "time_ms": B + 1000, "is_click": 0, "long_view": 0, "play_time_ms": 700},
        {
            **base,
            "user_id": 2,
            "video_id": 20,
            "time_ms": B + 5000,
            "is_click": 0,
            "long_view": 0,
            "play_time_ms": 0,
        },  # a duplicate
    ]
    pq.write_table(pa.Table.from_pylist(log), tmp_path / "log_standard_x.parquet")
    item = {"author_id": 5, "video_type": "NORMAL", "upload_dt": "2022-04-10", "upload_type": "Web", "video_duration": None,
            "server_width": 720.0, "server_height": 1280.0, "music_id": 3, "music_type": 9.0, "tag": "7,9", "like_cnt": 99.0}  # fmt: skip
    pq.write_table(
        pa.Table.from_pylist([{**item, "video_id": 10}, {**item, "video_id": 20, "tag": "unknown"}]),
        tmp_path / "item_features.parquet",
    )
    seq = [
        {"user_id": 1, "last_time_ms": B - 1000, "watch_seq": [20, 10], "like_seq": [], "long_watch_seq": [10, 30]},
        {"user_id": 3, "last_time_ms": B, "watch_seq": [20], "like_seq": [20], "long_watch_seq": [20]},
    ]
    pq.write_table(pa.Table.from_pylist(seq), tmp_path / "user_sequences_before_0424.parquet")
    return tmp_path


def test_kuairand(kuai: Path) -> None:
    d = kuairand.load(kuai)
    form.validate(d)
    assert d.rows.select(["user_id", "item_id", "label", "label_long_view"]).to_pylist() == [
        {"user_id": "1", "item_id": "10", "label": 0, "label_long_view": None},
        {"user_id": "2", "item_id": "20", "label": 1, "label_long_view": 1},
    ]
    e = [(r["type"], r["user_id"], r["item_id"], r["visible_at"] - B, r["dwell_ms"]) for r in d.events.to_pylist()]
    assert e[-5:] == [
        ("impression", "1", "10", 11_700, None),
        ("impression", "2", "20", 18_000, None), ("click", "2", "20", 18_000, 3000), ("long_view", "2", "20", 18_000, None),
        ("like", "2", "20", 18_000, None),
    ]  # fmt: skip
    warm = [(t, i, at) for t, u, i, at, _ in e[:-5] if u == "1"]
    assert len(e) == len(warm) + 5  # user 3 was seen after the log began
    assert sorted(warm) == [("click", "10", -1000), ("impression", "10", -1000), ("impression", "20", -1001), ("long_view", "10", -1000),
                            ("long_view", "30", -1000)]  # fmt: skip
    assert d.meta.dropped == {"duplicate_rows": 1, "warm_users_after_day0": 1}
    assert d.items["category"].to_pylist() == ["7", None]
    attrs = json.loads(d.items["attrs"][0].as_py())
    assert attrs["duration_s"] == 9.0 and "like_cnt" not in attrs


def test_ebnerd(tmp_path: Path) -> None:
    t0 = dt.datetime(2023, 5, 18, 7)

    def behaviours(part: str, rows: list[dict[str, object]]) -> None:
        (tmp_path / part).mkdir()
        base = {"article_id": None, "device_type": 2, "next_read_time": 5.0, "read_time": 10.0}
        schema = ebnerd._LOG
        pq.write_table(pa.Table.from_pylist([base | r for r in rows], schema), tmp_path / part / "behaviors.parquet")

    def history(part: str, entries: list[tuple[int, dt.datetime]]) -> None:
        pq.write_table(pa.table({
            "user_id": pa.array([1], pa.uint32()), "article_id_fixed": [[a for a, _ in entries]],
            "impression_time_fixed": pa.array([[t for _, t in entries]], pa.large_list(pa.timestamp("us"))),
            "read_time_fixed": pa.array([[3.0] * len(entries)], pa.large_list(pa.float32())),
        }), tmp_path / part / "history.parquet")  # fmt: skip

    minute, week = dt.timedelta(minutes=1), dt.timedelta(days=7)
    behaviours(
        "train",
        [
            {
                "impression_id": 100,
                "impression_time": t0 + minute,
                "user_id": 1,
                "article_ids_inview": [7, 8],
                "article_ids_clicked": [8],
            }
        ],
    )
    behaviours(
        "validation",
        [
            {
                "impression_id": 101,
                "impression_time": t0 + week + minute,
                "user_id": 1,
                "article_id": 4.0,  # shown on the page of an article
                "article_ids_inview": [9],
                "article_ids_clicked": [],
            }
        ],
    )
    history("train", [(6, t0 - minute)])
    history(
        "validation", [(6, t0 - minute), (8, t0 + minute + dt.timedelta(seconds=11)), (5, t0 + dt.timedelta(days=1))]
    )
    d = ebnerd.load(tmp_path)
    form.validate(d)
    assert d.rows.select(["impression_id", "item_id", "label", "surface"]).to_pylist()[:2] == [
        {"impression_id": "100", "item_id": "7", "label": 0, "surface": "front-2"},
        {"impression_id": "100", "item_id": "8", "label": 1, "surface": "front-2"},
    ]
    assert d.rows["page"].to_pylist() == [None, None, "4"]
    assert d.day(d.rows["ts"].to_numpy()).tolist() == [0, 0, 7]
    zero = ebnerd.DAY0_MS
    e = [(r["type"], r["item_id"], (r["visible_at"] - zero) // 1000, r["shared"]) for r in d.events.to_pylist()]
    assert e == [
        ("history", "6", -60, True), ("impression", "7", 71, True), ("impression", "8", 71, True), ("click", "8", 71, True),
        ("read", "8", 76, True), ("history", "5", 7 * 86400, False), ("impression", "9", 7 * 86400 + 71, True),
        ("visit", "4", 7 * 86400 + 71, True),
    ]  # fmt: skip
    assert d.meta.dropped == {"history_already_known": 2}


def test_an_import_of_kuairand_makes_the_embeddings_that_its_recipe_reads(kuai: Path) -> None:
    def imported(*more: str) -> tuple[dict, list[list[float] | None], str]:
        args = ["data", "import", "kuairand", str(kuai), "--out", str(kuai / "out"), *more, "-o", "json"]
        found = CliRunner().invoke(cli, args)
        assert found.exit_code == 0, found.output
        vectors = pq.read_table(kuai / "out" / "items.parquet")["embedding"].to_pylist()
        return json.loads(found.stdout), vectors, found.stderr

    said, vectors, _ = imported()  # 10 and 20 were clicked before day 1
    assert said["embedded"] == 2 and said["taught_by_users"] == 0 and [len(x) for x in vectors] == [64, 64]
    said, vectors, _ = imported("--embed-until", str(B + 10_000))  # 20 was clicked, and nobody knew yet
    assert said["embedded"] == 1 and len(vectors[0]) == 64 and vectors[1] is None
    said, vectors, _ = imported("--embed", "none")
    assert "embedded" not in said and vectors == [None, None]
    said, vectors, told = imported("--embed-until", "1")
    assert "embedded" not in said and vectors == [None, None] and "need clicks" in told


def test_what_an_import_makes_is_what_the_recipe_reads() -> None:
    for name, (encoder, _) in EMBEDS.items():
        assert recipes.best(form.Meta(name, B)).embed == encoder
