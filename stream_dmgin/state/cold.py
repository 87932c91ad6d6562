"""Cold users: from their rows in RocksDB back into the memory of an engine, when an event or a read asks for them."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray
from rocksdict import Rdict

from stream_dmgin.state import entry
from stream_dmgin.state import layout as at_
from stream_dmgin.state.hash import ADDRESS_OF_BYTES
from stream_dmgin.state.memory import Memory
from stream_dmgin.state.rows import base_key, check_end, delta_keys, get_rows, spill_keys


class ColdUsers:
    """Loads users of `db` (None: there is no store, nobody is cold) into `mem`. `all_cached`: every user there is is in memory,
    so nothing is looked for on disk (a new store until its first eviction)."""

    def __init__(self, mem: Memory, db: Rdict | None) -> None:
        self._mem, self._db = mem, db
        self.all_cached = True

    def leave(self) -> None:
        """The store is closed."""
        self._db = None

    def load_missing(self, slots: NDArray[np.int64]) -> None:
        """Load the users in these new slots; those without rows are new."""
        assert self._db is not None
        S = self._mem.S
        ids = [self._mem.user_id(int(u)) for u in slots]
        bases = get_rows(self._db, [base_key(i) for i in ids])
        known = [(int(u), i, b) for u, i, b in zip(slots, ids, bases, strict=True) if b is not None]
        if len(known) < len(ids):
            new = np.array([u for u, b in zip(slots, bases, strict=True) if b is None], np.int64) * at_.UW
            S.U[new + at_.U_FLAGS] = at_.LIVE | at_.LOADED | at_.SPILL_LOADED
            S.U[new + at_.U_EPOCH] = S.M[at_.M_EPOCH]
            S.M[at_.M_USERS] += len(new)
        if known:
            self._load_rows(known)

    def load_known(self, ids: list[bytes]) -> None:
        """Load those of these users that the store has."""
        if self._db is None or self.all_cached:
            return
        bases = get_rows(self._db, [base_key(i) for i in ids])
        known = []
        for i, b in {i: b for i, b in zip(ids, bases, strict=True) if b is not None}.items():
            while True:
                code, u = entry.add_user(self._mem.addresses, id(i) + ADDRESS_OF_BYTES, len(i))
                if code == at_.DONE:
                    break
                self._mem.grow(code)
            known.append((int(u), i, b))
        if not known:
            return
        try:
            self._load_rows(known)
        except BaseException:
            self.drop_unloaded(np.array([u for u, _, _ in known], np.int64))
            raise

    def _load_rows(self, known: list[tuple[int, bytes, bytes]]) -> None:
        """Fill slots from their base rows and delta rows: (slot, id, base row)."""
        assert self._db is not None
        deltas = self._delta_rows([i for _, i, _ in known])
        parts: list[bytes] = []
        index = np.zeros((7, len(known)), np.int64)
        at = 0
        for n, ((_, _, base), mine) in enumerate(zip(known, deltas, strict=True)):
            words = sum(map(len, mine)) // 8
            base_words = len(base) // 8
            index[:, n] = at, base_words, 0, -1, at + base_words, words, len(mine)
            at += base_words + words
            parts += [base, *mine]
        R = np.frombuffer(b"".join([*parts, bytes(8)]), np.int64)
        slots = np.array([u for u, _, _ in known], np.int64)
        start = 0
        while True:
            code, start = entry.load_users(self._mem.addresses, slots, R, *index, start)
            if code == at_.DONE:
                return
            if code == at_.NEED_SPILL:
                _, user_id, base = known[start]
                pages = self._pages(user_id, struct.unpack_from("<q", base)[0] >> 24 & 0xFFFF)
                old = R[index[0, start] : index[0, start] + index[1, start] + index[5, start]]
                index[:, start] = (
                    len(R),
                    index[1, start],
                    len(R) + len(old),
                    len(pages),
                    len(R) + index[1, start],
                    *index[5:, start],
                )
                R = np.concatenate([R, old, pages, np.zeros(1, np.int64)])
                R.flags.writeable = False
            else:
                self._mem.grow(code)

    def _delta_rows(self, ids: list[bytes]) -> list[list[bytes]]:
        """The delta rows of each user, by one iterator: 15 us a user where a get of each possible key took 30."""
        assert self._db is not None
        out = []
        rows = self._db.iter()
        for i in ids:
            prefix = at_.ROW_DELTA + i + b"\0"
            mine = []
            rows.seek(prefix)
            while rows.valid() and (key := rows.key()).startswith(prefix):
                if len(key) != len(prefix) + 1:  # of a user whose id goes on with a NUL: there may be many of them
                    mine = [row for row in get_rows(self._db, delta_keys(i)) if row is not None]
                    break
                mine.append(rows.value())
                rows.next()
            check_end(rows, self._db)
            out.append(mine)
        return out

    def _pages(self, user_id: bytes, pages: int) -> NDArray[np.int64]:
        assert self._db is not None
        rows = get_rows(self._db, spill_keys(user_id, pages)) if pages else []
        return np.frombuffer(b"".join(r for r in rows if r), np.int64)

    def load_spill(self, u: int) -> None:
        """Bring the spilled groups of a loaded user into memory, if they aren't."""
        S = self._mem.S
        b = u * at_.UW
        if S.U[b + at_.U_FLAGS] & at_.SPILL_LOADED:
            return
        R = self._pages(self._mem.user_id(u), int(S.U[b + at_.U_PAGES]))
        words = len(R)
        R = np.frombuffer(R.tobytes() + bytes(8), np.int64)
        while (code := entry.load_pages(self._mem.addresses, u, R, words)) != at_.DONE:
            self._mem.grow(code)

    def drop_unloaded(self, slots: NDArray[np.int64]) -> None:
        """Undo slots whose loading failed."""
        flags = self._mem.S.U[slots * at_.UW + at_.U_FLAGS]
        entry.drop(self._mem.addresses, np.ascontiguousarray(slots[(flags & at_.LOADED) == 0]))
