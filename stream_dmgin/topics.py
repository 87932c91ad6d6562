"""The topics of the contract: names, partitions, cleanup. `topics/asyncapi.yaml` says the same for machines."""

from __future__ import annotations

from dataclasses import dataclass

PREFIX = "dmgin."
DAY_MS = 86_400_000

IMPRESSIONS, CLICKS, POST_CLICKS = "impressions", "clicks", "post-clicks"
REQUESTS, SCORES = "requests", "scores"
ITEMS, COUNTERS, CONTROL, DEAD_LETTERS = "items", "counters", "control", "dead-letters"

EVENTS = (IMPRESSIONS, CLICKS, POST_CLICKS)  # index in this tuple = topic number in state, hot path and formats
USER_KEYED = (*EVENTS, REQUESTS, SCORES)


@dataclass(frozen=True)
class Topic:
    """One topic: `name` without its prefix; `user_keyed` topics all have the configured number of partitions, others 1."""

    name: str
    holds: str
    cleanup: str  # Kafka's cleanup.policy
    retention_ms: int  # -1: for ever

    @property
    def user_keyed(self) -> bool:
        """Whether it is keyed by user id and co-partitioned with the others that are."""
        return self.name in USER_KEYED


ALL = {
    t.name: t
    for t in (
        Topic(IMPRESSIONS, "what was shown", "delete", -1),
        Topic(CLICKS, "clicks", "delete", -1),
        Topic(
            POST_CLICKS,
            "what follows a click: order, cart, favourite, share, dwell, comment, negative, ...",
            "delete",
            -1,
        ),
        Topic(REQUESTS, "score requests", "delete", 7 * DAY_MS),
        Topic(SCORES, "answers, keyed by user id", "delete", 7 * DAY_MS),
        Topic(ITEMS, "item catalogue, keyed by item id", "compact", -1),
        Topic(COUNTERS, "increments of the counters shared by all users", "delete", -1),
        Topic(CONTROL, "which model and which group map are active, erasures", "compact", -1),
        Topic(DEAD_LETTERS, "what could not be processed, bytes untouched, reason in headers", "delete", 7 * DAY_MS),
    )
}
