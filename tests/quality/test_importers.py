"""The importers on the real files, where they are at hand: row counts that the published protocol states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stream_dmgin.datasets import form, load

DATA = Path("../shared/data")
ROWS = {  # dataset -> (folder, {days: rows})
    "kuairand": ("kuairand_pure", {(1, 9): 152_302, (10, 10): 13_159, (11, 11): 13_443}),
    "ebnerd": ("ebnerd_demo", {(7, 8): 79_497, (9, 10): 81_251}),
}


@pytest.mark.parametrize("name", list(ROWS))
def test_rows_by_day(name: str) -> None:
    folder, days = ROWS[name]
    if not (DATA / folder).is_dir():
        pytest.skip(f"{DATA / folder} is not here: bring the files of {name} to run this")
    data = load(name, DATA / folder)
    form.validate(data)
    day = data.day(data.rows["ts"].to_numpy())
    assert {d: int(((day >= d[0]) & (day <= d[1])).sum()) for d in days} == days


def test_taobao_and_mind() -> None:
    if not (DATA / "taobao").is_dir():
        pytest.skip(f"{DATA} is not here: bring the files of Taobao and MIND to run this")
    taobao = load("taobao", DATA / "taobao")
    assert taobao.rows.num_rows == 0 and np.ptp(taobao.events["ts"].to_numpy()) < 9 * form.DAY_MS
    mind = load("mind", DATA / "mind_small_sample")
    form.validate(mind)
    assert mind.rows.num_rows == 189_359 and mind.meta.splits["train"][1] == 1_573_587_668_000
