"""States of made-up users in the arrays that `StateEngine.read` fills, for tests of the features without a state engine."""

from __future__ import annotations

import numpy as np

from stream_dmgin.features.spec import INTERESTS, N_CLS
from stream_dmgin.state.hash import item_hash

HOUR = 3_600_000
SURFACES = np.array([0, *(1 + item_hash(s) % 31 for s in ("home", "search", "map"))], np.uint8)


class Arrays:
    """The fields of UserArrays that features read."""

    def __init__(self, users: int, groups: int = 64, events: int = 16, ring: int = 64) -> None:
        B, G, L = users, groups, events
        self.n_events, self.n_impressions, self.n_clicks = (np.zeros(B, np.int64) for _ in range(3))
        self.n_groups_total, self.n_groups = np.zeros(B, np.int32), np.zeros(B, np.int32)
        self.g_key = np.zeros((B, G), np.uint64)
        self.g_counts = np.zeros((B, G, N_CLS), np.int64)
        for name in ("g_dwell_sum", "g_dwell_max", "g_value_sum", "g_first", "g_last"):
            setattr(self, name, np.zeros((B, G), np.int64))
        self.g_len = np.zeros((B, G), np.int32)
        self.e_item, self.e_cls = np.zeros((B, G, L), np.uint64), np.zeros((B, G, L), np.uint8)
        self.e_ts, self.e_dwell = np.zeros((B, G, L), np.int64), np.full((B, G, L), -1, np.int64)
        self.s_len, self.m_len = np.zeros(B, np.int32), np.zeros(B, np.int32)
        self.s_item, self.m_item = np.zeros((B, ring), np.uint64), np.zeros((B, ring), np.uint64)
        self.s_cls = np.zeros((B, ring), np.uint8)
        self.s_ts, self.m_ts = np.zeros((B, ring), np.int64), np.zeros((B, ring), np.int64)
        self.s_dwell = np.full((B, ring), -1, np.int64)
        self.s_surface, self.m_surface = np.zeros((B, ring), np.uint8), np.zeros((B, ring), np.uint8)
        self.i_len, self.i_item = np.zeros(B, np.int32), np.zeros((B, INTERESTS), np.uint64)
        self.i_weight = np.zeros((B, INTERESTS))


def random_state(
    arrays: Arrays,
    b: int,
    rng: np.random.Generator,
    items: list[str],
    groups: dict[str, int],
    now: int,
    busy: float = 1.0,
) -> None:
    """Fill row b: groups of items by `groups`, events before `now`; rings and groups need not agree with each other."""
    G, L = arrays.e_item.shape[1:]
    n = int(rng.integers(0, int(G * busy) + 1))
    arrays.n_groups[b], arrays.n_groups_total[b] = n, n + int(rng.integers(0, 300))
    keys = [np.uint64(g) for g in set(groups.values())]
    keys += [np.uint64(1 << 63) | (np.uint64(item_hash(i)) >> np.uint64(1)) for i in items if i not in groups]
    rng.shuffle(keys)
    arrays.n_groups[b] = n = min(n, len(keys))
    last = np.sort(now - rng.integers(0, 10_000 * HOUR, n))[::-1]
    hashes = np.array([item_hash(i) for i in items], np.uint64)
    for g in range(n):
        arrays.g_key[b, g] = keys[g]
        arrays.g_counts[b, g] = rng.integers(0, 6, N_CLS) * rng.integers(0, 2, N_CLS) * int(10 ** rng.integers(0, 5))
        arrays.g_last[b, g], arrays.g_first[b, g] = last[g], last[g] - rng.integers(0, 1000 * HOUR)
        arrays.g_dwell_sum[b, g] = arrays.g_counts[b, g, 1:].sum() * rng.integers(0, 100_000)
        arrays.g_dwell_max[b, g] = rng.integers(0, 3_000_000)
        arrays.g_value_sum[b, g] = rng.integers(0, 2) * rng.integers(0, 10**9)
        m = arrays.g_len[b, g] = int(rng.integers(0, L + 1))
        _ring(
            arrays.e_item[b, g],
            arrays.e_cls[b, g],
            arrays.e_ts[b, g],
            arrays.e_dwell[b, g],
            m,
            rng,
            hashes,
            int(last[g]),
        )
    R = arrays.s_item.shape[1]
    s = arrays.s_len[b] = int(rng.choice([0, R, rng.integers(0, R + 1)]))
    m = arrays.m_len[b] = int(rng.choice([0, R, rng.integers(0, R + 1)]))
    _ring(arrays.s_item[b], arrays.s_cls[b], arrays.s_ts[b], arrays.s_dwell[b], s, rng, hashes, now, 2 * HOUR)
    arrays.m_item[b, :m] = rng.choice(hashes, m)
    arrays.m_ts[b, :m] = np.sort(now - rng.integers(0, 2 * HOUR, m))[::-1]
    arrays.s_surface[b, :s], arrays.m_surface[b, :m] = SURFACES[rng.integers(0, 4, s)], SURFACES[rng.integers(0, 4, m)]
    arrays.n_events[b], arrays.n_impressions[b] = s * int(rng.integers(1, 1000)), m * int(rng.integers(1, 1000))
    arrays.n_clicks[b] = rng.integers(0, arrays.n_events[b] + 1)
    n = arrays.i_len[b] = int(rng.choice([0, 1, rng.integers(0, 60)]))
    arrays.i_item[b, :n], arrays.i_weight[b, :n] = (
        rng.choice(hashes, n),
        rng.integers(1, 100, n) / rng.integers(1, 5, n),
    )


def _ring(item, cls, ts, dwell, n, rng, hashes, last, span=100 * HOUR) -> None:  # type: ignore[no-untyped-def]
    item[:n] = rng.choice(hashes, n)
    cls[:n] = rng.integers(1, N_CLS, n)
    ts[:n] = np.sort(last - rng.integers(0, span, n))[::-1]
    dwell[:n] = np.where(rng.random(n) < 0.5, -1, rng.integers(0, 10 ** rng.integers(1, 8), n))
