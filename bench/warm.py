"""Compile the numba functions once, at installation, so that no first worker, test or demo waits for the compiler.

Each package with compiled functions has a module `warm` whose `main()` runs them on a few records.
"""

from __future__ import annotations

import importlib
import time
from pathlib import Path

import stream_dmgin

PACKAGE = Path(stream_dmgin.__file__).parent


def main() -> None:
    t = time.perf_counter()
    modules = [f"stream_dmgin.{p.parent.name}.warm" for p in sorted(PACKAGE.glob("*/warm.py"))]
    for m in modules:
        importlib.import_module(m).main()
    print(f"compiled functions are warm ({len(modules)} packages, {time.perf_counter() - t:.1f} s)")


if __name__ == "__main__":
    main()
