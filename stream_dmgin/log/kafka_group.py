"""A member of a consumer group of a real Kafka over librdkafka: what the group gives and takes, and what it is told.

The listener runs on the polling thread but never inside a C callback: the callback only notes the change and makes librdkafka yield, so
errors pass through `poll` as they should. The records come as in `kafka_reader.py`.
"""

from __future__ import annotations

import contextlib
import ctypes as C
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stream_dmgin.errors import Fenced, LogUnavailable
from stream_dmgin.log import rdkafka
from stream_dmgin.log.base import TP, GroupListener
from stream_dmgin.log.kafka_reader import CLOSE_S, KafkaReader

GROUP_METADATA = b"CGMDv2:"
COMMITTED_S = 30.0  # as long as a dead member's transaction may stay open
MEMBER_S = 2.0  # for the group's word that this member still belongs to it


class KafkaGroupReader(KafkaReader):
    """A member of a consumer group. Works with eager protocols and with incremental ones (KIP-848, cooperative) alike."""

    def __init__(self, settings: Mapping[str, str], topics: Sequence[str], listener: GroupListener) -> None:
        self._listener = listener
        self._instance = settings.get("group.instance.id", "")
        self._pending: deque[tuple[int, list[TP]]] = deque()
        self._epoch = 0  # counts assignments: the result of a commit of an earlier one says nothing of this one
        self._fenced = ""
        self._closing = False
        self._commits_out = 0
        self._told: dict[TP, int] = {}  # the newest offsets handed to the group
        self._refused: set[TP] = set()  # those of them that it has not taken, for a reason that passes
        self._rejoining = self._fenced_instance = False
        self._served = time.monotonic()
        self._in_doubt = False  # there was a stall since the group was last known to know this member
        self._stale_after = int(settings.get("session.timeout.ms", 6000)) / 2000
        super().__init__(settings, topics, self._on_rebalance)
        self._callbacks.append(rdkafka.CommitCb(self._on_commit))
        self._commit_cb = self._callbacks[-1]
        self._subscribe()

    def assign(self, offsets: Mapping[TP, int]) -> None:
        """Not for a member: the group assigns."""
        raise TypeError("a group member's partitions come from the group")

    @property
    def eager(self) -> bool:
        """See base.GroupReader."""
        return not self._incremental()

    def confirm(self) -> None:
        """See base.GroupReader."""
        if not self._still_member():
            raise self._fence()

    def member(self) -> str:
        """See base.GroupReader."""
        return self._instance or self._metadata()[1]

    def reread(self, offsets: Mapping[TP, int]) -> None:
        """See base.GroupReader."""
        if mine := {tp: offset for tp, offset in offsets.items() if tp in self._assigned}:
            self._restart(mine)

    def rejoin(self) -> None:
        """See base.GroupReader. Raises Fenced for good when another process has this member's group.instance.id."""
        if self._fenced_instance:
            raise self._fence()
        self._epoch += 1
        self._assigned, self._ended, self._fenced, self._refused = {}, {}, "", set()
        while self._pending:  # librdkafka waits for these answers
            self._decline(*self._pending.popleft())
        self._rejoining = True
        try:
            self._check(self._lib.unsubscribe(self._rk), "leaving the group")
            end = time.monotonic() + MEMBER_S
            while self._rejoining and time.monotonic() < end:  # the answer to its own leaving
                late = self._lib.consumer_poll(self._rk, 20)
                if late:
                    self._lib.message_destroy(late)
        finally:
            self._rejoining = False
        self._subscribe()

    def _fence(self) -> Fenced:
        return Fenced(f"this member lost its partitions ({self._fenced}): its offsets were refused")

    def _subscribe(self) -> None:
        wanted = [(t, -1) for t in self.topics]
        self._check(self._with_list(wanted, lambda p: self._lib.subscribe(self._rk, p)), "subscribing")

    def commit(self, offsets: Mapping[TP, int]) -> None:
        """See base.GroupReader."""
        if self._fenced:
            raise self._fence()
        self._told |= offsets
        offsets = {tp: self._told[tp] for tp in {*self._refused, *offsets}}
        self._refused = set()
        if offsets:
            code = self._with_list(
                offsets, lambda p: self._lib.commit_queue(self._rk, p, self._queue, self._commit_cb, self._epoch)
            )  # fmt: skip
            self._commits_out += not code
            if code and code not in rdkafka.TRANSIENT:
                self._on_commit(0, code, None, self._epoch)
            elif code:
                self._refused = set(offsets)

    def committed(self, partitions: Iterable[TP]) -> dict[TP, int]:
        """See base.GroupReader. Raises LogUnavailable after 30 s without an answer."""
        return self._committed(list(partitions), COMMITTED_S)

    def _committed(self, partitions: list[TP], seconds: float) -> dict[TP, int]:
        end = time.monotonic() + seconds
        unstable: set[int] = set()

        def ask(parts: Any) -> dict[TP, int]:
            left = max(1, round((end - time.monotonic()) * 1000))
            self._check(self._lib.committed(self._rk, parts, left), "asking for the group's offsets")
            found = rdkafka.read_list(parts)
            unstable.clear()
            unstable.update(error for _, _, error in found if error)
            return {tp: max(-1, offset) for tp, offset, _ in found}

        while True:
            answer: dict[TP, int] = self._with_list(partitions, ask)
            if not unstable:
                return answer
            if time.monotonic() > end:  # what is in doubt must not pass for "never committed"
                self._check(min(unstable), "asking for the group's offsets")
            time.sleep(0.05)

    def group_metadata(self) -> bytes:
        """See base.GroupReader: what confluent-kafka's producers take as the metadata of a consumer. Raises Fenced outside the
        group: the broker takes offsets that come without a generation from anybody."""
        out, member = self._metadata()
        # the generation is a native int32; -1 once librdkafka knows that the membership is gone
        if not member or int.from_bytes(out[len(GROUP_METADATA) :][:4], sys.byteorder, signed=True) < 0:
            self._fenced = self._fenced or "no generation"
            raise self._fence()
        return out

    def close(self) -> None:
        """Revoke (through the listener), leave the group, close."""
        if not self._rk or self._closing:
            return
        if self._out is not None:
            self._out()
        self._closing = True
        try:
            if self._assigned:
                self._take_away(list(self._assigned))
            end = time.monotonic() + CLOSE_S
            while (self._commits_out or self._refused) and not self._fenced and time.monotonic() < end:
                if not self._commits_out:
                    self.commit({})  # what was refused: nobody else says it after this
                late = self._lib.consumer_poll(self._rk, 50)
                if late:
                    self._lib.message_destroy(late)
        finally:
            super().close()

    # -- within -------------------------------------------------------------------------------------------------------

    def _metadata(self) -> tuple[bytes, str]:
        """The group's metadata, and the name of the member in it: "CGMDv2:", generation, group, 0, member, 0, ..."""
        group = self._lib.consumer_group_metadata(self._rk)
        buffer, size = C.c_void_p(), C.c_size_t()
        error = self._lib.consumer_group_metadata_write(group, C.byref(buffer), C.byref(size))
        self._lib.consumer_group_metadata_destroy(group)
        self._check_error(error, "telling the group's metadata")
        out = C.string_at(buffer.value or 0, size.value)
        self._lib.mem_free(None, buffer)
        if not out.startswith(GROUP_METADATA):
            return out, ""
        return out, out[len(GROUP_METADATA) + 4 :].split(b"\0")[1].decode()

    def _waiting(self) -> bool:
        return bool(self._pending)

    def _serve(self) -> None:
        # A pause of the process ends somewhere within a poll: that it polls again proves nothing
        self._in_doubt |= self._stalled()
        while self._pending:
            code, parts = self._pending.popleft()
            if code == rdkafka.ERR_ASSIGN:
                self._give(parts)
            else:
                self._take_away(parts)
        self._served = time.monotonic()

    def _stalled(self) -> bool:
        return time.monotonic() - self._served >= self._stale_after

    def _give(self, parts: list[TP]) -> None:
        self._epoch += 1
        self._fenced, self._in_doubt = "", False
        said = dict(self._listener.assigned(parts)) if parts else {}
        offsets = {tp: said.pop(tp, rdkafka.OFFSET_BEGINNING) for tp in parts}
        self._assigned |= offsets
        self._take(offsets)
        again = {tp: offset for tp, offset in said.items() if tp in self._assigned}
        if again:
            self._restart(again)
        self._forget_pauses()

    def _take_away(self, parts: list[TP]) -> None:
        try:
            if parts and (self._lib.assignment_lost(self._rk) or not self._still_member()):
                self._listener.lost(parts)
            elif parts:
                self._listener.revoked(parts)
        finally:
            for tp in parts:
                self._assigned.pop(tp, None)
                self._ended.pop(tp, None)
            if not self._closing:  # another's now
                self._refused.difference_update(parts)
            self._take_nothing(parts)

    def _decline(self, code: int, parts: list[TP]) -> None:
        """Answer a rebalance without having any of it. To librdkafka, letting go is no answer to an assignment: it would wait for one
        for ever, as a member that owns partitions."""
        if code == rdkafka.ERR_ASSIGN:
            self._take({})
        else:
            self._take_nothing(parts)

    def _take(self, offsets: Mapping[TP, int]) -> None:
        if self._incremental():
            error = self._with_list(offsets, lambda p: self._lib.incremental_assign(self._rk, p))
            self._check_error(error, "taking partitions")
        else:
            self._check(self._with_list(offsets, lambda p: self._lib.assign(self._rk, p)), "taking partitions")

    def _take_nothing(self, parts: list[TP]) -> None:
        if self._incremental():
            for some in (
                parts,
                [],
            ):  # a call that fails is no answer: those of an assignment that was declined can't be let go
                error = self._with_list(some, lambda p: self._lib.incremental_unassign(self._rk, p))
                if not error:
                    break
                self._lib.error_destroy(error)
        else:
            self._lib.assign(self._rk, None)

    def _restart(self, offsets: Mapping[TP, int]) -> None:
        if not self._incremental():
            super()._restart(offsets)
            return
        self._assigned |= offsets
        error = self._with_list(offsets, lambda p: self._lib.incremental_unassign(self._rk, p))
        self._check_error(error, "letting partitions go")
        self._check_error(
            self._with_list(offsets, lambda p: self._lib.incremental_assign(self._rk, p)), "taking partitions"
        )

    def _still_member(self) -> bool:
        """Whether the group still knows this member. After a stall, ask: on the classic protocol librdkafka says `revoked`
        although another member owns everything already. The question is a commit that changes nothing."""
        if self._fenced:
            return False
        if not (self._in_doubt or self._stalled()) or not self._assigned:
            return True
        if self._lib.assignment_lost(self._rk):
            self._fenced = "librdkafka says so"
            return False
        tp = min(self._assigned)
        answer: list[int] = []
        told = rdkafka.CommitCb(lambda rk, code, parts, opaque: answer.append(code))
        queue = self._lib.queue_new(self._rk)
        try:
            offset = max(0, self._committed([tp], MEMBER_S)[tp])
            self._with_list({tp: offset}, lambda p: self._lib.commit_queue(self._rk, p, queue, told, None))
            end = time.monotonic() + MEMBER_S
            while not answer and time.monotonic() < end:
                self._serve_queue(queue, 20)
        except LogUnavailable as e:
            self._fenced = str(e)
        finally:
            self._lib.queue_destroy(queue)
            self._callbacks.append(told)  # an answer may still be on its way
        if self._lib.assignment_lost(self._rk):  # the answer may be one to a member that has joined anew since
            self._fenced = "librdkafka says so"
        elif answer and answer[0] in (0, rdkafka.ERR_REBALANCING):
            self._served, self._in_doubt = time.monotonic(), False
        elif answer:  # whatever else it says, nothing says that this is still a member
            self._note_fencing(answer[0])
        else:
            self._fenced = self._fenced or f"no answer from the group in {MEMBER_S:g} s"
        return not self._fenced

    def _note_fencing(self, code: int) -> None:
        self._fenced = rdkafka.error_text(code)
        self._fenced_instance = code == rdkafka.ERR_FENCED_INSTANCE

    def _incremental(self) -> bool:
        return bool(self._lib.rebalance_protocol(self._rk) == b"COOPERATIVE")

    def _on_rebalance(self, rk: int, code: int, parts: Any, opaque: int) -> None:
        if self._closing or self._rejoining:  # consumer_close, or the way out of the group, waits for this answer
            self._rejoining &= code == rdkafka.ERR_ASSIGN  # the answer to its own leaving is still to come
            self._decline(code, [tp for tp, _, _ in rdkafka.read_list(parts)])
            return
        with contextlib.suppress(UnicodeDecodeError):
            self._pending.append((code, [tp for tp, _, _ in rdkafka.read_list(parts)]))
        getattr(self._lib, "yield")(self._rk)

    def _on_commit(self, rk: int, code: int, parts: Any, epoch: int | None) -> None:
        self._commits_out -= 1 if rk else 0
        of = rdkafka.read_list(parts)
        codes = {code, *(e for _, _, e in of)} - {0, rdkafka.ERR_NO_OFFSET}
        if not codes or (epoch or 0) != self._epoch:
            return
        fencing = codes & rdkafka.FENCING
        if fencing:
            self._note_fencing(min(fencing))
        else:  # the next one says it, too; after the last, `close` says it again
            self._refused |= {tp for tp, _, e in of if e or code}
            self._log(4, "COMMIT", "offsets were not committed: " + rdkafka.error_text(min(codes)))
