"""Compile the numba functions once, at installation, so that no first worker, test or demo waits for the compiler.

Runs the parts that have compiled functions on a little data: the state, the features with counters and catalogue, the
simulator, a worker on the embedded log, and the scoring of the released model.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from stream_dmgin.bench import machine, read, recover
from stream_dmgin.features.spec import BLOCKS, InputSpec
from stream_dmgin.models.registry import load_model
from stream_dmgin.scoring.engine import choose_engine
from stream_dmgin.state import warm


def main() -> None:
    t = time.perf_counter()
    warm.main()
    read.measure([20, 200], users=2, spec=InputSpec(blocks=BLOCKS))
    recover.measure("file", 1_000)
    with tempfile.TemporaryDirectory() as tmp:
        city = ["--users", "20", "--items", "50", "--seconds", "3600", "--events-per-s", "1", "--requests-per-s", "1"]
        machine.run(["simulate", *city, "--to-dir", tmp])
    choose_engine(load_model("demo", Path(".stream-dmgin")))
    print(f"compiled functions are warm ({time.perf_counter() - t:.1f} s)")


if __name__ == "__main__":
    main()
