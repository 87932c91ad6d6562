"""The dead-letters topic as the on-call uses it: read it, look at one, send originals back. Control path."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from stream_dmgin import topics
from stream_dmgin.control import Control, digest_of
from stream_dmgin.errors import InputError, LogUnavailable
from stream_dmgin.log.base import TP, Headers, Log
from stream_dmgin.log.scan import scan
from stream_dmgin.worker.dead_letters import DeadLetter, read, send_back


class DeadLetters:
    """The letters of one log. Its topic has one partition; offsets name letters."""

    def __init__(self, log: Log, prefix: str) -> None:
        """Raises InputError where the topic doesn't exist, LogUnavailable."""
        self._log, self._prefix, self.topic = log, prefix, prefix + topics.DEAD_LETTERS
        if self.topic not in log.topics():
            raise InputError(
                f"{log.url} has no topic {self.topic}: check --log and --prefix, or create it with `topics apply`"
            )
        if (n := log.topics()[self.topic].partitions) > 1:
            raise InputError(
                f"{self.topic} has {n} partitions, but its offsets name letters: it must have one (`topics apply`)"
            )
        self.begin, self.end = log.begins(self.topic).get(0, 0), log.ends(self.topic).get(0, 0)

    def __iter__(self) -> Iterator[DeadLetter]:
        """All letters kept, oldest first, up to the end as it was when this object was made."""
        return self.between(self.begin, self.end)

    def between(self, start: int, end: int) -> Iterator[DeadLetter]:
        """The letters from offset `start` to `end` (exclusive), oldest first."""
        start, end = max(start, self.begin), min(end, self.end)
        for batch, inside in scan(self._log, {(self.topic, 0): (start, end)}):
            for i in np.flatnonzero(inside).tolist():
                yield read(batch.record(i))

    def at(self, offset: int) -> DeadLetter:
        """The letter at an offset. Raises InputError where there is none."""
        for letter in self.between(offset, offset + 1):
            if letter.offset == offset:
                return letter
        kept = f"offsets {self.begin} to {self.end - 1} are kept" if self.end > self.begin else "it is empty"
        raise InputError(f"{self.topic} has no letter at offset {offset}: {kept}")

    def send_back(self, letters: list[DeadLetter], *, keep_timestamp: bool = False) -> int:
        """Append the originals to their topics and wait until they are durable; how many. Raises LogUnavailable."""
        failed: list[BaseException] = []

        def delivered(error: BaseException | None, tp: TP, offset: int) -> None:
            if error is not None:
                failed.append(error)

        writer = self._log.writer()
        try:
            for letter in letters:
                send_back(writer, letter, keep_timestamp=keep_timestamp, on_delivery=delivered)
                writer.poll()
            writer.flush()
        finally:
            writer.close()
        if failed:
            raise LogUnavailable(f"{len(failed)} of {len(letters)} records could not be written: {failed[0]}")
        return len(letters)


@dataclass
class Choice:
    """What a replay would send, and what it leaves out and why."""

    send: list[DeadLetter]
    repeated: int = 0  # the same record, dead-lettered again after a crash
    foreign: int = 0  # not written by this product
    erased: int = 0  # of users who were erased since: sent back, they would be known again
    valueless: int = 0  # too large for the dead letters: the original lies where the headers point


def choose(letters: Iterator[DeadLetter] | list[DeadLetter], prefix: str, control: Control) -> Choice:
    """Which letters can be sent back: each original once, to topics of this prefix only, none of users erased since."""
    choice = Choice([])
    seen: set[tuple[str, int, int]] = set()
    own = {prefix + t for t in topics.ALL if t != topics.DEAD_LETTERS}
    for letter in letters:
        if letter.original.topic not in own:
            choice.foreign += 1
        elif letter.left_out:
            choice.valueless += 1
        elif _erased(letter, prefix, control):
            choice.erased += 1
        elif letter.place in seen:
            choice.repeated += 1
        else:
            seen.add(letter.place)
            choice.send.append(letter)
    return choice


def _erased(letter: DeadLetter, prefix: str, control: Control) -> bool:
    """Whether the record is one that an erasure of its user takes."""
    r = letter.original
    e = control.erasures.get(r.partition, {}).get(digest_of(r.key)) if r.key and control.erasures else None
    if e is None:
        return False
    end = e.offsets.get(r.topic.removeprefix(prefix))
    return r.timestamp <= e.at if end is None else r.offset < end


def summary(letter: DeadLetter) -> dict[str, Any]:
    """One line about a letter."""
    r = letter.original
    return {
        "offset": letter.offset, "topic": r.topic, "partition": r.partition, "at": r.offset, "timestamp": r.timestamp,
        "reason": letter.reason, "message": letter.message, "bytes": len(r.value or b""),
    }  # fmt: skip


def full(letter: DeadLetter) -> dict[str, Any]:
    """Everything about a letter: bytes as text where they are UTF-8, as base64 besides, and decoded where they decode."""
    r = letter.original
    return {
        **summary(letter), "exception": letter.exception, "key": _text(r.key), "headers": _headers(r.headers),
        "value_base64": None if r.value is None else base64.b64encode(r.value).decode(),
        "key_base64": None if r.key is None else base64.b64encode(r.key).decode(), "decoded": _decoded(r.value),
    }  # fmt: skip


def _text(b: bytes | None) -> str | None:
    return None if b is None else b.decode("utf-8", "backslashreplace")


def _headers(headers: Headers) -> dict[str, str | None]:
    return {k: _text(v) for k, v in headers}


def _decoded(value: bytes | None) -> Any:
    """The value as JSON can hold it; None where it is no MessagePack."""
    try:
        return _plain(msgspec.msgpack.decode(value or b""))
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
        return None


def _plain(x: Any) -> Any:
    if isinstance(x, dict):
        return {str(k): _plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [_plain(v) for v in x]
    if isinstance(x, bytes):
        return _text(x)
    return x if x is None or isinstance(x, (str, bool, int)) or (isinstance(x, float) and math.isfinite(x)) else str(x)
