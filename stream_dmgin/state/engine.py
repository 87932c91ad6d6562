"""`StateEngine`: the state of the users of one partition, in memory and in its own RocksDB directory.

A write-back cache: events are folded in memory (`fold`), what changed is written with the next offsets in one atomic batch
(`commit`), then cold users leave the memory until it fits the cap. One thread at a time. `fold` and `read` may load cold users
from disk (tens of us each); `commit` writes; nothing else blocks. After a crash the directory holds some committed state with
exactly its offsets. With `durable` (the default) a commit survives SIGKILL through the write-ahead log; without, the newest
commits may be gone together with their offsets.
"""

from __future__ import annotations

import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rocksdict import Checkpoint, Rdict, WriteBatch

from stream_dmgin.errors import ConfigError, StreamDmginError
from stream_dmgin.features.spec import BEHAVIOUR_CLASSES, CLASS_OF_TYPE
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.state import entry, fold, readout, resolve, show
from stream_dmgin.state import layout as at_
from stream_dmgin.state.arrays import UserArrays
from stream_dmgin.state.cold import ColdUsers
from stream_dmgin.state.erased import Erased
from stream_dmgin.state.hash import ADDRESS_OF_BYTES, hash64
from stream_dmgin.state.increments import CLICK_BIT, Encounters, RawIncrements, encounters_of, increments_of
from stream_dmgin.state.memory import Memory
from stream_dmgin.state.parse import EventColumns
from stream_dmgin.state.rows import base_key, delta_keys, rows_of, spill_keys
from stream_dmgin.state.store import OFFSETS, SIDE, open_store, write_options
from stream_dmgin.state.write_back import WriteBack

USER_BYTES = 2000  # about what a user takes, until there are some
ROWS_AT_LEAST = 256
SHARE = 0.75  # of the cap is for what is used
SMALLEST = 2 << 20  # bytes of arrays that any engine may have
_ORDER, _ENGAGEMENT = 2, 4
_METRIC_BITS = {"click": CLICK_BIT, "payment": _ORDER, "weak": _ENGAGEMENT, "strong": _ENGAGEMENT}


@dataclass(frozen=True, slots=True)
class CommitStats:
    """What a commit did. `bytes`: keys and values written; `evicted`: users that left the cache."""

    users: int
    rows: int
    bytes: int
    evicted: int
    seconds: float


class StateEngine:
    """The state of one user-keyed partition. Open it with `StateEngine.open`."""

    def __init__(self, db: Rdict | None, partition: int, groups: GroupMap, cache_bytes: int, read_only: bool, durable: bool,
                 sync: bool) -> None:  # fmt: skip
        self.partition, self.cache_bytes, self.read_only = partition, cache_bytes, read_only
        self.durable = durable
        self.published: dict[int, int] = {}
        self._erased: Erased | None = None
        self._db = db
        self._write_options = write_options(durable, sync)
        self._side: dict[bytes, bytes] = {}  # rows of callers, in memory only
        self._mem = Memory()
        self._cold, self._write_back = ColdUsers(self._mem, db), WriteBack(self._mem)
        self._types_known = 0
        self._broken = False
        self._evicted = self._encountered = 0
        self._maintenance = threading.Lock()  # a compaction in another thread, which `close` must not cross
        self._set_types()
        self.map_id: str | None = None  # the group map of the last commit; None before the first
        if db is not None:
            self._load_dictionaries(db)
        self._cold.all_cached = bool(self._mem.S.M[at_.M_USERS] == 0)
        self.groups = groups
        self._use_groups(groups)

    @classmethod
    def open(
        cls, path: str | Path | None, partition: int, groups: GroupMap, *, cache_bytes: int = 256 << 20,
        read_only: bool = False, durable: bool = True, sync: bool = False,
    ) -> StateEngine:  # fmt: skip
        """Open or create the state of a partition; `path` None: in memory only.

        `cache_bytes` caps the memory of cached users after each commit. `durable`: commits survive SIGKILL; `sync`: and
        power loss, for an fsync a commit. `read_only` works beside a running worker and sees what was committed at opening.
        Raises StoreBusy, FormatError, InputError, and ConfigError when `groups` moves items between groups.
        """
        db = None if path is None else open_store(Path(path), partition, read_only)
        try:
            return cls(db, partition, groups, cache_bytes, read_only, durable, sync)
        except BaseException:
            if db is not None:
                db.close()
            raise

    # --- the event path -----------------------------------------------------------------------------------------------

    @property
    def offsets(self) -> dict[int, int]:
        """Next offset of each event topic that isn't folded yet (in memory; committed by `commit`)."""
        return dict(enumerate(self._mem.S.P[:3].tolist()))

    def fold(self, cols: EventColumns, rows: NDArray[np.int32]) -> int:
        """Fold these rows (of this partition, in batch order); events below `offsets` are skipped. Returns how many counted."""
        mem, n = self._mem, len(rows)
        M, P = mem.S.M, mem.S.P
        if n == 0:
            return 0
        if int(cols.partition[rows[0]]) != self.partition:
            raise ValueError(
                f"rows of partition {cols.partition[rows[0]]} given to the engine of partition {self.partition}"
            )
        rows = np.ascontiguousarray(rows, np.int32)
        if self._erased is not None:
            if self._erased.passed(P):
                self._erased = None
            else:
                self._erased.hide(cols, rows)
        P[3:6] = [self.published.get(t, 0) for t in range(3)]
        M[at_.M_CLOCK] += 1
        scratch = mem.scratch(n)
        i64 = np.int64
        user_hash, user_addr = cols.user_hash.view(i64), cols.user_addr.view(i64)
        item_hash, item_addr = cols.item_hash.view(i64), cols.item_addr.view(i64)
        type_hash, type_addr = cols.type_hash.view(i64), cols.type_addr.view(i64)
        slots, items, types, missing = scratch
        M[at_.M_MISS] = start = 0
        try:
            while True:
                code = resolve.resolve(
                    mem.addresses, rows, cols.status, cols.topic, cols.offset, user_hash, user_addr, cols.user_len, item_hash,
                    item_addr, cols.item_len, type_hash, type_addr, cols.type_len, self._map_keys, self._map_values,
                    self._cold.all_cached, slots, items, types, missing, start,
                )  # fmt: skip
                if code == at_.DONE:
                    break
                start = int(M[at_.M_POS])
                mem.grow(code)
            if M[at_.M_TYPES] != self._types_known:
                self._set_types()
            if M[at_.M_MISS]:
                self._cold.load_missing(missing[: M[at_.M_MISS]])
        except BaseException:
            self._cold.drop_unloaded(missing[: M[at_.M_MISS]])
            raise
        counted = start = 0
        while True:
            code, n = fold.fold_rows(
                mem.addresses, rows, cols.status, cols.topic, cols.offset, cols.ts, cols.eid_hash.view(i64), cols.dwell, cols.value,
                cols.surface, slots, items, types, start,
            )  # fmt: skip
            counted += n
            if code == at_.DONE:
                return int(counted)
            start = int(M[at_.M_POS])
            if code == at_.NEED_SPILL:
                self._cold.load_spill(int(M[at_.M_NEED]))
            else:
                mem.grow(code)

    def fold_again(self, cols: EventColumns, rows: NDArray[np.int32]) -> int:
        """Fold these rows although they lie below `offsets`: those of a user who has just been erased, from the offsets of
        the erasure on. They add nothing to the shared counters again. Returns how many counted."""
        P, published = self._mem.S.P, self.published
        offsets = P[:3].copy()
        self.published = dict(enumerate(offsets.tolist()))
        P[:3] = 0
        try:
            return self.fold(cols, rows)
        finally:
            self._mem.S.P[:3], self.published = offsets, published

    def ignore(self, erased: Erased) -> None:
        """From here on these erased users' records below the offsets of their erasures count as done without being folded."""
        self._erased = None if erased.passed(self._mem.S.P) else erased

    def take_increments(self) -> RawIncrements:
        """The increments of the shared counters folded since the last call, each (item, bucket, surface, metric)
        once."""
        S = self._mem.S
        out = increments_of(S, lambda i: self._mem.item_id(i).decode())
        S.C[:] = 0
        S.M[at_.M_INCS] = 0
        return out

    def take_encounters(self) -> Encounters:
        """Who saw and who clicked what: impressions and clicks folded since the last call, or the last commit."""
        out = encounters_of(self._mem.S, self._encountered)
        self._encountered = int(self._mem.S.M[at_.M_DTOP])
        return out

    def commit(self, puts: Iterable[tuple[bytes, bytes]] = (), deletes: Iterable[bytes] = ()) -> CommitStats:
        """Write what changed, the next offsets and the caller's side rows in one atomic batch; then bring the cache under its
        cap. Raises StreamDmginError when the store can't be written: the engine is of no use then, open it again."""
        begin = time.perf_counter()
        users, self._encountered = int(self._mem.S.M[at_.M_NDIRTY]), 0
        if self._db is None:
            entry.forget_deltas(self._mem.addresses)
            for k in deletes:
                self._side.pop(k, None)
            self._side.update(puts)
            return CommitStats(users, 0, 0, 0, time.perf_counter() - begin)
        if self.read_only or self._broken:
            raise StreamDmginError(
                "the state is open read-only" if self.read_only else "an earlier commit failed: open the state again"
            )
        batch = WriteBatch(raw_mode=True)
        self._broken = True
        self._write_back.put_users(batch)
        self._write_back.put_dictionaries(batch)
        M = self._mem.S.M
        batch.put(at_.ROW_OFFSETS, OFFSETS.pack(*self._mem.S.P[:3].tolist(), int(M[at_.M_USERS]), int(M[at_.M_EPOCH])))
        mark = self.map_id if len(self.groups) == 0 and self.map_id else self.groups.id
        batch.put(at_.ROW_GROUPS, mark.encode())
        for k in deletes:
            batch.delete(SIDE + k)
        for k, v in puts:
            batch.put(SIDE + k, v)
        rows, size = batch.len(), batch.size_in_bytes()
        try:
            self._db.write(batch, self._write_options)
        except Exception as e:
            raise StreamDmginError(f"partition {self.partition}: the state can't be written: {e}") from e
        self._broken, self.map_id = False, mark
        return CommitStats(users, rows, size, self._evict(), time.perf_counter() - begin)

    # --- reading ------------------------------------------------------------------------------------------------------

    def read(self, user_ids: Sequence[bytes], out: UserArrays, at: int = 0) -> None:
        """Fill rows at.. of `out` with these users, loading those that aren't cached; unknown users give empty rows."""
        n = len(user_ids)
        if at < 0 or at + n > len(out.n_events):
            raise ValueError(f"read: {n} users from row {at} on don't fit {len(out.n_events)} rows")
        ids = np.array([id(u) + ADDRESS_OF_BYTES for u in user_ids], np.int64)
        lengths = np.array([len(u) for u in user_ids], np.int64)
        rows, missing = np.arange(n), np.empty(n, np.int64)
        self._mem.S.M[at_.M_CLOCK] += 1
        m = readout.read_users(self._mem.addresses, ids, lengths, out.addresses, at, rows, missing)
        if m:
            rows = missing[:m].copy()
            self._cold.load_known([user_ids[i] for i in rows.tolist()])
            m = readout.read_users(self._mem.addresses, ids, lengths, out.addresses, at, rows, missing)
            if m:
                readout.read_unknown(self._mem.addresses, out.addresses, missing[:m] + at)
        if out.i_item.shape[1]:
            slots = [entry.cached_slot(self._mem.addresses, i, k) for i, k in zip(ids, lengths, strict=True)]
            self.read_interests(np.array(slots, np.int64), out, at)

    def read_interests(self, slots: NDArray[np.int64], out: UserArrays, at: int = 0) -> None:
        """Fill the interests of rows at.. of `out` with the users in these slots, who are in memory (`take_encounters`); -1: nobody. Loads
        their cold groups, which may cost some 100 us a user."""
        if len(slots) + at > len(out.n_events):
            raise ValueError(f"read_interests: {len(slots)} users from row {at} on don't fit {len(out.n_events)} rows")
        for u in slots.tolist():
            if u >= 0:
                self._cold.load_spill(u)
        readout.read_interests(self._mem.addresses, slots, out.addresses, at)

    def version(self, user_id: bytes) -> int:
        """A number that changes with each counted event of the user and each new group map; 0 for an unknown user."""
        u = self._slot(user_id)
        if u < 0:
            return 0
        S = self._mem.S
        b = u * at_.UW
        return int(S.U[b + at_.U_EVENTS] + S.U[b + at_.U_IMPRESSIONS] + (S.M[at_.M_EPOCH] << 44))

    def show(self, user_id: str, limit: int | None = None) -> dict[str, Any] | None:
        """The contract's `state show` document of a user (at most `limit` groups), without `partition` and `offsets`."""
        u = self._slot(user_id.encode(), spill=True)
        return None if u < 0 else show.document(self._mem, u, user_id, limit)

    def canonical(self, user_id: str) -> bytes:
        """Canonical bytes of the whole state of a user: equal if and only if the states are (docs/state.md); b"" if unknown."""
        u = self._slot(user_id.encode(), spill=True)
        return b"" if u < 0 else show.canonical(self._mem, u)

    def users(self) -> Iterator[str]:
        """All users, in no particular order. Uncommitted ones too."""
        S = self._mem.S
        U = S.U.reshape(-1, at_.UW)[: S.M[at_.M_UTOP]]
        new = np.flatnonzero((U[:, at_.U_FLAGS] & (at_.LOADED | at_.ON_DISK)) == at_.LOADED)
        fresh = [self._mem.user_id(int(u)).decode() for u in new]
        for key, _ in rows_of(self._db, at_.ROW_BASE):
            yield key[1:].decode()
        yield from fresh

    def count_users(self) -> int:
        """How many users there are, uncommitted ones too."""
        return int(self._mem.S.M[at_.M_USERS])

    def stats(self) -> dict[str, Any]:
        """Sizes and counts, for people and metrics. Bytes of memory are those of cached users."""
        M = self._mem.S.M
        out: dict[str, Any] = {
            "users": self.count_users(), "users_cached": int(M[at_.M_USERS_CACHED]), "users_dirty": int(M[at_.M_NDIRTY]),
            "groups_cached": int(M[at_.M_GROUPS]), "items": int(M[at_.M_ITEMS]), "types": int(M[at_.M_TYPES]),
            "cache_bytes": self.cached_bytes(), "memory_bytes": self._mem.allocated(),
            "events_uncommitted": int(M[at_.M_DTOP]), "users_loaded": int(M[at_.M_LOADED]), "users_evicted": self._evicted,
            "duplicates": int(M[at_.M_DUPLICATES]), "offsets": self.offsets, "format": at_.STATE_FORMAT,
            "groups": self.groups.id,
        }  # fmt: skip
        if self._db is not None:
            for name in ("estimate-live-data-size", "total-sst-files-size", "estimate-num-keys"):
                out[name.replace("-", "_")] = self._db.property_int_value(f"rocksdb.{name}") or 0
        return out

    def cached_bytes(self) -> int:
        """Bytes of the cached users' state."""
        return int(entry.used_bytes(self._mem.addresses))

    @property
    def pressure(self) -> float:
        """Memory of cached users over the cap: above 1 users must leave (`evict`), and where that isn't enough a commit is due,
        since uncommitted users can't leave. What is used may take SHARE of the cap; the rest is for the arrays' own room."""
        used = self.cached_bytes() + int(self._mem.S.M[at_.M_DTOP]) * at_.DW * 8
        return max(used / (SHARE * self.cache_bytes), self._mem.user_bytes() / max(self.cache_bytes, SMALLEST))

    def room(self) -> int:
        """How many events may be folded before `pressure` should be looked at: their users, loaded, would fill a quarter of what
        is left under the cap."""
        users = int(self._mem.S.M[at_.M_USERS_CACHED])
        used = self.cached_bytes()
        each = max(used // users, USER_BYTES) if users else USER_BYTES
        return max(ROWS_AT_LEAST, int(SHARE * self.cache_bytes - used) // (4 * each))

    def evict(self) -> int:
        """Let committed users that were longest without an event or a read leave until the cache is a fifth under its cap, if it
        is over it; how many went. `commit` does that by itself; between commits it makes room without writing."""
        return self._evict() if self.pressure > 1 and self._db is not None else 0

    # --- groups, side rows, end ---------------------------------------------------------------------------------------

    def regroup(self, groups: GroupMap) -> None:
        """Use a new or grown map: singleton groups whose item got a group merge, in memory now, on disk as users are loaded.

        Raises ConfigError (nothing changed) when an item that this state knows is in another group than before: sums can't be
        divided again, so such a map needs a rebuild from the log. An item that left the map keeps its group.
        """
        self._use_groups(groups)

    def moves(self, groups: GroupMap) -> int:
        """How many items that this state knows have a group now, and another one or none in `groups`. 0: `regroup` gives the
        state that a fold from the first event under `groups` would; otherwise only such a fold does."""
        before, after = self._groups_of_items(groups)
        return int(np.count_nonzero((before >= 0) & (before != after)))

    def erase(self, user_id: str) -> int:
        """Delete a user's rows and forget it, in a commit of its own; how many rows there were, 0 for an unknown user. What is
        uncommitted is committed."""
        key = user_id.encode()
        u = self._slot(key, spill=True)
        if u < 0:
            return 0
        self.commit()
        M = self._mem.S.M
        u = self._slot(key)
        pages = int(self._mem.S.U[u * at_.UW + at_.U_PAGES])
        M[at_.M_USERS] -= 1
        entry.drop(self._mem.addresses, np.array([u], np.int64))
        if self._db is None:
            return 1
        batch = WriteBatch(raw_mode=True)
        keys = [base_key(key), *delta_keys(key), *spill_keys(key, pages)]
        rows = sum(row is not None for row in self._db.get(keys))
        for k in keys:
            batch.delete(k)
        batch.put(at_.ROW_OFFSETS, OFFSETS.pack(*self._mem.S.P[:3].tolist(), int(M[at_.M_USERS]), int(M[at_.M_EPOCH])))
        self._db.write(batch, self._write_options)
        return rows

    def count_rows(self, user_id: bytes) -> int:
        """How many rows the store holds of a user, as committed."""
        if self._db is None:
            return 0
        base = self._db.get(base_key(user_id))
        if base is None:
            return 0
        pages = struct.unpack_from("<q", base)[0] >> 24 & 0xFFFF
        keys = [*delta_keys(user_id), *spill_keys(user_id, pages)]
        return 1 + sum(row is not None for row in self._db.get(keys))

    def find(
        self, wanted: Callable[[bytes], bool], after: bytes = b"", limit: int = 10_000
    ) -> tuple[list[bytes], bytes | None]:
        """Committed users that are `wanted`, among the next `limit` in the order of their ids; and the id to go on after,
        None at the end. Reads base rows: for control paths."""
        found = []
        start = at_.ROW_BASE + after + b"\0" if after else at_.ROW_BASE
        for n, (key, _) in enumerate(rows_of(self._db, at_.ROW_BASE, start), 1):
            user_id = bytes(key[1:])
            if wanted(user_id):
                found.append(user_id)
            if n == limit:
                return found, user_id
        return found, None

    def get(self, key: bytes) -> bytes | None:
        """A side row."""
        if self._db is None:
            return self._side.get(key)
        value: bytes | None = self._db.get(SIDE + key)
        return value

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Side rows whose keys begin with `prefix`, in key order, as they are now."""
        if self._db is None:
            return iter(sorted((k, v) for k, v in self._side.items() if k.startswith(prefix)))
        return iter([(k[len(SIDE) :], v) for k, v in rows_of(self._db, SIDE + prefix)])

    @property
    def store(self) -> Rdict | None:
        """The RocksDB itself, to look at; None in memory."""
        return self._db

    def begin_flush(self) -> None:
        """Have RocksDB write what is committed to a file, in its own thread: a checkpoint after `flushed` takes a moment."""
        if self._db is not None:
            self._db.flush(False)

    def flushed(self) -> bool:
        """Whether nothing is being written to a file just now."""
        names = ("num-immutable-mem-table", "mem-table-flush-pending", "num-running-flushes")
        return self._db is None or not any(self._db.property_int_value(f"rocksdb.{n}") for n in names)

    def checkpoint(self, path: Path) -> None:
        """What is committed as a store of its own at `path` (new, on the same file system): hard links, no copies."""
        if self._db is None:
            raise StreamDmginError(f"partition {self.partition}: its store is closed")
        path.parent.mkdir(parents=True, exist_ok=True)
        Checkpoint(self._db).create_checkpoint(str(path))

    def compact(self) -> Iterator[tuple[int, int]]:
        """Compact the store, slice after slice of its keys; (done, all) after each. From any thread, beside a fold: `close`
        waits for the slice at work."""
        bounds = [None, *self._file_bounds(), None]
        for k in range(len(bounds) - 1):
            with self._maintenance:
                if self._db is None:
                    raise StreamDmginError(f"partition {self.partition}: its store was closed while it was compacted")
                self._db.compact_range(bounds[k], bounds[k + 1])
            yield k + 1, len(bounds) - 1

    def _file_bounds(self) -> list[bytes]:
        """First keys of the files of the fullest level, without the very first: they cut the keys into slices of like size."""
        files = [] if self._db is None else self._db.live_files()
        levels = Counter(f["level"] for f in files)
        fullest = max(levels, key=lambda level: levels[level], default=None)
        return sorted({bytes(f["start_key"]) for f in files if f["level"] == fullest and fullest})[
            1:
        ]  # files of level 0 overlap

    def trim(self) -> None:
        """Drop users that were read, down to the memory cap. Only where nothing is uncommitted, as in a read-only store."""
        self._evict()

    def close(self) -> None:
        """Close the store. What wasn't committed is forgotten. Idempotent."""
        with self._maintenance:
            self._close()

    def _close(self) -> None:
        db, self._db = self._db, None
        self._cold.leave()
        if db is not None:
            if not self.read_only and not self.durable:
                db.flush()
            db.close()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _slot(self, user_id: bytes, spill: bool = False) -> int:
        """Slot of a user, loaded if need be; -1 if unknown."""
        where = (id(user_id) + ADDRESS_OF_BYTES, len(user_id))
        u = int(entry.cached_slot(self._mem.addresses, *where))
        if u < 0:
            self._cold.load_known([user_id])
            u = int(entry.cached_slot(self._mem.addresses, *where))
        if u >= 0 and spill:
            self._cold.load_spill(u)
        return u

    def _set_types(self) -> None:
        """Class and metrics of the type names that are new."""
        T = self._mem.S.T
        known = int(self._mem.S.M[at_.M_TYPES])
        for t in [*range(self._types_known, known), at_.OTHER_TYPE]:
            name = CLASS_OF_TYPE.get(self._mem.type_name(t), "other")
            T[t * at_.TW + at_.T_CLASS] = BEHAVIOUR_CLASSES.index(name)
            T[t * at_.TW + at_.T_METRICS] = _METRIC_BITS.get(name, 0)
        self._types_known = known

    def _groups_of_items(self, groups: GroupMap) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each item known: the group it has (a view of the table) and the one that `groups` gives it; -1: none."""
        table = self._mem.S.I.reshape(-1, at_.IW)[: self._mem.S.M[at_.M_ITEMS]]
        hashes = np.ascontiguousarray(table[:, at_.I_HASH]).view(np.uint64)
        return table[:, at_.I_GROUP], groups.lookup_hashes(hashes).astype(np.int64)

    def _use_groups(self, groups: GroupMap) -> None:
        S = self._mem.S
        before, after = self._groups_of_items(groups)
        moved = np.flatnonzero((before >= 0) & (after >= 0) & (before != after))
        if len(moved):
            i = int(moved[0])
            raise ConfigError(
                "groups", groups.id,
                f"it moves {len(moved)} items of partition {self.partition} to other groups (item {self._mem.item_id(i).decode()}"
                f" from {before[i]} to {after[i]}): rebuild the state under this map with `state rebuild`, or give a map that"
                " extends the old one",
            )  # fmt: skip
        self.groups, self._map_keys, self._map_values = groups, groups.keys.view(np.int64), groups.values
        grown = np.flatnonzero((before < 0) & (after >= 0))
        if not len(grown):
            return
        before[grown] = after[grown]
        self._write_back.changed.update(np.unique(grown // at_.ITEM_BLOCK).tolist())
        S.M[at_.M_EPOCH] += 1
        start = 0
        while True:
            code, start = entry.merge_users(self._mem.addresses, start, int(S.M[at_.M_UTOP]))
            if code == at_.DONE:
                return
            if code == at_.NEED_SPILL:
                self._cold.load_spill(start)
            else:
                self._mem.grow(code)

    def _load_dictionaries(self, db: Rdict) -> None:
        """Items, types and offsets at opening."""
        mem = self._mem
        for _, row in rows_of(self._db, at_.ROW_ITEMS):
            mem.add_items_row(row)
        for _, name in rows_of(self._db, at_.ROW_TYPE):
            resolve.add_type(
                mem.addresses, int(np.uint64(hash64(name)).view(np.int64)), id(name) + ADDRESS_OF_BYTES, len(name)
            )
        self._write_back.all_written()
        self._set_types()
        raw = db.get(at_.ROW_OFFSETS)
        if raw is not None:
            *mem.S.P[:3], mem.S.M[at_.M_USERS], mem.S.M[at_.M_EPOCH] = OFFSETS.unpack(raw)
        mark = db.get(at_.ROW_GROUPS)
        self.map_id = mark.decode() if mark else None

    def _evict(self) -> int:
        """Drop the users that were longest without an event or a read until the cache is a fifth under its cap. Arrays never
        shrink: where they have outgrown the cap all the same (other users, with more groups or fewer), all users leave."""
        limit = int(SHARE * self.cache_bytes)
        S = self._mem.S
        if self._mem.user_bytes() > max(self.cache_bytes, SMALLEST) and not S.M[at_.M_NDIRTY]:
            gone = int(S.M[at_.M_USERS_CACHED])
            self._mem.forget_users()
            self._evicted += gone
            self._cold.all_cached = self._cold.all_cached and gone == 0
            return gone
        if self.cached_bytes() <= limit:
            return 0
        U = S.U.reshape(-1, at_.UW)[: S.M[at_.M_UTOP]]
        cached = np.flatnonzero(U[:, at_.U_FLAGS] & at_.LOADED)
        order = cached[np.argsort(U[cached, at_.U_CLOCK], kind="stable")]
        gone = int(entry.evict(self._mem.addresses, order, limit * 4 // 5))
        self._evicted += gone
        self._cold.all_cached = self._cold.all_cached and gone == 0
        return gone
