"""`make chaos [SEED=1] [MINUTES=3]`: a fault campaign; prints one JSON document, exits 1 when something doesn't hold."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.campaign import Plan, report, run
from tests.chaos.slow_disk import why_not


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--minutes", type=float, default=3.0)
    p.add_argument("--workers", type=int, default=3)
    p.add_argument("--kills", type=int, default=0, help="go on until so many were killed (at most twice the minutes)")
    p.add_argument("--shared", action="store_true", help="all workers on one data directory")
    p.add_argument(
        "--snapshots", action="store_true", help="workers take snapshots, of a place that fails now and then"
    )
    p.add_argument("--small-disk", action="store_true", help="stores on a small file system that fills up (needs root)")
    p.add_argument("--slow-disk", action="store_true", help="stores on a disk that is slow now and then (needs root)")
    p.add_argument("--rate", type=int, default=200, help="events a second")
    p.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the workers, as environment"
    )
    p.add_argument("--worker-flag", action="append", default=[], metavar="FLAG", help="a flag of the workers")
    p.add_argument("--keep", action="store_true", help="keep the directory, logs included")
    a = p.parse_args()
    if a.slow_disk and (missing := why_not()):
        p.error(missing)
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    t0 = time.monotonic()
    plan = Plan(
        a.seed, a.minutes * 60, directory, a.workers, a.shared, a.rate, env=dict(s.split("=", 1) for s in a.set),
        args=tuple(a.worker_flag), must_kill=a.kills, snapshots=a.snapshots, small_disk=a.small_disk, slow_disk=a.slow_disk,
    )  # fmt: skip
    outcome = run(plan, lambda text: print(f"{time.monotonic() - t0:6.1f} s  {text}", file=sys.stderr, flush=True))
    print(report(outcome, seed=a.seed, seconds=round(time.monotonic() - t0, 1)))
    if outcome.ok and not a.keep:
        shutil.rmtree(directory)
    else:
        print(f"kept: {directory}", file=sys.stderr)
    return 0 if outcome.ok else 1


if __name__ == "__main__":
    sys.exit(main())
