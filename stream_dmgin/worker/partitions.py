"""The partitions this worker owns, and their stores: opened when the group gives them, committed and released when it
takes them back, dropped unwritten when they are lost. Control path: called from inside the reader's poll.

A store's offsets are the truth. An empty data directory means a rebuild from the first offset, whatever the group has
committed; a store that was left behind by another owner is folded on from its own offsets. Only requests start where the
group left off, since what lies before has been answered, by whomever.

A partition is owned while the group gives it of every topic. An eager group takes everything away at each rebalance and
then gives most of it back: committed stores stay open for that moment, so that a join costs no cache.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from stream_dmgin import topics
from stream_dmgin.errors import FormatError, LogUnavailable, StoreBusy, StreamDmginError
from stream_dmgin.groups.map import GroupMap
from stream_dmgin.log.base import TP, GroupReader, Log
from stream_dmgin.state.engine import StateEngine
from stream_dmgin.state.ops.places import (
    META,
    META_FORMAT,
    Maps,
    check_meta,
    open_store_under_its_map,
    store_path,
    write_json,
)  # fmt: skip
from stream_dmgin.state.store import REQUESTS_ROW
from stream_dmgin.worker.fetching import Fetching
from stream_dmgin.worker.health import Health
from stream_dmgin.worker.patience import Patience

log_ = logging.getLogger(__name__)

Offsets = Mapping[str, Mapping[int, int]]  # full topic name -> partition -> offset
BUSY_S = 15.0  # a store on the same machine is released by its last owner within moments
SURPLUS_S = 5.0  # a worker that has got no partition by then is one too many: a standby for all
KEPT_S = 3.0  # how long the stores of an eager rebalance wait for its end


class Answered:
    """Which requests of a partition are answered: deliveries come back in any order, the row moves over whole prefixes."""

    def __init__(self, start: int) -> None:
        self.next = start  # next request to read
        self._open: dict[int, None] = {}  # read, answer not yet durable; in order of offset

    def took(self, offset: int) -> None:
        """A request was read."""
        self._open[offset] = None
        self.next = offset + 1

    def done(self, offset: int) -> None:
        """Its answer is durable."""
        self._open.pop(offset, None)

    @property
    def safe(self) -> int:
        """All requests below are answered durably."""
        return next(iter(self._open), self.next)


class Owned:
    """One owned partition: its engine, its requests, and what is left to fold before they are answered."""

    def __init__(
        self, partition: int, engine: StateEngine, answered: Answered, caught_up_at: Mapping[int, int],
        ended: Callable[[int], int], diverted: Mapping[int, int],
    ) -> None:  # fmt: skip
        self.partition, self.engine, self.answered = partition, engine, answered
        self.diverted = diverted  # event topic number -> malformed records below are dead letters already
        self._ended = ended  # event topic number -> end that the reader has seen, past markers of transactions
        self._caught_up_at = caught_up_at  # event topic number -> end when the partition was assigned
        self.saved_requests = answered.safe
        self.dirty = False
        self.restoring = True
        self.hold = 0  # other work to be done before requests are answered: erasures that this store has not in it yet

    def remaining(self) -> int:
        """Records to fold (and erasures to apply) before the state is as fresh as the log was at assignment."""
        if not self.restoring:
            return 0
        offsets = self.engine.offsets
        left = sum(max(0, end - max(offsets[t], self._ended(t))) for t, end in self._caught_up_at.items())
        left += self.hold
        self.restoring = left > 0
        return left


class Copies(Protocol):
    """Where stores of others' partitions are kept open (worker/standby.py)."""

    def has(self, partition: int) -> bool:
        """Whether there is one."""

    def take(self, partition: int) -> StateEngine | None:
        """The store of a partition that this worker owns from now on."""

    def give(self, partition: int, engine: StateEngine) -> None:
        """A committed store of a partition that goes to another worker."""


class Partitions:
    """The group's listener. `before_open()` and `on_open(owned)` let the worker tie in the shared counters; `release` makes
    durable all that these partitions' owner has to write."""

    def __init__(
        self, log: Log, prefix: str, state_dir: Path, groups: GroupMap, health: Health, *, cache_mb: int, score: bool,
        before_open: Callable[[], None], on_open: Callable[[Owned], None], release: Callable[[Sequence[Owned]], None],
        on_lost: Callable[[], None],
    ) -> None:  # fmt: skip
        self._log, self._prefix, self._dir, self._groups, self._health = log, prefix, state_dir, groups, health
        self._score, self._before_open, self._on_open = score, before_open, on_open
        self._release, self._on_lost = release, on_lost
        self.names = {prefix + t: n for n, t in enumerate(topics.EVENTS)}
        self.requests_topic, self.scores_topic = prefix + topics.REQUESTS, prefix + topics.SCORES
        self.maps = Maps(state_dir)
        self.unmarked = groups.id  # the map of stores that don't name theirs
        self.total = self._check_partitions()
        self._cache_bytes = cache_mb * 1_000_000 // self.total
        self.owned: dict[int, Owned] = {}
        self._given: set[TP] = set()  # what the group gives: a partition is owned while all its topics are
        self._kept: dict[int, StateEngine] = {}  # committed, and open until an eager rebalance has ended
        self._kept_until = 0.0
        self._leaving = False
        self._began = time.monotonic()
        self.standby: Copies | None = None  # set by the worker, if it keeps copies
        self.generation = 0  # changes with each assignment
        self.wait_for_state = True  # requests wait until the state is as fresh as the log was at assignment
        self.fetching: Fetching | None = None  # set by the worker, if there are snapshots to take from
        self.coming: set[int] = set()  # given, and not opened before their stores are fetched
        self.reader: GroupReader | None = None  # set by the worker, once it has subscribed with this listener
        self.patience = Patience(health)  # the worker's own knows of stop signals

    def _check_partitions(self) -> int:
        have = self._log.topics()
        wanted = [*self.names, self.requests_topic, self._prefix + topics.SCORES]
        counts = {t: have[t].partitions for t in wanted}
        if len(set(counts.values())) > 1:
            raise StreamDmginError(
                f"user-keyed topics need equal numbers of partitions, but: {counts}. See `stream-dmgin topics check`"
            )
        n = have[wanted[0]].partitions
        self.unmarked = write_meta(self._dir, n, self._prefix, self._groups)
        return n

    @property
    def groups(self) -> GroupMap:
        """The group map to go by. Stores of another one go over to it (worker/regroup.py)."""
        return self._groups

    def adopt(self, groups: GroupMap) -> None:
        """Go by another group map from here on: new stores have it. It is kept with the stores."""
        self.maps.keep(groups)
        self._groups = groups
        write_meta(self._dir, self.total, self._prefix, groups)

    @property
    def directory(self) -> Path:
        """Where the stores lie."""
        return self._dir

    @property
    def cache_bytes(self) -> int:
        """Memory for the users of one partition."""
        return self._cache_bytes

    # What the group tells

    def assigned(self, partitions: list[TP]) -> Mapping[TP, int]:
        """Open the stores of these partitions; offsets to read from."""
        self._given |= set(partitions)
        self.generation += 1
        t0 = time.monotonic()
        whole = [p for p in sorted({p for _, p in self._given}) if all((t, p) in self._given for t in self._topics())]
        self.coming = self._fetch([p for p in whole if p not in self.owned])
        new = [p for p in whole if p not in self.owned and p not in self.coming]
        copies = sum(map(self._copied, new))
        self._open_all(new)
        self._close_kept()
        self._forget_fetches()
        self._health.metrics.rebalances.labels("assigned").inc()
        self._tell()
        took = (time.monotonic() - t0) * 1000
        more = f", {copies} of them standby copies" if copies else ""
        more += f", the stores of {sorted(self.coming)} are fetched from snapshots" if self.coming else ""
        log_.info("assigned partitions %s, stores open after %.0f ms%s", sorted({p for _, p in partitions}), took, more)
        # All topics of a partition that is whole now, those that the group gave earlier too: they were read past meanwhile
        wanted = {tp for tp in self._given if tp[1] in new} | set(partitions)
        return {tp: self._start(tp) for tp in wanted}

    def revoked(self, partitions: list[TP]) -> None:
        """Commit these, and release them; in an eager group, when it is known who gets them."""
        self._given -= set(partitions)
        self.coming -= {p for _, p in partitions}
        numbers = sorted({p for _, p in partitions} & self.owned.keys())
        try:
            self._release([self.owned[p] for p in numbers])
        except LogUnavailable as e:  # this member's session is over before the log is back
            if self._leaving:
                raise
            log_.warning("partitions %s can't be released in order, the log is away: %s", numbers, e)
            self.lost(partitions)
            return
        gone = {p: self.owned.pop(p).engine for p in numbers}
        if self.reader is not None and self.reader.eager and not self._leaving:
            self._kept |= gone
            self._kept_until = time.monotonic() + KEPT_S
        else:
            self._let_go(gone)
            self._forget_fetches()
        self._health.metrics.rebalances.labels("revoked").inc()
        self._tell()
        log_.info("released partitions %s", numbers)

    def lost(self, partitions: list[TP]) -> None:
        """Drop these: they may have another owner already. Raises Fenced where what was sent for them could only be taken back
        together with answers of others."""
        self._given -= set(partitions)
        self.coming -= {p for _, p in partitions}
        numbers = sorted({p for _, p in partitions} & self.owned.keys())
        for p in numbers:
            self.owned.pop(p).engine.close()
        self._close_kept()
        if numbers:
            self._health.metrics.rebalances.labels("lost").inc()
            self._tell()
            log_.warning(
                "lost partitions %s: what was not committed is dropped, the next owner folds it again", numbers
            )
            self._on_lost()

    def lost_all(self) -> None:
        """Drop everything: the membership is gone."""
        self.lost(list(self._given))

    def leave(self) -> None:
        """What is revoked from now on is released at once: this worker ends."""
        self._leaving = True
        self._close_kept()

    def tend(self) -> None:
        """Open what has been fetched. Release what waits for the end of a rebalance that takes too long: another worker may be
        waiting for it."""
        if self.fetching is not None:
            here = sorted(filter(self.fetching.ready, self.coming))
            if here:
                self.coming.difference_update(here)
                self._open_all(here)
                self._tell()
                log_.info("opened partitions %s", here)
                if self.reader is not None:
                    self.reader.reread({tp: self._start(tp) for tp in self._given if tp[1] in here})
            self.fetching.tell(bool(self.coming))
        if self._kept and time.monotonic() > self._kept_until:
            log_.info("released the stores of partitions %s: the rebalance takes its time", sorted(self._kept))
            self._close_kept()

    def _topics(self) -> list[str]:
        return [*self.names, *((self.requests_topic,) if self._score else ())]

    def _close_kept(self) -> None:
        kept, self._kept = self._kept, {}
        self._let_go(kept)

    def _copied(self, p: int) -> bool:
        return self.standby is not None and self.standby.has(p)

    def _let_go(self, engines: Mapping[int, StateEngine]) -> None:
        for p, engine in engines.items():
            if self.standby is not None and not self._leaving:
                self.standby.give(p, engine)
            else:
                engine.close()

    def not_others(self) -> set[int] | None:
        """Partitions that are this worker's, or may be in a moment; None while the group may be about to give some."""
        if not self.generation and time.monotonic() - self._began < SURPLUS_S:
            return None
        return {p for _, p in self._given} | self.owned.keys() | self._kept.keys()

    def path(self, p: int) -> Path:
        """Where the store of a partition is, or would be."""
        return store_path(self._dir, p)

    def open_store(self, p: int) -> StateEngine:
        """The store of a partition. Raises StoreBusy."""
        return open_store_under_its_map(
            store_path(self._dir, p), p, self.maps, self.unmarked, self._groups, cache_bytes=self._cache_bytes
        )

    # What the worker asks

    def ends(self) -> dict[TP, int]:
        """The ends that the topics have now."""
        return {(t, p): end for t in self._topics() for p, end in self._log.ends(t).items()}

    def next_offset(self, o: Owned, topic: str) -> int:
        """Next offset of a topic to fold, or to take as a request."""
        return o.answered.next if topic == self.requests_topic else o.engine.offsets[self.names[topic]]

    def reached(self, ends: Mapping[TP, int]) -> bool:
        """Whether every owned partition is folded and answered up to these ends; not before there are owned ones."""
        return (
            bool(self.owned)
            and not self.coming
            and all(
                max(self.next_offset(o, t), self.ended(t, p)) >= end
                and (t != self.requests_topic or o.answered.safe == o.answered.next)
                for (t, p), end in ends.items()
                if (o := self.owned.get(p)) is not None
            )
        )

    def ended(self, topic: str, partition: int) -> int:
        """End of the partition that the reader has seen, 0 if none: past the markers of transactions, which aren't records."""
        return self.reader.ended().get((topic, partition), 0) if self.reader is not None else 0

    def close(self) -> None:
        """Release everything; uncommitted state is dropped."""
        self._close_kept()
        for o in self.owned.values():
            o.engine.close()
        self.owned.clear()

    # Inside

    def _start(self, tp: TP) -> int:
        """Where to read on; -1, the end, for what isn't open yet (and is passed over)."""
        o = self.owned.get(tp[1])
        return -1 if o is None else self.next_offset(o, tp[0]) or -2

    def _fetch(self, new: Sequence[int]) -> set[int]:
        """Those of these partitions that can't be opened before their stores are here."""
        fetching = self.fetching
        if fetching is None:
            return set()
        absent = [p for p in new if p not in self._kept and not self._copied(p) and not fetching.ready(p)]
        coming = {p for p in absent if p in fetching.partitions or fetching.missing(p)}
        for p in coming:
            fetching.begin(p)
        if coming and not self.wait_for_state:  # a bounded run in stream time: all partitions, or none
            fetching.wait()
            return {p for p in coming if not fetching.ready(p)}
        return coming

    def _forget_fetches(self) -> None:
        """What is fetched for nobody. Standby copies see to theirs themselves."""
        if self.fetching is not None and self.standby is None:
            for p in set(self.fetching.partitions) - self.coming:
                self.fetching.cancel(p)

    def _open_all(self, new: Sequence[int]) -> None:
        if not new:
            return
        begins, ends, committed = self.patience.ask("opening partitions", lambda: self._prepare(new))
        for p in new:
            self._open(p, ends, begins, committed)
            self._health.progress()

    def _prepare(self, new: Sequence[int]) -> tuple[Offsets, Offsets, Mapping[TP, int]]:
        """(begins, ends) of the event topics now, and what the group has committed of these partitions. What others have counted
        is known then, too."""
        self._before_open()
        ends = {t: self._log.ends(t) for t in self.names}
        begins = {t: self._log.begins(t) for t in self.names}
        return begins, ends, self.reader.committed([(t, p) for t in self._topics() for p in new]) if self.reader else {}

    def _tell(self) -> None:
        self._health.partitions = tuple(sorted(self.owned))
        self._health.assigned = bool(self.owned)
        self._health.metrics.partitions.set(len(self.owned))

    def _open(
        self,
        p: int,
        ends: Offsets,
        begins: Offsets,
        committed: Mapping[TP, int],
    ) -> None:
        path = store_path(self._dir, p)
        engine = self._kept.pop(p, None) or (self.standby.take(p) if self.standby else None) or self._open_waiting(p)
        row = engine.get(REQUESTS_ROW)  # every commit writes it
        offsets = engine.offsets
        for t, n in self.names.items():
            have = offsets[n]
            if row is not None and have < begins[t][p]:
                raise StreamDmginError(
                    f"{t}/{p}: the store has folded up to offset {have}, but the log now begins at {begins[t][p]}: records "
                    f"between are gone. Either restore a newer snapshot (`state restore --from URL --partition {p} --yes`), or accept the "
                    f"loss of everything before that offset by moving {path} away: the worker then folds what is left"
                )
            if row is None and begins[t][p] > 0:
                log_.warning("%s/%d begins at offset %d: what was before is not in the state", t, p, begins[t][p])
        o = Owned(
            p,
            engine,
            # what the group has committed was answered, by this store's owner or, since then, by another's
            Answered(max(int.from_bytes(row, "big") if row else 0, committed.get((self.requests_topic, p), -1), 0)),
            {n: ends[t][p] for t, n in self.names.items()},
            lambda n: self.ended(self._prefix + topics.EVENTS[n], p),
            # beyond the end: told of another log, before the topics were created anew
            {n: c if (c := committed.get((t, p), -1)) <= ends[t][p] else -1 for t, n in self.names.items()},
        )
        o.restoring = self.wait_for_state
        self._on_open(o)
        self.owned[p] = o

    def _open_waiting(self, p: int) -> StateEngine:
        until = time.monotonic() + BUSY_S
        while True:
            try:
                return self.open_store(p)
            except StoreBusy:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)


def check_topics(log: Log, prefix: str) -> None:
    """Raises StreamDmginError naming every topic of the contract that the log lacks, and the command that makes them."""
    have = log.topics()
    missing = [prefix + t for t in topics.ALL if prefix + t not in have]
    if missing:
        raise StreamDmginError(
            f"topics are missing: {', '.join(missing)}. Create them with `stream-dmgin topics apply`"
        )


def read_meta(state_dir: Path) -> dict[str, object] | None:
    """What the stores under this directory were folded with: partitions, prefix, group map (id and file). None: no stores."""
    try:
        meta: dict[str, object] = json.loads((state_dir / META).read_text())
    except FileNotFoundError:
        return None
    check_meta(meta, state_dir)
    return meta


def read_groups(path: str, state_dir: Path) -> GroupMap:
    """The group map at `path` (CSV or a saved map); without a path the one that the stores were folded with, or none."""
    if path:
        return GroupMap.load(path) if path.endswith(".parquet") else GroupMap.from_csv(path)
    meta = read_meta(state_dir)
    return GroupMap.load(state_dir / str(meta["groups_file"])) if meta else GroupMap.empty()


def write_meta(state_dir: Path, partitions: int, prefix: str, groups: GroupMap) -> str:
    """Check what the stores were folded from, and note the group map to go by. Returns the id of the map of stores that don't
    name theirs: written by versions that knew one map a directory. Raises FormatError."""
    state_dir.mkdir(parents=True, exist_ok=True)
    old = read_meta(state_dir)
    if old is not None and old["prefix"] != prefix:
        raise FormatError(
            f"{state_dir}: its stores were folded from topics {old['prefix']}*, not {prefix}*: offsets of the ones mean nothing in the "
            "others. Mend --prefix, or use another --data-dir"
        )
    if old is not None and old["partitions"] != partitions:
        raise FormatError(
            f"{state_dir}: its stores were folded from {old['partitions']} partitions, the log has {partitions}. "
            "Use another --data-dir: its state is rebuilt from the log (`state rescale` does it with a comparison)"
        )
    Maps(state_dir).keep(groups)
    unmarked = groups.id if old is None else str(old.get("unmarked", old["groups"]))
    write_json(
        state_dir / META,
        {
            "format": META_FORMAT, "partitions": partitions, "prefix": prefix, "groups": groups.id,
            "groups_file": Maps(state_dir).file(groups.id).name, "unmarked": unmarked,
        },
    )  # fmt: skip
    return unmarked
