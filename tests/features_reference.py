"""Counters and features once more, in plain Python and as slowly as they are easy to read: what docs/features.md says, written
without the code under test (only the names and sizes of spec.py and the hash of ids are shared)."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import xxhash
from audience_reference import Audiences, profile
from online_reference import QUARTER, Online, age_class, ratio
from rhythm_reference import Rhythms

from stream_dmgin.features import spec as names

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
CLS = {c: i for i, c in enumerate(names.BEHAVIOUR_CLASSES)}


def cosine(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True)) / math.hypot(*x) / math.hypot(*y)


def h64(name: str) -> int:
    return xxhash.xxh64_intdigest(name.encode()) or 1


class Counters:
    """The counters as the bare set of increments: {(kind, name hash): {(bucket, metric): count}}."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, int], dict[tuple[int, str], int]] = defaultdict(lambda: defaultdict(int))
        self.online, self.audiences, self.rhythms = Online(), Audiences(), Rhythms()
        self.known: dict[tuple, Any] = {}  # answers since the last increment: only to keep the tests short

    def add(self, kind: str, name: int, bucket: int, metric: str, count: int) -> None:
        self.known.clear()
        self.counts[kind, name][bucket, metric] += count
        if kind == "item":
            self.counts["all", 0][bucket, metric] += count

    def decayed(self, kind: str, name: int, now: int, level: int, metric: str) -> float:
        length, kept, half_life = names.COUNTER_LEVELS[level]
        ratio = length // names.COUNTER_LEVELS[0][0]
        metrics = ("impressions", "clicks") if level < 2 else names.COUNTER_METRICS
        entity = self.counts.get((kind, name), {})
        newest: dict[int, int] = {}
        for b, m in entity:
            if m in metrics:
                newest[b // ratio % kept] = max(newest.get(b // ratio % kept, -1), b // ratio)
        total = 0.0
        for (b, m), n in entity.items():
            coarse = b // ratio
            if m == metric and newest.get(coarse % kept) == coarse:
                age = max(0, now // length - coarse)
                if age < kept:
                    total += n * 0.5 ** (age * length / half_life)
        return total

    def life(self, kind: str, name: int, metric: str) -> int:
        return sum(n for (_, m), n in self.counts.get((kind, name), {}).items() if m == metric)

    def by_horizon(self, kind: str, name: int, now: int, horizon: int, metric: str) -> float:
        return self.life(kind, name, metric) if horizon == 3 else self.decayed(kind, name, now, horizon, metric)

    def global_logit(self, now: int, what: int | str) -> float:
        """what: 0..3 (click rate by horizon), "orders" or "engagements" (a click), "shown" (engagements an impression)."""
        if (now, what) not in self.known:
            self.known[now, what] = self._global_logit(now, what)
        return self.known[now, what]

    def _global_logit(self, now: int, what: int | str) -> float:
        if isinstance(what, int):
            hits, tries = (self.by_horizon("all", 0, now, what, m) for m in ("clicks", "impressions"))
        elif what == "shown":
            hits, tries = (self.by_horizon("all", 0, now, 2, m) for m in ("engagements", "impressions"))
        else:
            hits, tries = (self.by_horizon("all", 0, now, 2, m) for m in (what, "clicks"))
        return self._global_logit_of(hits, tries)

    def _global_logit_of(self, hits: float, tries: float) -> float:
        tries = max(hits, tries)
        return math.floor(64 * math.log((hits + 1) / (tries - hits + 19)) + 0.5) / 64

    def features(self, kind: str, name: int, now: int) -> list[float]:
        if (kind, name, now) not in self.known:
            self.known[kind, name, now] = self._features(kind, name, now)
        return self.known[kind, name, now]

    def _features(self, kind: str, name: int, now: int) -> list[float]:
        if not name or (kind, name) not in self.counts:
            return [0.0] * 12
        out = [math.log1p(self.by_horizon(kind, name, now, k, "impressions")) for k in range(4)]
        for k in range(4):
            g = self.global_logit(now, k)
            out.append(
                smooth(
                    self.by_horizon(kind, name, now, k, "clicks"),
                    self.by_horizon(kind, name, now, k, "impressions"),
                    g,
                    20,
                )
                - g
            )
        clicks = self.decayed(kind, name, now, 2, "clicks")
        out.append(math.log1p(self.decayed(kind, name, now, 2, "dwell_ms") / 1000 / (clicks + 1)))
        for metric in ("orders", "engagements"):
            g = self.global_logit(now, metric)
            out.append(smooth(self.decayed(kind, name, now, 2, metric), clicks, g, 20) - g)
        g, shown = self.global_logit(now, "shown"), self.by_horizon(kind, name, now, 2, "impressions")
        out.append(smooth(self.decayed(kind, name, now, 2, "engagements"), shown, g, 20) - g)  # of the block engagement
        return out

    # The block `trend`

    def at(self, kind: str, name: int, now: int, k: int, metric: str) -> float:
        """Decayed sum at a horizon of 15 minutes (k = 0), 1 h, 12 h, 7 d."""
        if (kind, name, now, k, metric) not in self.known:
            self.known[kind, name, now, k, metric] = self._at(kind, name, now, k, metric)
        return self.known[kind, name, now, k, metric]

    def _at(self, kind: str, name: int, now: int, k: int, metric: str) -> float:
        return self.quarter_hours(kind, name, now, metric) if k == 0 else self.decayed(kind, name, now, k - 1, metric)

    def quarter_hours(self, kind: str, name: int, now: int, metric: str) -> float:
        total = 0.0
        for (b, m), n in self.kept(kind, name, 0).items():
            age = max(0, now // 900_000 - b)
            if m == metric and age < 16:
                total += n * 0.5**age
        return total

    def kept(self, kind: str, name: int, level: int) -> dict[tuple[int, str], int]:
        """What one level holds: counts by its own buckets; the greatest bucket that met a slot stays."""
        if (kind, name, level, "kept") not in self.known:
            self.known[kind, name, level, "kept"] = self._kept(kind, name, level)
        return self.known[kind, name, level, "kept"]

    def _kept(self, kind: str, name: int, level: int) -> dict[tuple[int, str], int]:
        length, kept, _ = names.COUNTER_LEVELS[level]
        ratio = length // names.COUNTER_LEVELS[0][0]
        out: dict[tuple[int, str], int] = defaultdict(int)
        for (b, m), n in self.counts.get((kind, name), {}).items():
            if level == 2 or m in ("impressions", "clicks"):
                out[b // ratio, m] += n
        newest: dict[int, int] = {}
        for b, _ in out:
            newest[b % kept] = max(newest.get(b % kept, -1), b)
        return {k: n for k, n in out.items() if newest[k[0] % kept] == k[0]}

    def whole_logit(self, now: int, k: int) -> float:
        return self._global_logit_of(*(self.at("all", 0, now, k, m) for m in ("clicks", "impressions")))

    def trend(self, name: int, now: int) -> list[float]:
        if (name, now, "trend") not in self.known:
            self.known[name, now, "trend"] = self._trend(name, now)
        return self.known[name, now, "trend"]

    def _trend(self, name: int, now: int) -> list[float]:
        if ("item", name) not in self.counts:
            return [0.0] * 16 + [16.0, 16.0]
        shown = [self.at("item", name, now, k, "impressions") for k in range(4)]
        clicks = [self.at("item", name, now, k, "clicks") for k in range(4)]
        whole = [[self.at("all", 0, now, k, m) for k in range(4)] for m in ("impressions", "clicks")]
        logit = [self.whole_logit(now, k) for k in range(4)]
        rate = [smooth(clicks[k], shown[k], logit[k], 20) - logit[k] for k in range(4)]
        pace = [math.log1p(shown[k] / (0.25, 1, 12)[k]) for k in range(3)]
        first = self.first_ms(name)
        assert first is not None
        return [
            math.log1p(shown[0]), rate[0],
            *(math.log((shown[k] + 0.1) / (whole[0][k] + 10)) for k in range(4)),
            *(math.log((clicks[k] + 0.1) / (whole[1][k] + 10)) for k in range(4)),
            *(rate[k] - rate[k + 1] for k in range(3)), pace[1] - pace[2], pace[0] - 2 * pace[1] + pace[2],
            math.log1p(self.life("item", name, "impressions") / (1 + max(0, now - first) / HOUR)),
            *(minutes(self.since(name, now, m)) for m in ("clicks", "impressions")),
        ]  # fmt: skip

    def since(self, name: int, now: int, metric: str) -> float | None:
        starts = [
            b * names.COUNTER_LEVELS[level][0]
            for level in range(3)
            for (b, m), n in self.kept("item", name, level).items()
            if m == metric and n
        ]
        return now - max(starts) if starts else None

    def first_ms(self, name: int) -> int | None:
        if (name, "first") not in self.known:
            entity = self.counts.get(("item", name))
            self.known[name, "first"] = min(b for b, _ in entity) * 900_000 if entity else None
        return self.known[name, "first"]


def smooth(hits: float, tries: float, logit: float, weight: float) -> float:
    """Logit of the rate of hits in tries, with `weight` further tries at the rate of `logit`."""
    p = 1 / (1 + math.exp(-logit))
    tries = max(hits, tries)
    return math.log((hits + weight * p) / (tries - hits + weight * (1 - p)))


def bucket(h: int, n: int) -> int:
    return 0 if h == 0 else 1 + ((h >> 32) * (n - 1) >> 32)


def dwell_bucket(ms: int) -> int:
    if ms < 0:
        return 0
    return min(names.N_DWELL - 1, max(1, 1 + math.floor(math.log2(ms // 1000)))) if ms >= 1000 else 1


def age_bucket(ms: int) -> int:
    # in whole numbers: the largest b with (1 + minutes)^2 >= 2^b
    n, b = (MINUTE + max(0, ms)) ** 2, 0
    while b < names.N_AGE - 1 and n >= MINUTE**2 * 2 ** (b + 1):
        b += 1
    return b


def hours(ms: float | None) -> float:
    return 12.0 if ms is None else math.log1p(max(0, ms) / HOUR)


def minutes(ms: float | None) -> float:
    return 16.0 if ms is None else math.log1p(max(0, ms) / MINUTE)


def log2_minutes(ms: int) -> float:
    return math.log2(1 + max(0, ms) / MINUTE)


class World:
    """Items (records.Item by id), groups (item id -> group) and counters."""

    def __init__(
        self, spec: names.InputSpec, items: dict[str, Any], groups: dict[str, int], counters: Counters
    ) -> None:
        self.spec, self.counters = spec, counters
        self.items = {h64(i): item for i, item in items.items()}
        self.groups = {h64(i): g for i, g in groups.items()}

    def owner(self, item: int, field: str) -> int:
        known = self.items.get(item)
        name = getattr(known, field) if known else None
        return h64(name) if name else 0

    def triple(self, item: int) -> list[int]:
        s = self.spec
        return [
            bucket(item, s.item_buckets), bucket(self.owner(item, "category"), s.category_buckets),
            bucket(self.owner(item, "advertiser"), s.advertiser_buckets),
        ]  # fmt: skip

    def group_key(self, item: int) -> int:
        return self.groups[item] if item in self.groups else 1 << 63 | item >> 1

    # The user side: {name: value} with lists; positions not named are padding

    def user_side(self, a: Any, b: int) -> dict[str, Any]:
        s = self.spec
        n = min(s.groups, int(a.n_groups[b]))
        newest = int(a.g_last[b, 0]) if n else 0
        events = []
        for g in range(n):
            last = int(a.g_last[b, g])
            events.append([self.event(a, "e", (b, g, e), last) for e in range(min(s.events, int(a.g_len[b, g])))])
        return {
            "g_stat": [self.stats(a, b, g) for g in range(n)],
            "g_time": [log2_minutes(newest - int(a.g_last[b, g])) for g in range(n)],
            "events": events,
            "short": [self.event(a, "s", (b, e), newest) for e in range(min(s.short, int(a.s_len[b])))],
        }

    def event(self, a: Any, ring: str, at: tuple[int, ...], last: int) -> dict[str, Any]:
        item, ts = int(getattr(a, ring + "_item")[at]), int(getattr(a, ring + "_ts")[at])
        return {
            "item": self.triple(item), "id": item % 2**31, "cls": int(getattr(a, ring + "_cls")[at]),
            "time": age_bucket(last - ts), "dwell": dwell_bucket(int(getattr(a, ring + "_dwell")[at])),
            "hour": (ts // HOUR + 3 * 24) % 168 // 4,
        }  # fmt: skip

    def stats(self, a: Any, b: int, g: int) -> list[float]:
        counts = [int(x) for x in a.g_counts[b, g]]
        impressions, clicks, payments = (counts[CLS[c]] for c in ("impression", "click", "payment"))
        events = sum(counts) - impressions
        span = max(0, int(a.g_last[b, g] - a.g_first[b, g]))
        return [
            *(math.log1p(c) for c in counts),
            math.log1p(int(a.g_dwell_sum[b, g]) / 1000 / max(1, events)),
            math.log1p(int(a.g_dwell_max[b, g]) / 1000),
            math.log1p(int(a.g_value_sum[b, g]) / 1e6 / max(1, payments)),
            (clicks + 1) / (max(clicks, impressions) + 20),
            math.log1p(span / HOUR),
            math.log1p(events / (1 + span / DAY)),
        ]

    # The request side

    def request_side(
        self, a: Any, b: int, now: int, candidates: list[int], lat: float | None, lon: float | None,
        surface: str | None = None, page: str | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        s, c = self.spec, self.counters
        n = min(s.groups, int(a.n_groups[b])) if b >= 0 else 0
        counts = [[int(x) for x in a.g_counts[b, g]] for g in range(n)]
        clicks, shown = (int(a.n_clicks[b]), int(a.n_impressions[b])) if b >= 0 else (0, 0)
        world_logit = c.global_logit(now, 2)
        user_logit = smooth(clicks, shown, world_logit, 20)
        events, impressions = [], []
        if b >= 0:
            events = [
                (int(a.s_item[b, i]), int(a.s_cls[b, i]), int(a.s_ts[b, i]), int(a.s_dwell[b, i]))
                for i in range(a.s_len[b])
            ]
            impressions = [(int(a.m_item[b, i]), int(a.m_ts[b, i])) for i in range(a.m_len[b])]
        since = impressions[-1][1] if len(impressions) == 64 else 0
        in_ring = [(i, t) for i, k, t, _ in events if k == CLS["click"]]
        ring_logit = smooth(sum(t >= since for _, t in in_ring), len(impressions), user_logit, 10)
        keys = [int(a.g_key[b, g]) for g in range(n)]

        def pair(of: Any, name: int) -> list[float]:
            if not name:
                return [0, 0, 0]
            mine = [t for i, t in in_ring if of(i) == name]
            seen = sum(of(i) == name for i, _ in impressions)
            rate = smooth(sum(t >= since for t in mine), seen, ring_logit, 5) - ring_logit
            return [len(mine), seen, rate if seen or any(of(i) == name for i, *_ in events) else 0.0]

        number = 1 + h64(surface) % 31 if surface else 0
        rings = self.rings(a, b, events, impressions)
        dense, group_index, me = [], [], self.profile(a, b)
        for item in candidates:
            row: list[float] = []
            counted = [
                c.features(kind, name, now)
                for kind, name in (
                    ("item", item),
                    *((kind, self.owner(item, kind)) for kind in ("category", "advertiser")),
                )
            ]
            row += [x for entity in counted for x in entity[:11]]
            key = self.group_key(item)
            g = keys.index(key) if key in keys else -1
            group_index.append(g if g >= 0 else s.groups)
            if g < 0:
                row += [0, 0, 0, 0, 12.0, 0]
            else:
                k = counts[g]
                i, cl = k[CLS["impression"]], k[CLS["click"]]
                post = sum(k) - i - cl
                row += [
                    math.log1p(i), math.log1p(cl), smooth(cl, i, user_logit, 5) - user_logit, math.log1p(post),
                    hours(now - int(a.g_last[b, g])), math.log1p(int(a.g_dwell_sum[b, g]) / 1000 / max(1, post + cl)),
                ]  # fmt: skip
            mine, seen = [t for j, _, t, _ in events if j == item], [t for j, t in impressions if j == item]
            row += [sum(j == item for j, _ in in_ring), len(seen)]
            row += [hours(now - max(mine) if mine else None), hours(now - max(seen) if seen else None)]
            row += pair(lambda i: self.owner(i, "category"), self.owner(item, "category"))
            row += pair(lambda i: self.owner(i, "advertiser"), self.owner(item, "advertiser"))
            known = self.items.get(item)
            row.append(math.log1p(known.price) if known and known.price is not None else 0.0)
            placed = known is not None and known.lat is not None and lat is not None
            row += [math.log1p(haversine(lat, lon, known.lat, known.lon)) if placed else 0.0, float(placed)]
            first = c.first_ms(item)
            row += [0.0 if first is None else hours(now - first), float(known is not None)]
            for name in s.item_numbers:
                x = (known.attrs or {}).get(name) if known else None
                row.append(math.log1p(x) if x is not None else 0.0)
            if "engagement" in s.blocks:
                row += [entity[11] for entity in counted]
            if "trend" in s.blocks:
                row += c.trend(item, now)
            if "taste" in s.blocks:
                row += self.taste(item, now, in_ring, impressions)
            if "fatigue" in s.blocks:
                row += self.fatigue(item, now, events, impressions)
            if "online" in s.blocks:
                row += self.online(item, now, number, rings)
            if "content" in s.blocks:
                row += self.content(item, [*self.read(events).values()])
            if "passed" in s.blocks:
                row += self.content(item, self.passed(events, impressions))
            if "audience" in s.blocks:
                row += self.counters.audiences.likeness(item, *me)
            if "rhythm" in s.blocks:
                category = self.owner(item, "category")
                row += c.rhythms.at(category, now // QUARTER) if category else [0.0, 0.0]
            on = h64(page) if page else None
            if "readers" in s.blocks:
                kinds = {CLS[k] for k in ("click", "weak", "strong", "payment")}
                read = [*dict.fromkeys(i for i, k, *_ in events if k in kinds)]
                row += c.audiences.readers(item, *me, read, on)
            if "page" in s.blocks:
                shared = [self.owner(item, k) for k in ("category", "advertiser")]
                theirs = [self.owner(on, k) for k in ("category", "advertiser")] if on else [0, 0]
                alike = [item == on, self.group_key(item) == self.group_key(on) if on else False]
                row += map(float, [*alike, *(a != 0 and a == b for a, b in zip(shared, theirs, strict=True))])
            dense.append(row)
        dwells = [d for *_, d in events if d >= 0]
        ages, shown_ages = [now - t for _, t in in_ring], [now - t for _, t in impressions]
        angle, week = 2 * math.pi * (now % DAY) / DAY, 2 * math.pi * ((now // DAY + 3) % 7 + now % DAY / DAY) / 7
        user = [
            math.log1p(int(a.n_events[b]) if b >= 0 else 0), math.log1p(int(a.n_impressions[b]) if b >= 0 else 0),
            user_logit - world_logit, ring_logit - user_logit,
            minutes(now - events[0][2] if events else None), minutes(now - impressions[0][1] if impressions else None),
            sum(x < 10 * MINUTE for x in ages), sum(x < 10 * MINUTE for x in shown_ages),
            sum(x < HOUR for x in ages), sum(x < HOUR for x in shown_ages),
            math.log1p(int(a.n_groups_total[b]) if b >= 0 else 0), math.log1p(sum(dwells) / 1000 / len(dwells)) if dwells else 0.0,
            math.sin(angle), math.cos(angle), math.sin(2 * angle), math.cos(2 * angle), math.sin(week), math.cos(week), world_logit,
        ]  # fmt: skip
        if "session" in s.blocks:
            user += self.session(events, [t for _, t in impressions], now, user_logit)
        if "surface" in s.blocks:
            user += self.on_surface(a, b, events, impressions, now, surface, ring_logit)
        if "trend" in s.blocks:
            user += [*(c.whole_logit(now, k) for k in range(3)), math.log1p(c.at("all", 0, now, 1, "impressions"))]
        if "taste" in s.blocks:
            user += self.tastes(now, in_ring, impressions)
        if "fatigue" in s.blocks:
            user += self.lists_seen(now, in_ring, impressions)
        if "online" in s.blocks:
            near = [
                lambda t, _: now - t < HOUR,
                lambda t, _: now - t < DAY,
                lambda t, _: True,
                lambda _, at: at == number,
            ]
            user += [self.online_ratio(rings, lambda i, t, at, f=f: f(t, at)) for f in near]
        if "content" in s.blocks:
            read = [*self.read(events).values()]
            pairs = [cosine(x, y) for k, x in enumerate(read) for y in read[:k]]
            user += [math.log1p(len(read)), sum(pairs) / len(pairs) if pairs else 0.0]
        if "passed" in s.blocks:
            user.append(math.log1p(len(self.passed(events, impressions))))
        if "audience" in s.blocks:
            user.append(math.log1p(int(me[1])))
        if "page" in s.blocks:
            first = c.first_ms(h64(page)) if page else None
            user += [float(bool(page)), 0.0 if first is None else hours(now - first)]
        return {
            "c_item": [self.triple(i) for i in candidates], "c_id": [i % 2**31 for i in candidates], "c_group": group_index,
            "c_dense": dense, "g_age": [log2_minutes(now - int(a.g_last[b, g])) for g in range(n)],
            "g_size": [math.log1p(sum(k) - k[0]) for k in counts], "u_dense": user,
        }  # fmt: skip

    def session(self, events: list[Any], shown: list[int], now: int, user_logit: float) -> list[float]:
        if not shown:
            return [0.0] * 8 + [16.0, 0.0]
        clicks = [t for _, k, t, _ in events if k == CLS["click"]]
        rates, dwells = [], []
        for n in (5, 20, 50):
            last = shown[:n]
            rates.append(smooth(sum(t >= last[-1] for t in clicks), len(last), user_logit, 3) - user_logit)
            dwells.append(math.log1p(sum(max(0, d) for *_, t, d in events if t >= last[-1]) / 1000 / len(last)))
        run: list[int] = []
        for before, t in zip([now, *shown], shown, strict=False):
            if before - t >= 30 * MINUTE:
                break
            run.append(t)
        so_far = (
            [math.log1p(len(run)), math.log1p(sum(t >= run[-1] for t in clicks)), minutes(now - run[-1])]
            if run
            else [0, 0, 16.0]
        )
        return [*rates, *dwells, *so_far, math.log1p(sum(t > max(clicks, default=-1) for t in shown))]

    def on_surface(
        self, a: Any, b: int, events: list[Any], shown: list[Any], now: int, surface: str | None, ring_logit: float
    ) -> list[float]:
        if b < 0 or not surface:
            return [0.0] * 4 + [16.0]
        number = 1 + h64(surface) % 31
        clicks = [e[2] for i, e in enumerate(events) if a.s_surface[b, i] == number and e[1] == CLS["click"]]
        here = [t for i, (_, t) in enumerate(shown) if a.m_surface[b, i] == number]
        since, last = shown[-1][1] if len(shown) == 64 else 0, here[:10]
        return [
            math.log1p(len(here)), math.log1p(len(clicks)),
            smooth(sum(t >= since for t in clicks), len(here), ring_logit, 5) - ring_logit,
            smooth(sum(t >= last[-1] for t in clicks) if last else 0, len(last), ring_logit, 5) - ring_logit,
            minutes(now - here[0] if here else None),
        ]  # fmt: skip

    # The block `online`: impressions in the ring as (item, ts, surface, clicked)

    def rings(self, a: Any, b: int, events: list[Any], shown: list[Any]) -> list[Any]:
        clicked = set()
        for i, c, t, _ in events:
            before = [k for k, (j, at) in enumerate(shown) if j == i and at <= t]
            if c == CLS["click"] and before:
                clicked.add(min(before))
        return [(i, t, int(a.m_surface[b, k]), k in clicked) for k, (i, t) in enumerate(shown)]

    def online_ratio(self, ring: list[Any], of: Any) -> float:
        mine = [e for e in ring if of(*e[:3])]
        return ratio(sum(e[3] for e in mine), sum(self.counters.online.p(i, at, t) for i, t, at, _ in mine))

    def online(self, item: int, now: int, surface: int, rings: list[Any]) -> list[float]:
        model, c = self.counters.online, self.counters
        linear, factored = model.logits(item, surface, now)
        age = lambda i, t: 0 if c.first_ms(i) is None else age_class(t - c.first_ms(i))  # noqa: E731
        category, advertiser = self.owner(item, "category"), self.owner(item, "advertiser")
        return [
            linear, factored, linear + factored, *(model.residual((item, -1), k, now) for k in range(3)),
            model.residual((item, surface), 1, now),
            self.online_ratio(rings, lambda i, t, _: age(i, t) == age(item, now)), self.online_ratio(rings, lambda i, *_: i == item),
            self.online_ratio(rings, lambda i, *_: category != 0 and self.owner(i, "category") == category),
            self.online_ratio(rings, lambda i, *_: advertiser != 0 and self.owner(i, "advertiser") == advertiser),
        ]  # fmt: skip

    # The blocks `content`, `passed`: embeddings of what the user read, and of what was shown and not read, newest first, each item once

    def embedding(self, item: int) -> list[int] | None:
        known = self.items.get(item)
        x = known.embedding if known else None
        if x is None or len(x) != self.spec.embedding or not all(map(math.isfinite, x)) or not any(x):
            return None
        return [round(v / max(map(abs, x)) * 127) for v in x]

    def profile(self, a: Any, b: int) -> tuple[list[float], float]:
        """Of state row b, and how many events it stands for."""
        n = int(a.i_len[b]) if b >= 0 else 0
        return profile((self.embedding(int(a.i_item[b, e])), float(a.i_weight[b, e])) for e in range(n))

    def read(self, events: list[Any]) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for item, cls, *_ in events:
            if cls != CLS["negative"] and self.embedding(item) is not None:
                found.setdefault(item, self.embedding(item))
        return found

    def passed(self, events: list[Any], impressions: list[Any]) -> list[list[int]]:
        left = dict.fromkeys(i for i, _ in impressions if i not in self.read(events))
        return [x for i in left if (x := self.embedding(i)) is not None]

    def content(self, item: int, read: list[list[int]]) -> list[float]:
        mine = self.embedding(item)
        if mine is None or not read:
            return [0.0] * 6
        like = [cosine(mine, x) for x in read]
        lengths = [math.hypot(*x) for x in read]
        middle = [sum(x[d] / n for x, n in zip(read, lengths, strict=True)) for d in range(len(mine))]
        weights = [math.exp(x / 0.15) for x in like]
        best = sorted(like)[-3:]
        return [
            sum(like) / len(like), cosine(mine, middle) if math.hypot(*middle) > 1e-6 * len(like) else 0.0, max(like), sum(best) / len(best),
            sum(x / k for k, x in enumerate(like, 1)) / sum(1 / k for k in range(1, 1 + len(like))),
            sum(w * x for w, x in zip(weights, like, strict=True)) / sum(weights),
        ]  # fmt: skip

    # The block `taste`

    def residual(self, now: int, clicks: list[Any], shown: list[Any]) -> float:
        since = shown[-1][1] if len(shown) == 64 else 0
        return self.ratio(now, [i for i, t in clicks if t >= since], [i for i, _ in shown])

    def ratio(self, now: int, clicked: list[int], shown: list[int]) -> float:
        whole = self.counters.global_logit(now, 1)
        expected = sum(1 / (1 + math.exp(-whole - self.counters.features("item", i, now)[5])) for i in shown)
        return math.log((len(clicked) + 0.5) / (expected + 0.5))

    def age_class(self, item: int, at: int) -> int:
        first = self.counters.first_ms(item)
        return -1 if first is None else min(11, math.floor(math.log2(1 + max(0, at - first) / 900_000)))

    def popularity_class(self, item: int, now: int) -> int:
        if self.counters.first_ms(item) is None:
            return -99
        return max(-8, min(8, math.floor(2 * self.counters.features("item", item, now)[5] + 0.5)))

    def tastes(self, now: int, clicks: list[Any], shown: list[Any]) -> list[float]:
        ages, rates = self.of_clicked(now, clicks)
        hour = lambda x: [(i, t) for i, t in x if t // (6 * HOUR) % 4 == now // (6 * HOUR) % 4]  # noqa: E731
        since = shown[-1][1] if len(shown) == 64 else 0
        now_clicked = [i for i, t in hour(clicks) if t >= since]
        return [
            self.residual(now, clicks, shown), sum(ages) / len(ages) if ages else 0.0, sum(rates) / len(rates) if rates else 0.0,
            self.ratio(now, now_clicked, [i for i, _ in hour(shown)]),
        ]  # fmt: skip

    def of_clicked(self, now: int, clicks: list[Any]) -> tuple[list[float], list[float]]:
        known = [(i, t, self.counters.first_ms(i)) for i, t in clicks]
        ages = [math.log1p(max(0, t - first) / HOUR) for _, t, first in known if first is not None]
        return ages, [self.counters.features("item", i, now)[5] for i, _, first in known if first is not None]

    def taste(self, item: int, now: int, clicks: list[Any], shown: list[Any]) -> list[float]:
        first = self.counters.first_ms(item)
        if first is None:
            return [0.0] * 6
        since = shown[-1][1] if len(shown) == 64 else 0
        recent = [(i, t) for i, t in clicks if t >= since]
        age, popularity = self.age_class(item, now), self.popularity_class(item, now)
        row: list[float] = []
        for of, mine in (
            (lambda i, t: self.age_class(i, t), age),
            (lambda i, t: self.popularity_class(i, now), popularity),
        ):
            here = [i for i, t in shown if of(i, t) == mine]
            row += [self.ratio(now, [i for i, t in recent if of(i, t) == mine], here), len(here)]
        ages, rates = self.of_clicked(now, clicks)
        log_age, rate = math.log1p(max(0, now - first) / HOUR), self.counters.features("item", item, now)[5]
        return [*row, *([log_age - sum(ages) / len(ages), rate - sum(rates) / len(rates)] if ages else [0.0, 0.0])]

    # The block `fatigue`

    def names_of(self, item: int) -> list[int | None]:
        return [
            item,
            self.owner(item, "category") or None,
            self.owner(item, "advertiser") or None,
            self.group_key(item),
        ]

    def lists_of(self, shown: list[Any]) -> list[list[Any]]:
        lists: list[list[Any]] = []
        for i, t in shown:
            if not lists or lists[-1][-1][1] - t > 1000:
                lists.append([])
            lists[-1].append((i, t))
        return lists

    def lists_seen(self, now: int, clicks: list[Any], shown: list[Any]) -> list[float]:
        lists = self.lists_of(shown)
        starts = [x[-1][1] for x in lists]
        clicked = [t for _, t in clicks]
        first = sum(t >= starts[0] for t in clicked) if lists else 0
        second = sum(starts[1] <= t < starts[0] for t in clicked) if len(lists) > 1 else 0
        sizes = [len(x) for x in lists] + [0, 0]
        return [
            sizes[0], sizes[1], len(shown) / max(1, len(lists)), len(lists), first, second,
            sum(t > max(clicked, default=-1) for t in starts),
            *(minutes(now - starts[k] if len(lists) > k else None) for k in range(2)),
        ]  # fmt: skip

    def fatigue(self, item: int, now: int, events: list[Any], shown: list[Any]) -> list[float]:
        mine = self.names_of(item)
        seen: list[list[int]] = []
        vain = []
        for k in range(4):
            same = [t for i, t in shown if mine[k] is not None and self.names_of(i)[k] == mine[k]]
            click = max(
                (t for i, c, t, _ in events if c == CLS["click"] and self.names_of(i)[k] == mine[k]), default=-1
            )
            seen.append(same)
            vain.append(sum(t > click for t in same))
        lists = self.lists_of(shown)
        dwell = sum(max(0, d) for i, _, _, d in events if i == item) / 1000
        of_group = sum(max(0, d) for i, _, _, d in events if self.group_key(i) == mine[3]) / 1000
        return [
            *(sum(now - t < span for t in seen[0]) for span in (10 * MINUTE, HOUR, DAY)),
            *(sum(now - t < HOUR for t in seen[k]) for k in (1, 2, 3)), *vain,
            float(bool(lists) and any(i == item for i, _ in lists[0])), sum(any(i == item for i, _ in x) for x in lists),
            minutes(now - max(seen[3]) if seen[3] else None), math.log1p(dwell), math.log1p(of_group / (1 + len(seen[3]))),
        ]  # fmt: skip


def haversine(lat1: float, lon1: float, lat2: float, lon2: float) -> float:
    """Kilometres between two places in degrees."""
    a, b, c, d = map(math.radians, (lat1, lon1, lat2, lon2))
    x = math.sin((c - a) / 2) ** 2 + math.cos(a) * math.cos(c) * math.sin((d - b) / 2) ** 2
    return 2 * 6371.0088 * math.asin(min(1, math.sqrt(x)))
