"""Every input, optional blocks included, is a function of what was visible strictly before its request."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from logs import dataset

from stream_dmgin.datasets import form
from stream_dmgin.datasets.grouping import group_map
from stream_dmgin.features.spec import BLOCKS, CANDIDATE_BLOCKS, InputSpec
from stream_dmgin.replay.rows import training_rows
from stream_dmgin.replay.source import DatasetSource
from stream_dmgin.training.rows import TrainingRows

SPEC = InputSpec(groups=4, events=4, short=4, item_buckets=64, blocks=BLOCKS, embedding=3)


def inputs(data: form.Dataset, last: int) -> TrainingRows:
    return training_rows(DatasetSource(data), group_map(data), SPEC, 0, last)


def test_what_is_not_visible_yet_changes_no_input() -> None:
    data = dataset(400, embedding=3)
    times = DatasetSource(data).requests.ts
    n = len(times) // 2
    moment = int(times[n - 1])
    n = int(np.searchsorted(times, moment, side="right"))  # all requests of this moment
    whole = inputs(data, n)
    before = data.events.filter(data.events["visible_at"].to_numpy() < moment)
    assert 0 < before.num_rows < data.events.num_rows
    cut = inputs(form.Dataset(before, data.rows, data.items, data.meta), n)
    for name in whole.columns:
        assert np.array_equal(whole[name], cut[name]), name
    assert (
        np.abs(whole["c_dense"]).sum() > 0
        and np.isfinite(whole["c_dense"]).all()
        and np.isfinite(whole["u_dense"]).all()
    )
    assert all(np.abs(whole["c_dense"][:, SPEC.candidate_features.index(f)]).sum() for f in CANDIDATE_BLOCKS["content"])
    late = data.events.filter(data.events["visible_at"].to_numpy() <= moment)
    seen = inputs(form.Dataset(late, data.rows, data.items, data.meta), n)
    assert all(np.array_equal(whole[name], seen[name]) for name in whole.columns)  # equal times are invisible
