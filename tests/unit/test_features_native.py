"""Hashes of many ids at once, and the logarithm of the kernels."""

from __future__ import annotations

import math

import numpy as np
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_dmgin.features.scales import age_bucket, dwell_bucket, hour_bucket
from stream_dmgin.features.spec import N_AGE, N_DWELL
from stream_dmgin.native import hash_ids, log


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=70), max_size=8))
def test_ids_hash_as_xxh64_whatever_they_hold(ids: list[str]) -> None:
    assert hash_ids(ids).tolist() == [xxhash.xxh64_intdigest(i.encode()) or 1 for i in ids]


def test_ids_that_hold_every_separator() -> None:
    ids = ["\0\n\x1f|", "a", ""]
    assert hash_ids(ids).tolist() == [xxhash.xxh64_intdigest(i.encode()) for i in ids]


@settings(max_examples=500, deadline=None)
@given(st.floats(1e-300, 1e300))
def test_log(x: float) -> None:
    assert math.isclose(log(x), math.log(x), rel_tol=1e-10, abs_tol=1e-15)


def test_log_next_to_one() -> None:
    for x in (1.0, math.nextafter(1, 0), math.nextafter(1, 2), 1 - 1e-9, 1 + 1e-9, math.sqrt(2), 0.5, 2.0):
        assert math.isclose(log(x), math.log(x), rel_tol=1e-10, abs_tol=1e-16)


def test_buckets_at_their_edges() -> None:
    minute = 60_000
    assert [age_bucket(x) for x in (-5, 0, minute - 1, minute, 3 * minute - 1, 3 * minute, 10**15)] == [
        0,
        0,
        1,
        2,
        3,
        4,
        N_AGE - 1,
    ]
    assert [dwell_bucket(x) for x in (-1, 0, 999, 1000, 1999, 2000, 2**32 - 1)] == [0, 1, 1, 1, 1, 2, N_DWELL - 1]
    monday = 4 * 86_400_000  # 5 January 1970
    assert [hour_bucket(monday + h * 3_600_000) for h in (0, 3, 4, 167, 168)] == [0, 0, 1, 41, 0]
    r = np.random.default_rng(0)
    for ts in r.integers(946_684_800_000, 4_000_000_000_000, 2000).tolist():
        assert hour_bucket(ts) == (ts // 3_600_000 + 72) % 168 // 4
