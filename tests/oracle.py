"""The contract's fold in plain Python: slow, obvious, and written without sight of the engine it judges.

A user's state is a function of the events counted, so the oracle keeps every event and computes answers on reading.
Only one thing looks at the order of arrival, as the contract has it: an event whose id is still in a ring (the user's
newest 64 impressions; for other events the group's newest 32) was counted already and is dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import xxhash

GROUP_RING, USER_RING, HOT_GROUPS = 32, 64, 128
MICROS = 1_000_000
DEFAULT_TYPE = {"impressions": "impression", "clicks": "click"}


def hash64(text: str) -> int:
    """XXH64 with seed 0 of the UTF-8 bytes: the hash that is part of the state's format."""
    return xxhash.xxh64_intdigest(text.encode(), seed=0)


class Kept(NamedTuple):
    """One counted event; the first two fields are the order of the rings."""

    ts: int
    eid: int
    item_id: str
    type: str
    dwell_ms: int | None
    value: int | None  # millionths


@dataclass
class User:
    """Everything counted of one user."""

    impressions: list[Kept] = field(default_factory=list)
    events: list[Kept] = field(default_factory=list)  # clicks and post-clicks


class Oracle:
    """Folds events one by one. `groups`: item id -> group number; an item that is not in it is a group of its own.
    `duplicates`: False for logs that are known to hold none, which is much faster."""

    def __init__(self, groups: Mapping[str, int] | None = None, duplicates: bool = True) -> None:
        self.groups, self.duplicates = dict(groups or {}), duplicates
        self.users: dict[str, User] = {}

    def fold(self, topic: str, partition: int, offset: int, event: Mapping[str, Any]) -> bool:
        """Count one well formed event of `topic` (without prefix); False when it is a duplicate."""
        eid = event.get("event_id")
        value = event.get("value")
        kept = Kept(
            event["ts"],
            hash64(eid if eid is not None else f"{topic}/{partition}/{offset}"),
            event["item_id"],
            event.get("type") or DEFAULT_TYPE[topic],
            event.get("dwell_ms"),
            None if value is None else round(value * MICROS),
        )
        user = self.users.get(event["user_id"]) or User()
        all_of_kind = user.impressions if topic == "impressions" else user.events
        if self.duplicates:
            group = self.group(kept.item_id)
            ring = (
                newest(all_of_kind, USER_RING)
                if topic == "impressions"
                else newest([e for e in all_of_kind if self.group(e.item_id) == group], GROUP_RING)
            )
            if any(e.eid == kept.eid for e in ring):
                return False
        self.users[event["user_id"]] = user
        all_of_kind.append(kept)
        return True

    def group(self, item_id: str) -> int | str:
        """The item's group: a number, or the item id itself while unassigned."""
        return self.groups.get(item_id, item_id)

    def group_key(self, group: int | str) -> int:
        """The number by which ties between groups are broken."""
        return group if isinstance(group, int) else (1 << 63) | (hash64(group) >> 1)

    def show(self, user_id: str) -> dict[str, Any] | None:
        """The contract's `state show` document, without `partition` and `offsets`; `value_sum` in units, not millionths."""
        u = self.users.get(user_id)
        if u is None:
            return None
        members: dict[int | str, tuple[list[Kept], list[Kept]]] = {}
        for k, kind in enumerate((u.impressions, u.events)):
            for e in kind:
                members.setdefault(self.group(e.item_id), ([], []))[k].append(e)
        groups = []
        for g, (imps, evs) in members.items():
            both = imps + evs
            dwell = [e.dwell_ms or 0 for e in both]
            groups.append({
                "group": g,
                "counts": dict(Counter(e.type for e in both)),
                "dwell_ms": {"sum": sum(dwell), "max": max(dwell)},
                "value_sum": sum(e.value or 0 for e in both) / MICROS,
                "first_ts": min(e.ts for e in both),
                "last_ts": max(e.ts for e in both),
                "recent": [{"item_id": e.item_id, "type": e.type, "ts": e.ts} for e in newest(evs, GROUP_RING)],
            })  # fmt: skip
        groups.sort(key=lambda g: (g["last_ts"], self.group_key(g["group"])), reverse=True)
        return {"user_id": user_id, "events": len(u.events), "impressions": len(u.impressions), "groups": groups}

    def short(self, user_id: str) -> list[Kept]:
        """The user's newest 64 clicks and post-click events over all groups, newest first."""
        return newest(self.users[user_id].events, USER_RING)

    def impressions(self, user_id: str) -> list[Kept]:
        """The user's newest 64 impressions, newest first."""
        return newest(self.users[user_id].impressions, USER_RING)

    def recent(self, user_id: str, group: int | str) -> list[Kept]:
        """The group's newest 32 clicks and post-click events, newest first."""
        return newest([e for e in self.users[user_id].events if self.group(e.item_id) == group], GROUP_RING)


def newest(events: list[Kept], n: int) -> list[Kept]:
    """The greatest n by (ts, event id hash), greatest first."""
    return sorted(events, key=lambda e: (e.ts, e.eid), reverse=True)[:n]
