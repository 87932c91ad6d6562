"""Kernels of the block `page`: the item on whose page the candidates would stand (`context.page`), and what a candidate shares with it.
Hardly anybody clicks what is before them already. About 0.1 us a request, 5 ns a candidate."""

from __future__ import annotations

from typing import Any

import numpy as np

from stream_dmgin.counters.read import first_seen, row_of
from stream_dmgin.features.bound import N_WHERE, W_CATALOGUE, W_COUNTERS
from stream_dmgin.features.catalogue import K_ADVERTISER, K_CAPACITY, K_CATEGORY, find_item
from stream_dmgin.features.catalogue import N_ADDRESSES as K_ADDRESSES
from stream_dmgin.features.fatigue import group_key
from stream_dmgin.features.scales import log_hours
from stream_dmgin.features.spec import CANDIDATE_BLOCKS, USER_BLOCKS
from stream_dmgin.native import f32, i64, kernel, u64

N_PAGE, N_PAGE_USER = len(CANDIDATE_BLOCKS["page"]), len(USER_BLOCKS["page"])
# Working memory in bytes: hashes of the page's item, its group, category and advertiser, 0 where there is none
PAGE_SCRATCH = 8 * N_PAGE


@kernel
def put_page_user(w: Any, page: Any, now: Any, scratch: Any, to: Any) -> None:
    """Name the page's item (0: none) in PAGE_SCRATCH bytes at `scratch`; the block's inputs of the request into N_PAGE_USER floats at an
    address."""
    where, out, names = i64(w, (N_WHERE,)), f32(to, (N_PAGE_USER,)), u64(scratch, (N_PAGE,))
    out[:], names[:] = 0, 0
    if page == 0:
        return
    out[0], names[0], names[1] = 1, page, group_key(w, page)
    k = i64(where[W_CATALOGUE], (K_ADDRESSES,))
    row = find_item(where[W_CATALOGUE], page)
    if row >= 0:
        names[2], names[3] = u64(k[K_CATEGORY], (k[K_CAPACITY],))[row], u64(k[K_ADVERTISER], (k[K_CAPACITY],))[row]
    counted = row_of(where[W_COUNTERS], 0, page)
    if counted >= 0:
        out[1] = log_hours(now - first_seen(where[W_COUNTERS], counted))


@kernel
def put_page(h: Any, category: Any, advertiser: Any, group: Any, scratch: Any, to: Any) -> None:
    """The block of a candidate by its names (0: none; `group` its key) into N_PAGE floats at an address. After `put_page_user`."""
    out, names = f32(to, (N_PAGE,)), u64(scratch, (N_PAGE,))
    out[:] = 0
    if names[0] != 0:
        out[0], out[1] = names[0] == h, names[1] == group
        out[2] = category != np.uint64(0) and names[2] == category
        out[3] = advertiser != np.uint64(0) and names[3] == advertiser
