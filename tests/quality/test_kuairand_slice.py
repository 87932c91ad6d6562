"""KuaiRand on a tenth of its users, end to end: import, replay, train, calibrate, measure. Learns, and scores each row once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from stream_dmgin.datasets import form, load
from stream_dmgin.datasets.content import Embedding
from stream_dmgin.training import recipes
from stream_dmgin.training.content import embedded
from stream_dmgin.training.evaluate import Plan, days
from stream_dmgin.training.measure import measure, write_scores
from tests.contests import evaluate

DATA = Path("../shared/data/kuairand_pure")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not here: bring the files of KuaiRand-Pure to run this"),
]


@pytest.fixture(scope="module")
def data() -> form.Dataset:
    whole = load("kuairand", DATA)
    last = whole.meta.day0_ms + 12 * whole.meta.day_ms
    tables = []
    for t in (whole.events, whole.rows):
        mine = pc.equal(pc.bit_wise_and(t["user_id"].cast("int64"), 7), 3)
        tables.append(t.filter(pc.and_(mine, pc.less(t["ts"], last))))
    some = form.Dataset(*tables, whole.items, whole.meta)
    how = Embedding("clicks", recipes.of(some.meta).spec.embedding, plan(some).train[0])
    return embedded(some, how, None, print)


def plan(data: form.Dataset) -> Plan:
    spans = (days(data.meta, text, "--days") for text in ("1-9", "10-10", "11-11"))
    return Plan(*spans)


def test_dmgin_learns_and_scores_each_row_once(data: form.Dataset, tmp_path: Path) -> None:
    options = replace(recipes.of(data.meta).options, epochs=2, batch=512)
    source, scored = evaluate(data, plan(data), options=options)
    found = measure(source, scored)
    assert found["calibrated"]["auc"] > 0.66 and found["calibrated"]["logloss"] < 0.65
    write_scores(source, scored, tmp_path / "scores.parquet")
    got = pq.read_table(tmp_path / "scores.parquet")
    rows = data.rows.filter(data.day(data.rows["ts"].to_numpy()) == 11)
    assert got.num_rows == rows.num_rows
    for name in ("user_id", "item_id", "ts", "label"):
        assert got[name].to_pylist() == rows[name].to_pylist()
    assert set(got.column_names) == {"user_id", "item_id", "ts", "label", "ctr", "ctr_raw", "ctr_online", "seed"}
    p = got["ctr"].to_numpy()
    assert np.isfinite(p).all() and p.min() > 0 and p.max() < 1


def test_the_floor_of_item_rates(data: form.Dataset) -> None:
    source, scored = evaluate(data, plan(data), model="item-ctr")
    found = measure(source, scored)
    assert 0.55 < found["calibrated"]["auc"] < 0.70
