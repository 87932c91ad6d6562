"""How numbers become inputs: buckets of hashes, ages, dwell and hours, logarithms; for numba code and nothing else."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.features.spec import N_AGE, N_DWELL
from stream_dmgin.native import kernel

MINUTE_MS, HOUR_MS, DAY_MS, WEEK_HOURS = 60_000, 3_600_000, 86_400_000, 168
ABSENT_HOURS = 12.0  # log1p of hours since something that never happened: more than any real age (10 years: 11.4)
ABSENT_MINUTES = 16.0  # the same in minutes (10 years: 15.5)
EARTH_KM = 6371.0088
LOGS = 4096  # log1p of smaller whole numbers comes from a table
_HALF_BITS = np.uint64(32)


def log_table() -> NDArray[np.float32]:
    """log1p(n) for n < LOGS."""
    return np.log1p(np.arange(LOGS, dtype=np.float64)).astype(np.float32)


def age_limits() -> NDArray[np.int64]:
    """Smallest age (ms) of each age bucket, so that bucket = min(N_AGE - 1, floor(2 log2(1 + minutes)))."""
    return np.array([math.ceil((2 ** (b / 2) - 1) * MINUTE_MS) for b in range(N_AGE)], np.int64)


@kernel
def bucket(h: Any, n: Any) -> Any:
    """1..n-1 by the upper half of a hash; 0 for hash 0 (none or unknown)."""
    if h == 0:
        return np.int32(0)
    return np.int32(1 + np.int64(((h >> _HALF_BITS) * np.uint64(n - 1)) >> _HALF_BITS))


@kernel
def short_id(h: Any) -> Any:
    """The lower 31 bits of an item's hash."""
    return np.int32(h & np.uint64(0x7FFFFFFF))


@kernel
def log_count(table: Any, n: Any) -> Any:
    """log1p of a whole number of 0 or more, as float32."""
    if n < LOGS:
        return table[n]
    return np.float32(math.log1p(float(n)))


@kernel
def dwell_bucket(dwell_ms: Any) -> Any:
    """0: none; else 1 + floor(log2(seconds)), within 1..N_DWELL-1."""
    if dwell_ms < 0:
        return np.int32(0)
    seconds = dwell_ms // 1000
    b = 1
    while seconds > 1 and b < N_DWELL - 1:
        seconds >>= 1
        b += 1
    return np.int32(b)


@kernel
def hour_bucket(ts: Any) -> Any:
    """Four-hour block of the week, UTC, Monday first: 0..41."""
    return np.int32((ts // HOUR_MS + 72) % WEEK_HOURS // 4)  # the epoch began on a Thursday


@kernel
def log2_minutes(ms: Any) -> Any:
    """log2(1 + minutes) of a duration, 0 for a negative one."""
    return np.float32(math.log2(1.0 + max(0, ms) / 60000.0))


@kernel
def log_hours(ms: Any) -> Any:
    """log1p(hours) of a duration, 0 for a negative one."""
    return np.float32(math.log1p(max(0, ms) / 3600000.0))


@kernel
def log_minutes(ms: Any) -> Any:
    """log1p(minutes) of a duration, 0 for a negative one."""
    return np.float32(math.log1p(max(0, ms) / 60000.0))
