"""Every metric of the worker in one list, each with a word for the on-call. No user id ever becomes a label.

Updated per batch, never per record, from the loop's thread; read by the HTTP thread.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LATENCY_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60)


class Metrics:
    """The worker's metrics, on a registry of their own."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        # If it stands still while sdmgin_lag_records is above 0, the worker hangs: restart it, keep its log.
        self.records = Counter("sdmgin_records_total", "Records read, by topic", ["topic"], registry=r)
        # records of event topics minus this: duplicates (harmless) and dead letters.
        self.events = Counter("sdmgin_events_folded_total", "Events counted into state", registry=r)
        self.requests = Counter(
            "sdmgin_requests_total", "Score requests handled, by status of the answer", ["status"], registry=r
        )
        # A jump means a producer sends malformed records: `stream-dmgin dead-letters list` says which and why.
        self.dead_letters = Counter(
            "sdmgin_dead_letters_total", "Records sent to the dead letters, by reason", ["reason"], registry=r
        )
        self.lag = Gauge(
            "sdmgin_lag_records", "Records between the store's offset and the end, by topic", ["topic"], registry=r
        )
        # Above 0: partitions still catch up with the log; their requests wait.
        self.restoring = Gauge(
            "sdmgin_restore_remaining_records", "Records to fold before requests are answered", registry=r
        )
        # Above 0: stores are being fetched from snapshots. It must fall; else look at the location of the snapshots.
        self.restoring_bytes = Gauge(
            "sdmgin_restore_remaining_bytes", "Bytes of snapshots on their way here", registry=r
        )
        # failed: the worker's log says why; older snapshots stay good, and the fold goes on.
        self.snapshots = Counter("sdmgin_snapshots_total", "Snapshots taken by itself", ["outcome"], registry=r)
        # time() minus this above a few times `snapshot.every_s`: a recovery would have a long tail to fold.
        self.snapshot_time = Gauge(
            "sdmgin_last_snapshot_timestamp_seconds", "When the last snapshot was complete", registry=r
        )
        self.snapshot_bytes = Counter("sdmgin_snapshot_uploaded_bytes_total", "Bytes uploaded by snapshots", registry=r)
        # How long the fold stood for a checkpoint of one partition: milliseconds.
        self.checkpoint_time = Gauge(
            "sdmgin_checkpoint_pause_seconds", "Longest pause of the last snapshot", registry=r
        )
        self.partitions = Gauge("sdmgin_partitions_assigned", "User-keyed partitions this worker owns", registry=r)
        # From the request's record timestamp to the score handed to the producer.
        self.latency = Histogram(
            "sdmgin_request_latency_seconds", "Age of a request when its score is sent", buckets=LATENCY_S, registry=r
        )
        self.stage = Histogram(
            "sdmgin_stage_seconds", "Time per batch by stage (parse, fold, read, features, tower, head, commit)", ["stage"],
            buckets=(0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3), registry=r,
        )  # fmt: skip
        # Grows without bound: commits fail or hang; look at the disk and at the log of the worker.
        self.standby = Gauge(
            "sdmgin_standby_partitions", "Partitions of other workers of which a copy is kept", registry=r
        )
        # Stays high: a take-over would not be warm.
        self.standby_remaining = Gauge(
            "sdmgin_standby_remaining_records", "Records that the standby copies are behind their owners", registry=r
        )
        self.commit_time = Gauge("sdmgin_last_commit_timestamp_seconds", "When state was last committed", registry=r)
        self.commits = Counter("sdmgin_commits_total", "Commits of state", registry=r)
        self.users_cached = Gauge("sdmgin_users_cached", "Users whose state is in memory", registry=r)
        self.cache_bytes = Gauge("sdmgin_state_cache_bytes", "Memory of users' states", registry=r)
        self.rocksdb_bytes = Gauge("sdmgin_rocksdb_memory_bytes", "RocksDB's blocks and write buffers", registry=r)
        self.tower_hits = Counter("sdmgin_tower_cache_hits_total", "Users scored from a cached tower", registry=r)
        self.tower_misses = Counter("sdmgin_tower_cache_misses_total", "Users whose tower was computed", registry=r)
        # gap, overlap: another worker published other ranges of the same partition (a zombie, or a lost topic): see the runbook.
        self.counter_ranges = Counter(
            "sdmgin_counter_ranges_total", "Ranges of counter increments read, by outcome", ["outcome"], registry=r
        )
        # 1: no room on its disk, or no answer from the log; /health/ready says which.
        self.waiting = Gauge("sdmgin_waiting", "Whether the worker waits for its disk or its log", registry=r)
        self.disk_free = Gauge("sdmgin_disk_free_bytes", "Room on the file system of the data directory", registry=r)
        # erased: a user's rows went; unknown: the order was carried out, but this store had nothing of the user.
        self.erasures = Counter(
            "sdmgin_erasures_total", "Erasures of users carried out, by outcome", ["outcome"], registry=r
        )
        # Stays above 0: a partition can't go over to the published group map; `regroup` in /health/ready says why.
        self.regroup_partitions = Gauge(
            "sdmgin_regroup_partitions", "Owned partitions still to go over to the group map to go by", registry=r
        )
        self.regroup_remaining = Gauge(
            "sdmgin_regroup_remaining_records", "Records to fold into the store being built under it", registry=r
        )
        self.regroups = Counter(
            "sdmgin_regroups_total",
            "Partitions that went over to another group map (grown, rebuilt)",
            ["kind"],
            registry=r,
        )
        self.rebalances = Counter(
            "sdmgin_rebalances_total", "Assignments, revocations and losses of partitions", ["kind"], registry=r
        )

    def text(self) -> bytes:
        """Prometheus text format."""
        return generate_latest(self.registry)
