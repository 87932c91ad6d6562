"""Where things lie in a counter row: constants of the table, its reading and its rows on disk. All from COUNTER_LEVELS."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.features.spec import COUNTER_FEATURES, COUNTER_KINDS, COUNTER_LEVELS, COUNTER_METRICS, HALF_LIVES

CLOCK_MS = COUNTER_LEVELS[0][0]  # increments come in buckets of this length, the finest
N_LEVELS = len(COUNTER_LEVELS)
N_METRICS = len(COUNTER_METRICS)
N_KINDS = len(COUNTER_KINDS)
GLOBAL_KIND = 255  # kind of row 0, the sum of all items
FEATURES = len(COUNTER_FEATURES) // N_KINDS  # per entity
N_RATES = len(HALF_LIVES)
EMPTY = -1  # stamp of a slot that never held anything

# Only the longest level is read for dwell, orders and engagements: the others keep impressions and clicks.
METRICS_OF = (2, 2, N_METRICS)
KEPT = tuple(kept for _, kept, _ in COUNTER_LEVELS)
RATIO = tuple(length // CLOCK_MS for length, _, _ in COUNTER_LEVELS)
SLOT_AT = tuple(sum(KEPT[:i]) for i in range(N_LEVELS))  # first stamp of a level in a row of stamps
N_SLOTS = sum(KEPT)
LEVEL_AT = tuple(
    sum(METRICS_OF[j] * KEPT[j] for j in range(i)) for i in range(N_LEVELS)
)  # first count of a level, metric by metric
LIFE_AT = sum(METRICS_OF[i] * KEPT[i] for i in range(N_LEVELS))
N_COUNTS = LIFE_AT + N_METRICS
N_WEIGHTS = max(KEPT)

# Aggregates of one entity: impressions by horizon, clicks by horizon, then with the longest half-life dwell, orders, engagements
A_IMPRESSIONS, A_CLICKS, A_DWELL, A_ORDERS, A_ENGAGEMENTS = 0, N_RATES, 2 * N_RATES, 2 * N_RATES + 1, 2 * N_RATES + 2
N_AGGREGATES = 2 * N_RATES + 3
# Rates of the whole: click rate by horizon, orders a click, engagements a click; logit and probability of each
P_ORDER, P_ENGAGEMENT, P_ENGAGEMENT_SHOWN = N_RATES, N_RATES + 1, N_RATES + 2
N_RATE_KINDS = N_RATES + 3
CACHED = FEATURES + 1  # and the rate of engagements in impressions, for models that ask for it
# The view of one quarter hour, as float64: logits of these rates, then their probabilities; per slot the weight of the one
# bucket that may count there now; working memory for aggregates. And as int64, after the table's state: per slot the stamp
# of that bucket, per level the number of the bucket that now lies in.
V_LOGIT, V_RATE, V_WEIGHT, V_WORK = 0, N_RATE_KINDS, 2 * N_RATE_KINDS, 2 * N_RATE_KINDS + N_SLOTS
N_VIEW = V_WORK + N_AGGREGATES

# Smoothing: as many impressions (clicks) at the global rate count as evidence
PRIOR_WEIGHT = 20.0
# The global rate itself starts from 1 in 20; its logit is rounded to 1/64, so that small movements of the whole don't
# make every cached entity stale (an error of the prior below 1 %)
GLOBAL_HITS, GLOBAL_TRIES = 1.0, 20.0
LOGIT_STEP = 64.0

# Entries of CounterTable.addresses
(C_KEYS, C_ROWS, C_MASK, C_COUNTS, C_STAMPS, C_FIRST, C_VALID, C_CACHE, C_STATE, C_VIEW, C_WEIGHTS,
 C_CAPACITY, C_ONLINE) = range(13)  # fmt: skip
N_ADDRESSES = 13
# Entries of the table's state: changes so far; the changes, the quarter hour and the number of the rates last computed
S_VERSION, S_PRIOR_VERSION, S_CLOCK, S_EPOCH = range(4)
S_STAMP = 4
S_NOW = S_STAMP + N_SLOTS
N_STATE = S_NOW + N_LEVELS


def weights() -> NDArray[np.float64]:
    """[level, age in buckets] -> weight 0.5^(age/half-life); 0 from the number of buckets kept on."""
    out = np.zeros((N_LEVELS, N_WEIGHTS), np.float64)
    for level, (length, kept, half_life) in enumerate(COUNTER_LEVELS):
        out[level, :kept] = 0.5 ** (np.arange(kept) * length / half_life)
    return out
