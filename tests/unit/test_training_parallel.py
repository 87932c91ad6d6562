"""Two processes train as one would: the same weights on both, and those of one process on whole batches."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stream_dmgin.training import loop
from stream_dmgin.training.parallel import ALONE, joined
from tests.unit.test_training import CONFIG, OPTIONS, make

PLAIN = replace(CONFIG, dropout=0.0, hash_dropout=0.0)  # what is dropped differs from process to process
RUN = replace(OPTIONS, epochs=1, order=0.2, lists=0.5, batch=128)


def fit(ranks=ALONE) -> loop.Fitted:
    rows, _ = make(blocks=12, users=40)
    return loop.train(PLAIN, rows, rows.between(0, 9000), rows, rows.between(9000, 12000), RUN, ranks=ranks)


def main(out: Path) -> None:
    with joined() as ranks:
        fitted = fit(ranks)
    torch.save(
        {"weights": fitted.network.state_dict(), "platt": dict(fitted.calibration.platt), "best": vars(fitted.best)},
        out / f"{ranks.rank}.pt",
    )


@pytest.mark.timeout(300)
def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.unit.test_training_parallel", str(tmp_path)], capture_output=True, text=True,
        timeout=240, check=False, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"{i}.pt", weights_only=True) for i in range(2))
    alone = fit()
    for name, wanted in alone.network.state_dict().items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        torch.testing.assert_close(first["weights"][name], wanted, rtol=0, atol=2e-5)
    assert first["best"]["valid_logloss"] == pytest.approx(alone.best.valid_logloss, abs=1e-5)
    np.testing.assert_allclose(first["platt"]["order"], alone.calibration.platt["order"], atol=1e-3)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
