"""The benchmarks run and print what the contract says; their figures are for a quiet machine, not for tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from stream_dmgin.bench import rivals, steps
from stream_dmgin.bench.train import made_up, padded_forward, ragged_forward
from stream_dmgin.bench.workload import Workload, write
from stream_dmgin.cli.main import cli
from stream_dmgin.errors import RecordError
from stream_dmgin.log.base import TopicInfo, open_log
from stream_dmgin.models.dmgin import DMGIN
from stream_dmgin.models.trunk import DMGINConfig
from stream_dmgin.records import decode_event
from stream_dmgin.topics import EVENTS, PREFIX

N = 3_000


def bench(*args: str) -> dict[str, object]:
    done = CliRunner().invoke(cli, ["bench", *args, "-o", "json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    out: dict[str, object] = json.loads(done.stdout)
    return out


def test_read() -> None:
    out = bench("read", "--lives", "30,200", "--users", "2")
    assert out["us_at_30"] > 0 and out["us_at_200"] > 0 and out["candidates"] == 100  # type: ignore[operator]


def test_train() -> None:
    out = bench("train", "--batches", "2", "--batch", "64")
    assert out["ratio"] > 0 and out["rows"] > 64 and out["rows_per_s"] > 0  # type: ignore[operator]
    rows = made_up(100)
    batch = next(rows.batches(100))
    network = DMGIN(DMGINConfig(rows.spec)).eval()
    one, other = (f(network, batch)["ctr"] for f in (ragged_forward, padded_forward))  # both loops run the same network
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.timeout(300)
@pytest.mark.timeout(300)  # seven processes
def test_recover_folds_everything_again() -> None:
    out = bench("recover", "--on", "file", "--events", str(N))
    assert out["events"] == N and out["seconds"] > 0 and out["tail_events"] == N // 100  # type: ignore[operator]
    assert out["from_snapshot_seconds"] > 0 and 0 < out["changed_bytes_uploaded"] < 2 * out["snapshot_bytes"]  # type: ignore[operator]


def test_an_unknown_log_is_named_with_the_choices() -> None:
    done = CliRunner().invoke(cli, ["bench", "recover", "--on", "tape"])
    assert done.exit_code != 0 and "tape" in str(done.exception) and "kafka" in str(done.exception)


def test_rivals_and_steps_read_the_same_events(tmp_path: Path) -> None:
    work = Workload(users=50, items=200, groups=20)
    url = f"file:{tmp_path / 'log'}"
    work.write_groups(tmp_path / "groups.csv")
    with open_log(url) as log:
        log.create([TopicInfo(PREFIX + t, 2, {"retention.ms": "-1"}) for t in EVENTS])
        write(log, PREFIX, work, 0, N)
    fold = rivals.DictFold(work.group_map())
    assert rivals.rate(url, PREFIX, N, fold.fold) > 0
    assert sum(sum(g[0].values()) for g in fold.state.values()) == N
    spent = steps.measure(url, PREFIX, tmp_path / "groups.csv", N, tmp_path / "store")
    assert spent["fold"] > 0 and spent["parse"] > 0


def test_the_workload_is_the_same_every_time_and_well_formed() -> None:
    work = Workload()
    some = list(work.events(49_990, 20))
    assert some == list(work.events(0, 50_010))[-20:]
    for topic, key, value, ts in work.events(0, 2_000):
        try:
            decode_event(EVENTS[topic], key, value, ts)
        except RecordError as e:
            pytest.fail(str(e))
