"""Records of comparisons: the models compared, every raw sample, and the verdicts. Does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from detection_zoo.benchmarks.compare.paired import Verdict
from detection_zoo.benchmarks.folders import COMPARISONS
from detection_zoo.benchmarks.spec import (
    BenchmarkSpec,
    DataIdentity,
    Environment,
    ExportedFile,
    StoredFile,
    Telemetry,
    WeightsIdentity,
)
from detection_zoo.benchmarks.store import newest_records, read_record
from detection_zoo.zoo.manifest import Strict
from detection_zoo.zoo.manifest_files import load_manifests


class Pair(Strict):
    """One metric of one model compared with the reference."""

    metric: str
    other: str = Field(description="label of the model")
    reference: str = Field(description="label of the reference model")
    values: tuple[FiniteFloat, FiniteFloat] = Field(
        description="reference, other: medians over all samples, or the AP in percent"
    )
    unit: str
    kind: Literal["ratio", "difference"]
    value: FiniteFloat | None = Field(description="other / reference, or other - reference")
    interval: tuple[FiniteFloat, FiniteFloat] | None = Field(None, description="of `value`, at `confidence`")
    confidence: float = 0.95
    blocks: int = Field(
        0, description="number of blocks of fresh processes, or of images, that the interval is based on"
    )
    smallest: float = Field(
        description="smallest difference of interest, a fraction of the reference or percentage points"
    )
    verdict: Verdict
    decides: bool = Field(False, description="the metric that ended the comparison")
    covers: str = ""
    note: str = ""


class Side(Strict):
    """One model that took part."""

    label: str
    row: str
    status: Literal["finished", "failed", "interrupted"]
    exported: ExportedFile | None = Field(
        None, description="file that an engine ran; none: the model on the path of `spec`"
    )
    reason: str | None = None
    traceback: str | None = None
    weights: WeightsIdentity | None = None
    data: DataIdentity | None = None
    environment: Environment | None = None
    samples: dict[str, list[list[FiniteFloat]]] = Field(
        default_factory=dict, description="metric -> block -> one value a round, in the metric's unit"
    )
    files: dict[str, StoredFile] = Field(default_factory=dict)


class Comparison(Strict):
    """Models side by side: interleaved rounds in random order, blocks with fresh processes."""

    schema_version: Literal[1] = 1
    id: Annotated[str, Field(pattern=r"^[0-9A-Za-z_.\-]+$")]
    started: str
    duration_s: FiniteFloat
    status: Literal["finished", "failed", "interrupted"]
    ended: str = Field(description="why no further block was run")
    spec: BenchmarkSpec
    threads: int | None = Field(None, description="CPU threads per torch operator")
    clock: Literal["processor", "wall"] = Field(
        description="the clock used for the verdict: CPU time of all threads, or wall time"
    )
    protocol: str = Field(description="what was done, in a sentence")
    seed: int
    image_list: str = Field("", description="SHA-256 of the ids of the timed images, in order")
    looks: list[int] = Field(
        default_factory=list, description="after how many blocks verdicts could be given (interim analyses)"
    )
    orders: list[list[list[str]]] = Field(
        default_factory=list, description="block -> round -> labels in the order they ran"
    )
    sides: list[Side]
    pairs: list[Pair] = Field(default_factory=list)
    telemetry: Telemetry | None = None
    footnotes: list[str] = Field(default_factory=list)


def stored_comparisons(store: Path | None = None) -> tuple[list[Comparison], list[str]]:
    """The newest comparison of each setting (models, weights, images, machine, protocol), and a message
    for each unusable file; from the folders of `record_folders`."""
    return newest_records(COMPARISONS, store, _with_known_metrics, setting_of)


def _with_known_metrics(path: Path) -> Comparison:
    comparison = read_record(path, Comparison)
    if unknown := sorted({pair.metric for pair in comparison.pairs} - load_manifests().metrics.keys()):
        raise ValueError(
            f"{path}: manifests/metrics.toml has no metrics {', '.join(unknown)}; the comparison"
            " is ignored. Compare again"
        )
    return comparison


def setting_of(one: Comparison) -> tuple[str, ...]:
    """Return what a later comparison must have in common with this one to replace it."""
    sides = [
        part
        for side in one.sides
        for part in (
            side.label,
            side.weights.digest if side.weights else "",
            side.data.digest if side.data else "",
        )
    ]
    machine = next((side.environment.device_name for side in one.sides if side.environment), "")
    return (*sides, machine, one.spec.digest, one.clock, str(one.threads), one.image_list)
