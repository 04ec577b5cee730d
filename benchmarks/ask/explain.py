"""`bench.py explain`: why an accuracy differs. Measures the unchanged row and the row with each suspected
setting changed, on the same images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import comb
from typing import Any

import numpy as np
import torch

from detection_zoo.benchmarks.ask.suspects import Variant, variants
from detection_zoo.benchmarks.evaluation.accuracy import DetectionCollector
from detection_zoo.benchmarks.measure.inference import collate, to_host
from detection_zoo.benchmarks.run.progress import progress
from detection_zoo.benchmarks.run.subject import (
    Subject,
    build_subject,
    identify_weights,
    inclusive_boxes,
    open_data,
)
from detection_zoo.zoo.build import assemble
from detection_zoo.zoo.data.base import Dataset
from detection_zoo.zoo.data.transforms import Preprocess
from detection_zoo.zoo.errors import DatasetError
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.settings import parse_setting, with_value

NOTHING = 0.05  # percentage points; smaller differences are not visible in tables
LEVEL = 0.05  # significance level of the test of an increase
RESAMPLES = 200


@dataclass
class Measured:
    """A variant's accuracy in percent, and the data per image for a paired test: correctness, or
    the detections."""

    variant: Variant
    value: float
    right: list[bool] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Line:
    """One line of the result: a change, the accuracy with it, the difference in percentage points, and a
    verdict."""

    suspect: str
    change: str
    value: float
    difference: float
    verdict: str


@dataclass(frozen=True)
class Explanation:
    """The result. published: (where, value) of the same metric; halves: the accuracy on each half of the
    images; named: suspects whose change increases it."""

    row: str
    metric: str
    images: str
    weights: str
    value: float
    published: list[tuple[str, float]]
    expected: float | None
    halves: tuple[float, float]
    lines: list[Line]
    untested: list[str]

    @property
    def named(self) -> list[str]:
        """Suspects whose change increases the accuracy significantly, largest increase first."""
        raised = sorted(
            (line for line in self.lines if line.verdict.startswith("INCREASES")),
            key=lambda line: -line.difference,
        )
        return list(dict.fromkeys(line.suspect for line in raised))

    @property
    def nearest(self) -> Line | None:
        """The change that comes closest to the expected accuracy, if closer than the unchanged row."""
        if self.expected is None or not self.lines:
            return None
        line = min(self.lines, key=lambda line: abs(line.value - self.expected))
        return line if abs(line.value - self.expected) < abs(self.value - self.expected) else None


def explain(
    entry: ModelEntry,
    data: str,
    weights: str = "published",
    *,
    images: int | None = None,
    settings: Sequence[str] = (),
    only: Sequence[str] = (),
    expected: float | None = None,
    device: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> Explanation:
    """Test the suspects of a row one by one.

    Args:
        entry: a detector or classifier with conventions.
        data, weights, device: as for `bench.py run`.
        images: the first N.
        settings: "SECTION.FIELD=VALUE": changes of the row to make first, to match the setup to be explained.
        only: names of suspects; default: all.
        expected: the expected accuracy, in percent.

    Raises:
        ManifestError: a setting is invalid. DatasetError: the data has no ground truth, or
            there is no such suspect.
    """
    dataset = open_data(entry, data, images)
    identity, argument = identify_weights(entry, weights)
    plain = build_subject(entry, argument, device)
    for setting in settings:
        entry = with_value(entry, *parse_setting(setting))
    base = Variant("none", "the unchanged row", entry)
    model = _built(base, plain.model)
    every = list(variants(entry, model))
    names = {v.suspect for v in every}
    chosen = [v for v in every if not only or v.suspect in only]
    if unknown := set(only) - names:
        raise DatasetError(
            f"row {entry.name} has no suspect {', '.join(sorted(unknown))}; choose"
            f" from {', '.join(sorted(names))}"
        )
    say(f"{len(chosen)} changes on {len(dataset)} images")
    measured = measure_variants([base, *chosen], plain, dataset)
    lines = [_line(one, measured[0], dataset, expected) for one in measured[1:]]
    metric = "top1" if plain.is_classifier else "voc_map" if dataset.layout == "voc" else "box_ap"
    published = [
        (f"{p.source}{', ' + p.split if p.split else ''}", p.values[metric])
        for p in entry.published
        if metric in p.values
    ]
    untested = sorted({"RoIAlign alignment", "stride position", "padding", "score threshold"} - names)
    used = f"{dataset.name}, {len(dataset)} of {dataset.full_size} images"
    return Explanation(
        entry.name,
        metric,
        used,
        str(identity),
        measured[0].value,
        published,
        expected,
        _halves(measured[0], dataset),
        lines,
        untested,
    )


def measure_variants(every: Sequence[Variant], plain: Subject, dataset: Dataset) -> list[Measured]:
    """Measure each variant's accuracy on a dataset; images are decoded once, and equal inputs or networks are
    run once.

    Args:
        every: the first one is the unchanged row.
        plain: the loaded model.
        dataset: COCO or VOC boxes, or ImageNet labels.
    """
    models = [_built(variant, plain.model) for variant in every]
    inputs = [Preprocess.from_conventions(variant.entry.conventions.image) for variant in every]
    collectors = [
        (
            None
            if plain.is_classifier
            else DetectionCollector(dataset, inclusive=inclusive_boxes(v.entry) != (v.kind == "ends"))
        )
        for v in every
    ]
    right: list[list[bool]] = [[] for _ in every]
    with progress(f"{plain.entry.name}: explaining", len(dataset)) as tick, torch.inference_mode():
        for index in range(len(dataset)):
            pixels, seen, outputs = dataset.load_image(index), {}, {}
            for place, variant in enumerate(every):
                key = inputs[place]
                if key not in seen:
                    images, *sizes = collate([key(pixels)], key)
                    seen[key] = images.to(plain.device), *sizes
                shares = 0 if variant.kind in ("selection", "ends") else place
                if (shares, key) not in outputs:
                    outputs[shares, key] = _outputs(models[shares], variant, *seen[key][:2])
                if collectors[place] is None:
                    right[place].append(int(outputs[shares, key].argmax()) == dataset.target(index).labels[0])
                else:
                    found = models[place].postprocess(outputs[shares, key], *seen[key][1:])
                    collectors[place].add(index, to_host(found)[0])
            tick()
    return [
        _measured(variant, collector, flags)
        for variant, collector, flags in zip(every, collectors, right, strict=True)
    ]


def _outputs(model: Any, variant: Variant, images: torch.Tensor, sizes: torch.Tensor) -> Any:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=variant.kind == "precision"):
        return model.raw(images, sizes) if hasattr(model, "raw") else model(images).float()


def _built(variant: Variant, loaded: torch.nn.Module) -> torch.nn.Module:
    """Return the variant's model with the tensors of the loaded model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # different random values than with --weights random
        model = assemble(variant.entry)
    state = loaded.state_dict()
    if variant.kind == "half":
        body = [name for name in state if name.startswith(("backbone.", "model.backbone."))]
        state |= {name: model.state_dict()[name] for name in body[2 * len(body) // 3 :]}
    model.load_state_dict(state, assign=True)
    return model.to(next(loaded.parameters()).device).eval()


def _measured(variant: Variant, collector: DetectionCollector | None, right: list[bool]) -> Measured:
    if collector is None:
        return Measured(variant, 100.0 * float(np.mean(right)), right)
    metrics = collector.evaluate().metrics
    return Measured(
        variant, metrics.get("box_ap", metrics.get("voc_map", 0.0)), records=collector.records["bbox"]
    )


def _line(one: Measured, base: Measured, dataset: Dataset, expected: float | None) -> Line:
    difference = one.value - base.value
    if abs(difference) < NOTHING:
        verdict = "no effect"
    elif difference < 0:
        verdict = "decreases it"
    else:
        chance = chance_of_rise(one, base, dataset)
        verdict = (
            "increases it"
            if chance is None
            else (
                f"INCREASES it, p = {chance:.2g}"
                if chance < LEVEL
                else f"increases it, not significantly (p = {chance:.2g})"
            )
        )
    if (
        expected is not None
        and difference
        and abs(one.value - expected) < min(1.0, abs(base.value - expected))
    ):
        verdict += "; gives the expected number"
    return Line(one.variant.suspect, one.variant.change, one.value, difference, verdict)


def chance_of_rise(one: Measured, base: Measured, dataset: Dataset) -> float | None:
    """Return the p-value of an increase: an exact sign test over images that changed (top-1), or
    a paired bootstrap over images (COCO AP).

    Returns:
        The one-sided p-value; None if there is no test for this data.
    """
    if one.right:
        won = sum(a and not b for a, b in zip(one.right, base.right, strict=True))
        lost = sum(b and not a for a, b in zip(one.right, base.right, strict=True))
        return sum(comb(won + lost, k) for k in range(won, won + lost + 1)) / 2 ** (won + lost)
    if dataset.layout != "coco":
        return None
    from detection_zoo.benchmarks.evaluation.ap_intervals import match_images, paired_difference

    before, after = (
        match_images(dataset.annotations, measured.records, "bbox", dataset.image_ids)
        for measured in (base, one)
    )
    found = paired_difference(before, after, RESAMPLES)
    return (found.draws - found.above + 1) / (found.draws + 1)


def _halves(base: Measured, dataset: Dataset) -> tuple[float, float]:
    """Return the accuracy on the first and second half of the images, to show the variation of a subset of
    that size."""
    middle = len(dataset) // 2
    if base.right:
        return 100 * float(np.mean(base.right[:middle] or [0])), 100 * float(np.mean(base.right[middle:]))
    if dataset.layout != "coco":
        return base.value, base.value
    from detection_zoo.benchmarks.evaluation.coco_evaluation import score_coco

    parts = (list(dataset.image_ids)[:middle], list(dataset.image_ids)[middle:])
    return tuple(
        100
        * score_coco(
            dataset.annotations,
            [r for r in base.records if r["image_id"] in set(part)],
            "bbox",
            image_ids=part,
        ).statistics["AP"]
        for part in parts
    )


def text_of(found: Explanation, width: int | None = None) -> str:
    """Return the result as text; width: characters per line of the table."""
    from detection_zoo.benchmarks.spec import metric
    from detection_zoo.benchmarks.tabular import text_table

    title = metric(found.metric).title
    head = [f"{found.row}: {title} {found.value:.1f} on {found.images}; weights: {found.weights}"]
    head += [f"published: {value:g} ({where})" for where, value in found.published] or [
        "published: not reported"
    ]
    head += [f"expected: {found.expected:g}"] if found.expected is not None else []
    head.append(
        f"subset: the two halves of these images give {found.halves[0]:.1f} and {found.halves[1]:.1f}"
    )
    rows = [
        [line.suspect, line.change, f"{line.value:.1f}", f"{line.difference:+.1f}", line.verdict]
        for line in found.lines
    ]
    tail = [f"not applicable: {', '.join(found.untested)}"] if found.untested else []
    tail.append(
        f"suspected: {', '.join(found.named)}"
        if found.named
        else "suspected: nothing; no change increases the accuracy significantly"
    )
    if found.nearest is not None:
        tail.append(
            f"nearest to {found.expected:g}: {found.nearest.suspect} ({found.nearest.change}) with"
            f" {found.nearest.value:.1f}"
        )
    return "\n".join(
        [*head, "", text_table(["suspect", "change", title, "difference", "effect"], rows, width), "", *tail]
    )
