"""The replay: what counts for a request is exactly what was visible strictly earlier."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from stream_dmgin.datasets import form
from stream_dmgin.datasets.grouping import group_map
from stream_dmgin.features.spec import USER_FEATURES, InputSpec
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.replay.rows import floor_rates, training_rows
from stream_dmgin.replay.run import MAX_REQUESTS, Replay, plan
from stream_dmgin.replay.score import score, table
from stream_dmgin.replay.source import DatasetSource
from stream_dmgin.scoring.floor import FIRST_RATE, SMOOTHING
from tests.logs import dataset

SPEC = InputSpec(groups=4, events=4, short=4, item_buckets=64, category_buckets=8, advertiser_buckets=8)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> DatasetSource:
    path: Path = tmp_path_factory.mktemp("form")
    form.write(dataset(), path)
    return DatasetSource(form.read(path))


def test_user_totals_are_those_of_strictly_earlier_events(source: DatasetSource) -> None:
    rows = training_rows(source, group_map(source.data), SPEC)
    events = source.data.events.to_pylist()
    r = source.requests
    for k in range(len(r)):
        mine = [e for e in events if e["user_id"] == r.user[k] and e["visible_at"] < r.ts[k]]
        clicks = sum(e["type"] == "click" for e in mine)
        u = dict(zip(USER_FEATURES, rows["u_dense"][k].tolist(), strict=True))
        assert u["log1p_events"] == pytest.approx(math.log1p(clicks), abs=1e-5)
        assert u["log1p_impressions"] == pytest.approx(math.log1p(len(mine) - clicks), abs=1e-5)
        touched = {e["item_id"] for e in mine}
        groups = {int(i[1:]) % 3 for i in touched}
        assert rows["r_groups"][k] == min(len(groups), SPEC.groups)
    assert rows.labels().tolist() == r.label.tolist()


def test_counters_are_those_of_strictly_earlier_shared_events(source: DatasetSource) -> None:
    rates = floor_rates(source, GroupMap.empty())
    events = [e for e in source.data.events.to_pylist() if e["shared"]]
    r = source.requests
    of = r.request_of_rows()
    for row in range(0, len(r.item), 7):
        past = [e for e in events if e["visible_at"] < r.ts[of[row]]]
        clicks, shown = (sum(e["type"] == t for e in past) for t in ("click", "impression"))
        prior = (clicks + SMOOTHING * FIRST_RATE) / (shown + SMOOTHING)
        c, s = (sum(e["type"] == t and e["item_id"] == r.item[row] for e in past) for t in ("click", "impression"))
        assert rates[row] == pytest.approx((c + SMOOTHING * prior) / (s + SMOOTHING), abs=1e-9)


def test_a_later_start_sees_the_same(source: DatasetSource) -> None:
    groups = group_map(source.data)
    whole, tail = training_rows(source, groups, SPEC), training_rows(source, groups, SPEC, 250)
    assert np.array_equal(whole["u_dense"][250:], tail["u_dense"])
    assert np.array_equal(whole["c_dense"][source.requests.first[250] :], tail["c_dense"])


def test_every_event_is_folded_and_blocks_cover_every_request(source: DatasetSource) -> None:
    replay = Replay(source, GroupMap.empty(), [SPEC, SPEC])
    covered = [i for b in replay.blocks() for i in range(b.first, b.last)]
    replay.clock.finish()
    assert covered == list(range(len(source.requests)))
    assert replay.clock.folded == source.count and replay.clock.malformed == 0
    replay.close()


def test_plan_keeps_to_its_limits() -> None:
    widths = [1] * 100 + [1000] * 20 + [3]
    first = np.concatenate([[0], np.cumsum(widths)])
    parts = list(plan(first, 5, len(widths)))
    assert parts[0][0] == 5 and parts[-1][1] == len(widths)
    assert all(a[1] == b[0] for a, b in zip(parts, parts[1:], strict=False))
    assert all(hi - lo <= MAX_REQUESTS and max(widths[lo:hi]) == w for lo, hi, w in parts)


def test_the_floor_as_scores(source: DatasetSource) -> None:
    scored = score(source, GroupMap.empty(), {"item-ctr": None}, 10, 60)
    t = table(source.requests, scored, 10, 60)
    r = source.requests
    assert t.num_rows == r.first[60] - r.first[10] and t["request_id"][0].as_py() == r.id[10]
    assert np.array_equal(t["ctr"].to_numpy(), floor_rates(source, GroupMap.empty(), 10, 60))
