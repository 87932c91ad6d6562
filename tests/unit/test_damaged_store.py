"""Bytes of an SST file are changed: the store is to blame, not the record that needed it, and nothing is read as if it were less."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_dmgin.errors import StoreDamaged
from stream_dmgin.state.ops.stores import Stores
from tests.workers import event, folded, make_topics, running, settings_of, turn_until, write


def test_changed_bytes_are_damage_of_the_store(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = settings_of(tmp_path)
    make_topics(settings, 1)
    users = [f"user-{k}" for k in range(3000)]
    write(settings, [event(u, k) for k, u in enumerate(users)])
    with running(settings) as w:
        turn_until(w, folded(w), "the fold")
        w.loop.commit()
        for _ in w.partitions.owned[0].engine.compact():
            pass
    stores = Stores.of(settings.data_dir)
    largest = max(stores.path(0).glob("*.sst"), key=lambda f: f.stat().st_size)
    with largest.open("r+b") as f:
        f.seek(largest.stat().st_size // 3)
        f.write(b"\x55" * 5000)
    engine = stores.open(0)
    with pytest.raises(StoreDamaged, match="state rebuild --partition 0"):
        list(engine.users())
    engine.close()
    engine = stores.open(0)
    with pytest.raises(StoreDamaged):
        engine.find(lambda user: False, limit=10**6)
    engine.close()
    write(settings, [event(u, 10_000 + k) for k, u in enumerate(users)])
    with pytest.raises(StoreDamaged, match="not the record") as e, running(settings) as w:
        turn_until(w, folded(w), "the damage")
    assert "dead-letters skip" not in str(e.value)
