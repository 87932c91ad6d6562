"""Compaction of a running worker's stores (`state compact`) and what only it knows of them (`state stats`): in the asker's
thread, slice by slice, beside the fold."""

from __future__ import annotations

from typing import Any

from stream_dmgin.state.ops.inspect import running
from stream_dmgin.worker.admin import Tell
from stream_dmgin.worker.between import Between
from stream_dmgin.worker.forgetting import Commit, compact
from stream_dmgin.worker.partitions import Owned, Partitions

STATS_S = 20.0


class Maintenance:
    """Called from threads of the local door."""

    def __init__(self, between: Between, partitions: Partitions, commit: Commit) -> None:
        self._between, self._partitions, self._commit = between, partitions, commit

    def compact(self, arguments: dict[str, Any], tell: Tell) -> dict[str, Any]:
        """{"partition": one, or none for all} -> {"partitions": [...]}; tells {"partition", "done", "of"}."""
        wanted = arguments.get("partition")

        def owned() -> dict[int, Owned]:
            return {p: o for p, o in self._partitions.owned.items() if wanted in (None, p)}

        mine = self._between.call(owned)
        for p, o in sorted(mine.items()):

            def told(done: int, of: int, p: int = p) -> None:
                tell({"partition": p, "done": done, "of": of})

            compact(self._between, self._partitions, self._commit, o, told)
        return {"partitions": sorted(mine)}

    def stats(self, arguments: dict[str, Any], tell: Tell) -> dict[str, Any]:
        """{} -> {partition: what only this process knows of its store}."""
        return self._between.call(
            lambda: {str(p): running(o.engine) for p, o in self._partitions.owned.items()}, STATS_S
        )
