"""The pages of a measurement: a table of all models, calibration by segment with its noise, and a reliability diagram.

`report.md` is what goes into docs/quality.md; `reliability.svg` needs nothing beside it; `report.json` holds the same for machines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.ab import plots
from stream_dmgin.ab.compare import reliability
from stream_dmgin.models.segments import segment_name
from stream_dmgin.training.metrics import ece, ece_floor, logloss

LEAST = 200  # rows below which a segment says nothing
Probabilities = NDArray[np.float64]


def by_segment(
    label: NDArray[np.int8],
    codes: Mapping[str, NDArray[np.int64]],
    scores: Mapping[str, Sequence[Probabilities]],
    surfaces: Mapping[int, str] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """A line for each segment of LEAST rows or more, and one for `all`: rows, rate, and for each kind of score (several seeds each)
    the mean prediction, logloss and ECE, with the range (5 to 95 %) of the ECE that exactly true probabilities would show.

    `surfaces`: names of those codes.
    """
    lines = []
    for kind, values in {"all": np.zeros(len(label), np.int64), **codes}.items():
        for code in np.unique(values).tolist():
            here = values == code
            if here.sum() < LEAST and kind != "all":
                continue
            y = label[here]
            line: dict[str, Any] = {
                "kind": kind, "segment": "all" if kind == "all" else _name(kind, code, surfaces),
                "rows": int(here.sum()), "rate": float(np.mean(y == 1)),
            }  # fmt: skip
            for name, seeds in scores.items():
                own = [p[here] for p in seeds]
                _, low, high = ece_floor(own[0], draws=100)
                line[name] = {
                    "predicted": float(np.mean([p.mean() for p in own])), "logloss": float(np.mean([logloss(y, p) for p in own])),
                    "ece": float(np.mean([ece(y, p) for p in own])), "ece_low": low, "ece_high": high,
                }  # fmt: skip
            lines.append(line)
    return lines


def _name(kind: str, code: int, surfaces: Mapping[int, str]) -> str:
    return surfaces.get(code, "none" if code == 0 else str(code)) if kind == "surface" else segment_name(kind, code)


def write_report(
    out: Path, result: Mapping[str, Any], label: NDArray[np.int8], scores: Mapping[str, Probabilities], command: str
) -> list[str]:
    """Write report.md, report.json and reliability.svg into `out`; their paths. `result`: what `evaluate -o json` prints; `scores`: name ->
    probabilities of one seed, for the diagram."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "report.md").write_text(markdown(result, command))
    (out / "reliability.svg").write_text(plots.reliability({n: reliability(label, p) for n, p in scores.items()}, 480))
    return [str(out / f) for f in ("report.md", "report.json", "reliability.svg")]


def markdown(result: Mapping[str, Any], command: str) -> str:
    """Models, differences and segments as Markdown tables."""
    models = result["models"]
    floor = next(iter(models.values()))["metrics"]["ece_noise"]
    lines = [
        f"# {result['dataset']}, {result['track']} track", "",
        f"{result['rows']:,} test rows, {result['clicks']:,} clicks.", "", f"    {command}", "",
        f"ECE of exactly true probabilities: {floor['low']:.4f} to {floor['high']:.4f} (5 to 95 %).", "",
        "| model | seeds | calibration | AUC (sd) | GAUC | GAUC, plain mean | logloss (sd) | ECE | s of CPU a seed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, m in models.items():
        for kind in ("raw", "calibrated", "online"):
            if kind in m["metrics"]:
                x, sd = m["metrics"][kind], m["metrics"][f"{kind}_sd"]
                auc, loss = (f"{x[k]:.4f}" + (f" ({sd[k]:.4f})" if m["seeds"] > 1 else "") for k in ("auc", "logloss"))
                seconds = f"{m['seconds']:.0f}" if m.get("seconds") is not None else ""
                lines.append(
                    f"| {name} | {m['seeds']} | {kind} | {auc} | {x['gauc']:.4f} | {x['gauc_mean']:.4f} | {loss} | {x['ece']:.4f} | "
                    f"{seconds} |"
                )
    with_heads = {n: m["metrics"]["heads"] for n, m in models.items() if m["metrics"].get("heads")}
    if with_heads:
        lines += [
            "", "What follows a click, calibrated, on the test rows whose label is known in the end:", "",
            "| model | head | rows | rate | predicted | AUC | logloss | ECE (of a perfect model) |", "|---|---|---|---|---|---|---|---|",
            *(_head(n, h, x) for n, heads in with_heads.items() for h, x in heads.items() if x["rows"]),
        ]  # fmt: skip
    if result.get("differences"):
        lines += ["", "| difference | scores | of | 95 % interval |", "|---|---|---|---|"]
        lines += [
            f"| {d['model']} less {d['than']} | {d['scores']} | {k} | {i['diff']:+.4f} [{i['low']:+.4f}, {i['high']:+.4f}] |"
            for d in result["differences"]
            for k, i in d.items()
            if isinstance(i, Mapping)
        ]
    for name, m in models.items():
        if m.get("segments"):
            kinds = [k for k in ("calibrated", "online") if k in m["segments"][0]]
            lines += ["", f"Calibration of {name} by segment (predicted, ECE and the range of a perfect model)", ""]
            lines += [
                f"| segment | rows | rate | {' | '.join(kinds)} |",
                "|---|---|---|" + "---|" * len(kinds),
                *(_segment(s, kinds) for s in m["segments"]),
            ]
    return "\n".join(lines) + "\n"


def _head(model: str, head: str, x: Mapping[str, float]) -> str:
    return (
        f"| {model} | {head} | {x['rows']:,.0f} | {x['rate']:.4f} | {x['predicted']:.4f} | {x['auc']:.4f} | {x['logloss']:.4f} | "
        f"{x['ece']:.4f} ({x['ece_noise']:.4f}) |"
    )


def _segment(s: Mapping[str, Any], kinds: Sequence[str]) -> str:
    name = s["segment"] if s["kind"] == "all" else f"{s['kind']} {s['segment']}"
    each = (
        f"{s[k]['predicted']:.4f}, {s[k]['ece']:.4f} ({s[k]['ece_low']:.4f} to {s[k]['ece_high']:.4f})" for k in kinds
    )
    return f"| {name} | {s['rows']:,} | {s['rate']:.4f} | {' | '.join(each)} |"
