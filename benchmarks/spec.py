"""What is measured and how, and the results: the records of `results/runs`. No torch."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat

from detection_zoo.zoo.manifest import MetricSpec, Strict, load_metrics
from detection_zoo.zoo.registry import did_you_mean

SCHEMA_VERSION = 1
MetricGroup = Literal["ap", "top1", "inference", "memory", "epoch", "throughput"]
METRIC_GROUPS: tuple[MetricGroup, ...] = (
    "inference",
    "ap",
    "top1",
    "memory",
    "epoch",
    "throughput",
)  # as they stand in a record
BY_TASK: dict[str, tuple[MetricGroup, ...]] = {
    "detection": ("inference", "ap", "memory", "epoch"),
    "classification": ("inference", "top1", "memory"),
}
WITH_TRAINING = ("memory", "epoch")  # groups that train
OWN_PROTOCOL = "zoo"  # of manifests/protocols.toml
MADE_UP_WEIGHTS = ("random", "stand-in")
STORED_READINGS = 60  # of telemetry, most in a record
UNSTEADY = ("throttled", "shared", "unstable")  # verdicts of telemetry that make times doubtful


class Metric(MetricSpec):
    """A metric of manifests/metrics.toml with its name: unit, which way is better, how many digits a table
    prints."""

    name: str

    def format(self, value: float) -> str:
        """The value with the metric's own number of digits."""
        return f"{value:.{self.digits}f}"


def named_metrics(known: dict[str, MetricSpec]) -> dict[str, Metric]:
    """The metrics of a registry with their names."""
    return {name: Metric(name=name, **spec.model_dump()) for name, spec in known.items()}


def metric(name: str) -> Metric:
    """The metric of that name; raises KeyError with the nearest names."""
    known = load_metrics()
    if name not in known:
        raise KeyError(
            f"unknown metric {name!r}: {did_you_mean(name, known)}; metrics stand in manifests/metrics.toml"
        )
    return Metric(name=name, **known[name].model_dump())


class Measurement(Strict):
    """One measured number, its uncertainty, and the raw samples it was made from."""

    value: FiniteFloat
    unit: str
    statistic: str = Field(
        "value",
        description=(
            "what `value` is of the samples: median, mean, mean of pass medians, peak, or value where there"
            " is one sample"
        ),
    )
    n: int = Field(1, ge=1, description="samples")
    interval: tuple[FiniteFloat, FiniteFloat] | None = Field(
        None, description="95 % confidence interval of `value`"
    )
    percentiles: dict[str, FiniteFloat] = Field(
        default_factory=dict, description="p5, p20, p80, p95, p99 of the samples"
    )
    samples: list[FiniteFloat] = Field(default_factory=list, description="raw, in the order they were taken")
    passes: list[int] = Field(
        default_factory=list,
        description="whole passes over the images of each process that the samples come from, in order",
    )
    drift: FiniteFloat | None = Field(
        None, description="change from the first to the last pass of a process, a fraction of the value"
    )
    steady: bool | None = Field(
        None, description="whether the times had no drift from first to last pass and were warm at the start"
    )
    times_s: list[FiniteFloat] = Field(
        default_factory=list, description="when each sample was begun, on the clock of the telemetry's time_s"
    )
    marked: list[int] = Field(
        default_factory=list,
        description=(
            "places of samples taken while the device was throttled or shared; they count all the same"
        ),
    )
    covers: str = Field("", description="what is inside the clock, or how memory was read")
    extrapolated: bool = Field(False, description="more was counted than was run")
    note: str = ""

    @property
    def remarks(self) -> str:
        """How it was taken: passes, processes and drift, and the note."""
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
    """What to measure and how; with the row, the weights and the data it decides whether a measurement has
    been made already."""

    groups: tuple[MetricGroup, ...] = Field(
        (), description="what is measured; none given: what is usual for the row's task"
    )
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    tf32: bool = Field(False, description="allow TensorFloat-32 in float32 products on the GPU")
    path: Literal["eager", "fast", "onnxruntime", "openvino"] = Field(
        "eager",
        description="fast: norms folded, channels-last, weights in `dtype` without autocast; onnxruntime,"
        " openvino: the exported model in that engine; each compared with eager on the first images",
    )
    exported: ExportedFile | None = Field(
        None, description="what an engine runs; none: what is exported for each shape of batch in the run"
    )
    images: int | None = Field(
        None, gt=0, description="evaluate on the first N images only; ground truth is restricted to them"
    )
    batch_size: int = Field(1, gt=0, description="images a forward pass")
    protocol: str = Field(
        OWN_PROTOCOL, description="timing protocol of manifests/protocols.toml: what is inside the clock"
    )
    tta: bool = Field(
        False,
        description=(
            "accuracy with test-time augmentation: the row's own, or Detectron's; one image at a time"
        ),
    )
    soft_nms: Literal["none", "linear", "gaussian"] = Field(
        "none", description="soft-NMS in place of the row's own NMS"
    )
    workers: int = Field(0, ge=0, description="processes that load data for accuracy and training")
    timed_images: int = Field(
        100, gt=0, description="images that are timed, again and again in the same order"
    )
    warm_up_budget_s: float = Field(20.0, gt=0)
    time_budget_s: float = Field(60.0, gt=0, description="of each timed group, warm-up left out")
    processes: int = Field(
        1, ge=1, description="fresh processes that times come from; each has its share of the budget"
    )
    precision: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="timing ends when the 95 % interval of the pass medians is within this fraction",
    )
    train_images_per_step: int = Field(2, gt=0, description="images a training step on one device")
    train_warm_up_steps: int = Field(3, ge=1)
    train_steps: int = Field(50, ge=2, description="most training steps that are timed")
    seed: int = Field(0, ge=0)

    @property
    def least_passes(self) -> int:
        """Whole passes over the timed images that each process makes at the least."""
        return {1: 12, 2: 6}.get(self.processes, 2)

    def for_task(self, task: str) -> BenchmarkSpec:
        """The specification with its groups spelled out for a row of that task, in one order."""
        wanted = self.groups or BY_TASK.get(task, ("inference",))
        if self.path != "eager":  # other paths are for inference
            wanted = tuple(group for group in wanted if group not in WITH_TRAINING)
        return self.model_copy(update={"groups": tuple(group for group in METRIC_GROUPS if group in wanted)})

    @property
    def path_note(self) -> str:
        """What the tables add to the precision: ", fast path", or an engine; nothing for eager."""
        if self.exported is not None:
            kind = f"{self.path} int8" if self.exported.bits == 8 else self.path
            return f", {kind}, file {self.exported.sha256[:8]}"
        return {"eager": "", "fast": ", fast path"}.get(self.path, f", {self.path}")

    @property
    def digest(self) -> str:
        """Sixteen hex digits that name this specification."""
        return digest_of(self.model_dump(mode="json"))[:16]


class Environment(Strict):
    """The machine and the software a measurement was made with."""

    device_name: str = Field(description="GPU, or processor of a CPU run")
    gpu_count: int = 0
    gpu_driver: str | None = None
    gpu_memory_mib: int | None = None
    gpu_clocks_mhz: dict[str, int] = Field(
        default_factory=dict, description="graphics, sm, memory: present and highest, as reported by NVML"
    )
    cpu: str
    cpu_cores: int = Field(description="processors this process may use")
    memory_mib: int
    system: str
    python: str
    packages: dict[str, str] = Field(
        description="torch, torchvision, cupy ...: version; not installed ones are left out"
    )
    cuda: str | None = Field(None, description="CUDA version that torch was built for")
    cudnn: str | None = None
    threads: int = Field(description="threads of one torch operator")
    allocator: str | None = Field(None, description="settings of the C library's allocator; none: its own")
    commit: str | None = Field(None, description="commit of this project; none outside a git checkout")
    dirty: bool | None = Field(None, description="whether tracked files differed from that commit")
    unknown: dict[str, str] = Field(default_factory=dict, description="what could not be found out, and why")


class WeightsIdentity(Strict):
    """Which weights a model had."""

    kind: Literal["random", "stand-in", "published", "file"]
    digest: str = Field(
        description="SHA-256 of the file, or of the names and values for random weights by seed: 'seed:0'"
    )
    file: str | None = Field(None, description="name of the file, without its folder")
    note: str = ""

    def __str__(self) -> str:
        """Kind and hash in one clause; of untrained weights, what they cannot tell."""
        if self.kind == "random":
            return "random, untrained: accuracy is meaningless, a detector's time depends on its detections"
        name = f" ({self.file})" if self.file else ""
        made_up = ", made from tensor names: accuracy is meaningless" if self.made_up else ""
        return f"{self.kind} {self.digest[:12]}{name}{made_up}"

    @property
    def made_up(self) -> bool:
        """Whether accuracy is meaningless, because nobody trained these weights."""
        return self.kind in MADE_UP_WEIGHTS


class DataIdentity(Strict):
    """Which images were measured on."""

    name: str = Field(description="layout and split: coco:val2017")
    digest: str = Field(description="SHA-256 of image ids, file sizes and ground truth of the images used")
    images: int
    images_of_split: int
    made_up: bool = Field(False, description="drawn by a program, not photographed")

    @property
    def is_subset(self) -> bool:
        """Whether fewer images than the split has were used."""
        return self.images < self.images_of_split


class Telemetry(Strict):
    """What NVML saw while a group ran, or on a CPU what else used the processors; `absent` says why NVML has
    nothing."""

    absent: str | None = None
    verdict: Literal["clean", "throttled", "shared", "unstable", "unknown"] = "unknown"
    period_s: float | None = None
    samples: dict[str, list[FiniteFloat]] = Field(
        default_factory=dict,
        description=(
            "time_s, sm_clock_mhz, memory_clock_mhz, power_w, temperature_c, throttle_reasons,"
            " other_processes, process_memory_mib; on a CPU own_cpus, other_cpus, stolen_cpus, quota_cuts,"
            " cpu_clock_mhz: one value a stored reading"
        ),
    )
    readings: int | None = Field(None, description="how many were taken, where not all of them are stored")
    note: str = ""

    def thinned(self) -> Telemetry:
        """The same with at most STORED_READINGS readings, evenly spaced, so that a long run makes no large
        record. The verdict stays that of all of them."""
        count = len(self.samples.get("time_s", []))
        if count <= STORED_READINGS:
            return self
        kept = [place * (count - 1) // (STORED_READINGS - 1) for place in range(STORED_READINGS)]
        samples = {
            name: [values[place] for place in kept] if len(values) == count else values[:STORED_READINGS]
            for name, values in self.samples.items()
        }
        return self.model_copy(update={"samples": samples, "readings": count})


SUBMISSION = "_submission"  # ends a file's key where it is for an evaluation server


class StoredFile(Strict):
    """A file that belongs to a run, stored beside the records."""

    name: str
    sha256: str
    bytes: int


class Run(Strict):
    """One attempt to measure one row: finished, failed or interrupted, with whatever was measured before
    that."""

    schema_version: Literal[1] = SCHEMA_VERSION
    id: Annotated[str, Field(pattern=r"^[0-9A-Za-z_.\-]+$")]
    row: str
    status: Literal["finished", "failed", "interrupted"]
    stage: str | None = Field(None, description="what was going on when it failed")
    reason: str | None = Field(None, description="why it failed, in one line")
    traceback: str | None = None
    started: str = Field(description="UTC, ISO 8601")
    duration_s: FiniteFloat
    spec: BenchmarkSpec
    weights: WeightsIdentity | None = None
    data: DataIdentity | None = None
    environment: Environment | None = None
    measurements: dict[str, Measurement] = Field(default_factory=dict, description="metric -> measurement")
    absent: dict[str, str] = Field(
        default_factory=dict, description="metric -> why it was asked for and is not there"
    )
    telemetry: dict[str, Telemetry] = Field(default_factory=dict, description="group -> what NVML saw")
    files: dict[str, StoredFile] = Field(
        default_factory=dict, description="bbox, segm, keypoints: COCO result files"
    )
    notes: list[str] = Field(default_factory=list)

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """Row, specification, data, weights and hardware: a finished run of the same key need not be made
        again."""
        return run_key(self.row, self.spec, self.data, self.weights, self.hardware)

    @property
    def hardware(self) -> str:
        """The GPU, or the processor with the threads that were used of it."""
        return (
            hardware(self.environment.device_name, self.environment.threads, self.spec.device)
            if self.environment
            else ""
        )


def hardware(name: str, threads: int, device: str) -> str:
    """What a time depends on: a GPU by name, a processor by name and threads."""
    return name if device == "cuda" else f"{name}, {threads} thread{'' if threads == 1 else 's'}"


def run_key(
    row: str, spec: BenchmarkSpec, data: DataIdentity | None, weights: WeightsIdentity | None, machine: str
) -> tuple[str, str, str, str, str]:
    """What makes two runs measurements of the same thing."""
    return (row, spec.digest, data.digest if data else "", weights.digest if weights else "", machine)


def digest_of(value: Any) -> str:
    """SHA-256 in hex of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    ).hexdigest()
