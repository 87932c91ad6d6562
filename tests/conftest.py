"""Fixtures that several folders of tests share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream_dmgin.log import broker

_numbers = itertools.count()


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Apache Kafka of this session: "127.0.0.1:PORT". Use topic names of your own (`prefix`): it is shared."""
    if not broker.available():
        pytest.skip("no local Kafka: Java 17 or newer is not here, or neither Maven nor the jars are")
    with broker.LocalKafka(tmp_path_factory.mktemp("kafka")) as k:
        yield k.bootstrap


@pytest.fixture
def prefix() -> str:
    """A topic prefix that no other test of this session uses."""
    return f"t{next(_numbers)}."


@pytest.fixture
def data_root() -> Path:
    """The folder of real data beside the repository; the test is skipped where it is absent."""
    root = Path(__file__).parents[2] / "shared" / "data"
    if not root.is_dir():
        pytest.skip("no real data: the folder ../shared/data is absent")
    return root
