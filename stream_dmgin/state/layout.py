"""Where things lie: the arrays of one partition's state in memory, and the words of its rows on disk.

All numbers are int64 words (bits of unsigned ones kept as they are), so that numba never mixes signs. One `Mem` holds the
arrays of one partition; kernels get it whole. Arrays only grow between kernel calls: a kernel checks for room before it
writes, and returns a NEED_* code when there is none.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.features.spec import BEHAVIOUR_CLASSES

STATE_FORMAT = 2
OLDEST_FORMAT = 1  # opened still: a user's row says its own format, and is written anew in the current one

GROUP_RING, USER_RING, HOT = 32, 64, 128
TYPES, OTHER_TYPE = 255, 255  # type numbers 0..254 have names of their own, 255 is `other`
SINGLETON = np.int64(-(1 << 63))  # top bit of a group key: the group of one unassigned item

# --- memory -----------------------------------------------------------------------------------------------------------
I64 = NDArray[np.int64]


class Mem(NamedTuple):
    """The arrays of one partition."""

    M: I64  # counters and heads of free lists, M_*
    A: I64  # arena of words: rings, tables, orders, ids of users
    U: I64  # user rows, UW words each
    G: I64  # group rows, GW words each
    H: I64  # hash table of users: (hash, slot + 1)
    IH: I64  # hash table of items: (hash, index + 1)
    I: I64  # item rows, IW words each: hash, group or -1, address in IB, length
    IB: NDArray[np.uint8]  # bytes of item ids
    T: I64  # types: hash, length, class, flags | 8 words of name; TW words each
    D: I64  # events counted since the last commit, DW words each, chained by user
    L: I64  # dirty users
    C: I64  # hash table of increments: key (INC_*) + 1, then counts by metric; CW words each
    P: I64  # next offsets by topic; then the offsets below which increments were published


class Pointers(NamedTuple):
    """The same as pointers to words, as kernels see them (`mem_at`)."""

    M: Any
    A: Any
    U: Any
    G: Any
    H: Any
    IH: Any
    I: Any
    IB: Any
    T: Any
    D: Any
    L: Any
    C: Any
    P: Any


# words of M
(M_ATOP, M_GTOP, M_GFREE, M_GFREEN, M_UTOP, M_UFREE, M_USERS_CACHED, M_DTOP, M_NDIRTY, M_ITEMS, M_IBTOP, M_TYPES, M_USERS,
 M_EPOCH, M_INCS, M_AFREE, M_CLOCK, M_POS, M_NEED, M_MISS, M_GROUPS, M_VERSION, M_LOADED, M_DUPLICATES) = range(24)  # fmt: skip
M_HEADS = 32  # free lists of the arena, one a size class
SIZE_CLASSES = 80
M_LENGTHS = M_HEADS + SIZE_CLASSES  # lengths of the arrays, in the order of Mem, then their addresses
M_ADDRESSES = M_LENGTHS + 16
M_WORDS = M_ADDRESSES + 16
A_, U_, G_, H_, IH_, I_, IB_, T_, D_, L_, C_ = range(1, 12)  # numbers of the arrays

# a user row
UW = 32
(U_FLAGS, U_TABLE, U_TABLECAP, U_ORDER, U_NHOT, U_DELTA, U_CLOCK, U_DELTAWORDS,
 U_EVENTS, U_IMPRESSIONS, U_LASTEVENT, U_LASTIMP, U_SHORT, U_SHORTRING, U_IMP, U_IMPRING,
 U_HASH, U_ID, U_IDLEN, U_NMEM, U_NTOTAL, U_ORDERCAP, U_BASEBYTES, U_DELTABYTES,
 U_DELTAROWS, U_PAGES, U_EPOCH, U_SPILLEDSINGLES, U_CLICKS) = range(29)  # fmt: skip
# flags of a user
LIVE, LOADED, DIRTY, SPILL_LOADED, ALL_PAGES, ON_DISK, MERGED = 1, 2, 4, 8, 16, 32, 64

# a group row
GW = 16
(G_KEY, G_META, G_RING, G_DWELL, G_VALUE, G_VALUEHI, G_FIRST, G_LAST, G_DIGEST, G_ITEM, G_COUNTS, G_MAXDWELL) = range(
    12
)
G_INLINE = 3  # counts kept in the row: words 12..14
G_COUNT0 = 12
G_MORE = 15  # arena offset of further counts
# G_META: ring length | ring capacity << 8 | ring start << 16 | types << 24 | hot << 40 | changed << 41 | capacity of more << 48
RING_MASK = (1 << 24) - 1
HOT_BIT, CHANGED_BIT = 1 << 40, 1 << 41

IW = 4
(I_HASH, I_GROUP, I_AT, I_LEN) = range(4)
TW = 12
(T_HASH, T_LEN, T_CLASS, T_METRICS, T_NAME) = range(5)
CLICK = BEHAVIOUR_CLASSES.index("click")  # a class of types
DW = 6
# D_PREV: number + 1 of the user's event before it, | (slot + 1) << 32 where the event counts in the increments
(D_TSF, D_EID, D_ITEM, D_DWELL, D_VALUE, D_PREV) = range(6)
METRICS = 5
CW = 8  # key, METRICS counts, two words unused: a cache line
# key of an increment: item index << 33 | number of the quarter hour << 5 | surface; a ts of 47 bits has a quarter hour of 28
INC_ITEM, INC_BUCKET, INC_SURFACE = 33, 5, 31

# ts/type/flags word of an event: ts << 16 | type << 8 | surface << 3 | flags
F_DWELL, F_VALUE, F_IMPRESSION = 1, 2, 4
SURFACE_AT, SURFACE_MASK = 3, 31  # number of the surface, 0 for none
BUCKET_MS = 900_000
DWELL_CAP = 3_600_000  # of one event, in the shared counters

# --- what a kernel answers --------------------------------------------------------------------------------------------
DONE, NEED_A, NEED_U, NEED_G, NEED_I, NEED_IB, NEED_D, NEED_C, NEED_SPILL, NEED_OUT = range(10)

# --- rows on disk (docs/state.md) -------------------------------------------------------------------------------------
ROW_BASE, ROW_DELTA, ROW_SPILL, ROW_ITEMS, ROW_TYPE = b"b", b"d", b"s", b"i", b"t"
ROW_META, ROW_OFFSETS, ROW_GROUPS = b"m", b"o", b"g"
ITEM_BLOCK = 256  # items in one row
HEAD_WORDS = 8
HEAD_WORDS_1 = 7  # of format 1: without the number of clicks
DELTA_ROWS = 8  # a base is rewritten at the latest when it has as many deltas
DELTA_SLACK = 2048  # bytes of delta that any user may have
PAGE_GROUPS = 64  # groups aimed at in one spill page
MAX_PAGES = 4096
# first word of a group on disk
B_RING, B_TYPES, B_SINGLE, B_HASDWELL, B_HASVALUE = 32, 40, 56, 57, 58
