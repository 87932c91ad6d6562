"""A training set in a folder: written as it comes, read without being held, refused where it is damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stream_dmgin.errors import InputError
from stream_dmgin.features.spec import InputSpec
from stream_dmgin.scoring.graphs import example_inputs
from stream_dmgin.training.rows import TrainingRows
from tests.unit.test_training import SPEC, make

BIG = InputSpec(groups=32, events=16, short=32, item_buckets=64, category_buckets=16, advertiser_buckets=16)
CAP_MB = 32


def anonymous_mb() -> float:
    """Memory that is no file's."""
    status = dict(x.split(":", 1) for x in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) / 1024


def main(folder: Path) -> None:
    """Write a set of more than three times the cap, and read it once in batches; prints what it took."""
    x = example_inputs(BIG, 128, 4)
    for k in ("g_mask", "e_mask", "s_mask"):
        x[k][:] = True
    y = (np.arange(512).reshape(128, 4) % 7 == 0).astype(np.int8)
    rows = TrainingRows(BIG, (), folder)
    rows.append(x, y, np.zeros(128), np.arange(128))
    start, most = anonymous_mb(), 0.0
    for i in range(1, 100):
        rows.append(x, y, np.full(128, i), np.arange(128))
        most = max(most, anonymous_mb() - start)
    rows, seen = rows.finish(), 0
    for part in rows.parts(512, np.arange(rows.requests), np.random.default_rng(1), stretch=16):
        seen += int((rows.collate(part).rows >= 0).sum())
        most = max(most, anonymous_mb() - start)
    print(
        json.dumps({"rows": seen, "held_mb": most, "set_mb": sum(f.stat().st_size for f in folder.iterdir()) / 2**20})
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured by /proc")
def test_a_set_larger_than_the_memory_it_may_take(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.test_training_folder", str(tmp_path / "rows")], capture_output=True,
        text=True, timeout=240, check=False, env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["rows"] == 12_800 * 4
    assert found["set_mb"] > 3 * CAP_MB and found["held_mb"] < CAP_MB, found


def test_written_as_it_comes_or_saved_at_once_is_the_same(tmp_path: Path) -> None:
    held, kept = make(blocks=4)
    written = TrainingRows(SPEC, ("order",), tmp_path / "a")
    at = 0
    for i, x in enumerate(kept):
        c = x["c_mask"].shape
        label = np.full(c, -1, np.int8)
        label[x["c_mask"]] = held.labels()[at : at + int(x["c_mask"].sum())]
        at += int(x["c_mask"].sum())
        written.append(
            x, label, np.full(c[0], i * 1000), np.arange(c[0]) + i * c[0], {"order": np.where(label == 1, label, -1)}
        )
        assert not (tmp_path / "a" / "rows.json").exists()  # no training set before it is whole
    again = written.finish()
    held.save(tmp_path / "b")
    for name in held.columns:
        np.testing.assert_array_equal(again[name], held[name])
        assert (tmp_path / "a" / f"{name}.npy").read_bytes() == (tmp_path / "b" / f"{name}.npy").read_bytes(), name


def test_stretches_stay_together_and_nothing_is_lost() -> None:
    rows, _ = make(blocks=40, users=80)
    chosen = rows.between(0, 38_000)
    parts = rows.parts(64, chosen, np.random.default_rng(3), stretch=8)
    assert sorted(np.concatenate(parts)) == sorted(chosen[rows["r_rows"][chosen] > 0])
    assert not rows.parts(64, chosen[:0])


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    rows, _ = make(blocks=2)
    rows.save(tmp_path)
    np.save(tmp_path / "e_cls.npy", rows["e_cls"][:-1])
    with pytest.raises(InputError, match=r"not a training set.*e_cls"):
        TrainingRows.load(tmp_path)
    (tmp_path / "e_cls.npy").write_bytes(b"")
    with pytest.raises(InputError, match="not a training set"):
        TrainingRows.load(tmp_path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
