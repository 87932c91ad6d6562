"""The tree of errors, and the exit code of each.

StreamDmginError                      1   a check found a difference, or a failure
├── UsageError                        2   wrong usage, configuration or input: the user can mend it
│   ├── ConfigError                   2   a setting: names the key, the value and the fix
│   ├── InputError                    2   a file or record that a command was given
│   └── FormatError                   2   a store, snapshot or model of a format this version can't read
├── UnavailableError                  3   a broker, store or other dependency can't be reached
│   ├── LogUnavailable                3
│   └── StoreBusy                     3   another process holds the store
├── DiskFull                          1   the disk of the data directory is full to the brim
├── RecordError                       -   one record is malformed: it goes to the dead letters, the worker goes on
├── StoreDamaged                      1   RocksDB can't read what it wrote: the disk, or somebody, changed a file
└── Fenced                            1   this member lost its partitions: it must write nothing more
"""

from __future__ import annotations


class StreamDmginError(Exception):
    """Base of every error the product raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(StreamDmginError):
    """Wrong usage, configuration or input."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting that can't be used.

    >>> str(ConfigError("worker.partitions", "zero", "give a whole number of 1 or more"))
    "worker.partitions: 'zero' can't be used: give a whole number of 1 or more"
    """

    def __init__(self, key: str, value: object, fix: str) -> None:
        super().__init__(f"{key}: {value!r} can't be used: {fix}")
        self.key, self.value, self.fix = key, value, fix


class InputError(UsageError):
    """A file, column or record given to a command can't be used."""


class FormatError(UsageError):
    """A store, snapshot, model or log was written in a format that this version doesn't know."""


class UnavailableError(StreamDmginError):
    """A dependency can't be reached."""

    exit_code = 3


class LogUnavailable(UnavailableError):
    """The broker, or the directory of the embedded log, can't be reached."""


class StoreBusy(UnavailableError):
    """Another process holds the store."""


class StoreDamaged(StreamDmginError):
    """RocksDB finds that a file of a store is not what it wrote."""


class DiskFull(StreamDmginError):
    """Nothing more can be written to the disk of the data directory."""


class RecordError(StreamDmginError):
    """One record is malformed. `reason` is a short stable word for metrics, the message says what is wrong."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Fenced(StreamDmginError):
    """The group took this member's partitions away: state and scores must not be written any more."""
