"""The embedded log: a durable log in a directory of one machine, for several processes at once, without a server.

Same meaning as Kafka's: dense offsets from 0 a partition, murmur2 placement, timestamps, headers, groups (one owner at a
time). Retention and compaction are kept as configuration but not enforced: the log is the database, delete the directory to
forget it. Format and guarantees: `embedded_files.py`, `frames.py`; why not SQLite: docs/adr/0001-embedded-log.md.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from stream_dmgin.errors import ConfigError, FormatError, LogUnavailable, UsageError
from stream_dmgin.log import frames
from stream_dmgin.log.base import TP, GroupListener, TopicInfo, Transactions
from stream_dmgin.log.embedded_files import TopicFiles, locked, make_topic, read_info, write_info, write_json
from stream_dmgin.log.embedded_reader import FRAME_MAX, EmbeddedGroupReader, EmbeddedReader
from stream_dmgin.log.embedded_writer import EmbeddedWriter

logger = logging.getLogger(__name__)

DEFAULTS = {"cleanup.policy": "delete", "retention.ms": "-1", "max.message.bytes": str(12 << 20)}
_NAME = re.compile(r"[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,199}")
_BOOT = Path("/proc/sys/kernel/random/boot_id")  # where there is none, a power cut isn't noticed


class EmbeddedLog:
    """See base.Log."""

    def __init__(self, url: str) -> None:
        """Opens the directory, or makes it. Raises LogUnavailable, FormatError, ConfigError."""
        self.url = url
        name = url.removeprefix("file:")
        if not name:
            raise ConfigError("log", url, "give file:DIR")
        self.directory = Path(name).expanduser().absolute()
        self._topics = self.directory / "topics"
        self._groups = self.directory / "groups"
        self._open: dict[str, TopicFiles] = {}
        try:
            self._topics.mkdir(parents=True, exist_ok=True)
            self._groups.mkdir(exist_ok=True)
            with locked(self.directory / "open.lock"):
                self._check_format()
                self._check_boot()
        except OSError as e:
            raise LogUnavailable(f"the log's directory {self.directory} can't be used: {e.strerror}") from None

    def topics(self) -> dict[str, TopicInfo]:
        """See base.Log."""
        return {d.name: read_info(d) for d in sorted(self._topics.iterdir()) if not d.name.startswith(".")}

    def create(self, topics: Iterable[TopicInfo]) -> None:
        """See base.Log."""
        for t in topics:
            if not _NAME.fullmatch(t.name):
                raise UsageError(
                    f"{t.name!r} can't be the name of a topic: letters, digits, '.', '_' and '-', 200 at most"
                )
            if t.partitions < 1:
                raise UsageError(f"{t.name}: {t.partitions} partitions: give 1 or more")
            if not (self._topics / t.name).exists():
                make_topic(self._topics, replace(t, config=_checked(t.name, {**DEFAULTS, **t.config})))

    def configure(self, topic: str, config: Mapping[str, str]) -> None:
        """See base.Log. Open writers keep the limits that they began with."""
        files = self._files(topic)
        with locked(self.directory / "open.lock"):
            info = read_info(files.directory)
            files.info = replace(info, config=_checked(topic, {**info.config, **config}))
            write_info(files.directory, files.info)

    def begins(self, topic: str) -> dict[int, int]:
        """See base.Log: nothing is ever deleted."""
        return dict.fromkeys(range(self._files(topic).info.partitions), 0)

    def ends(self, topic: str) -> dict[int, int]:
        """See base.Log."""
        files = self._files(topic)
        return {p: files.tail(p)[0] for p in range(files.info.partitions)}

    def offsets_for_time(self, topic: str, timestamp: int) -> dict[int, int]:
        """See base.Log."""
        files = self._files(topic)
        return {p: files.offset_for_time(p, timestamp) for p in range(files.info.partitions)}

    def committed(self, group: str, topics: Sequence[str]) -> dict[TP, int]:
        """See base.Log."""
        path = self._groups / f"{group}.json"
        found = json.loads(path.read_text()) if path.is_file() else {}
        return {
            (t, p): int(found.get(t, {}).get(str(p), -1)) for t in topics for p in range(self._files(t).info.partitions)
        }

    def members(self, group: str) -> list[str] | None:
        """See base.Log: nobody knows them here."""
        return None

    def describe(self) -> dict[str, Any]:
        """See base.Log."""
        return {"kind": "embedded", "nodes": [str(self.directory)]}

    def reader(self, topics: Sequence[str]) -> EmbeddedReader:
        """See base.Log."""
        return EmbeddedReader({t: self._files(t) for t in topics})

    def group_reader(
        self,
        group: str,
        topics: Sequence[str],
        listener: GroupListener,
        *,
        instance_id: str = "",
        protocol: str = "classic",
    ) -> EmbeddedGroupReader:
        """See base.Log."""
        if not _NAME.fullmatch(group):
            raise UsageError(f"{group!r} can't be the name of a group: letters, digits, '.', '_' and '-', 200 at most")
        return EmbeddedGroupReader({t: self._files(t) for t in topics}, self._groups / group, listener)

    def writer(self, **tuning: Any) -> EmbeddedWriter:
        """See base.Log."""
        return EmbeddedWriter(self._files, **tuning)

    def transactions(self, transactional_id: str) -> Transactions:
        """See base.Log: there are none here."""
        raise UsageError("the embedded log has no transactions: --exactly-once needs --log kafka://HOST:PORT")

    def close(self) -> None:
        """Close the files. Readers and writers must be closed before."""
        for files in self._open.values():
            files.close()
        self._open.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _files(self, topic: str) -> TopicFiles:
        if topic not in self._open:
            directory = self._topics / topic
            if not _NAME.fullmatch(topic) or not directory.is_dir():
                raise UsageError(f"{self.url} has no topic {topic}: create the topics with `stream-dmgin topics apply`")
            self._open[topic] = TopicFiles(directory)
        return self._open[topic]

    def _check_format(self) -> None:
        path = self.directory / "log.json"
        if not path.exists():
            write_json(path, {"format": frames.FORMAT})
            return
        try:
            found = json.loads(path.read_text())["format"]
        except (ValueError, KeyError, TypeError):
            found = "unreadable"
        if found != frames.FORMAT:
            raise FormatError(
                f"{path} says format {found}; this version reads format {frames.FORMAT}: open it with the version that wrote it"
            )

    def _check_boot(self) -> None:
        """After a restart of the machine: what was committed but had not reached the disk is cut off, frame by frame."""
        boot, path = _BOOT.read_text().strip() if _BOOT.exists() else "", self.directory / "boot"
        if path.exists() and path.read_text() != boot:
            for topic in self.topics():
                files = TopicFiles(self._topics / topic)
                for p in range(files.info.partitions):
                    lost = files.check_frames(p)
                    if lost:
                        logger.warning(
                            "%s/%d: the last %d bytes had not reached the disk when the machine stopped", topic, p, lost
                        )
                files.close()
        if not path.exists() or path.read_text() != boot:
            tmp = path.with_name(f".boot-{os.getpid()}")
            tmp.write_text(boot)
            tmp.rename(path)


def _checked(topic: str, config: Mapping[str, str]) -> dict[str, str]:
    limit = str(config["max.message.bytes"])
    if not limit.isdigit() or int(limit) > FRAME_MAX - 4096:
        raise UsageError(
            f"{topic}: max.message.bytes={limit} can't be used: the embedded log holds values up to {FRAME_MAX - 4096} bytes"
        )
    return {k: str(v) for k, v in config.items()}
