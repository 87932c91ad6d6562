"""A model that learns from the counters topic as it is read: its kernels (docs/adr/0012-online-model.md).

Logistic regression over hashed crosses of item, surface, hour and age, and a factorisation machine over the four, with AdaGrad.
An increment is a lesson: n impressions add n p x to the gradient, c clicks -c x, whenever each becomes known. Beside the weights
the clicks that the model expected when it learnt are kept next to those that came, decayed, by item and by item x surface.

Whoever applies the same ranges in the same order has the same weights bit for bit: all arithmetic is plain, in one order, without
the C library's functions. A lesson takes about 0.8 us, a prediction 0.1 us.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from stream_dmgin.counters.layout import C_FIRST, CLOCK_MS, N_ADDRESSES
from stream_dmgin.counters.read import row_of
from stream_dmgin.native import f32, i32, i64, kernel, u8
from stream_dmgin.state.jit import bits_f64

LINEAR_BITS, FACTOR_BITS, CELL_BITS = 20, 16, 18
FACTORS = 8
WAYS = 2  # cells of a set, of which a key takes one
AGES = 12  # classes
# Words of 32 bits: a weight and what its squared gradients add up to; factors, then the same of each; a cell of the residuals:
# key, last quarter hour, expected clicks by horizon, clicks by horizon
LINEAR_WORDS, FACTOR_WORDS, CELL_WORDS = 2, 2 * FACTORS, 8
HORIZONS = (4.0, 48.0, 672.0)  # half-lives in quarter hours: 1 h, 12 h, 7 d
(M_LINEAR, M_FACTORS, M_CELLS, M_DIRTY, M_AUDIENCE, M_AUDIENCE_DIRTY, M_RHYTHM, M_RHYTHM_DIRTY) = range(8)
N_MODEL = 8
PAGE_WORDS = 1024
LINEAR_PAGES = (LINEAR_WORDS << LINEAR_BITS) // PAGE_WORDS
FACTOR_PAGES = (FACTOR_WORDS << FACTOR_BITS) // PAGE_WORDS
CELL_PAGES = (CELL_WORDS << CELL_BITS) // PAGE_WORDS
PAGES = LINEAR_PAGES + FACTOR_PAGES + CELL_PAGES

RATE, FACTOR_RATE, SHRINK = 0.05, 0.025, 1e-4  # AdaGrad's steps, and the pull of factors towards 0 with each
FIRST_LOGIT, FIRST_FACTOR = (
    -2.0,
    0.0866,
)  # of the intercept; of factors at most (a deviation of .05), before anything is learnt
LESSONS = 32  # steps at most that one row takes; more events than that share them
_TERMS = tuple(1.0 / math.factorial(k) for k in range(1, 12))  # of e^x
_LOG2_E, _LN2 = 1.4426950408889634, 0.6931471805599453


@kernel
def age_class(ms: Any) -> Any:
    """floor(log2(1 + age in quarter hours)), at most AGES - 1."""
    k = 0
    while k < AGES - 1 and ms >= CLOCK_MS * ((2 << k) - 1):
        k += 1
    return k


@kernel
def exp2(x: Any) -> Any:
    """2 to the x for |x| up to 1000, to 1e-14 of its value: the same on every machine."""
    n = math.floor(x + 0.5)
    r = (x - n) * _LN2
    y = _TERMS[10]
    for k in range(9, -1, -1):
        y = y * r + _TERMS[k]
    return (y * r + 1.0) * bits_f64((np.int64(n) + 1023) << 52)


@kernel
def sigmoid(z: Any) -> Any:
    """Probability of a logit, which is taken as within -30 and 30."""
    return 1.0 / (1.0 + exp2(-min(30.0, max(-30.0, z)) * _LOG2_E))


@kernel
def spread(h: Any, salt: Any) -> Any:
    """64 well mixed bits of a hash and a number."""
    x = (h ^ (np.uint64(salt) * np.uint64(0x9E3779B97F4A7C15))) * np.uint64(0xC2B2AE3D27D4EB4F)
    x ^= x >> np.uint64(29)
    x *= np.uint64(0x165667B19E3779F9)
    return x ^ (x >> np.uint64(32))


@kernel
def _place(h: Any, salt: Any) -> Any:
    """Where the weight of a cross lies; 0 is the intercept's."""
    return max(np.int64(1), np.int64(spread(h, salt) >> np.uint64(64 - LINEAR_BITS)))


@kernel
def places(h: Any, surface: Any, hour: Any, age: Any) -> Any:
    """Places of the weights of an item on a surface at an hour and a class of age: the intercept, item, surface x hour,
    item x surface, item x hour/4, age x hour, age x surface."""
    none = np.uint64(0)
    return (
        np.int64(0), _place(h, 1), _place(none, 2 + 8 * (24 * surface + hour)), _place(h, 3 + 8 * surface), _place(h, 4 + 8 * (hour // 4)),
        _place(none, 5 + 8 * (24 * age + hour)), _place(none, 6 + 8 * (256 * age + surface)),
    )  # fmt: skip


@kernel
def _field(h: Any, n: Any) -> Any:
    return np.int64(spread(h, 7 + 8 * n) >> np.uint64(64 - FACTOR_BITS))


@kernel
def fields(h: Any, surface: Any, hour: Any, age: Any) -> Any:
    """Rows of the factors of the same item, surface, hour, age."""
    none = np.uint64(0)
    return _field(h, 0), _field(none, 1 + surface), _field(none, 300 + hour), _field(none, 400 + age)


@kernel
def linear(model: Any, at: Any) -> Any:
    """Logit of the regression at some `places`."""
    w = f32(i64(model, (N_MODEL,))[M_LINEAR], (1 << LINEAR_BITS, LINEAR_WORDS))
    z = FIRST_LOGIT
    for k in range(7):
        z += np.float64(w[at[k], 0])
    return z


@kernel
def factored(model: Any, at: Any) -> Any:
    """What the factorisation machine adds to it at some `fields`."""
    v = f32(i64(model, (N_MODEL,))[M_FACTORS], (1 << FACTOR_BITS, FACTOR_WORDS))
    a, b, c, d = at
    z = 0.0
    for j in range(FACTORS):
        p, q, r, s = np.float64(v[a, j]), np.float64(v[b, j]), np.float64(v[c, j]), np.float64(v[d, j])
        z += (p + q) * (r + s) + p * q + r * s
    return z


@kernel
def predict(model: Any, h: Any, surface: Any, ts: Any, first: Any) -> Any:
    """Logit of an item (first counted at `first`, in ms; -1: never) on the surface of this number at `ts`."""
    hour = ts // 3_600_000 % 24
    age = age_class(ts - first) if first >= 0 else 0
    return linear(model, places(h, surface, hour, age)) + factored(model, fields(h, surface, hour, age))


@kernel
def _key(h: Any, surface: Any) -> Any:
    return spread(h, surface + 2)  # surface -1: of the item over all


@kernel
def find_cell(model: Any, h: Any, surface: Any) -> Any:
    """Cell of an item on a surface (-1: over all), -1 where there is none."""
    cells = i32(i64(model, (N_MODEL,))[M_CELLS], (1 << CELL_BITS, CELL_WORDS))
    x = _key(h, surface)
    tag, at = np.int32(x & np.uint64(0x7FFFFFFF)) | np.int32(1), np.int64(x >> np.uint64(65 - CELL_BITS)) * WAYS
    for cell in range(at, at + WAYS):
        if cells[cell, 0] == tag:
            return np.int64(cell)
    return np.int64(-1)


@kernel
def residual(model: Any, cell: Any, horizon: Any, bucket: Any, prior: Any) -> Any:
    """(clicks + prior) / (expected clicks + prior) of a cell by horizon, as known in a quarter hour; 1 for cell -1."""
    if cell < 0:
        return 1.0
    at = i64(model, (N_MODEL,))[M_CELLS] + 4 * CELL_WORDS * cell
    sums, stamp = f32(at, (CELL_WORDS,)), i32(at, (CELL_WORDS,))[1]
    w = exp2(-min(900.0, max(0, bucket - stamp) / half_life(horizon)))
    return (w * sums[5 + horizon] + prior) / (w * sums[2 + horizon] + prior)


@kernel
def half_life(horizon: Any) -> Any:
    """Of a horizon, in quarter hours."""
    return HORIZONS[0] if horizon == 0 else HORIZONS[1] if horizon == 1 else HORIZONS[2]


@kernel
def _remember(model: Any, h: Any, surface: Any, bucket: Any, expected: Any, clicks: Any) -> None:
    """Add to a cell, which takes the place of the one longest untouched of its set where it is new."""
    m = i64(model, (N_MODEL,))
    cells, sums = i32(m[M_CELLS], (1 << CELL_BITS, CELL_WORDS)), f32(m[M_CELLS], (1 << CELL_BITS, CELL_WORDS))
    x = _key(h, surface)
    tag, at = np.int32(x & np.uint64(0x7FFFFFFF)) | np.int32(1), np.int64(x >> np.uint64(65 - CELL_BITS)) * WAYS
    cell = at
    for way in range(WAYS):
        if cells[at + way, 0] == tag:
            cell = at + way
            break
        if cells[at + way, 1] < cells[cell, 1]:
            cell = at + way
    if cells[cell, 0] != tag:
        cells[cell, 0], cells[cell, 1] = tag, bucket
        sums[cell, 2:] = 0
    passed = bucket - cells[cell, 1]
    for k in range(3):
        w = exp2(-min(900.0, abs(passed) / half_life(k))) if passed != 0 else 1.0
        old, new = (w, 1.0) if passed > 0 else (1.0, w)
        sums[cell, 2 + k] = old * sums[cell, 2 + k] + new * expected
        sums[cell, 5 + k] = old * sums[cell, 5 + k] + new * clicks
    cells[cell, 1] = max(cells[cell, 1], bucket)
    u8(m[M_DIRTY], (PAGES,))[LINEAR_PAGES + FACTOR_PAGES + cell * CELL_WORDS // PAGE_WORDS] = 1


@kernel
def adagrad(w: Any, at: Any, g: Any) -> None:
    """One step down the gradient g of the weight at a place: weights, and what their squared gradients add up to."""
    seen = np.float64(w[at, 1]) + g * g
    w[at, 0], w[at, 1] = np.float64(w[at, 0]) - RATE * g / math.sqrt(1.0 + seen), seen


@kernel
def _step(model: Any, weights: Any, factors: Any, click: Any, share: Any) -> Any:
    """One lesson at some `places` and `fields`: an impression or a click, `share` of them. Returns the probability before it."""
    m = i64(model, (N_MODEL,))
    w = f32(m[M_LINEAR], (1 << LINEAR_BITS, LINEAR_WORDS))
    v = f32(m[M_FACTORS], (1 << FACTOR_BITS, FACTOR_WORDS))
    p = sigmoid(linear(model, weights) + factored(model, factors))
    g = -share if click else share * p
    for k in range(7):
        adagrad(w, weights[k], g)
    a, b, c, d = factors
    for j in range(FACTORS):
        total = np.float64(v[a, j]) + np.float64(v[b, j]) + np.float64(v[c, j]) + np.float64(v[d, j])
        for k in range(4):
            at = factors[k]
            x = np.float64(v[at, j])
            slope = g * (total - x) + SHRINK * x
            seen = np.float64(v[at, FACTORS + j]) + slope * slope
            v[at, j], v[at, FACTORS + j] = x - FACTOR_RATE * slope / math.sqrt(1.0 + seen), seen
    return p


@kernel
def learn(model: Any, table: Any, kind: Any, h: Any, bucket: Any, metric: Any, count: Any, surface: Any) -> None:
    """Learn the rows of a range, in their order, after the table has taken them. Other rows than an item's impressions and clicks
    teach nothing."""
    firsts = i64(table, (N_ADDRESSES,))[C_FIRST]
    dirty = u8(i64(model, (N_MODEL,))[M_DIRTY], (PAGES,))
    for i in range(kind.shape[0]):
        if kind[i] != 0 or metric[i] > 1:
            continue
        first = i32(firsts + 4 * row_of(table, 0, h[i]), (1,))[0]
        s, hour = np.int64(surface[i]), bucket[i] // 4 % 24
        age = age_class((bucket[i] - first) * CLOCK_MS)
        weights, factors = places(h[i], s, hour, age), fields(h[i], s, hour, age)
        for k in range(7):
            dirty[weights[k] * LINEAR_WORDS // PAGE_WORDS] = 1
        for k in range(4):
            dirty[LINEAR_PAGES + factors[k] * FACTOR_WORDS // PAGE_WORDS] = 1
        steps = min(count[i], LESSONS)
        share, expected = count[i] / steps, 0.0
        for _ in range(steps):
            p = _step(model, weights, factors, metric[i] == 1, share)
            if metric[i] == 0:
                expected += share * p
        clicks = np.float64(count[i]) if metric[i] == 1 else 0.0
        _remember(model, h[i], np.int64(-1), bucket[i], expected, clicks)
        _remember(model, h[i], s, bucket[i], expected, clicks)


@kernel
def begin(factors: Any) -> None:
    """Factors before anything is learnt: small and scattered, the same for everybody."""
    for i in range(factors.shape[0]):
        for j in range(FACTORS):
            x = spread(np.uint64(i), 5 + 8 * j) >> np.uint64(40)
            factors[i, j] = (np.float64(x) / (1 << 23) - 1.0) * FIRST_FACTOR
