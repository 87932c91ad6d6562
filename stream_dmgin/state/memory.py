"""The arrays of one partition: making them, letting them grow, and reading names out of them from Python."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.state import entry
from stream_dmgin.state import layout as at_
from stream_dmgin.state.fold import grow_increments
from stream_dmgin.state.hash import ADDRESS_OF_BYTES, hash64
from stream_dmgin.state.layout import Mem
from stream_dmgin.state.mem import rehash

SMALL = 1 << 14  # arrays double up to so many words, then grow by a quarter
STEP = 2 << 20  # but by no more than this: memory that is not used yet counts as well
OTHER_NAME = b"other"


class Memory:
    """Holds `S` (the arrays) and `addresses` (where they are, for `mem_at`)."""

    def __init__(self) -> None:
        z, i64 = np.zeros, np.int64
        users, groups, items, events, increments = 256, 1024, 1024, 2048, 1024
        self.S = Mem(
            M=z(at_.M_WORDS, i64), A=z(1 << 15, i64), U=z(users * at_.UW, i64), G=z(groups * at_.GW, i64), H=z(8 * users, i64),
            IH=z(8 * items, i64), I=z(items * at_.IW, i64), IB=z(16 * items, np.uint8), T=z((at_.TYPES + 1) * at_.TW, i64),
            D=z(events * at_.DW, i64), L=z(users, i64), C=z(increments * at_.CW, i64), P=z(6, i64),
        )  # fmt: skip
        self.S.M[at_.M_ATOP] = 8  # offset 0 is no block
        b = at_.OTHER_TYPE * at_.TW
        self.S.T[b + at_.T_HASH] = np.uint64(hash64(OTHER_NAME)).view(i64)
        self.S.T[b + at_.T_LEN] = len(OTHER_NAME)
        self.S.T[b + at_.T_NAME :].view(np.uint8)[: len(OTHER_NAME)] = np.frombuffer(OTHER_NAME, np.uint8)
        self._scratch = z((4, 0), i64)
        self._locate()

    def _locate(self) -> None:
        self.addresses = np.array([a.ctypes.data for a in self.S], np.int64)
        n = len(self.S)
        self.S.M[at_.M_LENGTHS : at_.M_LENGTHS + n] = [len(a) for a in self.S]
        self.S.M[at_.M_ADDRESSES : at_.M_ADDRESSES + n] = self.addresses

    def scratch(self, n: int) -> NDArray[np.int64]:
        """Four arrays of at least n words, reused."""
        if self._scratch.shape[1] < n:
            self._scratch = np.zeros((4, max(n, 2048)), np.int64)
        return self._scratch

    def allocated(self) -> int:
        """Bytes of all arrays."""
        return sum(a.nbytes for a in self.S) + self._scratch.nbytes

    def user_bytes(self) -> int:
        """Bytes of the arrays that hold users and their events, used or not."""
        S = self.S
        return sum(a.nbytes for a in (S.A, S.U, S.G, S.H, S.D, S.L))

    def forget_users(self) -> None:
        """Drop all users and give their arrays back to the system. What isn't committed is lost."""
        fresh = Memory().S
        M = self.S.M
        for word in (at_.M_GTOP, at_.M_GFREE, at_.M_GFREEN, at_.M_UTOP, at_.M_UFREE, at_.M_USERS_CACHED, at_.M_DTOP, at_.M_NDIRTY,
                     at_.M_AFREE, at_.M_GROUPS):  # fmt: skip
            M[word] = 0
        M[at_.M_ATOP] = fresh.M[at_.M_ATOP]
        M[at_.M_HEADS : at_.M_HEADS + at_.SIZE_CLASSES] = 0
        self.S = self.S._replace(A=fresh.A, U=fresh.U, G=fresh.G, H=fresh.H, D=fresh.D, L=fresh.L)
        self._locate()

    def grow(self, code: int) -> None:
        """Make room where a kernel said there is none. Arrays move: addresses change."""
        S, need = self.S, int(self.S.M[at_.M_NEED])
        if code == at_.NEED_A:
            _extend(S.A, max(int(S.M[at_.M_ATOP]) + need - len(S.A), _more(S.A)) + 4096)
        elif code == at_.NEED_U:
            if 4 * (int(S.M[at_.M_USERS_CACHED]) + 1) > len(S.H):
                self._rehash("H")
            users = len(S.L) + _more(S.U) // at_.UW
            _extend(S.U, users * at_.UW - len(S.U))
            _extend(S.L, users - len(S.L))
        elif code == at_.NEED_G:
            _extend(S.G, max(need + 1, _more(S.G) // at_.GW) * at_.GW)
        elif code == at_.NEED_I:
            _extend(S.I, _more(S.I) // at_.IW * at_.IW)
            if 4 * (int(S.M[at_.M_ITEMS]) + 1) > len(S.IH):
                self._rehash("IH")
        elif code == at_.NEED_IB:
            _extend(S.IB, max(need, _more(S.IB)))
        elif code == at_.NEED_D:
            _extend(S.D, _more(S.D) // at_.DW * at_.DW)
        elif code == at_.NEED_C:
            new = np.zeros(2 * len(S.C), np.int64)
            grow_increments(S.C, new)
            self.S = S._replace(C=new)
        else:
            raise AssertionError(f"a kernel asked for {code}")
        S.M[at_.M_NEED] = 0
        self._locate()

    def _rehash(self, name: str) -> None:
        old: NDArray[np.int64] = getattr(self.S, name)
        new = np.zeros(2 * len(old), np.int64)
        rehash(old, new)
        self.S = self.S._replace(H=new) if name == "H" else self.S._replace(IH=new)

    def user_id(self, u: int) -> bytes:
        """Id of the user in a slot."""
        b = u * at_.UW
        at, n = int(self.S.U[b + at_.U_ID]), int(self.S.U[b + at_.U_IDLEN])
        return self.S.A[at : at + (n + 7) // 8].tobytes()[:n]

    def item_id(self, i: int) -> bytes:
        """Id of an item."""
        b = i * at_.IW
        at, n = int(self.S.I[b + at_.I_AT]), int(self.S.I[b + at_.I_LEN])
        return self.S.IB[at : at + n].tobytes()

    def type_name(self, t: int) -> str:
        """Name of a type."""
        b = t * at_.TW
        n = int(self.S.T[b + at_.T_LEN])
        return self.S.T[b + at_.T_NAME : b + at_.TW].tobytes()[:n].decode()

    def items_row(self, begin: int, end: int) -> bytes:
        """Items begin..end-1 as a row of the store: n u4, groups i4[n], lengths u2[n], ids one after the other."""
        rows = self.S.I.reshape(-1, at_.IW)[begin:end]
        at, to = int(rows[0, at_.I_AT]), int(rows[-1, at_.I_AT] + rows[-1, at_.I_LEN])
        groups, lengths = rows[:, at_.I_GROUP].astype("<i4"), rows[:, at_.I_LEN].astype("<u2")
        return struct.pack("<I", end - begin) + groups.tobytes() + lengths.tobytes() + self.S.IB[at:to].tobytes()

    def add_items_row(self, row: bytes) -> None:
        """Add the items of a row; their ids must follow those that are there."""
        n = struct.unpack_from("<I", row)[0]
        groups = np.frombuffer(row, "<i4", n, 4).astype(np.int64)
        lengths = np.frombuffer(row, "<u2", n, 4 + 4 * n).astype(np.int64)
        p, start = id(row) + ADDRESS_OF_BYTES + 4 + 6 * n, 0
        while True:
            code, start, p = entry.add_items(self.addresses, p, lengths, groups, start)
            if code == at_.DONE:
                return
            self.grow(code)


def _more(a: NDArray[Any]) -> int:
    """By how much an array that is full grows."""
    return len(a) if len(a) < SMALL else min(len(a) // 4, STEP)


def _extend(a: NDArray[Any], by: int) -> None:
    """Lengthen an array in place (realloc: for large ones the kernel moves pages, not bytes)."""
    if by > 0:
        a.resize(len(a) + by, refcheck=False)
