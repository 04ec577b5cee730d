"""Parity: recompute everything that a folder of reference outputs records, and compare it output by output.

An adapter, one module for each source repository, recomputes; this file reads folders, calls it and compares.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.parity.files import ParityError, read_arrays, read_json
from detection_zoo.zoo.parity.prose import read_settings
from detection_zoo.zoo.parity.settings import Note, Settings
from detection_zoo.zoo.parity.standin import CHECKPOINT_FILE, read_checkpoint_description, standin_arrays

# source repository -> module of this package with outputs(reference, entry, dtype, checkpoint_format);
# those that are neither recorded nor have an expected value are ignored
ADAPTERS = {
    "stigma0617/maskrcnn-benchmark-vovnet": "maskrcnn_benchmark",
    "facebookresearch/maskrcnn-benchmark": "maskrcnn_benchmark",
    "stigma0617/VoVNet.pytorch": "maskrcnn_benchmark",
    "roytseng-tw/Detectron.pytorch": "detectron_pytorch",
    "guoruoqian/DetNet_pytorch": "detnet",
    "PingoLH/PytorchSSD-HarDNet": "hardnet",
    "PingoLH/Pytorch-HarDNet": "hardnet",
}
ROUNDING = 1e-12  # of moments, which are sums in another order where the array's type is another
TOLERANCE = {
    "float32": 1e-4,
    "float64": 1e-4,
}  # of continuous outputs, relative L2; folders and adapters set lower ones


@dataclass(frozen=True)
class Output:
    """A recomputed output.

    value: array or tensor of the recorded shape. tolerance: relative L2 difference allowed; none: the
        default; 0.0: exactly.
    expected: what is recorded, where that is not in outputs.npz (numbers of outputs.json). note: a remark
        on its line.
    """

    value: Any
    tolerance: float | None = None
    expected: Any = None
    note: str | None = None


@dataclass(frozen=True)
class Skip:
    """An output that is not compared, and why."""

    reason: str


@dataclass(frozen=True)
class ParityLine:
    """One compared output; verdict is "ok", "differs" or "skipped"."""

    name: str
    shape: tuple[int, ...]
    difference: float | None
    tolerance: float | None
    verdict: str
    reason: str | None = None

    def __str__(self) -> str:
        shape = "x".join(str(n) for n in self.shape) or "scalar"
        if self.verdict == "skipped":
            return f"{self.name}  {shape}  skipped: {self.reason or 'no reason stated'}"
        text = f"{self.name}  {shape}  {self.difference:.2e}  (at most {self.tolerance:.0e})  {self.verdict}"
        return f"{text}: {self.reason}" if self.reason else text


@dataclass(frozen=True)
class ParityReport:
    """Every line of one folder, what was built, and remarks."""

    folder: str
    source: str
    row: str | None
    dtype: str
    lines: tuple[ParityLine, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether something was compared, nothing differs, and every skip has a reason."""
        compared = any(line.verdict == "ok" for line in self.lines)
        return compared and all(
            line.verdict == "ok" or (line.verdict == "skipped" and line.reason) for line in self.lines
        )

    def count(self, verdict: str) -> int:
        """How many lines have that verdict."""
        return sum(line.verdict == verdict for line in self.lines)

    def summary(self) -> str:
        """One line."""
        compared = [line for line in self.lines if line.difference is not None]
        worst = max(
            compared, key=lambda line: line.difference / max(line.tolerance or 0, 1e-30), default=None
        )
        text = (
            f"{self.folder}: {self.count('ok')} ok, {self.count('differs')} differ, {self.count('skipped')}"
            f" skipped ({self.dtype}"
        )
        text += f", row {self.row})" if self.row else ")"
        return text + (
            f"; nearest to its tolerance: {worst.name} {worst.difference:.1e} of {worst.tolerance:.0e}"
            if worst
            else ""
        )

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain values; an infinite difference becomes the text "inf"."""
        lines = [
            {**asdict(line), "difference": "inf" if line.difference == math.inf else line.difference}
            for line in self.lines
        ]
        return {**{k: v for k, v in asdict(self).items() if k != "lines"}, "ok": self.ok, "lines": lines}


@dataclass(frozen=True)
class Reference:
    """A folder of recorded outputs."""

    folder: Path
    asked: bool = False  # the row was given by name: it is built as it is, whatever the folder states
    notes: list[str] = field(default_factory=list, compare=False)  # remarks that adapters add to the report

    @property
    def is_steps(self) -> bool:
        """Whether the folder holds single steps: steps.json and whole arrays, no model."""
        return (self.folder / "steps.json").is_file()

    @cached_property
    def meta(self) -> dict[str, Any]:
        """outputs.json, or steps.json of a folder of exact arrays."""
        path = self.folder / ("steps.json" if self.is_steps else "outputs.json")
        return read_json(path, "outputs.json and outputs.npz")

    @cached_property
    def settings(self) -> Settings:
        """The settings that the folder states in settings.json or in notes."""
        return read_settings(self.folder, self.meta, ADAPTERS.get(self.repository, ""))

    def note(self, *fields: str) -> Note:
        """The settings of one field of `meta`; raises ParityError where it states none."""
        path = ".".join(fields)
        if path in self.settings.notes:
            return self.settings.notes[path]
        value: Any = self.meta
        for field_name in fields:
            value = value[field_name]
        held = f"{value!r} states no setting" if isinstance(value, str) else f"holds a {type(value).__name__}"
        raise ParityError(f"{getattr(self.meta, 'path', self.folder)}: {path}: {held}; a note is needed")

    @cached_property
    def recorded(self) -> dict[str, dict[str, np.ndarray]]:
        """outputs.npz: output name -> shape, moments, samples, stride; of a folder of steps, the same of
        every whole array."""
        if self.is_steps:
            return {
                name: _whole_record(array)
                for path in sorted(self.folder.glob("*.npz"))
                for name, array in _arrays(path).items()
            }
        path, kept = self.folder / "outputs.npz", {}
        for key, array in read_arrays(path, "outputs.json and outputs.npz").items():
            name, part = key.rsplit("|", 1)
            kept.setdefault(name, {})[part] = array
        for name, parts in kept.items():
            if lacking := {"shape", "moments", "samples", "stride"} - set(parts):
                raise ParityError(
                    f"{path}: output {name!r} is recorded without its {', '.join(sorted(lacking))}; is the"
                    " file whole?"
                )
        return kept

    @property
    def repository(self) -> str:
        """owner/name of the source, without the commit."""
        source = self.meta.get("source") or (self.description.get("source") if self.has_checkpoint else None)
        if not source:
            raise ParityError(
                f"{self.folder / 'outputs.json'}: has no field 'source' with the repository that made the"
                " outputs"
            )
        return source.split("@")[0]

    @property
    def config(self) -> str:
        """The source's configuration file; the folder's own name where the source has none."""
        described = self.description.get("config") if (self.folder / CHECKPOINT_FILE).is_file() else None
        return self.meta.get("config") or described or self.folder.name

    @property
    def has_checkpoint(self) -> bool:
        """Whether the folder describes a checkpoint with tensors."""
        return (self.folder / "checkpoint.json").is_file() and bool(self.description["tensors"])

    @cached_property
    def description(self) -> dict[str, Any]:
        """checkpoint.json."""
        return read_checkpoint_description(self.folder)

    def checkpoint(self, file: str = "checkpoint.json") -> dict[str, np.ndarray]:
        """The stand-in checkpoint by the file's own names."""
        return standin_arrays(self.folder, file)

    def whole(self, name: str) -> np.ndarray:
        """A recorded array that was kept completely (inputs are); raises ParityError where it was sampled."""
        kept = self.recorded.get(name)
        if kept is None:
            raise ParityError(
                f"{self.folder}: outputs.npz has no {name!r}, which other outputs are computed from"
            )
        shape = tuple(int(n) for n in kept["shape"])
        if len(kept["samples"]) != math.prod(shape):
            raise ParityError(
                f"{self.folder}: {name!r} was sampled ({len(kept['samples'])} of {math.prod(shape)} numbers),"
                " so nothing can be computed from it"
            )
        return kept["samples"].reshape(shape)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of a file; those of any other file than steps.npz have its name in front."""
    prefix = "" if path.stem == "steps" else f"{path.stem}|"
    return {prefix + name: array for name, array in read_arrays(path).items()}


def _whole_record(array: np.ndarray) -> dict[str, np.ndarray]:
    """A whole array in the form of a sampled one."""
    moments = [array.mean(dtype="float64"), array.std(dtype="float64")] if array.size else [0.0, 0.0]
    return {
        "shape": np.array(array.shape),
        "moments": np.array(moments),
        "samples": array.reshape(-1),
        "stride": np.array(1),
    }


def to_numpy(value: Any) -> np.ndarray:
    """An array of a tensor, list or number, on the CPU."""
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


def relative_difference(value: np.ndarray, expected: np.ndarray) -> float:
    """Relative L2 difference, a scalar, of two arrays of one shape; inf where anything is not finite."""
    value, expected = value.reshape(-1).astype("float64"), expected.reshape(-1).astype("float64")
    if not np.isfinite(value).all():
        return math.inf
    return float(np.linalg.norm(value - expected) / max(np.linalg.norm(expected), 1e-12))


def recorded_difference(value: np.ndarray, kept: Mapping[str, np.ndarray]) -> float:
    """The larger of two differences from what was recorded, a scalar: of the samples, and of the whole
    array's moments; inf where shapes differ."""
    if value.shape != tuple(int(n) for n in kept["shape"]):
        return math.inf
    samples = value.reshape(-1)[:: int(kept["stride"])][: len(kept["samples"])]
    difference = relative_difference(samples, kept["samples"])
    if not value.size:
        return difference
    moments = np.array([value.mean(dtype="float64"), value.std(dtype="float64")])
    apart = float(np.abs(moments - kept["moments"]).max()) / max(
        float(np.linalg.norm(kept["moments"])), 1e-12
    )
    return max(difference, apart if apart > ROUNDING else 0.0)


def compare(
    name: str, output: Output | Skip | None, kept: Mapping[str, np.ndarray] | None, dtype: str
) -> ParityLine:
    """One line: a recomputed output beside what was recorded of it (arrays of one shape, else the difference,
    a scalar, is infinite)."""
    shape = tuple(int(n) for n in kept["shape"]) if kept is not None else ()
    if output is None:
        return ParityLine(name, shape, None, None, "skipped", None)
    if isinstance(output, Skip):
        return ParityLine(name, shape, None, None, "skipped", output.reason)
    value = to_numpy(output.value)
    tolerance = TOLERANCE[dtype] if output.tolerance is None else output.tolerance
    if kept is None:
        expected = to_numpy(output.expected)
        difference = relative_difference(value, expected) if value.shape == expected.shape else math.inf
        shape = expected.shape
    else:
        difference = recorded_difference(value, kept)
    reason = f"the shape is {value.shape}" if value.shape != shape else output.note
    return ParityLine(
        name, shape, difference, tolerance, "ok" if difference <= tolerance else "differs", reason
    )


def step_outputs(reference: Reference, kind: torch.dtype) -> dict[str, Output | Skip]:
    """Every output of a folder of single steps, by the source's module of tests/parity.

    Raises:
        ParityError: this is an installed package, which has no tests.
    """
    name = f"steps_{ADAPTERS[reference.repository]}"
    path = Path(__file__).resolve().parents[2] / "tests" / "parity" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ParityError(
            f"{reference.folder}: holds single steps of the original code, which only a checkout of this"
            " project can compare: run bench.py there"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.step_outputs(reference, kind)


def find_row(reference: Reference, row: str | None) -> ModelEntry | None:
    """The manifest row given, or the one whose source_config is the folder's; none where no row names
    it."""
    manifests = load_manifests()
    if row is not None:
        return manifests.entry(row)
    rows = [e for e in manifests.entries.values() if e.source_config == reference.config]
    if len(rows) > 1:
        ours = [e for e in rows if e.source == reference.folder.parent.name]
        if len(ours) != 1:
            raise ManifestError(
                f"{reference.folder}: rows {', '.join(e.name for e in rows)} all have source_config"
                f" {reference.config!r}; name one of them"
            )
        rows = ours
    return rows[0] if rows else None


def parity(
    folder: Path | str, row: str | None = None, dtype: str = "float32", checkpoint_format: str | None = None
) -> ParityReport:
    """Recompute and compare every recorded output of a reference folder.

    Args:
        folder: holds outputs.json, outputs.npz and, with a model, checkpoint.json.
        row: manifest row to build; default: the one whose source_config is the folder's config.
        dtype: "float32" or "float64", of the recomputation.
        checkpoint_format: which of a folder's checkpoints to load; default: the source's own.

    Raises:
        ParityError: the folder cannot be read, or its source is unknown.
    """
    if dtype not in TOLERANCE:
        raise ValueError(f"dtype must be float32 or float64, not {dtype!r}")
    reference = Reference(Path(folder), asked=row is not None)
    if reference.repository not in ADAPTERS:
        raise ParityError(
            f"{reference.folder}: there is no adapter for source {reference.repository!r}; known:"
            f" {', '.join(sorted(ADAPTERS))}"
        )
    entry = find_row(reference, row)
    adapter = importlib.import_module(f".{ADAPTERS[reference.repository]}", __package__)
    computed: dict[str, Output | Skip] = {
        name: output
        for name, output in adapter.outputs(reference, entry, dtype, checkpoint_format).items()
        if name in reference.recorded or isinstance(output, Skip) or output.expected is not None
    }
    names = [*reference.recorded, *(name for name in computed if name not in reference.recorded)]
    lines = tuple(compare(name, computed.get(name), reference.recorded.get(name), dtype) for name in names)
    return ParityReport(
        str(reference.folder),
        reference.repository,
        entry.name if entry else None,
        dtype,
        lines,
        tuple(reference.notes),
    )
