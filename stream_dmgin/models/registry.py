"""Released models on disk: a folder with config.json, calibration.json, card.md, and weights.safetensors (a network),
forest.safetensors (trees), or both (a stack of them); an ensemble has further networks in weights-2.safetensors and so on, with trees
or without.

The id of a model is its name and eight hex digits of a hash over config (which holds the hash of the weights) and
calibration, so that a score's `model` names exactly what produced it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load, save

import stream_dmgin
from stream_dmgin.errors import FormatError, UsageError
from stream_dmgin.features import spec as inputs
from stream_dmgin.models.calibration import Calibration
from stream_dmgin.models.forest import Forest
from stream_dmgin.models.members import KINDS, Member, build
from stream_dmgin.models.trunk import DMGINConfig, Trunk

MODEL_FORMAT = 1
WEIGHTS, FOREST = "weights.safetensors", "forest.safetensors"
# and what each keeps its weights in; of an ensemble, config.json says what is beside
ARCHITECTURES = {"dmgin": (WEIGHTS,), "trees": (FOREST,), "stack": (WEIGHTS, FOREST), "ensemble": (WEIGHTS,)}
FILES = ("config.json", "calibration.json")


@dataclass(frozen=True)
class Model:
    """A loaded model, in evaluation mode: a network, trees, or several of them. `training` tells what it was trained on.

    The logit of `ctr` is the sum of the networks', each times its weight, and of the forest's score; further heads are the first
    network's, which is of this `kind` (`models/members.py`).
    """

    id: str
    name: str
    directory: Path
    network: Trunk
    calibration: Calibration
    training: Mapping[str, Any]
    forest: Forest | None = None
    network_weight: float = 1.0
    kind: str = "dmgin"
    further: tuple[Member, ...] = ()

    @property
    def config(self) -> DMGINConfig:
        """Sizes, heads and input spec."""
        return self.network.config

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the post-click heads, beside `ctr`."""
        return self.network.config.heads

    @property
    def architecture(self) -> str:
        """One of ARCHITECTURES."""
        return architecture_of(self.forest, self.network_weight, self.kind, self.further)

    @property
    def members(self) -> tuple[Member, ...]:
        """Its networks; none where it is made of trees alone."""
        return (Member(self.kind, self.network, self.network_weight), *self.further) if self.network_weight else ()

    def alone(self, k: int) -> Model:
        """Network k by itself, with an id of its own, uncalibrated."""
        member = self.members[k]
        return replace(
            self, id=f"{self.id}.{k + 1}" if k else self.id, network=member.network, kind=member.kind, network_weight=1.0,
            forest=None, further=(),
        )  # fmt: skip


def architecture_of(forest: Forest | None, network_weight: float, kind: str, further: Sequence[Member]) -> str:
    """One of ARCHITECTURES."""
    if network_weight and (further or kind != "dmgin"):
        return "ensemble"
    return "dmgin" if forest is None else "stack" if network_weight else "trees"


def weights_file(k: int) -> str:
    """Of network k."""
    return f"weights-{k + 1}.safetensors" if k else WEIGHTS


def input_names(spec: inputs.InputSpec) -> dict[str, list[str]]:
    """The columns a model was trained on: a model is refused where the code's features have changed under it."""
    return {
        "behaviours": list(inputs.BEHAVIOUR_CLASSES), "group_stats": list(inputs.GROUP_STATS),
        "user": list(spec.user_features), "candidate": list(spec.candidate_features),
        "buckets": [str(inputs.N_AGE), str(inputs.N_DWELL), str(inputs.N_HOUR)],
    }  # fmt: skip


def _digest(config: bytes, calibration: bytes) -> str:
    return hashlib.sha256(config + b"\0" + calibration).hexdigest()[:8]


def save_model(
    directory: Path, name: str, network: Trunk, calibration: Calibration, training: Mapping[str, Any], card: str,
    forest: Forest | None = None, network_weight: float = 1.0, kind: str = "dmgin", further: Sequence[Member] = (),
) -> str:  # fmt: skip
    """Write a model's folder (files replaced if there) and return its id. `card`: Markdown, for people. With a `forest` and a
    `network_weight` of 0 the network's weights are left out: of it only the config counts. `kind` is the network's, `further` come after
    it.

    UsageError for a network that is not of a kind that serves: other peers are there to be compared with.
    """
    every = (Member(kind, network, network_weight), *further)
    for m in every:
        if type(m.network) is not KINDS.get(m.kind):
            raise UsageError(
                f"{name} holds a {type(m.network).__name__}, which can be measured but not served: train one of {', '.join(KINDS)}"
            )
    architecture = architecture_of(forest, network_weight, kind, further)
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "format": MODEL_FORMAT,
        "architecture": architecture,
        "name": name,
        "config": asdict(network.config),
        "inputs": input_names(network.config.spec),
        "training": dict(training),
    }
    for old in (directory / FOREST, *directory.glob("weights*.safetensors")):
        old.unlink(missing_ok=True)
    if WEIGHTS in ARCHITECTURES[architecture]:
        hashes = [_put_weights(directory / weights_file(k), m.network) for k, m in enumerate(every)]
        config["weights_sha256"] = hashes[0]
        if architecture == "ensemble":
            config["kind"], config["network_weight"] = kind, network_weight
            config["further"] = [
                {"kind": m.kind, "weight": m.weight, "config": asdict(m.network.config), "weights_sha256": of}
                for m, of in zip(further, hashes[1:], strict=True)
            ]
    if forest is not None:
        arrays = save_arrays(forest.arrays())
        (directory / FOREST).write_bytes(arrays)
        config["forest_sha256"] = hashlib.sha256(arrays).hexdigest()
        config["network_weight"] = network_weight
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    calibration.save(directory / "calibration.json")
    (directory / "card.md").write_text(card)
    return f"{name}-{_digest((directory / 'config.json').read_bytes(), (directory / 'calibration.json').read_bytes())}"


def _put_weights(path: Path, network: Trunk) -> str:
    weights = save({k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()})
    path.write_bytes(weights)
    return hashlib.sha256(weights).hexdigest()


def search_path(data_dir: Path | None = None) -> list[Path]:
    """Where released models are looked for, in order: STREAM_DMGIN_MODELS, ./models, DATA_DIR/models, beside the
    package, inside it.
    """
    package = Path(stream_dmgin.__file__).parent
    named = [Path(p) for p in os.environ.get("STREAM_DMGIN_MODELS", "").split(os.pathsep) if p]
    paths = [
        *named,
        Path("models"),
        *([data_dir / "models"] if data_dir else []),
        package.parent / "models",
        package / "released",
    ]
    return list({p.resolve(): p for p in reversed(paths)}.values())[::-1]


def list_models(data_dir: Path | None = None) -> Iterator[Path]:
    """Folders on the search path that hold a model."""
    for root in search_path(data_dir):
        if root.is_dir():
            yield from sorted(p for p in root.iterdir() if (p / "config.json").is_file())


def find_model(id_or_dir: str | Path, data_dir: Path | None = None) -> Path:
    """The folder of a model: a directory, a folder's or model's name, or an id."""
    wanted = str(id_or_dir)
    if (Path(wanted) / "config.json").is_file():
        return Path(wanted)
    folders = list(list_models(data_dir))
    for folder in folders:
        if wanted in (folder.name, model_id(folder), model_id(folder).rpartition("-")[0]):
            return folder
    known = ", ".join(sorted({model_id(f) for f in folders})) or "none"
    where = ", ".join(str(p) for p in search_path(data_dir))
    raise UsageError(f"model {wanted!r} is not known. Give a model's folder, or one of: {known} (looked in {where})")


def _read(directory: Path) -> tuple[dict[str, Any], str]:
    _require(directory, FILES)
    raw = (directory / "config.json").read_bytes()
    try:
        config = json.loads(raw)
        name, form, architecture = str(config["name"]), config["format"], config["architecture"]
    except (ValueError, KeyError, TypeError) as e:
        raise FormatError(
            f"{directory / 'config.json'} is not a model's config ({e!r}): copy the model's folder again"
        ) from e
    if form != MODEL_FORMAT or architecture not in ARCHITECTURES:
        raise FormatError(
            f"{directory} has model format {form!r}, architecture {architecture!r}; this version reads format "
            f"{MODEL_FORMAT}, {', '.join(ARCHITECTURES)}: use the stream-dmgin it was made with, or train again"
        )
    further = config.get("further", [])
    trees = [FOREST] if "forest_sha256" in config else []
    _require(directory, [*ARCHITECTURES[architecture], *(weights_file(k + 1) for k in range(len(further))), *trees])
    return config, f"{name}-{_digest(raw, (directory / 'calibration.json').read_bytes())}"


def _require(directory: Path, files: Sequence[str]) -> None:
    missing = [f for f in files if not (directory / f).is_file()]
    if missing:
        raise UsageError(
            f"{directory} is not a whole model, it lacks {', '.join(missing)}: copy the model's folder again"
        )


def _bytes(directory: Path, file: str, expected: Any) -> bytes:
    raw = (directory / file).read_bytes()
    if hashlib.sha256(raw).hexdigest() != expected:
        raise UsageError(
            f"{directory / file} is damaged or belongs to another config: copy the model's folder from its release again"
        )
    return raw


def model_id(directory: Path) -> str:
    """Id of the model in a folder, without loading its weights."""
    return _read(directory)[1]


def describe(directory: Path, short: bool = False) -> dict[str, Any]:
    """What `model show` (short: `model list`) says of the model in a folder; its weights aren't loaded."""
    config, ident = _read(directory)
    training = config.get("training", {})
    ctr = training.get("valid", {}).get("ctr", {})
    if short:
        trained = {"trained_on": training.get("dataset", ""), "days": training.get("train_days", "")}
        return {"id": ident, **trained, "valid_auc": ctr.get("auc", float("nan")), "path": str(directory)}
    return {
        "id": ident,
        "path": str(directory),
        **{k: config[k] for k in ("name", "architecture", "config", "training")},
    }


def parse_config(raw: Mapping[str, Any]) -> DMGINConfig:
    """The config as JSON gave it back (lists for tuples)."""
    spec = inputs.InputSpec.of(raw["spec"])
    return DMGINConfig(**{**raw, "spec": spec, "heads": tuple(raw["heads"]), "hidden": tuple(raw["hidden"]), "off": tuple(raw.get("off", ()))})


def load_model(id_or_dir: str | Path, data_dir: Path | None = None) -> Model:
    """Load a released model by folder, name or id. UsageError where it is unknown, incomplete, damaged or made for
    other inputs.
    """
    directory = find_model(id_or_dir, data_dir)
    raw, ident = _read(directory)
    parts = ARCHITECTURES[raw["architecture"]]
    held = FOREST in parts or "forest_sha256" in raw
    arrays = _bytes(directory, FOREST, raw.get("forest_sha256")) if held else None
    try:
        config = parse_config(raw["config"])
        differing = [k for k, v in input_names(config.spec).items() if raw["inputs"].get(k) != v]
        if differing:
            raise UsageError(
                f"{ident} was trained on other inputs than this version builds ({', '.join(differing)}): "
                "train it again, or use the stream-dmgin it was made with"
            )
        first = {"kind": raw.get("kind", "dmgin"), **raw, "weight": raw.get("network_weight", 1.0)}
        given = [first, *raw.get("further", [])]
        networks = [_member(directory, k, x, WEIGHTS in parts) for k, x in enumerate(given)]
        if any(m.network.config.spec != config.spec for m in networks):
            raise ValueError("its networks have other inputs than one another")
        forest = Forest.of_arrays(load_arrays(arrays)) if arrays is not None else None
        if forest is not None and (forest.candidate_columns, forest.user_columns) != _columns(config):
            raise ValueError("its forest has other columns than its inputs")
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError) as e:
        raise FormatError(f"{directory} can't be loaded ({e}): copy the model's folder from its release again") from e
    calibration = Calibration.load(directory / "calibration.json")
    training = raw.get("training", {})
    network, kind, weight = networks[0].network, networks[0].kind, networks[0].weight
    return Model(
        ident, str(raw["name"]), directory, network, calibration, training, forest, weight, kind, tuple(networks[1:])
    )


def _member(directory: Path, k: int, raw: Mapping[str, Any], trained: bool) -> Member:
    """Network k of a folder, as its config says; KeyError and the like where that can't be."""
    kind = str(raw["kind"])
    if kind not in KINDS:
        raise ValueError(f"this version knows no network {kind!r}")
    network = build(kind, parse_config(raw["config"]))
    if trained:
        network.load_state_dict(load(_bytes(directory, weights_file(k), raw.get("weights_sha256"))))
    return Member(kind, network.eval().requires_grad_(False), float(raw["weight"]))


def _columns(config: DMGINConfig) -> tuple[int, int]:
    return len(config.spec.candidate_features), len(config.spec.user_features)


def untrained(name: str, config: DMGINConfig, seed: int = 0) -> Model:
    """A model of random weights by seed, for tests and benchmarks of speed."""
    torch.manual_seed(seed)
    network = build("dmgin", config).eval().requires_grad_(False)
    return Model(f"{name}-untrained", name, Path(), network, Calibration(), {})
