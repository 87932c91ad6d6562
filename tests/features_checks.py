"""Inputs against what the reference says of them, padding included."""

from __future__ import annotations

import numpy as np
import pytest

from stream_dmgin.features.inputs import Inputs
from stream_dmgin.features.spec import BLOCKS, N_STAT, InputSpec

SPEC = InputSpec(
    groups=12,
    events=5,
    short=7,
    item_buckets=64,
    category_buckets=8,
    advertiser_buckets=16,
    item_numbers=("size", "age"),
    blocks=BLOCKS,
    embedding=5,
)


def check_user(inputs: Inputs, i: int, want: dict) -> None:
    g, s = len(want["g_stat"]), len(want["short"])
    assert inputs["g_mask"][i].sum() == g and inputs["g_mask"][i, :g].all()
    np.testing.assert_allclose(
        inputs["g_stat"][i, :g], np.array(want["g_stat"]).reshape(g, N_STAT), rtol=2e-6, atol=1e-6
    )
    np.testing.assert_allclose(inputs["g_time"][i, :g], want["g_time"], rtol=1e-6)
    assert not inputs["g_stat"][i, g:].any() and not inputs["g_time"][i, g:].any()
    rows = [(("e", (i, k, e)), x) for k, events in enumerate(want["events"]) for e, x in enumerate(events)]
    rows += [(("s", (i, e)), x) for e, x in enumerate(want["short"])]
    for (ring, at), x in rows:
        assert inputs[f"{ring}_mask"][at]
        for name in ("item", "cls", "time", "dwell") + (("id", "hour") if ring == "e" else ()):
            assert np.array_equal(inputs[f"{ring}_{name}"][at], x[name]), (ring, at, name)
    assert inputs["e_mask"][i].sum() == sum(map(len, want["events"])) and inputs["s_mask"][i].sum() == s
    off = ~inputs["e_mask"][i]
    assert (inputs["e_id"][i][off] == -1).all()
    assert not any(inputs[n][i][off].any() for n in ("e_item", "e_cls", "e_time", "e_dwell", "e_hour"))
    assert not any(inputs[n][i, s:].any() for n in ("s_item", "s_cls", "s_time", "s_dwell"))


def check_request(inputs: Inputs, i: int, want: dict) -> None:
    n, g = len(want["c_id"]), len(want["g_age"])
    for name in ("c_item", "c_id", "c_group"):
        assert np.array_equal(inputs[name][i, :n], want[name]), name
    names = [*SPEC.candidate_features]
    for c in range(n):
        for d, name in enumerate(names):
            got, expected = float(inputs["c_dense"][i, c, d]), want["c_dense"][c][d]
            assert got == pytest.approx(expected, rel=3e-6, abs=3e-6), (name, c)
    for name in ("g_age", "g_size"):
        np.testing.assert_allclose(inputs[name][i, :g], want[name], rtol=1e-6)
        assert not inputs[name][i, g:].any()
    np.testing.assert_allclose(inputs["u_dense"][i], want["u_dense"], rtol=3e-6, atol=3e-6)
    assert inputs["c_mask"][i].tolist() == [True] * n + [False] * (inputs.candidates - n)
    assert not inputs["c_item"][i, n:].any() and not inputs["c_dense"][i, n:].any()
    assert (inputs["c_id"][i, n:] == -2).all() and (inputs["c_group"][i, n:] == SPEC.groups).all()
