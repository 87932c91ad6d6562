"""Odd logs: items nobody described, days of one class, users without a past. A defined result, or a clear error."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from stream_dmgin.cli.common import _finite
from stream_dmgin.datasets import form
from stream_dmgin.errors import InputError
from stream_dmgin.training import measure as measuring
from stream_dmgin.training import recipes
from tests.contests import evaluate, plan, short_log, smaller


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "of", smaller(recipes.of))


def log(label: dict[int, int] | None = None, events: bool = True, items: bool = True) -> form.Dataset:
    """A log of ten short days; `label`: days whose labels are all the same."""
    data = short_log()
    day = data.day(data.rows["ts"].to_numpy())
    y = data.rows["label"].to_numpy().copy()
    for d, value in (label or {}).items():
        y[day == d] = value
    rows = data.rows.set_column(data.rows.column_names.index("label"), "label", [pa.array(y, pa.int8())])
    return form.Dataset(
        data.events if events else data.events.slice(0, 0),
        rows,
        data.items if items else data.items.slice(0, 0),
        data.meta,
    )


def test_items_without_a_description_and_users_without_a_past() -> None:
    data = log(events=False, items=False)
    _, scored = evaluate(data, plan(data))
    p = scored.calibrated[1]
    assert np.isfinite(p).all() and p.min() > 0 and p.max() < 1


@pytest.mark.parametrize(("days", "part"), [((1, 2, 3, 4, 5), "training"), ((6, 7), "validation")])
@pytest.mark.parametrize("model", ["dmgin", "lightgbm"])
def test_days_of_one_class_to_learn_or_choose_on(days: tuple[int, ...], part: str, model: str) -> None:
    data = log(dict.fromkeys(days, 0))
    with pytest.raises(InputError, match=f"the {part} days hold no rows with both labels"):
        evaluate(data, plan(data), model)


def test_test_days_of_one_class_have_no_auc_but_a_logloss() -> None:
    data = log({8: 0, 9: 0})
    source, scored = evaluate(data, plan(data))
    found = measuring.measure(source, scored)["calibrated"]
    assert np.isnan(found["auc"]) and found["logloss"] > 0 and 0 <= found["ece"] <= 1
    assert json.loads(json.dumps(_finite(found)))["auc"] is None


def test_two_rows_of_one_item_are_refused(tmp_path: Path) -> None:
    data = short_log()
    one = data.items.slice(3, 1)
    form.write(form.Dataset(data.events, data.rows, pa.concat_tables([data.items, one, one]), data.meta), tmp_path)
    name = one["item_id"][0].as_py()
    with pytest.raises(InputError, match=f"1 items have more than one row of items.parquet, such as '{name}'"):
        form.read(tmp_path)
