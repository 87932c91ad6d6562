"""One typed tree of settings, and where each value came from: flag, then environment, then file, then default.

The file is `stream-dmgin.toml` in the working directory, or the one that STREAM_DMGIN_CONFIG names. The environment
variable of `worker.http` is STREAM_DMGIN_WORKER_HTTP. Section [kafka] goes to librdkafka under its own dotted names;
from the environment, STREAM_DMGIN_KAFKA_SASL_PASSWORD is `sasl.password` (secrets belong there, or into a file only you
can read: `ssl.key.location` and the like name files).
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stream_dmgin.errors import ConfigError

FILE = "stream-dmgin.toml"
ENV = "STREAM_DMGIN_"
SECRET = ("password", "secret", "token", "sasl.jaas", "key.pem")


@dataclass(frozen=True)
class Setting:
    """One key: its type, default, what it means, and what a value must satisfy."""

    key: str
    type: type
    default: Any
    help: str
    check: Callable[[Any], bool] = lambda v: True
    fix: str = ""
    plain: bool = False  # a text that may be written as a number, true or false

    @property
    def env(self) -> str:
        """Name of its environment variable."""
        return ENV + self.key.replace(".", "_").upper()

    def parse(self, value: Any) -> Any:
        """The value in the setting's type. Raises ConfigError with the key, the value and the fix."""
        fix = self.fix or f"give a {self.type.__name__}"
        if self.plain and isinstance(value, (bool, int)):
            value = str(value).lower()
        try:
            if self.type is bool:
                out = (
                    value
                    if isinstance(value, bool)
                    else {"1": True, "true": True, "0": False, "false": False}[str(value).lower()]
                )
            elif (self.type is str and not isinstance(value, (str, os.PathLike))) or isinstance(value, bool):
                raise TypeError
            else:
                out = self.type(value)
        except (ValueError, TypeError, KeyError):
            raise ConfigError(self.key, value, fix) from None
        if not self.check(out):
            raise ConfigError(self.key, value, fix)
        return out


def _log_ok(v: str) -> bool:
    return v == "" or v.startswith("kafka://") or v.startswith("file:")


def _http_ok(v: str) -> bool:
    host, _, port = v.rpartition(":")
    return v == "off" or (bool(host) and port.isdigit() and int(port) < 65536)


SETTINGS = (
    Setting("log", str, "",
            "kafka://HOST:PORT[,HOST:PORT] or file:DIR, where records are (default: file: under the data directory)",
            _log_ok, "give kafka://HOST:PORT[,HOST:PORT] or file:DIR"),
    Setting("data_dir", str, ".stream-dmgin", "everything local: state stores, the embedded log, models of your own"),
    Setting("prefix", str, "dmgin.", "prefix of all topic names", lambda v: len(v) <= 100, "give at most 100 characters"),
    Setting("partitions", int, 8, "partitions of the user-keyed topics, when they are created",
            lambda v: 1 <= v <= 10_000, "give a whole number from 1 to 10000"),
    Setting("worker.group", str, "stream-dmgin", "consumer group of the workers", bool, "give a name"),
    Setting("worker.instance_id", str, "",
            "a name of this worker alone that stays over restarts (Kafka's static membership): a restart moves no partitions"),
    Setting("worker.group_protocol", str, "classic", "Kafka's group protocol: classic, or consumer (KIP-848, Kafka 4.0 or newer)",
            lambda v: v in ("classic", "consumer"), "give classic or consumer"),
    Setting("worker.standby", str, "0",
            "copies of each partition that other workers than its owner keep, for a warm take-over; all: every worker of all partitions",
            lambda v: v.lower() in ("all", "true", "false") or (v.isdecimal() and int(v) <= 100), "give all, or a number from 0 to 100",
            plain=True),
    Setting("worker.exactly_once", bool, False, "scores and dead letters in Kafka transactions: consumers see each once"),
    Setting("worker.transaction_ms", int, 50, "exactly once: milliseconds between two transactions, which answers wait for",
            lambda v: 1 <= v <= 5000, "give 1 to 5000 milliseconds"),
    Setting("worker.ordered_step_ms", int, 0,
            "worker --ordered: so far the shared counters may be behind a request, ms of record time; 0: not at all, some ms a request",
            lambda v: v >= 0, "give 0 or more milliseconds"),
    Setting("worker.online", bool, False,
            "learn the models behind the inputs `online` and `rhythm` even while no model reads them: 20 MiB, and a lesson an event"),
    Setting("worker.audience", bool, False,
            "publish events with their users' profiles, for the inputs `audience`, `readers`, even while no model reads them; with "
            "worker.embedding"),
    Setting("worker.embedding", int, 0,
            "keep items' embeddings of so many numbers even while no model reads them (`content`, `passed`, `audience`, `readers`); 0: as "
            "models ask",
            lambda v: 0 <= v <= 4096, "give 0 to 4096 numbers"),
    Setting("worker.groups", str, "", "group map: CSV with item_id,group, or a map built by `groups build`"),
    Setting("worker.model", str, "demo", "model id, or the directory of one"),
    Setting("worker.http", str, "127.0.0.1:8088", "health and metrics: HOST:PORT, or off", _http_ok, "give HOST:PORT, or off"),
    Setting("worker.commit_interval_s", float, 1.0, "seconds between commits of the state",
            lambda v: 0.01 <= v <= 600, "give seconds from 0.01 to 600"),
    Setting("worker.max_batch", int, 30_000, "records of one poll at most", lambda v: 1 <= v <= 1_000_000, "give 1 to 1000000"),
    Setting("worker.cache_mb", int, 2048, "memory for users' states over all partitions, MB",
            lambda v: v >= 16, "give 16 or more megabytes"),
    Setting("worker.rocksdb_mb", int, 256, "memory for RocksDB over all stores: blocks, indexes, filters, write buffers, MB",
            lambda v: v >= 16, "give 16 or more megabytes"),
    Setting("worker.tower_cache_mb", int, 256, "memory for cached user towers, MB", lambda v: v >= 1, "give 1 or more megabytes"),
    Setting("worker.max_requests", int, 64, "requests scored together at most", lambda v: 1 <= v <= 1024, "give 1 to 1024"),
    Setting("worker.stall_s", float, 120.0, "seconds without progress (lag, or a turn that hangs) after which the worker ends; 0: never",
            lambda v: v == 0 or 1 <= v <= 86_400, "give seconds from 1 to 86400, or 0"),
    Setting("worker.dead_letter_share", float, 0.5, "the worker stops when more than this share of the last records is malformed; 1: never",
            lambda v: 0 < v <= 1, "give a share above 0, at most 1"),
    Setting("worker.dead_letter_count", int, 1000, "but at least so many of them", lambda v: v >= 1, "give 1 or more"),
    Setting("worker.dead_letter_window", int, 10_000, "the last records: so many", lambda v: v >= 1, "give 1 or more"),
    Setting("worker.disk_free_mb", int, 512, "MB kept free on the data directory's disk: below, no events are taken until there is room",
            lambda v: v >= 0, "give 0 or more megabytes"),
    Setting("worker.disk_free_percent", float, 0.0, "the same as a share of the disk, %; the larger of the two counts",
            lambda v: 0 <= v < 100, "give a share from 0 to 100"),
    Setting("snapshot.to", str, "",
            "where snapshots of the state are kept: a directory, s3://BUCKET/PATH, or another URL that fsspec knows (default: nowhere)"),
    Setting("snapshot.every_s", float, 900.0, "seconds between two snapshots that a worker takes by itself; 0: none",
            lambda v: v == 0 or 1 <= v <= 604_800, "give seconds from 1 to 604800, or 0"),
    Setting("snapshot.keep", int, 4, "snapshots kept of each partition, the newest ones", lambda v: 1 <= v <= 10_000,
            "give a whole number from 1 to 10000"),
    Setting("snapshot.erase_within_days", float, 14.0,
            "days after `state erase` within which no snapshot at snapshot.to holds the user any more",
            lambda v: 0 < v <= 3650, "give days, more than 0"),
    Setting("log_level", str, "info", "debug, info, warning or error",
            lambda v: v in ("debug", "info", "warning", "error"), "give debug, info, warning or error"),
    Setting("log_format", str, "text", "text or json", lambda v: v in ("text", "json"), "give text or json"),
)  # fmt: skip
BY_KEY = {s.key: s for s in SETTINGS}


@dataclass(frozen=True)
class Settings:
    """The values in force. `origin[key]` says where each came from; `kafka` is librdkafka's own section."""

    values: Mapping[str, Any]
    origin: Mapping[str, str]
    kafka: Mapping[str, str]
    kafka_origin: Mapping[str, str]

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    @property
    def data_dir(self) -> Path:
        """The local directory."""
        return Path(self.values["data_dir"])

    @property
    def log(self) -> str:
        """URL of the log."""
        return self.values["log"] or f"file:{self.data_dir / 'log'}"

    @property
    def prefix(self) -> str:
        """Prefix of all topic names."""
        return str(self.values["prefix"])

    def topic(self, name: str) -> str:
        """Full name of a topic of the contract."""
        return self.prefix + name


def load(
    flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None, file: Path | None = None
) -> Settings:
    """Settings from flags (None values are not given), environment, file and defaults. Raises ConfigError."""
    environ = os.environ if environ is None else environ
    named = environ.get(ENV + "CONFIG")
    path = file or Path(named or FILE)
    if named and not path.is_file():
        raise ConfigError(ENV + "CONFIG", named, "name a file that exists, or unset it")
    tree = _read(path) if path.is_file() else {}
    kafka = {k: _kafka_value(k, v) for k, v in _flat(tree.pop("kafka", {})).items()}
    kafka_origin = dict.fromkeys(kafka, str(path))
    in_file = _flat(tree)
    for key in in_file:
        if key not in BY_KEY:
            raise ConfigError(
                key, in_file[key], f"remove it from {path}: no such setting (see `stream-dmgin config show`)"
            )
    for name, v in environ.items():
        if name.startswith(ENV + "KAFKA_"):
            k = name.removeprefix(ENV + "KAFKA_").lower().replace("_", ".")
            kafka[k], kafka_origin[k] = v, name
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for s in SETTINGS:
        if flags and flags.get(s.key) is not None:
            raw, where = flags[s.key], "flag"
        elif s.env in environ:
            raw, where = environ[s.env], s.env
        elif s.key in in_file:
            raw, where = in_file[s.key], str(path)
        else:
            raw, where = s.default, "default"
        values[s.key], origin[s.key] = s.parse(raw), where
    return Settings(values, origin, kafka, kafka_origin)


def masked(key: str, value: Any) -> Any:
    """The value as it may be shown: secrets are not."""
    return "********" if any(s in key for s in SECRET) and value else value


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(str(path), "this file", f"mend its TOML: {e}") from None


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for k, v in tree.items():
        if isinstance(v, Mapping):
            out |= _flat(v, f"{prefix}{k}.")
        else:
            out[prefix + k] = v
    return out


def _kafka_value(key: str, v: Any) -> str:
    if isinstance(v, bool):
        return "true" if v else "false"
    if isinstance(v, (str, int, float)):
        return str(v)
    raise ConfigError(f"kafka.{key}", v, "give a string, a number or true/false, as librdkafka documents it")
