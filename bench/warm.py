"""Compile the numba functions once, at installation, so that no first worker, test or demo waits for the compiler.

Each package with compiled functions has a module `warm` whose `main()` runs them on a few records.
"""

from __future__ import annotations

import importlib
import importlib.util
import time

MODULES = (
    "stream_dmgin.state.warm",
    "stream_dmgin.counters.warm",
    "stream_dmgin.features.warm",
    "stream_dmgin.simulator.warm",
)


def main() -> None:
    t = time.perf_counter()
    done = [m for m in MODULES if importlib.util.find_spec(m)]
    for m in done:
        importlib.import_module(m).main()
    print(f"compiled functions are warm: {len(done)} packages, {time.perf_counter() - t:.1f} s")


if __name__ == "__main__":
    main()
