"""How hard the property tests try: TEST_EFFORT=20 pytest tests/property looks at twenty times as many examples."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings


def examples(n: int) -> settings:
    """Settings for `n` examples, times the effort asked for."""
    return settings(
        max_examples=n * int(os.environ.get("TEST_EFFORT", "1")), deadline=None, suppress_health_check=list(HealthCheck)
    )
