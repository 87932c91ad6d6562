"""Looks at everything a worker needs, and says what is wrong and how to mend it. Control path: only reads, but for a small
file at the location of the snapshots, which it writes and deletes."""

from __future__ import annotations

import importlib.metadata
import os
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stream_dmgin import settings as _settings
from stream_dmgin import topics
from stream_dmgin.errors import InputError, StreamDmginError, UsageError
from stream_dmgin.log import manage
from stream_dmgin.log.base import TP, Log, open_log
from stream_dmgin.log.murmur2 import partition_of
from stream_dmgin.log.scan import scan
from stream_dmgin.settings import Settings
from stream_dmgin.state.ops.stores import Stores
from stream_dmgin.state.snapshots.place import Place
from stream_dmgin.state.snapshots.restore import candidates
from stream_dmgin.worker.disk import Disk

PACKAGES = ("confluent-kafka", "faust-streaming", "msgspec", "numba", "numpy", "rocksdict", "torch")
LOOKED_AT = 200  # newest records of each partition, for their keys and times
AHEAD_S = 60.0  # so far may a record's time be ahead of this clock
LATE = 4  # times snapshot.every_s, after which a newest snapshot is too old
OPEN_TO_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `fix` is empty where it is as it should be."""

    check: str
    ok: bool
    found: str
    fix: str = ""


def examine(settings: Settings) -> list[Finding]:
    """Every check, those that need the log last; a log that can't be reached is a finding."""
    out = [*_versions(), *_disk(settings), *_permissions(settings), *_snapshots(settings)]
    try:
        with open_log(settings.log, settings.kafka) as log:
            out += _log(log, settings)
            out += _stores(settings, log)
    except StreamDmginError as e:
        out.append(Finding("log", False, str(e), "start the broker, or mend --log and the section [kafka]"))
        out += _stores(settings, None)
    return out


def _versions() -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding(
        "python", sys.version_info >= (3, 11), python, "" if sys.version_info >= (3, 11) else "use 3.11 or newer"
    )
    for name in PACKAGES:
        try:
            yield Finding(f"package {name}", True, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(f"package {name}", False, "not installed", "install stream-dmgin again (`make install`)")


def _disk(settings: Settings) -> Iterator[Finding]:
    there = next(p for p in (settings.data_dir.absolute(), *settings.data_dir.absolute().parents) if p.exists())
    disk = Disk(there, settings["worker.disk_free_mb"], settings["worker.disk_free_percent"])
    why = disk.look()
    yield Finding(
        "disk",
        not why,
        why.removeprefix("disk: ") or f"{disk.free / 1e9:.1f} GB free at {there}",
        why and "make room: workers take no events till then",
    )


def _refused(d: Path) -> Path | None:
    """The first of a directory and everything in it that this account may not read and write."""
    for root, folders, files in os.walk(d):
        for path, wanted in (
            (Path(root), os.R_OK | os.W_OK | os.X_OK),
            *((Path(root, f), os.R_OK | os.W_OK | os.X_OK) for f in folders),
            *((Path(root, f), os.R_OK | os.W_OK) for f in files),
        ):
            # a file that RocksDB has just removed is none of a wrong owner
            if not os.access(path, wanted) and path.exists():
                return path
    return None


def _permissions(settings: Settings) -> Iterator[Finding]:
    d = settings.data_dir
    if d.exists():
        bad = _refused(d)
        yield Finding(
            "data directory",
            bad is None,
            f"{bad or d} is {'readable and writable' if bad is None else 'not readable and writable'} for this account",
            "" if bad is None else f"chown or chmod {bad}",
        )
    else:
        yield Finding("data directory", True, f"{d} does not exist yet")
    secrets = {
        Path(v)
        for k, v in settings.kafka.items()
        if k in ("ssl.key.location", "ssl.keystore.location", "sasl.oauthbearer.config")
    }
    secrets |= {
        Path(origin) for key, origin in settings.kafka_origin.items()
        if any(s in key for s in _settings.SECRET) and Path(origin).is_file()
    }  # fmt: skip
    for path in sorted(secrets):
        if not path.is_file():
            yield Finding("secrets", False, f"{path} does not exist", "name a file that exists in the section [kafka]")
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        ok = not mode & OPEN_TO_OTHERS
        yield Finding(
            "secrets", ok, f"{path} has mode {mode:03o}", "" if ok else f"chmod 600 {path}: other accounts can read it"
        )


def _snapshots(settings: Settings) -> Iterator[Finding]:
    """The location of the snapshots: whether it can be listed and written, and how old the newest snapshot of each partition is."""
    url, every = str(settings["snapshot.to"]), float(settings["snapshot.every_s"])
    if not url:
        yield Finding("snapshots", True, "none are taken: snapshot.to is not set")
        return
    try:
        place = Place(url)
        newest: dict[int, int] = {}
        for p in place.partitions():
            good = candidates(place, p)[0]
            if good:
                newest[p] = max(m.created_ms for m in good)
        there = place.probe()
    except StreamDmginError as e:
        fix = "bring the location back, or mend snapshot.to and its credentials (docs/configuration.md)"
        yield Finding("snapshots", False, str(e), fix)
        return
    if not newest:
        found = f"{url} can be written, no snapshot is there yet" if there else f"{url} does not exist yet"
        yield Finding("snapshots", True, found)
        return
    oldest = min(newest, key=lambda p: newest[p])
    age = time.time() - newest[oldest] / 1000
    late = bool(every) and age > LATE * every
    yield Finding(
        "snapshots",
        not late,
        f"{url} can be written; snapshots of {len(newest)} partitions, the newest of partition {oldest} is {age:,.0f} s old",
        f'is a worker running on partition {oldest}? Look for "the snapshot failed" in its log' if late else "",
    )


def _log(log: Log, settings: Settings) -> Iterator[Finding]:
    told = log.describe()
    yield Finding("log", True, ", ".join(f"{k} {v}" for k, v in told.items()))
    wrong = manage.differences(log, settings.prefix)
    there = log.topics()
    for d in wrong:
        fix = (
            "give all user-keyed topics the same number of partitions: new topics under another prefix (`state rescale`)"
            if d.key == "partitions"
            else "stream-dmgin topics apply"
        )
        yield Finding("topics", False, str(d), fix)
    if not wrong:
        yield Finding(
            "topics", True, "all topics are as the contract has them: partitions equal, retention and cleanup right"
        )
    names = [settings.topic(t) for t in (*topics.EVENTS, topics.REQUESTS) if settings.topic(t) in there]
    if names:
        yield from _records(log, names)


def _records(log: Log, names: list[str]) -> Iterator[Finding]:
    """Evidence from the newest records: their partitioner, and their times against this clock."""
    ranges: dict[TP, tuple[int, int]] = {}
    partitions: dict[str, int] = {}
    for name in names:
        begins, ends = log.begins(name), log.ends(name)
        partitions[name] = len(ends)
        ranges |= {(name, p): (max(begins[p], end - LOOKED_AT), end) for p, end in ends.items()}
    keyed = misplaced = 0
    newest = 0
    for batch, inside in scan(log, ranges):
        for i in np.flatnonzero(inside).tolist():
            key, name = batch.key(i), batch.topics[batch.topic[i]]
            if key is not None:
                keyed += 1
                misplaced += partition_of(key, partitions[name]) != int(batch.partition[i])
            newest = max(newest, int(batch.timestamp[i]))
    fix = "a producer partitions by something else than murmur2: librdkafka needs partitioner=murmur2_random (docs/runbook.md)"
    yield Finding(
        "partitioner",
        not misplaced,
        f"{misplaced} of the newest {keyed} records lie in another partition than their key says",
        fix if misplaced else "",
    )
    if newest:
        ahead = newest / 1000 - time.time()
        found = f"the newest record is {abs(ahead):,.0f} s {'ahead of' if ahead > 0 else 'behind'} this clock"
        late = ahead > AHEAD_S
        yield Finding(
            "clock", not late, found, "set the clock of this machine, or of the producers, by NTP" if late else ""
        )


def _stores(settings: Settings, log: Log | None) -> Iterator[Finding]:
    try:
        stores = Stores.of(settings.data_dir)
    except PermissionError:  # found already, with its path
        return
    except InputError:
        yield Finding("stores", True, f"none in {settings.data_dir} yet")
        return
    except StreamDmginError as e:
        yield Finding("stores", False, str(e), "upgrade stream-dmgin, or use another --data-dir: its state is rebuilt")
        return
    there = log.topics() if log is not None else {}
    clicks = there.get(settings.topic(topics.CLICKS))
    if clicks is not None and clicks.partitions != stores.partitions:
        yield Finding(
            "stores",
            False,
            f"folded from {stores.partitions} partitions, the log has {clicks.partitions}",
            "see `state rescale`, or use another --data-dir",
        )
    good = 0
    for p in stores.present():
        try:
            engine = stores.open(p)
        except StreamDmginError as e:
            fix = f"move {stores.path(p)} away: it is restored or rebuilt"
            yield Finding("stores", False, f"partition {p}: {e}", "see there" if isinstance(e, UsageError) else fix)
            continue
        try:
            offsets = stores.offsets(engine)
        finally:
            engine.close()
        wrong = list(_outside(log, offsets, p, there)) if log is not None else []
        yield from wrong
        good += not wrong
    yield Finding(
        "stores", True, f"{good} of {len(stores.present())} partitions here open, and the log goes on where they stand"
    )


def _outside(log: Log, offsets: dict[str, int], p: int, there: dict[str, Any]) -> Iterator[Finding]:
    for t, offset in offsets.items():
        if t not in there:
            continue
        begin, end = log.begins(t).get(p, 0), log.ends(t).get(p, 0)
        if offset and offset < begin:
            yield Finding(
                "stores",
                False,
                f"{t}/{p}: the store is at offset {offset}, the log begins at {begin}",
                "restore a newer snapshot (`state restore`), or accept the loss (runbook: The log has lost what a store needs)",
            )
        elif offset > end:
            yield Finding(
                "stores",
                False,
                f"{t}/{p}: the store is at offset {offset}, the log ends at {end}",
                "this is another log: mend --log or --data-dir",
            )
