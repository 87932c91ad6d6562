"""The kernel: what the ad policy shows, the true probability of a click, and what follows. Pure function of seeds and memory.

All compiled code of a page view is in this one file on purpose: the on-disk cache of the compiler watches only the file of
the function it was asked for. Nothing here blocks; it allocates nothing per view. Cost: about 1.5 us per candidate.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stream_dmgin.simulator.city import CityArrays
from stream_dmgin.simulator.columns import each, joined
from stream_dmgin.simulator.drift import CLICKS, DISTANCE, FIRST_DAY, LOYALTY, PRICE, RHYTHM, TASTE
from stream_dmgin.simulator.users import Memory, UserArrays

IMPRESSION, CLICK, DWELL, CART, FAVOURITE, ORDER, SHARE, NEGATIVE = range(8)
KINDS = (
    "impression",
    "click",
    "dwell",
    "cart",
    "favourite",
    "order",
    "share",
    "negative",
)  # bit i of an outcome: KINDS[i] happened
CANDIDATES_MAX = 1000
SEEN_DAYS, BOUGHT_DAYS, CLICKED_DAYS, VISIT_DAYS, ITEM_SEEN_DAYS = 0.25, 0.4, 60.0, 75.0, 1.0
EVENTS_PER_SHOWN = 8  # an impression can have at most this many events
_SURFACE = np.array([0.15, 0.0, -0.2])
_STEP = np.uint64(0x9E3779B97F4A7C15)


class Views(NamedTuple):
    """V page views, in the order in which each user makes them."""

    user: NDArray[np.int32]  # [V] index into the block's users
    number: NDArray[np.int64]  # [V] the user's how-manieth view
    ts: NDArray[np.int64]  # [V] ms
    surface: NDArray[np.uint8]  # [V]
    x: NDArray[np.float32]  # [V] km, where the user is
    y: NDArray[np.float32]  # [V]
    item: NDArray[np.int32]  # [V,C] candidates, the first `shown` are shown; -1: none
    p: NDArray[np.float32]  # [V,C] true probability of a click if shown
    outcome: NDArray[np.uint8]  # [V,C] bits of KINDS


class Events(NamedTuple):
    """N events, by view."""

    page: NDArray[np.int32]  # [N] index into the views
    item: NDArray[np.int32]  # [N]
    kind: NDArray[np.uint8]  # [N]
    ts: NDArray[np.int64]  # [N] ms
    dwell: NDArray[np.int64]  # [N] ms, -1: none
    value: NDArray[np.float64]  # [N] NaN: none
    position: NDArray[np.int16]  # [N] slot of the ad


@njit(cache=True, inline="always")
def _mix(x):  # type: ignore[no-untyped-def]
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True, inline="always")
def _seed(a, b, c):  # type: ignore[no-untyped-def]
    return _mix(
        _mix(_mix(np.uint64(a) + _STEP) ^ (np.uint64(b) * _STEP)) + np.uint64(c) * np.uint64(0xD1B54A32D192ED03)
    )


@njit(cache=True, inline="always")
def _uniform(s):  # type: ignore[no-untyped-def]
    """Next number in [0, 1) of the stream s[0]."""
    s[0] += _STEP
    return float(_mix(s[0]) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@njit(cache=True)
def _normal(s):  # type: ignore[no-untyped-def]
    return math.sqrt(-2.0 * math.log(1.0 - _uniform(s))) * math.cos(2 * math.pi * _uniform(s))


@njit(cache=True)
def _sigmoid(z):  # type: ignore[no-untyped-def]
    return 1.0 / (1.0 + math.exp(-z))


@njit(cache=True)
def _taste(u, k, day, users):  # type: ignore[no-untyped-def]
    """What user u thinks of concept k on that day: steady, in and out of season, or slowly drifting."""
    low, high = users.low[u, k], users.high[u, k]
    m = users.motion[u, k]
    if m == 0:
        return low
    part = (day / users.period[u, k] + users.phase[u, k]) % 1.0
    if m == 1:  # in season for a third of the period, with soft edges
        return low + (high - low) * (math.sqrt(math.sin(math.pi * part * 3)) if part < 1 / 3 else 0.0)
    return low + (high - low) * (0.5 + 0.5 * math.sin(2 * math.pi * part))


@njit(cache=True)
def _open(i, day, hour, city):  # type: ignore[no-untyped-def]
    """Whether the shop exists and its advertiser still has money: some plan no campaign this week, some spend a day's budget early."""
    if city.opened[i] > day:
        return False
    chain, d = city.chain[i], int(day)
    if float(_seed(city.seed, chain, d // 7) >> np.uint64(40)) < 0.12 * 16777216:
        return False
    return hour < 9 + 40 * float(_seed(city.seed, chain, 1_000_003 + d) >> np.uint64(40)) / 16777216


@njit(cache=True)
def _slot(keys, u, key):  # type: ignore[no-untyped-def]
    return np.int64(_mix(np.uint64(key) * _STEP) % np.uint64(keys.shape[1]))


@njit(cache=True)
def _candidate(u, day, x, y, plan, s, city, memory):  # type: ignore[no-untyped-def]
    """One draw of the ad policy: a shop from one of its five sources."""
    r = _uniform(s)
    shops = len(city.concept)
    if r < plan[0]:
        return min(shops - 1, np.searchsorted(city.popular, _uniform(s)))
    if r < plan[1]:
        d = min(4, max(0, int(x / 4 + 0.8 * (_uniform(s) - 0.5)))) + 5 * min(
            4, max(0, int(y / 4 + 0.8 * (_uniform(s) - 0.5)))
        )
        a, b = city.district_start[d], city.district_start[d + 1]
        return city.district_items[a + int(_uniform(s) * (b - a))] if b > a else int(_uniform(s) * shops)
    if r < plan[2]:  # of some concepts the one clicked most, of two of its shops the nearer
        best, liked = -1, -1.0
        for _ in range(6):
            k = int(_uniform(s) * memory.clicked.shape[1])
            if memory.clicked[u, k] > liked:
                best, liked = k, memory.clicked[u, k]
        a, b = city.concept_start[best], city.concept_start[best + 1]
        if b == a:
            return int(_uniform(s) * shops)
        i, j = city.concept_items[a + int(_uniform(s) * (b - a))], city.concept_items[a + int(_uniform(s) * (b - a))]
        di = (city.x[i] - x) ** 2 + (city.y[i] - y) ** 2
        return i if di < (city.x[j] - x) ** 2 + (city.y[j] - y) ** 2 else j
    if r < plan[3]:  # a shop clicked before, or another one of its chain
        for _ in range(4):
            w = int(_uniform(s) * memory.item.shape[1])
            i = memory.item[u, w]
            if i >= 0 and memory.item_visits[u, w] > 0.05:
                c = city.chain[i]
                a, b = city.chain_start[c], city.chain_start[c + 1]
                return city.chain_items[a + int(_uniform(s) * (b - a))] if _uniform(s) < 0.4 else i
    return int(_uniform(s) * shops)


@njit(cache=True, inline="always")
def _between(table, a, b, j, part):  # type: ignore[no-untyped-def]
    """Column j of a table, `part` of the way from row a to row b."""
    return table[a, j] + part * (table[b, j] - table[a, j])


@njit(cache=True)
def _logit(u, i, day, hour, weekend, x, y, city, users, memory):  # type: ignore[no-untyped-def]
    """The truth: how much user u, here and now, wants to click shop i."""
    k = city.concept[i]
    week = (day - FIRST_DAY) / 7
    part = week - math.floor(week)
    a, b = math.floor(week) % len(city.moods), (math.floor(week) + 1) % len(city.moods)
    z = 1.15 * _between(city.moods, a, b, TASTE, part) * _taste(u, k, day, users)
    z += _between(city.moods, a, b, RHYTHM, part) * city.rhythm[k, weekend, hour] + city.quality[i]
    z += _between(city.moods, a, b, CLICKS, part) + _between(city.fashion, a, b, k, part)
    z += city.trend[i, 0] * math.sin(2 * math.pi * (day / city.trend[i, 1] + city.trend[i, 2]))
    z -= (
        _between(city.moods, a, b, DISTANCE, part)
        * users.lazy[u]
        * math.log(1 + math.hypot(city.x[i] - x, city.y[i] - y))
    )
    z -= (
        _between(city.moods, a, b, PRICE, part) * users.thrift[u] * min(4.0, (city.log_price[i] - users.budget[u]) ** 2)
    )
    gone = day - memory.concept_t[u, k]
    z -= 0.12 * math.log2(1 + memory.seen[u, k] * 0.5 ** (gone / SEEN_DAYS))  # satiation: seen lately, bought lately
    z -= 1.1 * min(1.0, memory.bought[u, k] * 0.5 ** (gone / BOUGHT_DAYS))
    w = _slot(memory.item, u, i)
    own = 0.0
    if memory.item[u, w] == i:
        gone = day - memory.item_t[u, w]
        z -= 0.25 * math.log2(1 + memory.item_seen[u, w] * 0.5 ** (gone / ITEM_SEEN_DAYS))
        own = memory.item_visits[u, w] * 0.5 ** (gone / VISIT_DAYS)
    c = city.chain[i]
    w = _slot(memory.chain, u, c)
    kin = (
        memory.chain_visits[u, w] * 0.5 ** ((day - memory.chain_t[u, w]) / VISIT_DAYS)
        if memory.chain[u, w] == c
        else 0.0
    )
    loyal = _between(city.moods, a, b, LOYALTY, part) * users.loyal[u]
    return z + loyal * (0.8 * (1 - math.exp(-own / 1.5)) + 0.6 * (1 - math.exp(-kin / 2)))


@njit(cache=True)
def _remember(u, i, day, click, order, city, memory):  # type: ignore[no-untyped-def]
    """One impression, and what came of it, into the user's memory."""
    k = city.concept[i]
    gone = day - memory.concept_t[u, k]
    memory.seen[u, k] = memory.seen[u, k] * 0.5 ** (gone / SEEN_DAYS) + 1
    memory.bought[u, k] = memory.bought[u, k] * 0.5 ** (gone / BOUGHT_DAYS) + order
    memory.clicked[u, k] = memory.clicked[u, k] * 0.5 ** (gone / CLICKED_DAYS) + click
    memory.concept_t[u, k] = day
    visit = 0.15 * click + order
    w = _slot(memory.item, u, i)
    if memory.item[u, w] != i:
        if not click and memory.item[u, w] >= 0 and memory.item_visits[u, w] > 0.05:
            w = -1  # a glance doesn't displace a shop that was visited
        else:
            memory.item[u, w], memory.item_seen[u, w], memory.item_visits[u, w], memory.item_t[u, w] = i, 0, 0, day
    if w >= 0:
        gone = day - memory.item_t[u, w]
        memory.item_seen[u, w] = memory.item_seen[u, w] * 0.5 ** (gone / ITEM_SEEN_DAYS) + 1
        memory.item_visits[u, w] = memory.item_visits[u, w] * 0.5 ** (gone / VISIT_DAYS) + visit
        memory.item_t[u, w] = day
    if click:
        c = city.chain[i]
        w = _slot(memory.chain, u, c)
        if memory.chain[u, w] != c:
            memory.chain[u, w], memory.chain_visits[u, w], memory.chain_t[u, w] = c, 0, day
        memory.chain_visits[u, w] = (
            memory.chain_visits[u, w] * 0.5 ** ((day - memory.chain_t[u, w]) / VISIT_DAYS) + visit
        )
        memory.chain_t[u, w] = day


@njit(cache=True, inline="always")
def _put(out, n, page, item, kind, ts, dwell, value, slot):  # type: ignore[no-untyped-def]
    out.page[n], out.item[n], out.kind[n], out.ts[n] = page, item, kind, ts
    out.dwell[n], out.value[n], out.position[n] = dwell, value, slot
    return n + 1


@njit(cache=True)
def _follow(u, i, z, ts, v, slot, n, s, city, users, out):  # type: ignore[no-untyped-def]
    """What follows a click: events from row n on. Returns the next free row and the outcome's bits. z: logit less the base."""
    t = ts + 600 + int(9000 * _uniform(s))
    bits = 2
    n = _put(out, n, v, i, CLICK, t, -1, np.nan, slot)
    dwell = int(1000 * min(1800.0, math.exp(2.3 + 0.35 * z + 0.7 * _normal(s))))
    t += dwell
    bits |= 1 << DWELL
    n = _put(out, n, v, i, DWELL, t, dwell, np.nan, slot)
    for kind in range(CART, NEGATIVE + 1):
        if kind == CART:
            p = _sigmoid(-2.7 + 0.6 * z + users.spend[u])
        elif kind == FAVOURITE:
            p = _sigmoid(-3.4 + 0.7 * z)
        elif kind == ORDER:
            p = _sigmoid(-3.3 + 0.8 * z + users.spend[u] - 0.3 * (city.log_price[i] - users.budget[u]))
        elif kind == SHARE:
            p = _sigmoid(-4.0 + 0.5 * z)
        else:
            p = _sigmoid(-3.4 - 0.9 * z)
        if _uniform(s) < p:
            bits |= 1 << kind
            at = t + 300 + int(_uniform(s) * (60_000 if kind == ORDER else 4000))
            value = round(math.exp(city.log_price[i]) * (0.8 + 1.5 * _uniform(s)), 2) if kind == ORDER else np.nan
            n = _put(out, n, v, i, kind, at, -1, value, slot)
    return n, bits


@njit(cache=True)
def run(seed, base, shown, first, views, city, users, memory, out):  # type: ignore[no-untyped-def]
    """Plays the views in order: fills surface, place, candidates, truth and outcome of each, appends the events to `out`
    (which must have room for EVENTS_PER_SHOWN x shown a view) and moves the users' memory. `first`: number of user 0.
    Returns the number of events."""
    s, draw = np.empty(1, np.uint64), np.empty(1, np.uint64)
    n, asked = 0, views.item.shape[1]
    for v in range(len(views.user)):
        u, ts = views.user[v], views.ts[v]
        number = memory.views[u]
        memory.views[u] += 1
        views.number[v] = number
        s[0] = _seed(seed, first + u, number * 2)
        draw[0] = _seed(seed, first + u, number * 2 + 1)
        day = ts / 86_400_000
        hour = int(ts // 3_600_000 % 24)
        weekday = (int(day) + 3) % 7  # the epoch was a Thursday
        weekend = 1 if weekday >= 5 else 0
        r = _uniform(s)
        if r < 0.12:
            x, y = 20 * _uniform(s), 20 * _uniform(s)
        elif not weekend and 9 <= hour < 18:
            x, y = users.work[u, 0] + 0.3 * _normal(s), users.work[u, 1] + 0.3 * _normal(s)
        else:
            x, y = users.home[u, 0] + 0.3 * _normal(s), users.home[u, 1] + 0.3 * _normal(s)
        views.x[v], views.y[v] = x, y
        r = _uniform(s)
        surface = 0 if r < 0.6 else 1 if r < 0.85 else 2
        views.surface[v] = surface
        plan = city.mix[int(day) % len(city.mix)]
        for c in range(asked):
            views.item[v, c] = -1
            for _ in range(8):
                i = _candidate(u, day, x, y, plan, s, city, memory)
                twice = False
                for d in range(c):
                    twice |= views.item[v, d] == i
                if not twice and _open(i, day, hour, city):
                    views.item[v, c] = i
                    break
            i = views.item[v, c]
            views.outcome[v, c] = 0
            views.p[v, c] = 0.0
            if i >= 0:
                z = _logit(u, i, day, hour, weekend, x, y, city, users, memory) + _SURFACE[surface]
                views.p[v, c] = _sigmoid(base + z)
        for c in range(min(shown, asked)):  # memory moves only after the whole list's truth is known
            i = views.item[v, c]
            if i < 0:
                continue
            bits = 1
            at = ts + 80 + int(120 * _uniform(draw))
            n = _put(out, n, v, i, IMPRESSION, at, -1, np.nan, c)
            p = views.p[v, c]
            if _uniform(draw) < p:
                n, more = _follow(u, i, math.log(p / (1 - p)) + 2.2, at, v, c, n, draw, city, users, out)
                bits |= more
            views.outcome[v, c] = bits
            _remember(u, i, day, (bits >> CLICK) & 1, (bits >> ORDER) & 1, city, memory)
    return n


@njit(cache=True)
def schedule(seed, first, life, joined, per_view, start, days, hours, counts, user, ts):  # type: ignore[no-untyped-def]
    """When each user looks: sessions on days since joining, at hours of the day by the cumulative `hours` [2,24], views some
    seconds apart. Fills user and ts (ms, ascending within a user); counts[u]: views of user u."""
    s = np.empty(1, np.uint64)
    n = 0
    for u in range(len(life)):
        s[0] = _seed(seed, first + u, 0xA11CE)
        begin = n
        while n - begin < counts[u]:
            day = int((joined[u] + (1 - joined[u]) * _uniform(s)) * days)
            weekend = 1 if (int(start // 86_400_000) + day + 3) % 7 >= 5 else 0
            hour = min(23, np.searchsorted(hours[weekend], _uniform(s)))
            t = start + day * 86_400_000 + hour * 3_600_000 + int(_uniform(s) * 3_600_000)
            while n - begin < counts[u]:
                user[n], ts[n] = u, t
                n += 1
                t += 8_000 + int(70_000 * _uniform(s))
                if _uniform(s) < 0.33:
                    break
        ts[begin:n].sort()
    return n


def new_views(count: int, candidates: int) -> Views:
    """Room for `count` views of `candidates` candidates."""
    f = np.float32
    return Views(
        np.zeros(count, np.int32), np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count, np.uint8), np.zeros(count, f),
        np.zeros(count, f), np.zeros((count, candidates), np.int32), np.zeros((count, candidates), f),
        np.zeros((count, candidates), np.uint8),
    )  # fmt: skip


def _room(n: int) -> Events:
    return Events(
        np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.uint8), np.empty(n, np.int64), np.empty(n, np.int64),
        np.empty(n), np.empty(n, np.int16),
    )  # fmt: skip


def play(
    seed: int, base: float, shown: int, views: Views, city: CityArrays, users: UserArrays, memory: Memory
) -> Events:
    """Plays the views (user and ts are given, the rest is filled in) and returns their events."""
    parts = []
    step = 4096
    room = EVENTS_PER_SHOWN * shown * min(step, max(1, len(views.user)))
    for a in range(0, len(views.user), step):
        part = each(views, lambda c, a=a: c[a : a + step])  # type: ignore[misc]
        out = _room(room)
        n = run(np.uint64(seed), base, shown, users.first, part, city, users, memory, out)
        cut = each(out, lambda c, n=n: c[:n].copy())  # type: ignore[misc]
        parts.append(cut._replace(page=cut.page + np.int32(a)))
    return joined(parts) if parts else _room(0)
