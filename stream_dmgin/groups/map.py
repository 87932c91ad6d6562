"""The versioned map from items to groups: which items count as "the same interest".

The hot path looks groups up by item hash in an open-addressing table of two arrays, so that numba code needs no Python
object: `keys` uint64[cap] (0: empty slot), `values` int32[cap], cap a power of two, linear probing from hash & (cap - 1).
The names of the items are kept beside it for people and for saving. A map never changes once made: `extend` makes a new one.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.errors import InputError
from stream_dmgin.native import hash_ids, kernel
from stream_dmgin.records import ID_BYTES

GROUP_MAX = (1 << 31) - 1
_MIN_CAP = 16


@kernel
def find_group(keys: Any, values: Any, h: Any) -> Any:
    """Group of the item with hash `h` (uint64, never 0), -1 where it has none. For numba callers."""
    mask = np.uint64(keys.shape[0] - 1)
    at = h & mask
    while keys[at] != 0:
        if keys[at] == h:
            return values[at]
        at = (at + np.uint64(1)) & mask
    return np.int32(-1)


@kernel
def _insert_all(keys: Any, values: Any, hashes: Any, groups: Any) -> None:
    """Insert each pair; of two items with one hash the first stays. The table must have room."""
    mask = np.uint64(keys.shape[0] - 1)
    for i in range(hashes.shape[0]):
        at = hashes[i] & mask
        while keys[at] != 0 and keys[at] != hashes[i]:
            at = (at + np.uint64(1)) & mask
        if keys[at] == 0:
            keys[at] = hashes[i]
            values[at] = groups[i]


@kernel
def _find_all(keys: Any, values: Any, hashes: Any, out: Any) -> None:
    for i in range(hashes.shape[0]):
        out[i] = find_group(keys, values, hashes[i])


class GroupMap:
    """Item id -> group number (0..2^31-1). `kind` says where it came from and begins its `id`. `levels`: for hierarchical numbers,
    the codes of each level, in mixed radix: with levels (32, 16) the parent of a group is its number // 16. Empty: flat."""

    def __init__(self, items: Mapping[str, int], kind: str = "csv", levels: tuple[int, ...] = ()) -> None:
        """Raises InputError for a group out of range or an id that no record could carry."""
        self.levels = levels
        for name, group in items.items():
            _check(name, group, "")
        self.kind = kind
        self.items: dict[str, int] = dict(sorted(items.items()))
        n = len(self.items)
        cap = _MIN_CAP
        while cap < 2 * n:
            cap *= 2
        self.keys: NDArray[np.uint64] = np.zeros(cap, np.uint64)
        self.values: NDArray[np.int32] = np.full(cap, -1, np.int32)
        groups = np.fromiter(self.items.values(), np.int32, n)
        _insert_all(self.keys, self.values, hash_ids(list(self.items)), groups)
        self.id = f"{kind}-{_content_hash(self.items)}" if n else "none"

    @classmethod
    def empty(cls) -> GroupMap:
        """The map without assignments, id "none": every item is a group of its own."""
        return cls({})

    @classmethod
    def from_csv(cls, path: str | Path) -> GroupMap:
        """Read a CSV file with the header `item_id,group`. Raises InputError naming line and fix."""
        items: dict[str, int] = {}
        line_of: dict[str, int] = {}
        try:
            with open(path, newline="", encoding="utf-8-sig") as f:
                reader = csv.reader(f, strict=True)
                if next(reader, None) != ["item_id", "group"]:
                    raise InputError(f"{path}, line 1: the header must be 'item_id,group'")
                for row in reader:
                    if not row:
                        continue
                    where = f"{path}, line {reader.line_num}: "
                    if len(row) != 2:
                        raise InputError(
                            f"{where}{len(row)} fields instead of 2: write item_id,group (quote ids with commas)"
                        )
                    group = _number(row[1], where)
                    _check(row[0], group, where)
                    if items.setdefault(row[0], group) != group:
                        raise InputError(
                            f"{where}item {row[0]!r} is in group {group}, but in {items[row[0]]} on line {line_of[row[0]]}:"
                            " keep one of the two lines"
                        )
                    line_of.setdefault(row[0], reader.line_num)
        except OSError as e:
            raise InputError(f"{path} can't be read: {e.strerror}") from None
        except UnicodeDecodeError:
            raise InputError(f"{path} is not UTF-8: save it as UTF-8") from None
        except csv.Error as e:
            raise InputError(f"{path}, line {reader.line_num}: not CSV: {e}: quote fields with double quotes") from None
        return cls(items)

    @classmethod
    def load(cls, path: str | Path) -> GroupMap:
        """Read a map saved as Parquet, or a CSV file (by its suffix .csv). Raises InputError."""
        if Path(path).suffix.lower() == ".csv":
            return cls.from_csv(path)
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path, columns=["item_id", "group"])
            names = table.column("item_id").cast(pa.string()).to_pylist()
            groups = table.column("group").cast(pa.int64()).to_pylist()
        except OSError as e:
            raise InputError(f"{path} can't be read: {e.strerror or e}") from None
        except (pa.ArrowException, KeyError) as e:
            raise InputError(
                f"{path} is not a group map (Parquet with item_id, group; or CSV named *.csv): {e}"
            ) from None
        items: dict[str, int] = {}
        for i, (name, group) in enumerate(zip(names, groups, strict=True)):
            _check(name, group, f"{path}, row {i}: ")
            if items.setdefault(name, group) != group:
                raise InputError(f"{path}, row {i}: item {name!r} is in groups {group} and {items[name]}: keep one row")
        about = table.schema.metadata or {}
        levels = about.get(b"levels", b"")
        return cls(
            items, about.get(b"kind", b"table").decode(), tuple(int(n) for n in levels.split(b"x")) if levels else ()
        )

    def save(self, path: str | Path) -> None:
        """Write Parquet with columns item_id, group (rows by item id); `kind`, `id` and `levels` ("32x16") in its metadata."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {
            "item_id": pa.array(self.items.keys(), pa.string()),
            "group": pa.array(self.items.values(), pa.int32()),
        }
        about = {"kind": self.kind, "id": self.id}
        if self.levels:
            about["levels"] = "x".join(map(str, self.levels))
        pq.write_table(pa.table(columns).replace_schema_metadata(about), path)

    def extend(self, more: Mapping[str, int]) -> GroupMap:
        """A new map with further assignments. Raises InputError where one contradicts what is there."""
        for name, group in more.items():
            if self.items.get(name, group) != group:
                raise InputError(
                    f"item {name!r} is in group {self.items[name]} and can't move to {group}: build a new map"
                )
        return GroupMap({**self.items, **more}, self.kind, self.levels)

    def cut(self, levels: int) -> GroupMap:
        """The same items in the groups of the first `levels` levels. Raises InputError for a map that has no more levels."""
        if not 1 <= levels < len(self.levels):
            have = f"it has {len(self.levels)}" if self.levels else "it is flat"
            raise InputError(
                f"map {self.id} can't be cut to {levels} levels: {have} (see `groups build --method residual`)"
            )
        below = math.prod(self.levels[levels:])
        kept = self.levels[:levels] if levels > 1 else ()
        return GroupMap({name: g // below for name, g in self.items.items()}, self.kind, kept)

    def lookup(self, item_id: str) -> int | None:
        """The group of an item, None where it has none."""
        return self.items.get(item_id)

    def lookup_hashes(self, hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Groups of item hashes; -1 where there is none."""
        out = np.empty(len(hashes), np.int32)
        _find_all(self.keys, self.values, hashes, out)
        return out

    def __len__(self) -> int:
        return len(self.items)

    def sizes(self) -> dict[int, int]:
        """Items of each group that has any."""
        numbers, counts = np.unique(np.fromiter(self.items.values(), np.int64, len(self)), return_counts=True)
        return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def _content_hash(items: Mapping[str, int]) -> str:
    h = hashlib.blake2b(digest_size=4)
    for name, group in items.items():
        b = name.encode()
        h.update(b"%d:%b%d\n" % (len(b), b, group))
    return h.hexdigest()


def _number(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise InputError(f"{where}group {text!r} is not a whole number in 0..{GROUP_MAX}")
    return int(text)


def _check(name: object, group: object, where: str) -> None:
    if not isinstance(name, str) or not name or len(name.encode()) > ID_BYTES:
        raise InputError(f"{where}item_id {name!r:.60} is empty or longer than {ID_BYTES} bytes")
    if not isinstance(group, int) or not 0 <= group <= GROUP_MAX:
        raise InputError(f"{where}group {group!r} of item {name!r:.60} is not a whole number in 0..{GROUP_MAX}")
