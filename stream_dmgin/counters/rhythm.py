"""When a category is clicked: a logistic regression over category and time of the week, learnt from the counters topic as it is read
(docs/adr/0021-rhythm.md). Noodles are for noon, bars for Friday night; a network has few rows to learn that from, the log has every event.

As in `counters/online.py` n impressions of a category in a quarter hour add n p x to the gradient, c clicks -c x, and whoever applies the
same ranges in the same order has the same bits. A lesson takes 0.1 us, a prediction 0.02 us; 0.5 MiB.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stream_dmgin.counters.online import (
    FIRST_LOGIT,
    LESSONS,
    M_RHYTHM,
    M_RHYTHM_DIRTY,
    N_MODEL,
    PAGE_WORDS,
    adagrad,
    sigmoid,
    spread,
)
from stream_dmgin.features.spec import COUNTER_KINDS
from stream_dmgin.native import f32, i64, kernel, u8

CATEGORY = COUNTER_KINDS.index("category")
RHYTHM_BITS, RHYTHM_WORDS = 16, 2  # a weight and what its squared gradients add up to
RHYTHM_PAGES = (RHYTHM_WORDS << RHYTHM_BITS) // PAGE_WORDS


@kernel
def _place(h: Any, salt: Any) -> Any:
    """Where the weight of a cross lies; 0 is the intercept's."""
    return max(np.int64(1), np.int64(spread(h, salt) >> np.uint64(64 - RHYTHM_BITS)))


@kernel
def _places(h: Any, bucket: Any) -> Any:
    """Places of the weights of a category in a quarter hour: the intercept, category, hour; category x four hours, category x hour. An
    hour of Saturday or Sunday (UTC) is another than that of a working day."""
    hour = bucket // 4 % 24
    weekend = 1 if (bucket // 96 + 3) % 7 >= 5 else 0  # the epoch was a Thursday
    none = np.uint64(0)
    return (
        np.int64(0), _place(h, 1), _place(none, 100 + 24 * weekend + hour), _place(h, 200 + 6 * weekend + hour // 4),
        _place(h, 300 + 24 * weekend + hour),
    )  # fmt: skip


@kernel
def _weights(model: Any) -> Any:
    return f32(i64(model, (N_MODEL,))[M_RHYTHM], (1 << RHYTHM_BITS, RHYTHM_WORDS))


@kernel
def rhythm(model: Any, h: Any, bucket: Any) -> tuple[float, float]:
    """(how much more a category is clicked at this time than at others, as a logit; the whole logit) in a quarter hour."""
    w, at = _weights(model), _places(h, bucket)
    now = np.float64(w[at[3], 0]) + np.float64(w[at[4], 0])
    return now, FIRST_LOGIT + np.float64(w[at[0], 0]) + np.float64(w[at[1], 0]) + np.float64(w[at[2], 0]) + now


@kernel
def learn_rhythm(model: Any, kind: Any, h: Any, bucket: Any, metric: Any, count: Any) -> None:
    """Learn the rows of a range, in their order. Other rows than a category's impressions and clicks teach nothing."""
    w, dirty = _weights(model), u8(i64(model, (N_MODEL,))[M_RHYTHM_DIRTY], (RHYTHM_PAGES,))
    for i in range(kind.shape[0]):
        if kind[i] != CATEGORY or metric[i] > 1:
            continue
        at = _places(h[i], bucket[i])
        for k in range(5):
            dirty[at[k] * RHYTHM_WORDS // PAGE_WORDS] = 1
        steps = min(count[i], LESSONS)
        share = count[i] / steps
        for _ in range(steps):
            g = -share if metric[i] == 1 else share * sigmoid(rhythm(model, h[i], bucket[i])[1])
            for k in range(5):
                adagrad(w, at[k], g)
