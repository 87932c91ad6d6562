"""One RocksDB directory: opening it, its options, and errors in the product's words. Rows are described in docs/state.md."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    Options,
    Rdict,
    WriteBufferManager,
    WriteOptions,
)

from stream_dmgin.errors import FormatError, InputError, StoreBusy, StreamDmginError, UsageError
from stream_dmgin.state.layout import OLDEST_FORMAT, ROW_META, STATE_FORMAT

OFFSETS = struct.Struct("<5q")  # row `o`: next offsets of the three event topics, users, epoch of the group map
SIDE = b"x"  # prefix of the rows that callers keep in the store
REQUESTS_ROW = b"r/next"  # side row: next request to answer, in the same batch as the state

WRITE_BUFFER = 8 << 20  # bytes; two a store, so that 64 stores fit
SHARED_CACHE = 256 << 20  # bytes over all stores of a process, unless `budget` says otherwise
ATTEMPTS = 5  # to open read-only beside a running worker


@dataclass
class _Budget:
    """What all stores of this process share: blocks, indexes and filters read from disk, and write buffers."""

    cache: Cache
    buffers: WriteBufferManager


_budget: _Budget | None = None


def budget(limit_bytes: int) -> None:
    """The memory that RocksDB may take over all stores that this process opens from now on. Half of it may be write buffers."""
    global _budget
    cache = Cache(limit_bytes)
    _budget = _Budget(cache, WriteBufferManager.new_write_buffer_manager_with_cache(limit_bytes // 2, False, cache))


def shared_usage() -> int:
    """Bytes of RocksDB's shared memory that are taken."""
    return int(_budget.cache.get_usage()) if _budget is not None else 0


def options(create: bool) -> Options:
    """Options of a store: small buffers, LZ4, bloom filters (a new user costs one filter look-up, not a read)."""
    o = Options(raw_mode=True)
    o.create_if_missing(create)
    o.set_write_buffer_size(WRITE_BUFFER)
    o.set_max_write_buffer_number(3)
    o.set_max_background_jobs(2)
    o.set_compression_type(DBCompressionType.lz4())
    o.set_target_file_size_base(16 << 20)
    o.set_max_bytes_for_level_base(64 << 20)
    o.set_max_total_wal_size(32 << 20)
    o.set_keep_log_file_num(2)
    o.set_max_log_file_size(1 << 20)
    o.set_stats_dump_period_sec(0)
    o.set_stats_persist_period_sec(0)
    table = BlockBasedOptions()
    if _budget is None:
        budget(SHARED_CACHE)
    assert _budget is not None
    o.set_write_buffer_manager(_budget.buffers)
    table.set_block_cache(_budget.cache)
    table.set_cache_index_and_filter_blocks(True)  # else they grow with the users, outside any bound
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    table.set_bloom_filter(10, False)
    table.set_block_size(
        4 << 10
    )  # a load reads a few rows of a user, not their neighbours: measured 1.6 times faster than 16 KB
    table.set_format_version(5)
    o.set_block_based_table_factory(table)
    return o


def holds_a_store(path: Path) -> bool:
    """Whether a directory holds a store, be it one that lost the file CURRENT, which names all others."""
    return (path / "CURRENT").exists() or any(path.glob("*.sst")) or any(path.glob("[0-9]*.log"))


def open_store(path: Path, partition: int, read_only: bool) -> Rdict:
    """Open or create the store of one partition. Raises StoreBusy, FormatError, InputError; StreamDmginError for a store that
    is damaged."""
    exists = (path / "CURRENT").exists()
    if not exists and holds_a_store(path):  # RocksDB would begin an empty store over its files
        raise StreamDmginError(
            f"{path}: the store is damaged: it has lost the file CURRENT. `stream-dmgin state rebuild --partition {partition}` sets "
            "it aside; a snapshot or the log takes its place"
        )
    if read_only and not exists:
        raise InputError(f"{path}: there is no state here: run the worker, or name its data directory with --data-dir")
    if not read_only:
        path.mkdir(parents=True, exist_ok=True)
    try:
        access = AccessType.read_only(False) if read_only else AccessType.read_write()
        db = Rdict(str(path), options(not read_only), access_type=access)
    except Exception as e:  # rocksdict raises Exception itself
        text = str(e)
        if "lock" in text.lower():
            raise StoreBusy(
                f"{path}: another process (or engine) holds this store: stop it, or give each its own --data-dir"
            ) from None
        if "permission denied" in text.lower():
            raise UsageError(
                f"{path}: this account (uid {os.geteuid()}) may not open the store: chown or chmod its files"
            ) from None
        raise StreamDmginError(f"{path}: the store can't be opened: {text}") from e
    try:
        check_format(db, path, partition, exists, read_only)
    except BaseException:
        db.close()
        raise
    return db


def forget_names(path: Path) -> None:
    """Have RocksDB write the list of files of a store that nobody else has open anew: the old one goes on naming the first and last
    keys, which hold user ids, of files that are gone."""
    o = options(False)
    o.set_disable_auto_compactions(True)
    Rdict(str(path), o).close()


def check_format(db: Rdict, path: Path, partition: int, exists: bool, read_only: bool = False) -> None:
    """Check the meta row, or write it into a new store."""
    raw = db.get(ROW_META)
    if raw is None:
        if exists and next(iter(db.keys()), None) is not None:
            raise FormatError(f"{path}: this is not a state of stream-dmgin: name another directory")
        if read_only:
            raise InputError(f"{path}: there is no state in it yet: look again when its worker has committed")
        db[ROW_META] = json.dumps({"format": STATE_FORMAT, "partition": partition}).encode()
        return
    try:
        meta: dict[str, Any] = json.loads(raw)
        found, of = int(meta["format"]), int(meta["partition"])
    except (ValueError, KeyError, TypeError):
        raise FormatError(f"{path}: the meta row can't be read: restore a snapshot or rebuild this state") from None
    if found > STATE_FORMAT:
        raise FormatError(
            f"{path}: the state has format {found}, this version reads up to {STATE_FORMAT}: upgrade stream-dmgin, or rebuild"
            " the state from the log in an empty data directory"
        )
    if found < OLDEST_FORMAT:
        raise FormatError(
            f"{path}: the state has format {found}, older than {OLDEST_FORMAT}: rebuild it with `state rebuild`"
        )
    if of != partition:
        raise FormatError(f"{path}: this is the state of partition {of}, not {partition}")
    if found < STATE_FORMAT and not read_only:  # from now on rows of the current format can be in it
        db[ROW_META] = json.dumps({**meta, "format": STATE_FORMAT}).encode()


def write_options(durable: bool, sync: bool) -> WriteOptions:
    """With the write-ahead log (survives SIGKILL; `sync`: power loss too) or without it."""
    w = WriteOptions()
    if durable:
        w.sync = sync
    else:
        w.disable_wal = True
    return w
