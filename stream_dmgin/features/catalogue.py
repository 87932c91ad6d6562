"""The items as the features need them: category, advertiser, place, price and numeric attributes, found by item hash.

Fed by the topic `items` (a null value deletes) or by a Parquet file. Reading is for numba code, by addresses, 5 ns an item; the
record itself is kept as bytes, without its embedding, for people who ask for it. Embeddings are kept only where a model reads
them, as whole numbers (`features/content.py`). One thread at a time.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_dmgin.errors import InputError, RecordError, UsageError
from stream_dmgin.features.embedding import quantised
from stream_dmgin.features.spec import InputSpec
from stream_dmgin.native import f32, i32, i64, kernel, u64
from stream_dmgin.records import Item, decode_item, encode
from stream_dmgin.state.hash import item_hash

# Entries of Catalogue.addresses. A slot of the index holds the item's hash, and the upper halves of the hashes of its category
# and its advertiser: the events of a user need no more, and find it in one cache line.
(K_SLOTS, K_ROWS, K_MASK, K_CAPACITY, K_CATEGORY, K_ADVERTISER, K_PLACE, K_FLAGS, K_NUMBERS, K_COLUMNS, K_EMBEDDING, K_INVERSE,
 K_WIDTH) = range(13)  # fmt: skip
N_ADDRESSES = 13
KNOWN, PLACED = 1, 2  # flags
_MIN_ROWS = 1024
_decode = msgspec.msgpack.Decoder(Item).decode
log_ = logging.getLogger(__name__)


@kernel
def find_slot(catalogue: Any, h: Any) -> Any:
    """Slot of the item with hash `h`, -1 where the catalogue never had it; `catalogue`: the address of Catalogue.addresses."""
    k = i64(catalogue, (N_ADDRESSES,))
    slots = u64(k[K_SLOTS], (k[K_MASK] + 1, 2))
    mask = np.uint64(k[K_MASK])
    at = h & mask
    while slots[at, 0] != 0:
        if slots[at, 0] == h:
            return np.int64(at)
        at = (at + np.uint64(1)) & mask
    return np.int64(-1)


@kernel
def find_item(catalogue: Any, h: Any) -> Any:
    """Row of the item with hash `h`, -1 where the catalogue never had it."""
    k = i64(catalogue, (N_ADDRESSES,))
    slot = find_slot(catalogue, h)
    return np.int64(i32(k[K_ROWS], (k[K_MASK] + 1,))[slot]) if slot >= 0 else np.int64(-1)


@kernel
def find_embedded(catalogue: Any, h: Any) -> Any:
    """Row of the item with hash `h`, -1 where it is unknown or has no embedding."""
    k = i64(catalogue, (N_ADDRESSES,))
    row = find_item(catalogue, h)
    return row if row >= 0 and f32(k[K_INVERSE], (k[K_CAPACITY],))[row] != 0 else np.int64(-1)


@kernel
def _upper(h: Any) -> Any:
    """The upper half of a hash, which is all that its buckets depend on; 0 only for hash 0."""
    upper = h >> np.uint64(32)
    return upper if upper != 0 or h == 0 else np.uint64(1)


@kernel
def _insert(slots: Any, rows: Any, h: Any, row: Any, category: Any, advertiser: Any) -> None:
    """Put an item into its slot, or what is new of it."""
    mask = np.uint64(slots.shape[0] - 1)
    at = h & mask
    while slots[at, 0] != 0 and slots[at, 0] != h:
        at = (at + np.uint64(1)) & mask
    slots[at, 0] = h
    slots[at, 1] = (_upper(category) << np.uint64(32)) | _upper(advertiser)
    rows[at] = row


@kernel
def _reindex(slots: Any, rows: Any, hashes: Any, category: Any, advertiser: Any, used: Any) -> None:
    for row in range(used):
        _insert(slots, rows, hashes[row], row, category[row], advertiser[row])


@kernel
def _owners(catalogue: Any, hashes: Any, category: Any, advertiser: Any) -> None:
    k = i64(catalogue, (N_ADDRESSES,))
    categories = u64(k[K_CATEGORY], (k[K_CAPACITY],))
    advertisers = u64(k[K_ADVERTISER], (k[K_CAPACITY],))
    for i in range(hashes.shape[0]):
        row = find_item(catalogue, hashes[i])
        category[i] = categories[row] if row >= 0 else np.uint64(0)  # a plain 0 would make both of them floats
        advertiser[i] = advertisers[row] if row >= 0 else np.uint64(0)


class Catalogue:
    """Items by id. `numbers` are the numeric attributes kept as columns: those of `spec`, and what `require` adds. `embedding`:
    how many numbers the embeddings have that are kept; 0: none are."""

    def __init__(self, spec: InputSpec | None = None, embedding: int = 0) -> None:
        self.numbers: tuple[str, ...] = tuple(dict.fromkeys(spec.item_numbers)) if spec else ()
        self.embedding = embedding or (spec.reads_embeddings if spec else 0)
        self.unfit = 0  # embeddings seen that no block can use
        self.addresses: NDArray[np.int64] = np.zeros(N_ADDRESSES, np.int64)
        self._raw: dict[str, bytes] = {}
        self._used = 0
        self._row: dict[int, int] = {}  # item hash -> row
        self._arrays: dict[str, NDArray[Any]] = {}
        self._resize(_MIN_ROWS)

    def __len__(self) -> int:
        """Items in the catalogue."""
        return len(self._raw)

    def _resize(self, capacity: int) -> None:
        fresh: dict[str, NDArray[Any]] = {
            "hashes": np.zeros(capacity, np.uint64),
            "category": np.zeros(capacity, np.uint64),
            "advertiser": np.zeros(capacity, np.uint64),
            "place": np.zeros((capacity, 3), np.float64),
            "flags": np.zeros(capacity, np.uint8),
            "numbers": np.zeros((capacity, 1 + len(self.numbers)), np.float32),
            "embedding": np.zeros((capacity, self.embedding), np.int8),
            "inverse": np.zeros(capacity if self.embedding else 0, np.float32),  # 1 / length of the embedding; 0: none
        }
        for name, new in fresh.items():
            if self._used:
                new[: self._used] = self._arrays[name][: self._used]
        self._set(fresh, capacity)

    def _set(self, fresh: dict[str, NDArray[Any]], capacity: int) -> None:
        fresh["slots"], fresh["rows"] = np.zeros((2 * capacity, 2), np.uint64), np.zeros(2 * capacity, np.int32)
        _reindex(fresh["slots"], fresh["rows"], fresh["hashes"], fresh["category"], fresh["advertiser"], self._used)
        self._arrays = fresh
        a = self.addresses
        for at, name in (
            (K_SLOTS, "slots"), (K_ROWS, "rows"), (K_CATEGORY, "category"), (K_ADVERTISER, "advertiser"),
            (K_PLACE, "place"), (K_FLAGS, "flags"), (K_NUMBERS, "numbers"),
            (K_EMBEDDING, "embedding"), (K_INVERSE, "inverse"),
        ):  # fmt: skip
            a[at] = fresh[name].ctypes.data
        a[K_MASK], a[K_CAPACITY], a[K_COLUMNS] = 2 * capacity - 1, capacity, 1 + len(self.numbers)
        a[K_WIDTH] = self.embedding

    def upsert(self, item: Item) -> None:
        """Add an item, or replace what was known of it."""
        h = item_hash(item.item_id)
        row = self._row.get(h)
        if row is None:
            if self._used == len(self._arrays["hashes"]):
                self._resize(2 * self._used)
            row = self._row[h] = self._used
            self._arrays["hashes"][row] = h
            self._used += 1
        if self.embedding:
            self._embed(row, item)
        if item.embedding is not None:
            item = msgspec.structs.replace(item, embedding=None)
        self._raw[item.item_id] = encode(item)
        self._fill(row, item)

    def _embed(self, row: int, item: Item) -> None:
        """Keep an item's embedding. One that can't be used counts as none."""
        a = self._arrays
        a["inverse"][row] = 0
        if item.embedding is None:
            return
        found = quantised(item.embedding, self.embedding)
        if found is None:
            self.unfit += 1
            if self.unfit == 1:
                log_.warning(
                    "the embedding of item %r (%d numbers) can't be used: the model reads %d finite ones, not all 0. It counts as none, "
                    "and so will others like it, without a word",
                    item.item_id, len(item.embedding), self.embedding,
                )  # fmt: skip
            return
        a["embedding"][row], a["inverse"][row] = found

    def _fill(self, row: int, item: Item) -> None:
        a = self._arrays
        a["category"][row] = _name_hash(item.category)
        a["advertiser"][row] = _name_hash(item.advertiser)
        flags = KNOWN
        if item.lat is not None and item.lon is not None and math.isfinite(item.lat) and math.isfinite(item.lon):
            flags |= PLACED
            a["place"][row] = unit_vector(item.lat, item.lon)
        a["flags"][row] = flags
        attrs = item.attrs or {}
        self._index(row)
        a["numbers"][row] = [log_number(item.price), *(log_number(attrs.get(n)) for n in self.numbers)]

    def _index(self, row: int) -> None:
        a = self._arrays
        _insert(a["slots"], a["rows"], a["hashes"][row], row, a["category"][row], a["advertiser"][row])

    def delete(self, item_id: str) -> None:
        """Forget an item; nothing happens where it isn't known."""
        if self._raw.pop(item_id, None) is not None:
            row = self._row[item_hash(item_id)]
            for name in ("category", "advertiser", "place", "flags", "numbers", "inverse"):
                if len(self._arrays[name]):
                    self._arrays[name][row] = 0
            self._index(row)

    def fold(self, key: bytes | None, value: bytes | None) -> None:
        """Apply one record of the topic `items`: an item, or, with a null value, its deletion. Raises RecordError."""
        if value is None:
            if not key:
                raise RecordError("key", "an item's deletion (null value) needs the item id as key")
            self.delete(key.decode("utf-8", "replace"))
        else:
            self.upsert(decode_item(key, value))

    def require(self, spec: InputSpec) -> None:
        """Keep what a model of this spec reads: its numeric attributes as columns too, its embeddings. UsageError where embeddings of
        that width were not kept from the beginning."""
        self._require_numbers(spec.item_numbers)
        if spec.reads_embeddings in (0, self.embedding):
            return
        if self._used:
            kept = f"those of {self.embedding} numbers" if self.embedding else "none"
            raise UsageError(
                f"the model reads the inputs `content`, `passed`, `audience` or `readers` from embeddings of {spec.embedding} numbers, and "
                f"this process keeps {kept}: start the worker again, or with worker.embedding = {spec.embedding} before such a model "
                "is published"
            )
        self.embedding = spec.reads_embeddings
        self._resize(len(self._arrays["hashes"]))

    def _require_numbers(self, numbers: Sequence[str]) -> None:
        missing = [n for n in numbers if n not in self.numbers]
        if missing:
            self.numbers += tuple(dict.fromkeys(missing))
            fresh = {n: v for n, v in self._arrays.items() if n not in ("slots", "rows")}
            fresh["numbers"] = np.zeros((len(fresh["hashes"]), 1 + len(self.numbers)), np.float32)
            self._set(fresh, len(fresh["hashes"]))
            for item in self.items():
                self._fill(self._row[item_hash(item.item_id)], item)

    def get(self, item_id: str) -> Item | None:
        """The item's record, without its embedding; None where it isn't known."""
        raw = self._raw.get(item_id)
        return None if raw is None else _decode(raw)

    def items(self) -> Iterator[Item]:
        """All items, without embeddings."""
        return (_decode(raw) for raw in self._raw.values())

    def owners(self, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Hashes of the category and the advertiser of items by item hash; 0 where there is none."""
        category, advertiser = np.empty(len(hashes), np.uint64), np.empty(len(hashes), np.uint64)
        _owners(self.addresses.ctypes.data, np.ascontiguousarray(hashes), category, advertiser)
        return category, advertiser

    @classmethod
    def from_parquet(cls, path: str | Path, spec: InputSpec | None = None) -> Catalogue:
        """Read items.parquet: columns named as the fields of records.Item (item_id needed), `attrs` as JSON. InputError."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        wanted = [f for f in Item.__struct_fields__ if f != "embedding"]
        try:
            have = pq.read_schema(path).names
            if "item_id" not in have:
                raise InputError(f"{path} has no column item_id: it is no table of items")
            table = pq.read_table(path, columns=[n for n in wanted if n in have])
        except (OSError, pa.ArrowException) as e:
            raise InputError(f"{path} can't be read as Parquet: {e}") from None
        out = cls(spec)
        for i, row in enumerate(table.to_pylist()):
            try:
                attrs = row.get("attrs")
                row["attrs"] = json.loads(attrs) if isinstance(attrs, str) else attrs
                out.upsert(msgspec.convert(_without_nan(row), Item))
            except (ValueError, msgspec.ValidationError) as e:
                raise InputError(f"{path}, row {i}: {e}") from None
        return out


def unit_vector(lat: float, lon: float) -> tuple[float, float, float]:
    """A place in degrees as a point of the unit sphere."""
    a, b = math.radians(lat), math.radians(lon)
    return math.cos(a) * math.cos(b), math.cos(a) * math.sin(b), math.sin(a)


def log_number(x: Any) -> float:
    """ln(1 + x) of a number of 0 or more; 0 for anything else."""
    return math.log1p(x) if isinstance(x, (int, float)) and 0 <= x < math.inf else 0.0


def _name_hash(name: str | None) -> int:
    return item_hash(name) if name else 0


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
