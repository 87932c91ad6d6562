"""The city: deterministic, calibrated, heavy-tailed, with tastes worth remembering by group."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from stream_dmgin.cli.simulate import command
from stream_dmgin.datasets import form
from stream_dmgin.errors import UsageError
from stream_dmgin.simulator import behaviour as b
from stream_dmgin.simulator.drift import CLICKS, FASHION, MOVES, TASTE, WEEKS, moods
from stream_dmgin.simulator.parquet import HEADS, write_history
from stream_dmgin.simulator.users import SEASONAL, build_users, lives
from stream_dmgin.simulator.world import Plan, build_world, history
from stream_dmgin.training.metrics import auc, logloss

PLAN = Plan(users=300, items=600, days=120, life=(100, 20_000))


@pytest.fixture(scope="module")
def city_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("city")
    write_history(PLAN, out)
    return out


def test_the_same_plan_writes_the_same_world_and_another_seed_another(city_log: Path, tmp_path: Path) -> None:
    write_history(PLAN, tmp_path / "again")
    write_history(Plan(users=300, items=600, days=120, life=(100, 20_000), seed=8), tmp_path / "other")
    for name in ("events", "rows", "items", "oracle"):
        first = pq.read_table(city_log / f"{name}.parquet")
        assert first.equals(pq.read_table(tmp_path / "again" / f"{name}.parquet"))
        assert first.equals(pq.read_table(tmp_path / "other" / f"{name}.parquet")) == (name == "items")


def test_a_user_is_the_same_however_many_are_simulated() -> None:
    few = next(history(build_world(Plan(users=5, items=200, days=30, life=(50, 500)))))
    many = next(history(build_world(Plan(users=50, items=200, days=30, life=(50, 500)))))
    n = int((many[1].user < 5).sum())
    assert n == len(few[1].user)
    assert np.array_equal(few[1].ts, many[1].ts[:n]) and np.array_equal(few[1].p, many[1].p[:n])


def test_the_directory_is_in_the_normalised_form_and_keeps_the_truth_apart(city_log: Path) -> None:
    data = form.read(city_log)  # checks order, labels, topics
    assert data.meta.heads == list(HEADS)
    assert "p" not in data.events.column_names and "p" not in data.rows.column_names
    oracle = pq.read_table(city_log / "oracle.parquet")
    assert oracle["request_id"].equals(data.rows["request_id"]) and oracle["item_id"].equals(data.rows["item_id"])
    ids = data.events["event_id"].to_pylist()
    assert len(set(ids)) == len(ids)
    assert set(data.rows["impression_id"].to_pylist()) == {
        i for i, t in zip(ids, data.events["topic"].to_pylist()) if t == "impressions"
    }
    groups = dict(line.split(",") for line in (city_log / "groups.csv").read_text().splitlines()[1:])
    assert {i: str(g) for i, g in zip(data.items["item_id"].to_pylist(), data.items["group"].to_pylist())} == groups


def test_what_follows_a_request_is_visible_only_after_it(city_log: Path) -> None:
    data = form.read(city_log)
    asked = dict(zip(data.rows["request_id"].to_pylist(), data.rows["ts"].to_pylist()))
    for request, seen in zip(data.events["request_id"].to_pylist(), data.events["visible_at"].to_pylist()):
        assert seen > asked[request]


def test_events_say_where_they_happened_as_their_requests_do(city_log: Path) -> None:
    data = form.read(city_log)
    surface = dict(zip(data.rows["request_id"].to_pylist(), data.rows["surface"].to_pylist()))
    assert len(set(surface.values())) == 3
    for request, where in zip(data.events["request_id"].to_pylist(), data.events["surface"].to_pylist()):
        assert surface[request] == where


def test_labels_are_drawn_from_the_truth_and_groups_explain_much_of_it(city_log: Path) -> None:
    data = form.read(city_log)
    y = data.rows["label"].to_numpy().astype(np.int64)
    p = pq.read_table(city_log / "oracle.parquet")["p"].to_numpy().astype(float)
    assert 0.07 < y.mean() < 0.14
    assert abs(y.mean() - p.mean()) < 0.004  # calibrated
    for low in (0.0, 0.05, 0.2, 0.5):
        part = (p >= low) & (p < low * 2 + 0.05)
        assert abs(y[part].mean() - p[part].mean()) < 0.02
    items = data.rows["item_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    users = data.rows["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    group_of = dict(line.split(",") for line in (city_log / "groups.csv").read_text().splitlines()[1:])
    group = np.array([int(group_of[i]) for i in data.rows["item_id"].to_pylist()])

    def others(code: np.ndarray, prior: np.ndarray | float, weight: float) -> np.ndarray:
        """Click rate of all other rows of the same code."""
        n, c = np.bincount(code), np.bincount(code, y)
        return (c[code] - y + weight * prior) / (n[code] - 1 + weight)

    item_ctr = others(items, float(y.mean()), 20)
    user_group = others(users.astype(np.int64) * 1000 + group, item_ctr, 8)
    assert auc(y, p) > 0.84
    assert auc(y, user_group) > auc(y, item_ctr) + 0.1
    assert logloss(y, p) < logloss(y, user_group) < logloss(y, item_ctr)


def test_lives_are_heavy_tailed_between_their_bounds() -> None:
    n = lives(np.arange(20_000), 100, 100_000)
    assert n.min() >= 100 and n.max() <= 100_000 and n.max() > 50_000
    assert 180 < np.median(n) < 220


def test_lives_come_out_as_wanted(city_log: Path) -> None:
    users = form.read(city_log).events["user_id"].value_counts().to_pylist()
    wanted = lives(np.arange(PLAN.users), *PLAN.life)
    got = {v["values"]: v["counts"] for v in users}
    ratio = np.array([got[f"u{i}"] / wanted[i] for i in range(PLAN.users)])
    assert 0.8 < np.median(ratio) < 1.3


def test_a_seasonal_interest_goes_and_comes_back() -> None:
    city = build_world(Plan(items=300)).city
    users = build_users(city, 0, 50, 7)
    u, k = np.argwhere(users.motion == SEASONAL)[0]
    days = np.arange(20_000.0, 20_500.0)
    taste = np.array([b._taste(u, k, d, users) for d in days])
    assert taste.min() == pytest.approx(users.low[u, k]) and taste.max() > users.high[u, k] - 0.1
    on = taste > (users.low[u, k] + users.high[u, k]) / 2
    seasons = int(((~on[:-1]) & on[1:]).sum())
    assert seasons >= 2  # it came back


def test_options_of_live_traffic_are_refused_for_a_directory(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--groups-out are for live traffic.*groups\.csv"):
        args = ["--to-dir", str(tmp_path / "c"), "--groups-out", str(tmp_path / "g.csv")]
        CliRunner().invoke(command, args, catch_exceptions=False)
    assert not (tmp_path / "c").exists()


def test_the_command_writes_parquet_and_says_what(tmp_path: Path) -> None:
    r = CliRunner().invoke(
        command,
        [
            "--to-dir",
            str(tmp_path / "c"),
            "--users",
            "20",
            "--items",
            "100",
            "--history-days",
            "10",
            "--rows-days",
            "3",
            "-o",
            "json",
        ],
    )
    assert r.exit_code == 0, r.output
    said = json.loads(r.stdout)
    data = form.read(tmp_path / "c")
    assert said["events"] == data.events.num_rows and said["rows"] == data.rows.num_rows > 0
    assert data.rows["ts"].to_numpy().min() >= said["start_ms"] + 7 * 86_400_000


def test_a_city_drifts_where_it_is_asked_to() -> None:
    weights, fashion = moods(40, 1, 1.0)
    assert weights.shape == (WEEKS, len(MOVES)) and fashion.shape == (WEEKS, 40)
    assert fashion.std() == pytest.approx(FASHION, rel=0.1) and (weights[:, TASTE:] > 0).all()
    steps = np.abs(np.diff(weights[:, CLICKS])).mean()
    assert 0 < steps < 0.6 * weights[:, CLICKS].std() * np.sqrt(2)  # a week is like the one before it
    assert np.array_equal(moods(40, 1, 1.0)[1], fashion) and not np.array_equal(moods(40, 2, 1.0)[1], fashion)
    still, none = moods(40, 1, 0.0)
    assert len(still) == len(none) == 1 and still[0, CLICKS] == 0 and (still[0, TASTE:] == 1).all() and not none.any()
    plan = Plan(users=20, items=100, days=28, life=(300, 600))
    calm, moved = (next(history(build_world(p))) for p in (plan, replace(plan, drift=1.0)))
    assert np.array_equal(calm[1].ts, moved[1].ts) and not np.array_equal(calm[1].p, moved[1].p)
    again = next(history(build_world(replace(plan, drift=1.0))))
    assert np.array_equal(again[1].p, moved[1].p)
    assert 0.04 < moved[1].p[moved[1].item >= 0].mean() < 0.25
