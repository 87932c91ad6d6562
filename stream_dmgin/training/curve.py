"""The way of a training run, for people: its validations as CSV, and as a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from stream_dmgin.svg import picture, words
from stream_dmgin.training.options import Point

WIDTH, HEIGHT, PAD = 560, 280, 56
TRAIN, VALID, GREY = "#c8553d", "#1b6ca8", "#999"


def write_curve(path: Path, curve: Sequence[Point]) -> None:
    """`path` (.csv) with one line a validation, and a picture (.svg) beside it."""
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, [*Point.__dataclass_fields__])
        writer.writeheader()
        writer.writerows(asdict(p) for p in curve)
    path.with_suffix(".svg").write_text(plot(curve))


def plot(curve: Sequence[Point]) -> str:
    """Training loss and valid logloss by epoch, as SVG; the best validation is marked."""
    lines = {
        "training loss": (TRAIN, [(p.epoch, p.train_loss) for p in curve]),
        "valid logloss": (VALID, [(p.epoch, p.valid_logloss) for p in curve]),
    }
    kept = {n: (c, [(x, y) for x, y in points if y == y]) for n, (c, points) in lines.items()}
    ys = [y for _, points in kept.values() for _, y in points] or [0.0]
    low, high = min(ys), max(ys)
    room = (high - low) or max(abs(high), 1.0) * 0.01
    low, high = low - 0.05 * room, high + 0.05 * room
    last = max((p.epoch for p in curve), default=1.0)

    def at(x: float, y: float) -> tuple[float, float]:
        return PAD + x / last * (WIDTH - 2 * PAD), HEIGHT - PAD + (low - y) / (high - low) * (HEIGHT - 2 * PAD)

    parts = [
        f'<rect x="{PAD}" y="{PAD}" width="{WIDTH - 2 * PAD}" height="{HEIGHT - 2 * PAD}" fill="none" stroke="#ccc"/>'
    ]
    for k in range(5):
        y = low + (high - low) * k / 4
        parts.append(words(PAD - 6, at(0, y)[1] + 4, f"{y:.3f}", "end"))
        x = last * k / 4
        parts.append(words(at(x, low)[0], HEIGHT - PAD + 16, f"{x:.3g}", "middle"))
    parts.append(words(WIDTH / 2, HEIGHT - 16, "epoch", "middle"))
    parts.append(f'<g transform="rotate(-90 12 {HEIGHT / 2})">{words(12, HEIGHT / 2, "nats a row", "middle")}</g>')
    for k, (name, (colour, points)) in enumerate(kept.items()):
        where = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*p) for p in points))
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{where}"/>')
        if k == 0 or not curve:
            parts.append(words(PAD + 8 + 130 * k, PAD - 10, name, "start", colour))
    if curve:
        best = min(curve, key=lambda p: p.valid_logloss)
        x, y = at(best.epoch, best.valid_logloss)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{VALID}"><title>best: {best.valid_logloss:.4f}</title></circle>'
        )
        said = f"valid logloss, best {best.valid_logloss:.4f} after {best.epoch:.3g} (dot)"
        parts.append(words(PAD + 138, PAD - 10, said, "start", VALID))
    return picture(WIDTH, HEIGHT, parts, "Training loss and valid logloss by epoch") + "\n"
