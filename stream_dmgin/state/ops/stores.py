"""The stores of one data directory, seen from outside: which partitions, folded with which group map. Control path.

`DATA_DIR/state/meta.json` is written by the worker; where the stores lie is `places`' business. They are opened read-only,
which a running worker doesn't notice: what is seen is what it had committed at that moment.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from stream_dmgin import topics
from stream_dmgin.errors import FormatError, InputError
from stream_dmgin.log.murmur2 import partition_of
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.ops.places import META, Maps, check_meta, open_store_under_its_map, store_path
from stream_dmgin.state.store import holds_a_store


@dataclass(frozen=True)
class Stores:
    """What lies in a data directory."""

    directory: Path
    partitions: int  # of the user-keyed topics; not all need have a store here
    prefix: str
    groups_id: str  # of the map that the worker last went by; while it goes over to another, some stores have the other
    unmarked: str  # id of the map of stores that don't name theirs

    @classmethod
    def of(cls, data_dir: Path) -> Stores:
        """Raises InputError where there is no state, FormatError where it can't be understood."""
        directory = Path(data_dir) / "state"
        try:
            meta = json.loads((directory / META).read_text())
            check_meta(meta, directory)
            groups = str(meta["groups"])
            return cls(
                directory, int(meta["partitions"]), str(meta["prefix"]), groups, str(meta.get("unmarked", groups))
            )
        except FileNotFoundError:
            raise InputError(f"{data_dir} holds no state: give the --data-dir with which a worker has run") from None
        except (ValueError, KeyError, TypeError) as e:
            raise FormatError(
                f"{directory / META} can't be understood ({e!r}): it was written by another version"
            ) from None

    @cached_property
    def maps(self) -> Maps:
        """The group maps that the stores are folded with."""
        return Maps(self.directory)

    def path(self, partition: int) -> Path:
        """Where the store of a partition lies, if it is here."""
        return store_path(self.directory, partition)

    def present(self) -> list[int]:
        """Partitions that have a store here; a worker owns only some when there are several."""
        return [p for p in range(self.partitions) if holds_a_store(self.path(p))]

    def partition_of(self, user_id: str) -> int:
        """Where the events of a user lie, by murmur2 of the key."""
        return partition_of(user_id.encode(), self.partitions)

    def open(self, partition: int, *, cache_bytes: int = 64 << 20, read_only: bool = True) -> StateEngine:
        """The store of a partition as last committed, with its group map; read-only, also while a worker writes to it. To be
        written: StoreBusy while a worker has it."""
        return open_store_under_its_map(
            self.path(partition), partition, self.maps, self.unmarked, cache_bytes=cache_bytes, read_only=read_only
        )

    def offsets(self, engine: StateEngine) -> dict[str, int]:
        """Full topic name -> next offset that the store had folded."""
        return self.named(o for _, o in sorted(engine.offsets.items()))

    def named(self, offsets: Iterable[int]) -> dict[str, int]:
        """Offsets in the order of the event topics, under their full names."""
        return {self.prefix + t: o for t, o in zip(topics.EVENTS, offsets, strict=True)}
