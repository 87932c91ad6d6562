"""A short fault campaign in every run of the tests, with transactions and standby copies; the long one is `make chaos`, its record docs/chaos.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_dmgin.log import broker
from tests.chaos.campaign import Plan, report, run

pytestmark = pytest.mark.kafka


@pytest.mark.timeout(600)
def test_exactly_once_state_answers_dead_letters_and_counters_survive_accidents(tmp_path: Path) -> None:
    if not broker.available():
        pytest.skip("no local Kafka: Java 17 or newer is not here, or neither Maven nor the jars are")
    plan = Plan(
        seed=4, seconds=18, directory=tmp_path, workers=2, every_s=(0.5, 3.0), broker_s=(12.0, 30.0), must_kill=2
    )
    outcome = run(plan)
    assert outcome.ok, report(outcome)
