"""Random logs of events that look for trouble, and a harness that drives one StateEngine and the oracle side by side."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import Record, batch_of
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.parse import parse_events
from stream_dmgin.topics import EVENTS
from tests.oracle import Oracle

T0 = 1_760_000_000_000
PARTITION = 5
FULL = [f"dmgin.{n}" for n in EVENTS]
Logged = tuple[str, dict[str, Any]]  # topic without prefix, event

# Keys of the store are made of ids: some that are prefixes of others, look like suffixes of keys, or are as long as can be.
TRICKY_IDS = (
    "u", "uu", "u\0", "u\0\0", "u\0\0\0\0\1", "\0", "u\x01", "u+", "d+u", "漢字", "é", "e\u0301", "\U0010ffff", "ÿ", "l" * 1024,
    "l" * 1023, "é" * 512, "u1", "u10", "u100", " ", "U",
)  # fmt: skip


@dataclass
class Shape:
    """What a random log is made of."""

    n: int = 200
    users: Sequence[str] = ("u",)
    items: Sequence[str] = ("a", "b", "c")
    types: Sequence[str] = ("order", "cart", "dwell")
    ts_range: int = 1000  # small: many ties
    impressions: float = 0.4
    clicks: float = 0.3
    no_event_id: float = 0.0  # only where the log itself stays the same: the offset is their id
    duplicates: float = 0.0
    duplicate_distance: int = 5


def random_log(r: random.Random, shape: Shape) -> list[Logged]:
    """Events in order of arrival; a duplicate is an equal event of the same topic further on."""
    out: list[Logged] = []
    tag = r.randrange(1 << 30)
    for k in range(shape.n):
        x = r.random()
        topic = EVENTS[0 if x < shape.impressions else 1 if x < shape.impressions + shape.clicks else 2]
        e: dict[str, Any] = {
            "user_id": r.choice(shape.users), "item_id": r.choice(shape.items), "ts": T0 + r.randrange(shape.ts_range)
        }  # fmt: skip
        if r.random() >= shape.no_event_id:
            e["event_id"] = f"{tag}-{k}" if r.random() < 0.9 else f"{tag}-é漢-{k}" + "x" * r.randrange(200)
        if topic == "post-clicks" or r.random() < 0.1:
            e["type"] = r.choice(shape.types)
        if r.random() < 0.5:
            e["dwell_ms"] = r.choice((0, 1, r.randrange(60_000), (1 << 32) - 1))
        if r.random() < 0.3:
            e["value"] = r.choice(
                (0, 3, 0.1, 1e-7, 0.0000005, round(r.random() * 90, 2), r.random() * 1e9, 123456.7890125)
            )
        if r.random() < 0.1:
            e["attrs"] = {"x": [1, None]}
        out.append((topic, e))
    for k in range(len(out) - 1, -1, -1):
        if r.random() < shape.duplicates and "event_id" in out[k][1]:
            out.insert(min(len(out), k + 1 + r.randrange(shape.duplicate_distance)), (out[k][0], dict(out[k][1])))
    return out


def groups_of(items: Iterable[str], groups: int, unassigned: float, r: random.Random) -> dict[str, int]:
    """A random map from items to groups, which leaves some out; some numbers are large."""
    numbers = [0, (1 << 31) - 1, *range(1, max(2, groups - 1))][:groups]
    return {i: r.choice(numbers) for i in items if r.random() >= unassigned}


@dataclass
class Pair:
    """One partition's engine and its oracle, fed the same way, checked against each other."""

    path: Path | None
    groups: Mapping[str, int] = field(default_factory=dict)
    cache_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        self.oracle = Oracle(self.groups)
        self._committed = (copy.deepcopy(self.oracle), dict.fromkeys(EVENTS, 0))
        self.logs: dict[str, list[bytes]] = {n: [] for n in EVENTS}
        self.next = dict.fromkeys(EVENTS, 0)
        self.engine = self._open()

    def _open(self) -> StateEngine:
        return StateEngine.open(
            self.path, PARTITION, GroupMap(self.groups), cache_bytes=self.cache_bytes, durable=False
        )

    def write(self, log: Iterable[Logged]) -> None:
        """Append to the topics; nothing is folded yet."""
        for topic, e in log:
            self.logs[topic].append(msgpack.packb(e))

    def pending(self) -> list[str]:
        """The topic of each record that is not folded yet, in the order of topics."""
        return [t for t in EVENTS for _ in range(len(self.logs[t]) - self.next[t])]

    def fold(self, order: Sequence[str], overlap: int = 0) -> int:
        """Fold the next record of each topic named, in this order, as one batch; `overlap`: each topic's batch begins that
        many records early, which must change nothing."""
        records: list[Record] = []
        counted = 0
        for t in EVENTS if overlap else ():
            for o in range(max(0, self.next[t] - overlap), self.next[t]):
                records.append(self._record(t, o))
        for t in order:
            o = self.next[t]
            records.append(self._record(t, o))
            event = msgpack.unpackb(self.logs[t][o])
            counted += self.oracle.fold(t, PARTITION, o, event)
            self.next[t] = o + 1
        if not records:
            return 0
        batch = batch_of(FULL, records)
        columns, bad = parse_events(batch, np.arange(3, dtype=np.uint8))
        assert not bad
        got = self.engine.fold(columns, np.arange(len(records), dtype=np.int32))
        batch.release()
        assert got == counted
        return got

    def _record(self, topic: str, offset: int) -> Record:
        value = self.logs[topic][offset]
        user: str = msgpack.unpackb(value)["user_id"]
        return Record(f"dmgin.{topic}", PARTITION, offset, T0 + 10**9, user.encode(), value)

    def fold_all(self, r: random.Random, batch: int) -> None:
        """Fold what is pending, topics interleaved at random, in batches of about this size."""
        rest = self.pending()
        r.shuffle(rest)
        at = 0
        while at < len(rest):
            n = r.randrange(1, 2 * batch)
            self.fold(rest[at : at + n])
            at += n

    def commit(self) -> None:
        self.engine.commit()
        self._committed = (copy.deepcopy(self.oracle), dict(self.next))

    def restart(self) -> None:
        """Without a commit: what was folded since the last one is forgotten, and will be read again."""
        self.engine.close()
        oracle, self.next = copy.deepcopy(self._committed[0]), dict(self._committed[1])
        oracle.groups = dict(self.groups)
        self.oracle = oracle
        self.engine = self._open()
        assert {t: self.engine.offsets.get(k, 0) for k, t in enumerate(EVENTS)} == self.next

    def regroup(self, groups: Mapping[str, int]) -> None:
        """The map grows."""
        self.groups = {**self.groups, **groups}
        self.oracle.groups = dict(self.groups)
        self.engine.regroup(GroupMap(self.groups))

    def check(self) -> None:
        """Engine and oracle agree about every user."""
        assert sorted(self.engine.users()) == sorted(self.oracle.users)
        assert self.engine.count_users() == len(self.oracle.users)
        for u in self.oracle.users:
            assert differences(self.oracle.show(u), self.engine.show(u)) == [], repr(u)
        assert self.engine.show("nobody at all") is None

    def canonical(self) -> dict[str, bytes]:
        return {u: self.engine.canonical(u) for u in self.oracle.users}

    def close(self) -> None:
        self.engine.close()


def differences(want: Any, got: Any, at: str = "") -> list[str]:
    """Where `got` is not `want`; keys that only `got` has are extensions."""
    if isinstance(want, dict) and isinstance(got, dict):
        return [
            d
            for k in want
            for d in (differences(want[k], got[k], f"{at}.{k}") if k in got else [f"{at}.{k}: missing"])
        ] + ([f"{at}: more types {set(got) - set(want)}"] if at.endswith("counts") and set(got) - set(want) else [])  # fmt: skip
    if isinstance(want, list) and isinstance(got, list):
        if len(want) != len(got):
            return [f"{at}: {len(got)} entries instead of {len(want)}"]
        return [d for k, (w, g) in enumerate(zip(want, got, strict=True)) for d in differences(w, g, f"{at}[{k}]")]
    if at.endswith("value_sum"):
        return [] if abs(want - got) <= 1e-6 * max(1.0, 1e-9 * abs(want)) else [f"{at}: {got!r} instead of {want!r}"]
    return [] if want == got else [f"{at}: {got!r} instead of {want!r}"]
