"""A log scored by the worker, then scored again from the log alone: `replay`, `replay --verify`, `ab`."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import msgpack
import numpy as np
import pyarrow.parquet as pq
import pytest

from stream_dmgin.counters.increments import decode
from stream_dmgin.datasets import form
from stream_dmgin.features.spec import BLOCKS, InputSpec
from stream_dmgin.log.base import open_log
from stream_dmgin.models.calibration import Calibration
from stream_dmgin.models.registry import save_model, untrained
from stream_dmgin.models.trunk import DMGINConfig
from stream_dmgin.replay.logsource import read_all
from tests.commands import CLI, js
from tests.logs import dataset

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def model(directory: Path, seed: int) -> Path:
    spec = InputSpec(
        groups=8,
        events=8,
        short=8,
        item_buckets=64,
        category_buckets=8,
        advertiser_buckets=8,
        blocks=BLOCKS,
        embedding=3,
    )
    made = untrained("m", DMGINConfig(spec, ("order",), width=16, item_width=8, hidden=(16, 8)), seed)
    save_model(directory, directory.name, made.network, Calibration(), {}, "For a test.\n")
    return directory


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A log of imported events and requests, all answered by a worker."""
    base = tmp_path_factory.mktemp("scored")
    form.write(dataset(300, embedding=3), base / "data")
    model(base / "models" / "one", 1)
    args = ["--log", f"file:{base / 'log'}", "--data-dir", str(base)]
    js("topics", "apply", *args, "--partitions", 2)
    js("topics", "import", base / "data", *args)
    items = pq.read_table(base / "data" / "items.parquet", columns=["item_id"])["item_id"].to_pylist()
    named = [f"{i},{k % 5}\n" for k, i in enumerate(items) if k % 4]
    (base / "groups.csv").write_text("item_id,group\n" + "".join(named))
    how = ["--model", base / "models" / "one", "--groups", base / "groups.csv", "--http", "off"]
    done = js("worker", *args, "--until-end", "--ordered", *how)
    assert done["scores"] == 300
    return base, args


def test_scores_are_reproduced_from_the_log(scored: tuple[Path, list[str]]) -> None:
    base, args = scored
    found = js("replay", "--verify", 60, *args)
    assert found["checked"] == found["reproduced"] == found["state_identical"] == 60
    assert found["unexplained"] == 0 and found["max_abs_diff"] <= 1e-6


def test_the_counters_topic_says_who_saw_and_who_clicked(scored: tuple[Path, list[str]]) -> None:
    base, _ = scored
    met = {0: 0, 1: 0}
    with open_log(f"file:{base / 'log'}") as log:
        for value in read_all(log, ["dmgin.counters"]).values:
            taught = decode(value).increments.audience
            assert taught is not None
            for kind in met:
                met[kind] += int(taught.count[taught.metric == kind].sum())
            assert (np.linalg.norm(taught.sum / taught.count[:, None], axis=1) < 128).all()
    # most users had a profile by then: it is that of the moment of publication, from the second event on
    events = pq.read_table(base / "data" / "events.parquet", columns=["topic"])["topic"].to_pylist()
    assert all(0.5 < met[k] / events.count(t) <= 1 for k, t in enumerate(("impressions", "clicks")))


def test_scores_of_the_log_are_measured_by_its_clicks(scored: tuple[Path, list[str]]) -> None:
    base, args = scored
    found = js("replay", "--scored", *args)
    rows = pq.read_table(base / "data" / "rows.parquet")
    (m,) = found["metrics"].values()
    assert found["status"] == {"ok": 300} and m["rows"] == rows.num_rows
    assert m["clicks"] == sum(rows["label"].to_pylist()) and 0 < m["auc"] < 1


def test_a_changed_score_is_found(scored: tuple[Path, list[str]], tmp_path: Path) -> None:
    base, args = scored
    with open_log(f"file:{base / 'log'}") as log:
        name = "dmgin.scores"
        reader = log.reader([name])
        reader.assign({(name, p): 0 for p in log.ends(name)})
        batch = reader.poll(1, 5)
        record = batch.record(0)
        batch.release()
        reader.close()
    body = msgpack.unpackb(record.value)
    body["ctr"][0] = min(0.99, body["ctr"][0] + 0.01)
    copy = f"file:{tmp_path / 'log'}"
    other = ["--log", copy, "--data-dir", str(tmp_path)]
    js("topics", "apply", *other, "--partitions", 2)
    js("topics", "import", base / "data", *other)
    with open_log(copy) as log:
        w = log.writer()
        w.append(
            "dmgin.scores", record.key, msgpack.packb(body), timestamp=record.timestamp, partition=record.partition
        )
        w.close()
    # the copy has no counters either: the score can't be what this log says
    found = js("replay", "--verify", 5, *other, "--data-dir", base, ok=(1,))
    assert (
        found["checked"] == 1 and found["unexplained"] == 1 and found["examples"][0]["request_id"] == body["request_id"]
    )


def test_replay_of_a_log_and_of_a_directory_agree(scored: tuple[Path, list[str]], tmp_path: Path) -> None:
    base, args = scored
    one = base / "models" / "one"
    from_log = js("replay", *args, "--model", one, "--out", tmp_path / "a")
    from_dir = js(
        "replay", base / "data", *args, "--model", one, "--out", tmp_path / "b", "--groups", _no_groups(tmp_path)
    )
    assert from_log["requests"] == from_dir["requests"] == 300 and from_log["labelled"] == from_dir["labelled"] > 0
    a, b = (
        {
            (r["request_id"], r["item_id"]): r["label"]
            for r in pq.read_table(tmp_path / x / "scores.parquet").to_pylist()
        }
        for x in "ab"
    )
    assert a == b
    assert json.loads((tmp_path / "a" / "metrics.json").read_text())["metrics"].keys() >= {
        "auc",
        "logloss",
        "ece",
        "gauc",
    }


def _no_groups(path: Path) -> Path:
    (path / "none.csv").write_text("item_id,group\n")
    return path / "none.csv"


def test_ab_compares_models_over_one_replay(scored: tuple[Path, list[str]], tmp_path: Path) -> None:
    base, args = scored
    one, two = base / "models" / "one", model(base / "models" / "two", 2)
    found = js(
        "ab",
        base / "data",
        *args,
        "--champion",
        one,
        "--challenger",
        two,
        "--challenger",
        "item-ctr",
        "--out",
        tmp_path,
        "--draws",
        50,
    )
    assert len(found["metrics"]) == 3 and set(found["differences"]) == set(found["metrics"]) - {found["champion"]}
    for d in found["differences"].values():
        assert all(
            i["low"] <= i["diff"] <= i["high"] or abs(i["high"] - i["low"]) < 1e-9 for k, i in d.items() if k != "ece"
        )
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert json.loads((tmp_path / "report.json").read_text())["verdict"] == found["verdict"]


def test_a_worse_model_is_not_published(scored: tuple[Path, list[str]]) -> None:
    base, args = scored
    one, off = base / "models" / "one", base / "models" / "off"
    shutil.copytree(one, off)
    Calibration({"ctr": (1.0, 4.0)}).save(off / "calibration.json")
    assert js("model", "publish", one, *args, "--yes")["published"]
    p = subprocess.run(
        [*CLI, *map(str, ("model", "publish", off, *args, "--yes", "--compare", "log", "-o", "json"))],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert p.returncode == 1 and "is not released: worse logloss than the running one-" in p.stderr, p.stderr
    found = js("model", "publish", one, *args, "--dry-run", "--compare", base / "data", "--against", off)
    assert not found["published"] and found["differences"]["logloss"]["high"] < 0
    p = subprocess.run(
        [*CLI, *map(str, ("model", "publish", one, *args, "--yes", "--compare", "log"))],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert p.returncode == 2 and "nothing to compare" in p.stderr


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    p = subprocess.run([*CLI, "replay", str(tmp_path)], capture_output=True, text=True, timeout=60, check=False)
    assert p.returncode == 2 and "--out" in p.stderr
    p = subprocess.run(
        [*CLI, "replay", str(tmp_path), "--out", str(tmp_path / "o")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert p.returncode == 2 and "meta.json" in p.stderr
