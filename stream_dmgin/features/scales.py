"""How numbers become inputs: buckets of hashes, ages, dwell and hours, logarithms; for numba code and nothing else."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.features.spec import N_AGE, N_DWELL, N_HOUR
from stream_dmgin.native import bits, kernel, log

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
ABSENT_HOURS = 12.0  # log1p of hours since something that never happened: more than any real age (10 years: 11.4)
ABSENT_MINUTES = 16.0  # the same in minutes (10 years: 15.5)
EARTH_KM = 6371.0088
LOGS = 4096  # log1p of smaller whole numbers comes from a table
_HALF_BITS = np.uint64(32)
_MANTISSA = (1 << 52) - 1
_ROOT2 = int(np.float64(math.sqrt(2.0)).view(np.int64)) & _MANTISSA
LOG2_E = 1.0 / math.log(2.0)


def log_table() -> NDArray[np.float32]:
    """log1p(n) for n < LOGS."""
    return np.log1p(np.arange(LOGS, dtype=np.float64)).astype(np.float32)


@kernel
def bucket(h: Any, n: Any) -> Any:
    """1..n-1 by the upper half of a hash; 0 for hash 0 (none or unknown)."""
    return half_bucket(h >> _HALF_BITS, n) if h != 0 else np.int32(0)


@kernel
def half_bucket(upper: Any, n: Any) -> Any:
    """1..n-1 by the upper half of a hash."""
    return np.int32(1 + np.int64((upper * np.uint64(n - 1)) >> _HALF_BITS))


@kernel
def short_id(h: Any) -> Any:
    """The lower 31 bits of an item's hash."""
    return np.int32(h & np.uint64(0x7FFFFFFF))


@kernel
def log_count(table: Any, n: Any) -> Any:
    """log1p of a whole number of 0 or more, as float32."""
    if n < LOGS:
        return table[n]
    return np.float32(log(1.0 + n))


@kernel
def dwell_bucket(dwell_ms: Any) -> Any:
    """0: none; else 1 + floor(log2(seconds)), within 1..N_DWELL-1. From the exponent of a double: it vectorises."""
    b = (bits(dwell_ms / 1000.0) >> 52) - 1022
    return np.int32(min(N_DWELL - 1, max(1, b))) if dwell_ms >= 0 else np.int32(0)


@kernel
def age_bucket(ms: Any) -> Any:
    """min(N_AGE - 1, floor(2 log2(1 + minutes))), 0 for a negative age. From the bits of a double: it vectorises."""
    b = bits((MINUTE_MS + max(0, ms)) / 60000.0)
    return np.int32(min(N_AGE - 1, 2 * ((b >> 52) - 1023) + ((b & _MANTISSA) >= _ROOT2)))


@kernel
def hour_bucket(ts: Any) -> Any:
    """Four-hour block of the week, UTC, Monday first: 0..41."""
    block = np.int32(math.floor(ts / 14400000.0)) + np.int32(18)  # the epoch began on a Thursday, 72 hours into a week
    return np.int32(
        block - np.int32(N_HOUR) * np.int32(math.floor(block / 42.0))
    )  # doubles are exact here, and vectorise


@kernel
def log2_minutes(ms: Any) -> Any:
    """log2(1 + minutes) of a duration, 0 for a negative one."""
    return np.float32(LOG2_E * log(1.0 + max(0, ms) / 60000.0))


@kernel
def log_hours(ms: Any) -> Any:
    """log1p(hours) of a duration, 0 for a negative one."""
    return np.float32(log(1.0 + max(0, ms) / 3600000.0))


@kernel
def log_minutes(ms: Any) -> Any:
    """log1p(minutes) of a duration, 0 for a negative one."""
    return np.float32(log(1.0 + max(0, ms) / 60000.0))
