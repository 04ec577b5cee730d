"""Settings and results of measurements: the records in `results/runs`. Does not import torch."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, FiniteFloat

from detection_zoo.zoo.manifest import MetricSpec, Strict
from detection_zoo.zoo.manifest_files import load_metrics
from detection_zoo.zoo.registry import did_you_mean

SCHEMA_VERSION = 1
MetricGroup = Literal["inference", "ap", "top1", "memory", "epoch", "throughput"]
METRIC_GROUPS: tuple[MetricGroup, ...] = get_args(MetricGroup)  # in the order of a record
BY_TASK: dict[str, tuple[MetricGroup, ...]] = {
    "detection": ("inference", "ap", "memory", "epoch"),
    "classification": ("inference", "top1", "memory"),
}
WITH_TRAINING = ("memory", "epoch")  # metric groups that run training steps
OWN_PROTOCOL = "zoo"  # of manifests/protocols.toml
MADE_UP_WEIGHTS = ("random", "stand-in")
STORED_READINGS = 60  # maximum number of telemetry readings in a record
UNSTEADY = ("throttled", "shared", "unstable")  # telemetry verdicts that make times unreliable


class Metric(MetricSpec):
    """A metric of manifests/metrics.toml: name, unit, whether higher or lower is better, digits
    in tables."""

    name: str

    def format(self, value: float) -> str:
        """Format a value with this metric's number of digits."""
        return f"{value:.{self.digits}f}"


def named_metrics(known: dict[str, MetricSpec]) -> dict[str, Metric]:
    """Return the metrics of a registry by name."""
    return {name: Metric(name=name, **spec.model_dump()) for name, spec in known.items()}


def metric(name: str) -> Metric:
    """Return a metric by name; raises KeyError with similar names."""
    known = load_metrics()
    if name not in known:
        raise KeyError(
            f"unknown metric {name!r}: {did_you_mean(name, known)}; see"
            " manifests/metrics.toml for all metrics"
        )
    return Metric(name=name, **known[name].model_dump())


class Measurement(Strict):
    """One measured number, its uncertainty, and its raw samples."""

    value: FiniteFloat
    unit: str
    statistic: str = Field(
        "value",
        description=(
            "how `value` is computed from the samples: median, mean, mean of pass medians, peak,"
            " or value (one sample)"
        ),
    )
    n: int = Field(1, ge=1, description="samples")
    interval: tuple[FiniteFloat, FiniteFloat] | None = Field(
        None, description="95 % confidence interval of `value`"
    )
    percentiles: dict[str, FiniteFloat] = Field(
        default_factory=dict, description="p5, p20, p80, p95, p99 of the samples"
    )
    samples: list[FiniteFloat] = Field(default_factory=list, description="raw samples in measurement order")
    passes: list[int] = Field(
        default_factory=list,
        description="number of complete passes over the images in each process, in the order of the samples",
    )
    drift: FiniteFloat | None = Field(
        None, description="change from the first to the last pass of a process, as a fraction of the value"
    )
    steady: bool | None = Field(
        None,
        description="whether warm-up was complete and the times did not drift from the first to the"
        " last pass",
    )
    times_s: list[FiniteFloat] = Field(
        default_factory=list,
        description="start time of each sample, on the same clock as the telemetry's time_s",
    )
    marked: list[int] = Field(
        default_factory=list,
        description=(
            "indices of samples taken while the device was throttled or shared; they are still included"
        ),
    )
    covers: str = Field("", description="what was timed, or how memory was measured")
    extrapolated: bool = Field(False, description="the value was extrapolated, not fully measured")
    note: str = ""

    @property
    def remarks(self) -> str:
        """Summarise passes, processes, drift and the note."""
        parts = []
        if self.passes:
            count = len(self.passes)
            parts.append(f"{sum(self.passes)} passes in {count} process{'es' if count > 1 else ''}")
        if self.drift is not None:
            state = "not steady" if self.steady is False else "steady"
            parts.append(f"{state}: {self.drift:+.1%} from first to last {'pass' if self.passes else 'step'}")
        return "; ".join([*parts, *([self.note] if self.note else [])])


class ExportedFile(Strict):
    """A file that `bench.py export` wrote and that an engine runs."""

    sha256: str = Field(description="of the file, and of OpenVINO's weights beside it")
    bits: Literal[8, 32] = Field(32, description="of the network's weights and maps")
    quantised: str = Field("", description="how, and on which images; empty: it is not")


class BenchmarkSpec(Strict):
    """What to measure and how. A measurement is skipped if one with the same specification, row, weights
    and data is stored."""

    groups: tuple[MetricGroup, ...] = Field(
        (), description="metric groups; if empty, the default for the row's task"
    )
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    tf32: bool = Field(False, description="allow TensorFloat-32 in float32 products on the GPU")
    path: Literal["eager", "fast", "onnxruntime", "openvino"] = Field(
        "eager",
        description="fast: folded BatchNorm, channels-last, weights in `dtype` without autocast; onnxruntime,"
        " openvino: the exported model in that engine; outputs are first compared with"
        " eager's on a few images",
    )
    exported: ExportedFile | None = Field(
        None, description="what an engine runs; none: what is exported for each shape of batch in the run"
    )
    images: int | None = Field(None, gt=0, description="use only the first N images and their ground truth")
    batch_size: int = Field(1, gt=0, description="images per forward pass")
    protocol: str = Field(
        OWN_PROTOCOL, description="timing protocol of manifests/protocols.toml: which phases are timed"
    )
    tta: bool = Field(
        False,
        description=(
            "test-time augmentation for accuracy: the row's setting, or Detectron's; one image at a time"
        ),
    )
    soft_nms: Literal["none", "linear", "gaussian"] = Field(
        "none", description="soft-NMS instead of the row's NMS"
    )
    workers: int = Field(0, ge=0, description="data loading processes for accuracy and training")
    timed_images: int = Field(
        100, gt=0, description="number of timed images; each pass runs them in the same order"
    )
    warm_up_budget_s: float = Field(20.0, gt=0)
    time_budget_s: float = Field(60.0, gt=0, description="seconds per timed metric group, without warm-up")
    processes: int = Field(1, ge=1, description="fresh processes to time in; they share the budget equally")
    precision: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="stop timing when the half-width of the 95 % interval of the pass medians is"
        " below this fraction",
    )
    train_images_per_step: int = Field(2, gt=0, description="images per training step on one device")
    train_warm_up_steps: int = Field(3, ge=1)
    train_steps: int = Field(50, ge=2, description="maximum number of timed training steps")
    seed: int = Field(0, ge=0)

    @property
    def least_passes(self) -> int:
        """Minimum number of complete passes over the timed images in each process."""
        return {1: 12, 2: 6}.get(self.processes, 2)

    def for_task(self, task: str) -> BenchmarkSpec:
        """Return the specification with explicit metric groups for a task, in a fixed order."""
        wanted = self.groups or BY_TASK.get(task, ("inference",))
        if self.path != "eager":  # the other paths support inference only
            wanted = tuple(group for group in wanted if group not in WITH_TRAINING)
        return self.model_copy(update={"groups": tuple(group for group in METRIC_GROUPS if group in wanted)})

    @property
    def precision_text(self) -> str:
        """The data type, and TF32 if it is allowed."""
        return self.dtype + (" with TF32" if self.tf32 else "")

    @property
    def path_note(self) -> str:
        """Suffix of the precision in tables: ", fast path", or the engine's name; empty for eager."""
        if self.exported is not None:
            kind = f"{self.path} int8" if self.exported.bits == 8 else self.path
            return f", {kind}, file {self.exported.sha256[:8]}"
        return {"eager": "", "fast": ", fast path"}.get(self.path, f", {self.path}")

    @property
    def digest(self) -> str:
        """Hash of this specification, 16 hex digits."""
        return digest_of(self.model_dump(mode="json"))[:16]


class Environment(Strict):
    """The machine and the software of a measurement."""

    device_name: str = Field(description="name of the GPU, or of the CPU for a run on the CPU")
    gpu_count: int = 0
    gpu_driver: str | None = None
    gpu_memory_mib: int | None = None
    gpu_clocks_mhz: dict[str, int] = Field(
        default_factory=dict,
        description="current and maximum clocks (graphics, sm, memory) as reported by NVML",
    )
    cpu: str
    cpu_cores: int = Field(description="CPU cores this process may use")
    memory_mib: int
    system: str
    python: str
    packages: dict[str, str] = Field(
        description="versions of torch, torchvision, cupy ...; packages that are not installed are omitted"
    )
    cuda: str | None = Field(None, description="CUDA version that torch was built for")
    cudnn: str | None = None
    threads: int = Field(description="CPU threads per torch operator")
    allocator: str | None = Field(
        None, description="settings of the C library's allocator; none: its defaults"
    )
    commit: str | None = Field(None, description="commit of this project; none outside a git checkout")
    dirty: bool | None = Field(None, description="whether tracked files had uncommitted changes")
    unknown: dict[str, str] = Field(
        default_factory=dict, description="fields that could not be determined, and why"
    )

    @property
    def commit_text(self) -> str:
        """Commit and whether there were changes, for notes; empty outside a git checkout."""
        return f"commit {self.commit[:10]}{' with changes' if self.dirty else ''}" if self.commit else ""


class WeightsIdentity(Strict):
    """Which weights a model used."""

    kind: Literal["random", "stand-in", "published", "file"]
    digest: str = Field(
        description="SHA-256 of the file, or of the names and values for random weights by seed: 'seed:0'"
    )
    file: str | None = Field(None, description="name of the file, without its folder")
    note: str = ""

    def __str__(self) -> str:
        """Kind and hash in one line; for untrained weights, a warning."""
        if self.kind == "random":
            return (
                "random, untrained: accuracy is meaningless, and a detector's time depends on its number of"
                " detections"
            )
        name = f" ({self.file})" if self.file else ""
        made_up = ", made from tensor names: accuracy is meaningless" if self.made_up else ""
        return f"{self.kind} {self.digest[:12]}{name}{made_up}"

    @property
    def short(self) -> str:
        """Kind, and for trained weights the first digits of the hash."""
        return self.kind if self.made_up else f"{self.kind} {self.digest[:12]}"

    @property
    def made_up(self) -> bool:
        """Whether these weights are untrained, so that accuracy is meaningless."""
        return self.kind in MADE_UP_WEIGHTS


class DataIdentity(Strict):
    """Which images were used."""

    name: str = Field(description="layout and split: coco:val2017")
    digest: str = Field(
        description="SHA-256 over the image IDs, file sizes and ground truth of the images used"
    )
    images: int
    images_of_split: int
    made_up: bool = Field(False, description="synthetic images, not photographs")

    @property
    def is_subset(self) -> bool:
        """Whether only a part of the split was used."""
        return self.images < self.images_of_split


class Telemetry(Strict):
    """GPU state from NVML during a metric group, or CPU load on a CPU; `absent` says why NVML has
    no data."""

    absent: str | None = None
    verdict: Literal["clean", "throttled", "shared", "unstable", "unknown"] = "unknown"
    period_s: float | None = None
    samples: dict[str, list[FiniteFloat]] = Field(
        default_factory=dict,
        description=(
            "time_s, sm_clock_mhz, memory_clock_mhz, power_w, temperature_c, throttle_reasons,"
            " other_processes, process_memory_mib; on a CPU own_cpus, other_cpus, stolen_cpus, quota_cuts,"
            " cpu_clock_mhz: one value per stored reading"
        ),
    )
    readings: int | None = Field(None, description="number of readings taken, if not all are stored")
    note: str = ""

    def thinned(self) -> Telemetry:
        """Keep at most STORED_READINGS evenly spaced readings, to limit the size of the
        record. The verdict is based on all readings."""
        count = len(self.samples.get("time_s", []))
        if count <= STORED_READINGS:
            return self
        kept = [place * (count - 1) // (STORED_READINGS - 1) for place in range(STORED_READINGS)]
        samples = {
            name: [values[place] for place in kept] if len(values) == count else values[:STORED_READINGS]
            for name, values in self.samples.items()
        }
        return self.model_copy(update={"samples": samples, "readings": count})


class StoredFile(Strict):
    """A file that belongs to a run, stored next to the records."""

    name: str
    sha256: str
    bytes: int


class Run(Strict):
    """One attempt to measure one row: finished, failed or interrupted, with everything measured until
    then."""

    schema_version: Literal[1] = SCHEMA_VERSION
    id: Annotated[str, Field(pattern=r"^[0-9A-Za-z_.\-]+$")]
    row: str
    status: Literal["finished", "failed", "interrupted"]
    stage: str | None = Field(None, description="step that failed")
    reason: str | None = Field(None, description="reason of the failure, in one line")
    traceback: str | None = None
    started: str = Field(description="UTC, ISO 8601")
    duration_s: FiniteFloat
    spec: BenchmarkSpec
    weights: WeightsIdentity | None = None
    data: DataIdentity | None = None
    environment: Environment | None = None
    measurements: dict[str, Measurement] = Field(default_factory=dict, description="metric -> measurement")
    absent: dict[str, str] = Field(
        default_factory=dict, description="metric -> why a requested metric has no value"
    )
    telemetry: dict[str, Telemetry] = Field(default_factory=dict, description="metric group -> telemetry")
    files: dict[str, StoredFile] = Field(
        default_factory=dict, description="bbox, segm, keypoints: COCO result files"
    )
    notes: list[str] = Field(default_factory=list)

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """Row, specification, data, weights and hardware; a finished run with the same key is
        not repeated."""
        return run_key(self.row, self.spec, self.data, self.weights, self.hardware)

    @property
    def hardware(self) -> str:
        """The GPU's name, or the CPU's name with the number of threads used."""
        return (
            hardware(self.environment.device_name, self.environment.threads, self.spec.device)
            if self.environment
            else ""
        )


def hardware(name: str, threads: int, device: str) -> str:
    """Name the hardware that a time depends on: a GPU by name, a CPU by name and threads."""
    return name if device == "cuda" else f"{name}, {counted(threads, 'thread')}"


def counted(number: int, thing: str) -> str:
    """Return "1 thread", "2 threads"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def run_key(
    row: str, spec: BenchmarkSpec, data: DataIdentity | None, weights: WeightsIdentity | None, machine: str
) -> tuple[str, str, str, str, str]:
    """Return the key that is equal for two runs of the same measurement."""
    return (row, spec.digest, data.digest if data else "", weights.digest if weights else "", machine)


def digest_of(value: Any) -> str:
    """Return the SHA-256 (hex) of a JSON value, independent of key order."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    ).hexdigest()
