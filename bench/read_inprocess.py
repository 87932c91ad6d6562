"""What it costs to turn one user's state into the model's inputs for 100 candidates: `python bench/read_inprocess.py`.

Without the state engine's own read: that is `stream-dmgin bench read`. Prints JSON: CPU us per call.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from features_states import HOUR, Arrays, random_state

from stream_dmgin.counters.table import CounterTable
from stream_dmgin.features.build import FeatureBuilder
from stream_dmgin.features.catalogue import Catalogue
from stream_dmgin.features.inputs import Inputs
from stream_dmgin.features.spec import InputSpec
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.native import hash_ids
from stream_dmgin.records import Item

NOW = 1_750_000_000_000
ITEMS, GROUPS, CANDIDATES = 5000, 400, 100


def main() -> None:
    rng = np.random.default_rng(1)
    items = [f"s{i}" for i in range(ITEMS)]
    groups = {i: int(rng.integers(GROUPS)) for i in items}
    catalogue = Catalogue()
    for i in items:
        catalogue.upsert(
            Item(i, category=f"c{rng.integers(40)}", advertiser=f"a{rng.integers(800)}", lat=1.0, lon=2.0, price=3.0)
        )
    hashes = hash_ids(items)
    table = CounterTable()
    n = 1_000_000
    row = rng.integers(0, ITEMS, n)
    category, advertiser = catalogue.owners(hashes[row])
    bucket = rng.integers(NOW // 900_000 - 3000, NOW // 900_000, n)
    metric, count = rng.choice([0, 0, 0, 1, 2, 3, 4], n).astype(np.uint8), np.ones(n, np.int64)
    t0 = time.thread_time()
    for kind, h in enumerate((hashes[row], category, advertiser)):
        table.apply(np.full(n, kind, np.uint8), h, bucket, metric, count)
    out = {"apply_us": (time.thread_time() - t0) / 3 / n * 1e6, "entities": len(table)}
    spec = InputSpec()
    builder = FeatureBuilder(spec, catalogue, table, GroupMap(groups))
    for name, busy, users in (("half", 0.5, 1), ("full", 1.0, 1), ("full_32_users", 1.0, 32)):
        arrays = Arrays(users)
        for b in range(users):
            random_state(arrays, b, rng, items, groups, NOW, busy)
            if name != "half":
                arrays.n_groups[b], arrays.g_len[b], arrays.s_len[b], arrays.m_len[b] = 64, 16, 64, 64
                arrays.g_last[b] = NOW - np.arange(64) * HOUR
                arrays.e_item[b] = rng.choice(hashes, (64, 16))
        inputs = Inputs.allocate(spec, users, CANDIDATES)
        sets = [[(NOW, list(rng.choice(items, CANDIDATES)), 1.0, 2.0, "home", None)] * users for _ in range(50)]
        builder.request_side(arrays, users, sets[0], inputs)
        out[f"{name}_user_side_us"] = timed(lambda i, a=arrays, u=users, x=inputs: builder.user_side(a, u, x))
        out[f"{name}_request_side_us"] = timed(
            lambda i, a=arrays, u=users, x=inputs, s=sets: builder.request_side(a, u, s[i % 50], x)
        )
        later = [[(NOW + 900_000 * (1 + i), *s[0][1:])] * users for i, s in enumerate(sets)]
        out[f"{name}_request_side_uncached_us"] = timed(
            lambda i, a=arrays, u=users, x=inputs, s=later: builder.request_side(a, u, s[i % 50], x)
        )
    print(json.dumps({k: round(v, 3) for k, v in out.items()}, indent=1))


def timed(call, n: int = 50, runs: int = 60) -> float:  # type: ignore[no-untyped-def]
    """CPU us of a call, the best of some runs: others on the machine only ever add to it."""
    call(0)
    best = float("inf")
    for _ in range(runs):
        t0 = time.thread_time()
        for i in range(n):
            call(i)
        best = min(best, (time.thread_time() - t0) / n * 1e6)
    return best


main()
