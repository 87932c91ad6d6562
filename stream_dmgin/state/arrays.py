"""`UserArrays`: the state of users as fixed numpy arrays, for the features. Filled by `StateEngine.read`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.features.spec import N_CLS, InputSpec
from stream_dmgin.state.layout import GROUP_RING, HOT, USER_RING

I64: TypeAlias = NDArray[np.int64]
U64: TypeAlias = NDArray[np.uint64]
I32: TypeAlias = NDArray[np.int32]
U8: TypeAlias = NDArray[np.uint8]


@dataclass
class UserArrays:
    """Room for B users, G (at most 128) groups of each, L (at most 32) events of each group, 64 of each user's rings, I interests.

    What lies beyond `n_groups`, `g_len`, `s_len`, `m_len` and `i_len` is undefined. Everything is newest first: groups by (last ts,
    key), events by (ts, event-id hash). Times in ms; `dwell` of an event is -1 where it has none;
    item hashes are XXH64; `*_cls` are indexes in `spec.BEHAVIOUR_CLASSES`; `*_surface` numbers by
    `state.hash.surface_of`. `digest` is a hash of the user's whole hot state
    (all 128 groups, all of the rings), whatever G and L are. `version` changes with each counted event.
    `n_events` counts all but impressions, `n_clicks` what is of the class click.

    The interests are of all groups that the map names, cold ones too, by their numbers: the newest four clicks and events that say
    yes of each (`readout.INTERESTED`), each weighing as many for life as it stands for. Where I is 0, `i_len` is undefined.
    """

    n_events: I64
    n_impressions: I64
    last_ts: I64
    last_event_ts: I64
    last_impression_ts: I64
    n_groups_total: I32
    version: I64
    digest: U64
    n_groups: I32
    g_key: U64
    g_counts: I64
    g_dwell_sum: I64
    g_dwell_max: I64
    g_value_sum: I64
    g_first: I64
    g_last: I64
    g_len: I32
    e_item: U64
    e_cls: U8
    e_ts: I64
    e_dwell: I64
    s_len: I32
    s_item: U64
    s_cls: U8
    s_ts: I64
    s_dwell: I64
    m_len: I32
    m_item: U64
    m_ts: I64
    s_surface: U8
    m_surface: U8
    n_clicks: I64
    i_len: I32
    i_item: U64
    i_weight: NDArray[np.float64]
    addresses: I64 = field(init=False, repr=False)

    def __post_init__(self) -> None:
        names = [f.name for f in fields(self) if f.name != "addresses"]
        shape = (*self.g_key.shape, self.e_item.shape[2])
        data = [getattr(self, n).ctypes.data for n in names]
        self.addresses = np.array([*shape, *data, self.i_item.shape[1]], np.int64)

    @classmethod
    def of(cls, spec: InputSpec, users: int) -> UserArrays:
        """Arrays for as much of `users` users as inputs of this spec are made from."""
        return cls.allocate(users, spec.groups, spec.events, spec.interests)

    @classmethod
    def allocate(cls, users: int, groups: int = HOT, events: int = GROUP_RING, interests: int = 0) -> UserArrays:
        """Arrays for `users` users; fewer groups and events than the state has are cheaper to fill."""
        if not (1 <= groups <= HOT and 1 <= events <= GROUP_RING and users >= 1):
            raise ValueError(
                f"UserArrays: {users} users, {groups} groups, {events} events: at most {HOT} groups, {GROUP_RING} events"
            )
        b, g, e, s = (users,), (users, groups), (users, groups, events), (users, USER_RING)
        i = (users, interests)
        i64, u64, i32, u8 = np.int64, np.uint64, np.int32, np.uint8
        z = np.zeros
        return cls(
            z(b, i64), z(b, i64), z(b, i64), z(b, i64), z(b, i64), z(b, i32), z(b, i64), z(b, u64), z(b, i32),
            z(g, u64), z((*g, N_CLS), i64), z(g, i64), z(g, i64), z(g, i64), z(g, i64), z(g, i64), z(g, i32),
            z(e, u64), z(e, u8), z(e, i64), z(e, i64),
            z(b, i32), z(s, u64), z(s, u8), z(s, i64), z(s, i64), z(b, i32), z(s, u64), z(s, i64),
            z(s, u8), z(s, u8), z(b, i64), z(b, i32), z(i, u64), z(i, np.float64),
        )  # fmt: skip
