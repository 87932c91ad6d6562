"""The command line of groups: from words and clicks to a map, its report and its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from stream_dmgin.cli.groups import command
from stream_dmgin.errors import InputError, UsageError

FOODS, CARS = (
    ("noodle soup", "ramen egg", "pizza oven", "sushi roll"),
    ("car repair", "tyre change", "engine oil", "used cars"),
)


def run(data: Path, *args: object) -> dict[str, Any]:
    words = [*map(str, args), "--data-dir", str(data), "-o", "json"]
    result = CliRunner().invoke(command, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture
def city(tmp_path: Path) -> Path:
    """120 shops with names and a category, users who stay with one category, and a shop known from clicks alone."""
    r = np.random.default_rng(0)
    names = [f"{(FOODS, CARS)[i % 2][(i // 2) % 4]} {i} <b>" for i in range(120)]
    pq.write_table(
        pa.table({"item_id": [f"s{i:03d}" for i in range(121)], "name": [*names, None], "category": [*(("food", "cars")[i % 2] for i in range(120)), None]}),
        tmp_path / "items.parquet",
    )  # fmt: skip
    user = np.repeat(np.arange(60), 10)
    item = r.integers(0, 61, len(user)) * 2 % 122
    item = np.where(user % 2, np.minimum(item + 1, 119), item)
    ts = np.tile(np.arange(10) * 60_000, 60)
    pq.write_table(
        pa.table({"user_id": user.astype(str), "item_id": [f"s{i:03d}" for i in item], "ts": ts}),
        tmp_path / "clicks.parquet",
    )
    return tmp_path


def test_from_words_and_clicks_to_a_map_and_its_page(city: Path) -> None:
    data = city / "data"
    making = ("--items", city / "items.parquet", "--encoder", "lsa", "--events", city / "clicks.parquet")
    built = run(
        data, "build", *making, "--epochs", "2", "--width", "16", "-k", "8", "--embeddings-out", city / "e.parquet"
    )
    assert built["items"] == 121 and built["purity"] > 0.9 and built["clicks"]["groups_per_user_median"] >= 1
    assert built["sources"] == {"content": 120, "behaviour": 1, "category": 0, "singleton": 0}
    report = json.loads(Path(built["file"]).with_suffix(".json").read_text())
    assert report["made_from"]["encoder"] == "lsa" and set(report["made_from"]["pairs"]) == {
        "category-text",
        "co-click",
    }

    swept = run(
        data,
        "sweep",
        "--items",
        city / "e.parquet",
        "--events",
        city / "clicks.parquet",
        "--towers",
        "off",
        "--ks",
        "2,8,16",
    )
    assert (
        [t["k"] for t in swept["trials"]] == [2, 8, 16]
        and swept["k"] in (2, 8, 16)
        and "foretold" in swept["trials"][0]
    )
    auto = run(data, "build", "--items", city / "e.parquet", "-k", "auto", "--previous", built["id"])
    assert auto["sweep"]["k"] == auto["groups"] and auto["previous"]["id"] == built["id"]
    assert run(data, "compare", built["id"], built["id"])["ami"] == pytest.approx(1)
    assert {m["id"] for m in run(data, "list")["groups"]} == {built["id"], auto["id"]}

    page = city / "pages" / "map.html"
    shown = run(data, "show", auto["id"], "--html", page, "--items", city / "e.parquet")
    html = page.read_text()
    assert (
        shown["page"] == str(page)
        and "<svg" in html
        and "&lt;b&gt;" in html
        and "<b>" not in html.replace("<b>" + str(auto["items"]), "").split("<h2>Where the groups stand")[1]
    )
    assert "http" not in html.replace("http://www.w3.org/2000/svg", "") and "<script" not in html and "Against" in html
    run(data, "show", built["id"], "--html", city / "plain.html")
    assert "The largest groups" in (city / "plain.html").read_text()


def test_hierarchical_maps_and_maps_of_new_items_only(city: Path) -> None:
    data = city / "data"
    making = ("--items", city / "items.parquet", "--encoder", "lsa", "--towers", "off")
    deep = run(data, "build", *making, "--method", "residual", "--levels", "4x3")
    assert (
        run(data, "show", deep["id"])["levels"] == [4, 3] and deep["groups"] <= 13
    )  # one more for what has a category alone
    assert run(data, "cut", deep["id"], "--levels", "1", "--out", city / "coarse.parquet")["groups"] <= 5
    few = pq.read_table(city / "items.parquet").slice(0, 100)
    pq.write_table(few, city / "few.parquet")
    old = run(data, "build", "--items", city / "few.parquet", "--encoder", "lsa", "--towers", "off", "-k", "6")
    new = run(data, "build", *making, "--previous", old["id"], "--only-new")
    assert new["previous"]["stayed"] == 1.0 and new["previous"]["added"] == 20 and new["items"] == 120


def test_imported_maps(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("item_id,group\na,1\nb,1\nc,2\n")
    imported = run(tmp_path, "import", tmp_path / "m.csv", "--out", tmp_path / "m.parquet")
    assert imported["items"] == 3 and imported["groups"] == 2
    shown = run(tmp_path, "show", tmp_path / "m.parquet", "--samples", "1")
    assert shown["largest"] == [{"group": 1, "size": 2, "items": ["a"]}, {"group": 2, "size": 1, "items": ["c"]}]
    assert run(tmp_path, "show", tmp_path / "m.parquet", "--item", "c")["group"] == 2
    run(tmp_path, "show", tmp_path / "m.parquet", "--html", tmp_path / "m.html")
    with pytest.raises(InputError, match="groups list"):
        run(tmp_path, "show", "no-such-map")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-k", "x"], "a whole number, or auto"), ([], "give --k"), (["--method", "residual"], "needs --levels"),
        (["-k", "4", "--levels", "2x2"], "--levels is for"), (["-k", "4", "--method", "residual", "--levels", "2x2"], "--k is for"),
        (["-k", "4", "--until", "5"], "--until is about --events"), (["-k", "4"], "no embeddings"),
        (["-k", "999", "--encoder", "lsa", "--towers", "off"], "999 groups of 120 items"),
        (["-k", "4", "--events", "clicks.parquet", "--until", "noon"], "is no time"),
    ],
)  # fmt: skip
def test_wrong_usage(city: Path, args: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(city)
    if message == "no embeddings":
        pq.write_table(pa.table({"item_id": ["a"], "name": ["x"]}), city / "items.parquet")
    with pytest.raises(UsageError, match=message):
        run(city, "build", "--items", "items.parquet", *args)


def test_wrong_usage_of_the_other_verbs(city: Path) -> None:
    with pytest.raises(UsageError, match="nothing to group"):
        run(city, "build", "-k", "4")
    with pytest.raises(UsageError, match="128,512"):
        run(city, "sweep", "--items", city / "items.parquet", "--ks", "many")
    (city / "m.csv").write_text("item_id,group\na,1\n")
    with pytest.raises(UsageError, match="--html"):
        run(city, "show", city / "m.csv", "--items", city / "items.parquet")
