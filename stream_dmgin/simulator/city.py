"""The city: districts, shops, chains, the category tree, prices, qualities, and the pictures' embeddings.

A shop belongs to one concept ("spicy ramen"), a concept to one leaf of the tree; the concept is what a multimodal
grouping should find, and is written as the shop's group. Chains are near-copies: same concept, almost the same
embedding and price, another place. Everything follows from `seed` and the number of shops.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.records import Item
from stream_dmgin.simulator.drift import moods
from stream_dmgin.simulator.policy import policy_mix
from stream_dmgin.simulator.words import DISTRICTS, FIRST, SECOND, STYLES, TREE

SIDE = 5  # districts form a SIDE x SIDE grid
DISTRICT_KM = 4.0
LAT0, LON0, LAT_KM, LON_KM = 45.40, 9.10, 1 / 111.2, 1 / 78.1  # south-west corner; degrees a kilometre
EMBEDDING = 32
RHYTHM_NAMES = ("meal", "morning", "afternoon", "evening", "night", "shop", "office")


class CityArrays(NamedTuple):
    """What the kernel reads. M shops, K concepts, A chains; kilometres from the south-west corner; days since the epoch."""

    concept: NDArray[np.int32]  # [M]
    chain: NDArray[np.int32]  # [M]
    x: NDArray[np.float32]  # [M] km
    y: NDArray[np.float32]  # [M] km
    log_price: NDArray[np.float32]  # [M]
    quality: NDArray[np.float32]  # [M] logit
    trend: NDArray[np.float32]  # [M,3] amplitude (logit), period (days), phase
    opened: NDArray[np.float64]  # [M] day it opened
    popular: NDArray[np.float64]  # [M] cumulative popularity, ends at 1
    district_start: NDArray[np.int32]  # [D+1] into district_items
    district_items: NDArray[np.int32]  # [M] shops by district
    concept_start: NDArray[np.int32]  # [K+1] into concept_items
    concept_items: NDArray[np.int32]  # [M] shops by concept
    chain_start: NDArray[np.int32]  # [A+1]
    chain_items: NDArray[np.int32]  # [M]
    rhythm: NDArray[np.float32]  # [K,2,24] logit by concept, weekend, hour
    mix: NDArray[np.float64]  # [days,5] cumulative shares of the ad policy's sources
    moods: NDArray[np.float32]  # [weeks,6] what counts how much in each week (`drift.py`); one week: nothing moves
    fashion: NDArray[np.float32]  # [weeks,K] logit
    seed: np.uint64


@dataclass(frozen=True)
class City:
    """The arrays of the kernel, and what only people and catalogues read."""

    arrays: CityArrays
    top: NDArray[np.int32]  # [K] top category of the concept
    leaf: NDArray[np.int32]  # [K]
    leaf_names: tuple[str, ...]  # "food/noodles/ramen"
    style: tuple[str, ...]  # [K]
    chain_names: tuple[str, ...]  # [A]
    district: NDArray[np.int32]  # [M]
    embedding: NDArray[np.float32]  # [M,EMBEDDING], unit length
    rating: NDArray[np.float32]  # [M] stars 1..5: quality as guests report it, with noise

    @property
    def shops(self) -> int:
        """Number of shops M."""
        return len(self.arrays.concept)

    @property
    def concepts(self) -> int:
        """Number of concepts K."""
        return len(self.top)

    def latlon(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Degrees (rounded to about a metre) of places in kilometres."""
        return np.round(LAT0 + y.astype(np.float64) * LAT_KM, 5), np.round(LON0 + x.astype(np.float64) * LON_KM, 5)

    def items(self) -> list[Item]:
        """The catalogue, as it goes to the items topic."""
        a = self.arrays
        lat, lon = self.latlon(a.x, a.y)
        out = []
        for i in range(self.shops):
            k, chain, d = int(a.concept[i]), int(a.chain[i]), int(self.district[i])
            leaf = self.leaf_names[self.leaf[k]]
            kind = leaf.rsplit("/", 1)[1]
            branch = int(np.searchsorted(a.chain_items[a.chain_start[chain] : a.chain_start[chain + 1]], i))
            name = self.chain_names[chain] + (f" {DISTRICTS[d]}" if branch else "")
            out.append(
                Item(
                    item_id=f"s{i}", name=name, category=leaf, advertiser=f"a{chain}", lat=float(lat[i]), lon=float(lon[i]),
                    text=f"{self.style[k]} {kind} in {DISTRICTS[d]}, rated {self.rating[i]:.1f}",
                    price=round(float(np.exp(a.log_price[i])), 2), image=f"city/{i}.png",
                    embedding=[round(float(v), 4) for v in self.embedding[i]],
                    attrs={"rating": round(float(self.rating[i]), 1), "opened_ms": int(a.opened[i] * 86_400_000)},
                )
            )  # fmt: skip
        return out


def build_city(shops: int = 2000, seed: int = 1, drift: float = 0.0) -> City:
    """A city of `shops` shops, in about shops/10 concepts (20 to 400). `drift`: how much it changes from week to week, 1 for plainly. The
    same arguments give the same city."""
    r = np.random.default_rng([seed, shops])
    tops, leaves, rhythms = list(TREE), [], []
    leaf_top: list[int] = []
    for t, middles in TREE.items():
        for m, (rhythm, names) in middles.items():
            leaves += [f"{t}/{m}/{n}" for n in names]
            rhythms += [RHYTHM_NAMES.index(rhythm)] * len(names)
            leaf_top += [tops.index(t)] * len(names)
    concepts = max(20, min(400, shops // 10))
    order = r.permutation(len(leaves))
    leaf = order[np.arange(concepts) % len(leaves)].astype(np.int32)
    top = np.array(leaf_top, np.int32)[leaf]
    style = _styles(leaf, r)

    # chains: most are a single shop, some have up to 12; all shops of a chain share its concept
    sizes = np.minimum(12, 1 + r.geometric(0.55, shops) // 2)
    chains = int(np.searchsorted(np.cumsum(sizes), shops)) + 1
    chain = np.repeat(np.arange(chains), sizes[:chains])[:shops].astype(np.int32)
    weight = 1 / (1 + np.arange(concepts)) ** 0.4
    chain_concept = np.concatenate([r.permutation(concepts), r.choice(concepts, chains, p=weight / weight.sum())])[
        :chains
    ]
    concept = chain_concept[chain].astype(np.int32)

    density = r.dirichlet(np.full(SIDE * SIDE, 3.0))
    district = r.choice(SIDE * SIDE, shops, p=density).astype(np.int32)
    x = ((district % SIDE + r.random(shops)) * DISTRICT_KM).astype(np.float32)
    y = ((district // SIDE + r.random(shops)) * DISTRICT_KM).astype(np.float32)
    leaf_price = r.normal(2.8, 0.6, len(leaves))
    log_price = leaf_price[leaf[concept]] + r.normal(0, 0.35, chains)[chain] + r.normal(0, 0.05, shops)
    quality = r.normal(0, 0.25, chains)[chain] + r.normal(0, 0.2, shops)
    rating = np.clip(3.8 + 1.2 * quality + r.normal(0, 0.3, shops), 1, 5)
    trend = np.stack([np.abs(r.normal(0, 0.25, shops)), r.uniform(5, 40, shops), r.random(shops)], 1)
    # some open while the city is watched
    opened = np.where(r.random(shops) < 0.85, 14_600.0, 20_300 + r.random(shops) * 500)
    heat = r.permutation(shops).astype(float)
    popularity = np.exp(0.8 * quality) / (30 + heat)

    def vec(n: int) -> NDArray[np.float64]:
        return r.normal(0, 1, (n, EMBEDDING))

    e = 0.7 * vec(len(tops))[top[concept]] + 0.8 * vec(len(leaves))[leaf[concept]] + 1.0 * vec(concepts)[concept]
    e += 0.25 * vec(chains)[chain] + 0.15 * vec(shops)
    arrays = CityArrays(
        concept, chain, x, y, log_price.astype(np.float32), quality.astype(np.float32), trend.astype(np.float32), opened,
        np.cumsum(popularity) / popularity.sum(), *_by(district, SIDE * SIDE), *_by(concept, concepts), *_by(chain, chains),
        _rhythm(np.array(rhythms)[leaf], r), policy_mix(r), *moods(concepts, seed, drift), np.uint64(seed),
    )  # fmt: skip
    return City(
        arrays, top, leaf, tuple(leaves), style, tuple(f"{FIRST[a]} {SECOND[b]}" for a, b in r.integers(0, 20, (chains, 2))),
        district, (e / np.linalg.norm(e, axis=1, keepdims=True)).astype(np.float32), rating.astype(np.float32),
    )  # fmt: skip


def _by(key: NDArray[np.int32], n: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Starts [n+1] and members of each key, in order."""
    starts = np.zeros(n + 1, np.int32)
    starts[1:] = np.cumsum(np.bincount(key, minlength=n))
    return starts, np.argsort(key, kind="stable").astype(np.int32)


def _styles(leaf: NDArray[np.int32], r: np.random.Generator) -> tuple[str, ...]:
    """A style word for each concept, no word twice within a leaf."""
    words = [list(r.permutation(STYLES)) for _ in range(int(leaf.max()) + 1)]
    return tuple(str(words[x].pop()) for x in leaf)


def _rhythm(kind: NDArray[np.int64], r: np.random.Generator) -> NDArray[np.float32]:
    """[K,2,24] logits: when each concept is wanted, on weekdays and weekends, mean about zero over waking hours."""
    h = np.arange(24)

    def bump(at: float, width: float) -> NDArray[np.float64]:
        d = np.minimum(np.abs(h - at), 24 - np.abs(h - at))
        return np.asarray(np.exp(-0.5 * (d / width) ** 2))

    week = {
        "meal": bump(12.3, 1.2) + bump(19, 1.4), "morning": 1.3 * bump(8, 1.5), "afternoon": 1.2 * bump(15.5, 2),
        "evening": 1.2 * bump(18.5, 2), "night": 1.3 * bump(21.5, 2), "shop": 0.8 * bump(14, 4), "office": bump(11, 3.5),
    }  # fmt: skip
    free = {
        "meal": 0.8 * bump(13, 1.5) + 1.2 * bump(19.5, 1.5), "morning": 1.2 * bump(10, 1.5), "afternoon": 1.6 * bump(15, 2.5),
        "evening": 0.9 * bump(17, 3), "night": 1.7 * bump(22, 2.5), "shop": 1.4 * bump(14.5, 3), "office": 0.1 * bump(11, 2),
    }  # fmt: skip
    table = np.array([[week[n], free[n]] for n in RHYTHM_NAMES]) - 0.4
    out = table[kind] * r.uniform(0.8, 1.4, (len(kind), 1, 1)) + r.normal(0, 0.05, (len(kind), 2, 24))
    return out.astype(np.float32)
