"""What the kernels get: one array of numbers and addresses, `where`, that says where a user's state, the inputs, the counters,
the catalogue and the group map lie. Bound once per pair of (state arrays, inputs), not per call.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.features.inputs import ALL
from stream_dmgin.features.spec import RING

__all__ = ["RING"]

# state arrays read: name -> type. The order is that of their addresses.
STATE = {
    "n_events": np.int64, "n_impressions": np.int64, "n_groups_total": np.int32, "n_groups": np.int32,
    "g_key": np.uint64, "g_counts": np.int64, "g_dwell_sum": np.int64, "g_dwell_max": np.int64, "g_value_sum": np.int64,
    "g_first": np.int64, "g_last": np.int64, "g_len": np.int32,
    "e_item": np.uint64, "e_cls": np.uint8, "e_ts": np.int64, "e_dwell": np.int64,
    "s_len": np.int32, "s_item": np.uint64, "s_cls": np.uint8, "s_ts": np.int64, "s_dwell": np.int64,
    "m_len": np.int32, "m_item": np.uint64, "m_ts": np.int64, "s_surface": np.uint8, "m_surface": np.uint8,
    "n_clicks": np.int64, "i_len": np.int32, "i_item": np.uint64, "i_weight": np.float64,
}  # fmt: skip

_INPUTS, _N = len(STATE), len(STATE) + len(ALL)
(U_EVENTS, U_IMPRESSIONS, U_GROUPS_TOTAL, U_GROUPS, UG_KEY, UG_COUNTS, UG_DWELL_SUM, UG_DWELL_MAX, UG_VALUE_SUM, UG_FIRST,
 UG_LAST, UG_LEN, UE_ITEM, UE_CLS, UE_TS, UE_DWELL, US_LEN, US_ITEM, US_CLS, US_TS, US_DWELL, UM_LEN, UM_ITEM,
 UM_TS, US_SURFACE, UM_SURFACE, U_CLICKS, UI_LEN, UI_ITEM, UI_WEIGHT) = range(_INPUTS)  # fmt: skip
(I_G_MASK, I_G_STAT, I_G_TIME, I_E_ITEM, I_E_ID, I_E_CLS, I_E_TIME, I_E_DWELL, I_E_HOUR, I_E_MASK, I_S_ITEM, I_S_CLS, I_S_TIME,
 I_S_DWELL, I_S_MASK, I_C_ITEM, I_C_ID, I_C_GROUP, I_C_DENSE, I_C_MASK, I_G_AGE, I_G_SIZE, I_U_DENSE,
 I_X_CAT, I_H_ITEM, I_H_CLS, I_H_DWELL, I_H_HOUR, I_H_TIME, I_H_AGE, I_H_SIZE, I_H_MASK) = range(_INPUTS, _N)  # fmt: skip
(W_COUNTERS, W_CATALOGUE, W_MAP_KEYS, W_MAP_VALUES, W_MAP_SIZE, W_LOGS, W_COLUMNS, W_N_COLUMNS,
 W_SCRATCH, W_SELF) = range(_N, _N + 10)  # fmt: skip
# dimensions: of the inputs, then of the state arrays
(D_B, D_C, D_G, D_L, D_S, D_D, D_ITEMS, D_CATEGORIES, D_ADVERTISERS, D_U, D_BLOCKS, D_N, D_UB, D_UG, D_UL, D_US, D_UM,
 D_UI) = range(_N + 10, _N + 28)  # fmt: skip
N_WHERE = _N + 28


def state_addresses(arrays: Any, spec: Any) -> tuple[list[int], list[int]]:
    """(addresses in the order of STATE, [users, groups, events, short ring, impression ring, interests]) of a UserArrays.

    TypeError where an array isn't what the kernels would read; ValueError where it is too small for the spec.
    """
    out = []
    for name, dtype in STATE.items():
        a = getattr(arrays, name)
        if a.dtype != dtype or not a.flags.c_contiguous:
            raise TypeError(f"UserArrays.{name} is {a.dtype}; {np.dtype(dtype)}, C-contiguous, is needed")
        out.append(a.ctypes.data)
    users, groups, events = arrays.e_item.shape
    if groups < spec.groups or events < spec.events:
        raise ValueError(
            f"UserArrays hold {groups} groups of {events} events, the model reads {spec.groups} of {spec.events}"
        )
    if arrays.i_item.shape[1] < spec.interests:
        raise ValueError(
            f"UserArrays hold {arrays.i_item.shape[1]} events for profiles, the model reads {spec.interests}"
        )
    return out, [users, groups, events, arrays.s_item.shape[1], arrays.m_item.shape[1], arrays.i_item.shape[1]]


Where = NDArray[np.int64]
