"""What changed in the memory of an engine, as rows of the next commit."""

from __future__ import annotations

import struct

import numpy as np
from rocksdict import WriteBatch

from stream_dmgin.state import layout as at_
from stream_dmgin.state.encode import OP_WORDS, encode_dirty
from stream_dmgin.state.memory import Memory


class WriteBack:
    """Puts changed users, and items and types that are new or changed, into a batch. Items' rows are blocks: `changed` names
    those to be written again."""

    def __init__(self, mem: Memory) -> None:
        self._mem = mem
        self._out, self._keys = np.zeros(1 << 17, np.int64), np.zeros(1 << 18, np.uint8)
        self._ops = np.zeros(OP_WORDS << 13, np.int64)
        self._items_written = self._types_written = 0
        self.changed: set[int] = set()

    def all_written(self) -> None:
        """The items and types in memory are those of the store."""
        M = self._mem.S.M
        self._items_written, self._types_written = int(M[at_.M_ITEMS]), int(M[at_.M_TYPES])

    def put_users(self, batch: WriteBatch) -> None:
        """Rows of the users that changed."""
        M = self._mem.S.M
        start = 0
        while True:
            code, words, key_bytes, ops = encode_dirty(self._mem.addresses, start, self._out, self._keys, self._ops)
            values, keys = self._out[:words].tobytes(), self._keys[:key_bytes].tobytes()
            put, delete = batch.put, batch.delete
            for _, k, kn, v, vn in self._ops[: ops * OP_WORDS].reshape(-1, OP_WORDS).tolist():
                if vn < 0:
                    delete(keys[k : k + kn])
                else:
                    put(keys[k : k + kn], values[v : v + vn])
            if code == at_.DONE:
                return
            start = int(M[at_.M_POS])
            if ops == 0:
                need = int(M[at_.M_NEED]) + 4096
                self._out, self._keys = (
                    np.zeros(max(need, len(self._out)), np.int64),
                    np.zeros(max(need, len(self._keys)), np.uint8),
                )
                self._ops = np.zeros(-(-max(need, len(self._ops)) // OP_WORDS) * OP_WORDS, np.int64)

    def put_dictionaries(self, batch: WriteBatch) -> None:
        """Rows of new items and types, and of items whose group changed."""
        mem, size = self._mem, at_.ITEM_BLOCK
        n, types = int(mem.S.M[at_.M_ITEMS]), int(mem.S.M[at_.M_TYPES])
        if n > self._items_written:
            self.changed.update(range(self._items_written // size, (n - 1) // size + 1))
        for block in self.changed:
            batch.put(at_.ROW_ITEMS + struct.pack(">I", block), mem.items_row(block * size, min(n, (block + 1) * size)))
        for t in range(self._types_written, types):
            batch.put(at_.ROW_TYPE + bytes([t]), mem.type_name(t).encode())
        self.changed = set()
        self._items_written, self._types_written = n, types
