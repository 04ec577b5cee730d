"""Build modules from manifest rows: the list of families, and `build_model`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from detection_zoo.zoo import necks

# each registers its builders; a new backbone or detector is one name here
from detection_zoo.zoo.backbones import detnet, hardnet, mobilenet, resnet, timm_adapter, vgg, vovnet
from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.conventions import Conventions, ObjectConventions
from detection_zoo.zoo.detectors import faster_rcnn, keypoint_rcnn, mask_rcnn, retinanet, rpn, ssd
from detection_zoo.zoo.detectors.base import Detector
from detection_zoo.zoo.detectors.classifier import Classifier
from detection_zoo.zoo.detectors.peers import detectron2 as detectron2_peers
from detection_zoo.zoo.detectors.peers import torchvision as torchvision_peers
from detection_zoo.zoo.errors import CheckpointError, ManifestError
from detection_zoo.zoo.manifest import CREATED, Component, ModelEntry, WeightSpec
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.registry import BACKBONES, DETECTORS, NECKS, Registry, did_you_mean

Weights = Literal["random", "published"] | str | Path | None
RANDOM_SEED = 0
BUNDLES = {  # of conventions.toml, for models without a manifest entry
    "faster_rcnn": "maskrcnn_benchmark",
    "mask_rcnn": "maskrcnn_benchmark_mask",
    "keypoint_rcnn": "maskrcnn_benchmark_keypoint",
    "retinanet": "maskrcnn_benchmark_retinanet",
    "rpn": "maskrcnn_benchmark_rpn",
    "ssd": "hardnet_ssd300",
    "classifier": "imagenet_torchvision",
}
DEMO = "demo"  # manifest of the rows trained on `shapes`, and prefix of their bundles
RANDOM_FILLS = {torch.Tensor.normal_, torch.Tensor.uniform_}
RANDOM_FILLS |= {nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_}
FOR_EVERY_DETECTOR = ("image", "targets", "augmentation")  # sections that data loading and commands use


class WithoutRandomFills(TorchFunctionMode):
    """Modules built inside this block keep their random weights as allocated: for models that are then loaded
    whole."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in RANDOM_FILLS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Modules built inside this block are on the meta device: names, shapes and types without values.
    Random fills are left out: on that device they take long, and the first imports 900 modules of torch."""
    with torch.device("meta"), WithoutRandomFills():
        yield


def build_model(
    entry: str | ModelEntry, weights: Weights = None, device: torch.device | str = "cpu"
) -> Detector | Classifier:
    """Build a row's model, in evaluation mode.

    Args:
        entry: the row, or its name.
        weights: none: initialised as for training from scratch; "random": the same from a fixed seed;
            "published": the row's own file, from the local store; else the path of a file in the format of
            the row's own weights.
        device: target device; "meta" for shapes only.

    Raises:
        ManifestError: no such row, or it cannot be built. CheckpointError: the weights are absent or do not
            fit.
    """
    row = load_manifests().entry(entry) if isinstance(entry, str) else entry
    from_file = weights not in (None, "random")
    with (
        torch.random.fork_rng(devices=[], enabled=weights is not None),
        shapes_only() if str(device) == "meta" else torch.device("cpu"),
        WithoutRandomFills() if from_file else nullcontext(),
    ):
        if weights is not None:
            torch.manual_seed(RANDOM_SEED)
        model = assemble(row)
    if from_file:
        load_row_weights(model, row, weights)
    return model.to(device).eval()


def create_model(
    backbone: str,
    detector: str | None = "faster_rcnn",
    classes: int = 80,
    *,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Detector | Classifier:
    """Build a model without a manifest row, initialised as for training from scratch, in evaluation mode.

    Args:
        backbone: a registered name, or one of a family ("timm.resnet18").
        detector: a registered name; none for a classifier. classes: K, background not counted.
        device: target device. options: as in `create_entry`.

    Raises:
        ManifestError: a name is unknown, or the parts do not go together.
    """
    return build_model(create_entry(backbone, detector, classes, **options), device=device)


def create_entry(
    backbone: str,
    detector: str | None = "faster_rcnn",
    classes: int = 80,
    *,
    neck: dict[str, Any] | None = None,
    conventions: str | Conventions | None = None,
    dataset: str = "coco",
    backbone_options: dict[str, Any] | None = None,
    **detector_options: Any,
) -> ModelEntry:
    """A row for `build_model` and the benchmarks without a manifest entry; arguments as in `create_model`.

    Args:
        neck: its name and arguments; default: a feature pyramid over the backbone's maps, where the detector
            takes a neck. conventions: a bundle, or its name in conventions.toml; default: the detector's.
        dataset: of datasets.toml; on `shapes` a row without conventions of its own is as small as the demo
            row with that detector. backbone_options, detector_options: arguments of their builders.
    """
    bundles, name = load_manifests().conventions, detector or "classifier"
    if isinstance(conventions, str) and conventions not in bundles:
        raise ManifestError(f"unknown conventions {conventions!r}: {did_you_mean(conventions, bundles)}")
    given = conventions is not None
    like = None if given else _demo_row(detector, dataset)
    pyramid = {"extra": "p6p7"} if detector == "retinanet" else {}
    usual: dict[str, Any] = {}
    if like is not None:
        pyramid = like.neck.arguments if like.neck is not None else {}
        usual, conventions = like.detector.arguments, like.conventions
    chosen = bundles[conventions] if isinstance(conventions, str) else conventions
    chosen = chosen or _usual_conventions(name)
    takes_neck = False
    if detector is not None:
        builder = _builder(DETECTORS, Component(name=detector), name)
        takes_neck = "neck" in inspect.signature(builder).parameters
        if not has_box_ends(chosen):
            targets = ObjectConventions(inclusive=_inclusive(rules_of(builder)))
            chosen = chosen.model_copy(update={"targets": targets})
    if neck is not None and not takes_neck:
        raise ManifestError(f"{name} takes no neck; leave out neck={neck}")
    entry = ModelEntry(
        name=f"{name}_{backbone}",
        source=CREATED,
        title=f"{name} {backbone}",
        task="classification" if detector is None else "proposals" if detector == "rpn" else "detection",
        backbone=Component(name=backbone, **(backbone_options or {})),
        neck=Component(**{"name": "fpn", **pyramid, **(neck or {})}) if takes_neck else None,
        detector=None if detector is None else Component(name=detector, **{**usual, **detector_options}),
        classes=classes,
        dataset=dataset,
        conventions=chosen,
    )
    return entry if given else _with_anchors_of_levels(entry)


def _demo_row(detector: str | None, dataset: str) -> ModelEntry | None:
    """The row whose settings a new row on `shapes` uses: the first demo row with that detector on that
    dataset, else the first of all with images and boxes alone in its conventions; none for other data and
    classifiers."""
    manifests = load_manifests()
    spec = manifests.datasets.get(dataset)
    if detector is None or spec is None or spec.layout != "shapes":
        return None
    rows = [row for row in manifests.entries.values() if row.source == DEMO]
    same = [row for row in rows if row.dataset == dataset and row.detector.name == detector]
    if same:
        return same[0]
    images = manifests.conventions[f"{DEMO}_images"]
    if not hasattr(rules_of(_builder(DETECTORS, Component(name=detector), detector)), "boxes"):
        images = images.model_copy(update={"boxes": None})
    return rows[0].model_copy(update={"detector": Component(name=detector), "conventions": images})


def _usual_conventions(detector: str) -> Conventions:
    """A detector's own bundle, or the images of another and the detector's own defaults."""
    bundles = load_manifests().conventions
    images = Conventions(image=bundles["maskrcnn_benchmark_images"].image)
    return bundles[BUNDLES[detector]] if detector in BUNDLES else images


def _with_anchors_of_levels(entry: ModelEntry) -> ModelEntry:
    """The row with anchors that follow the strides of its levels, where its bundle has sizes for another
    number of levels."""
    sections = {
        name: section
        for name in ("anchors", "retinanet")
        if (section := getattr(entry.conventions, name)) is not None and section.sizes is not None
    }
    if not sections or entry.neck is None:
        return entry
    shape = {name: value for name, value in entry.backbone.arguments.items() if name != "pretrained"}
    with shapes_only():  # the number of levels does not depend on weights
        body = _call(BACKBONES, Component(name=entry.backbone.name, **shape), entry.where, {})
        levels = len(_call(NECKS, entry.neck, entry.where, {"specs": body.specs}).specs)
    changes = {
        name: section.model_copy(update={"sizes": None})
        for name, section in sections.items()
        if len(section.sizes) != levels
    }
    return entry.model_copy(update={"conventions": entry.conventions.model_copy(update=changes)})


def assemble(row: ModelEntry) -> Detector | Classifier:
    """The modules of a row, freshly initialised; raises ManifestError naming row and component."""
    if row.published_only is not None:
        raise ManifestError(f"row {row.name} cannot be built: {row.published_only}")
    where = row.where
    if row.detector is None:
        backbone: Backbone = _call(BACKBONES, row.backbone, where, {})
        return Classifier(backbone, row.classes, dropout=backbone.classifier_dropout)
    inputs: dict[str, Any] = {"num_classes": row.classes}
    builder = _builder(DETECTORS, row.detector, where)
    if "backbone" in inspect.signature(builder).parameters:  # a peer has its own backbone and neck
        inputs["backbone"] = _call(BACKBONES, row.backbone, where, {})
        if row.neck is not None:
            inputs["neck"] = _call(NECKS, row.neck, where, {"specs": inputs["backbone"].specs})
    rules = rules_of(builder)
    if row.conventions is not None:
        inputs |= sections_in_force(row.conventions, rules, row.detector.name, where)
        if not has_box_ends(row.conventions) and not _inclusive(rules):
            raise ManifestError(
                f"{where}: field conventions: no section says where boxes end; add targets.inclusive (true:"
                " x2 is the last pixel inside; false: the far edge)"
            )
    detector: Detector = _call(DETECTORS, row.detector, where, inputs)
    dataset = load_manifests().datasets.get(row.dataset)
    detector.class_names = tuple(row.class_names or ()) or (
        tuple(dataset.classes) if dataset is not None and len(dataset.classes) == row.classes else ()
    )
    image = row.conventions.image if row.conventions is not None else None
    if image is not None and image.resize == "shorter_side" and image.rounding == "round":
        detector.resize = (image.size, image.max_size)
    return detector


def rules_of(builder: Callable[..., Any]) -> Any:
    """The sections of conventions that a detector uses, with their defaults: the default of its builder's
    parameter `rules`, a dataclass; none where it uses no section."""
    parameter = inspect.signature(builder).parameters.get("rules")
    return None if parameter is None else parameter.default


def has_box_ends(conventions: Conventions) -> bool:
    """Whether a section says if x2 and y2 of boxes are inclusive."""
    return conventions.targets is not None or conventions.boxes is not None


def _inclusive(rules: Any) -> bool:
    """Whether a detector's default boxes have inclusive ends; no default: they do not."""
    return hasattr(rules, "boxes") and rules.boxes.offset == 1.0


def sections_in_force(conventions: Conventions, rules: Any, detector: str, where: str) -> dict[str, Any]:
    """The keyword argument `rules` of a detector's builder: its defaults with the row's own sections.

    Args:
        conventions, where: of the row, and its name for messages. rules: as `rules_of` gives it. detector:
            its name.

    Raises:
        ManifestError: the conventions have a section that the detector does not use.
    """
    given = {
        name: value
        for name in type(conventions).model_fields
        if name not in FOR_EVERY_DETECTOR and (value := getattr(conventions, name)) is not None
    }
    used = [] if rules is None else [field.name for field in dataclasses.fields(rules)]
    if unused := [name for name in given if name not in used]:
        raise ManifestError(
            f"{where}: field conventions: {detector} does not use the section {', '.join(unused)}; it uses"
            f" {', '.join(used) or 'none'}. Take another bundle, or leave the section out of adjust"
        )
    return {} if rules is None else {"rules": dataclasses.replace(rules, **given)}


def _builder(registry: Registry, component: Component, where: str) -> Callable[..., Any]:
    try:
        return registry[component.name]
    except KeyError as error:
        raise ManifestError(f"{where}: field {registry.kind}.name: {error.args[0]}") from None


def _call(registry: Registry, component: Component, where: str, inputs: dict[str, Any]) -> Any:
    """Run a component's builder with `inputs` and the row's own arguments, which win."""
    builder = _builder(registry, component, where)
    arguments = {**inputs, **component.arguments}
    parameters = inspect.signature(builder).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in arguments:
            if name not in parameters:
                raise ManifestError(
                    f"{where}: field {registry.kind}.{name}: {component.name} has no such argument;"
                    f" {did_you_mean(name, parameters)}"
                )
    try:
        return builder(**arguments)
    except (TypeError, ValueError) as error:
        raise ManifestError(f"{where}: {registry.kind} {component.name} cannot be built: {error}") from error


def own_weights(row: ModelEntry) -> WeightSpec:
    """The first weight file with the row's own trained weights; raises CheckpointError if there is none."""
    for spec in row.trained_weights:
        if not spec.wrong:
            return spec
    why = [
        spec.wrong or f"they are {spec.partial}, for initialising a training"
        for spec in row.weights
        if spec.wrong or spec.partial
    ]
    raise CheckpointError(
        f"row {row.name} has no published weights"
        + (f": {why[0]}" if why else "; train it, or pass the path of a file")
    )


def load_row_weights(
    model: nn.Module, row: ModelEntry, weights: str | Path, checkpoint_format: str | None = None
) -> None:
    """Load "published" or a file's weights into a row's model; raises CheckpointError.

    Args:
        checkpoint_format: of a file; default: this project's own where the names are the model's, else that
            of the row's published weights.
    """
    from detection_zoo.zoo.weights.load import format_of_file, load_arrays, load_weights

    if weights == "published":
        from detection_zoo.zoo.weights.convert import read_arrays
        from detection_zoo.zoo.weights.fetch.cache import WeightCache

        spec = own_weights(row)
        arrays, path = read_arrays(spec, WeightCache(), row.name)
        load_arrays(model, arrays, spec.format, where=f"{path} ({spec.format}) for row {row.name}")
        return
    stated = [spec.format for spec in row.trained_weights]
    load_weights(
        model,
        Path(weights),
        checkpoint_format or format_of_file(model, weights, stated[0] if stated else None),
        row=row.name,
    )


def weight_shapes(row: ModelEntry, spec: WeightSpec) -> dict[str, tuple[int, ...]] | None:
    """Shapes of a row's tensors by name, where the file is the row's own whole model; none for other files,
    which fit no whole model."""
    if row.published_only is not None or spec not in row.trained_weights:
        return None
    state = build_model(row, device="meta").state_dict(keep_vars=True)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def check_weights(row: ModelEntry, spec: WeightSpec, path: Path) -> None:
    """Compare the tensors of a local file, by name and shape, with the row's model.

    Args:
        row: the row; where it cannot be built, the file is read and its names are translated.
        spec: which of its weight files the file should be.
        path: the file.

    Raises:
        CheckpointError: it cannot be read safely, or does not fit the row's model; lists the tensors.
    """
    from detection_zoo.zoo.weights.load import account_for, backbone_translation, checkpoint_format

    if spec.holds == "results":
        return
    form, where = checkpoint_format(spec.format), f"{path} ({spec.format}) for row {row.name}"
    arrays = form.read(path)
    if row.published_only is not None or spec.partial is not None:
        if not form.translate(arrays).state:
            raise CheckpointError(f"{where}: none of its tensors is one of the model; is it the right file?")
        return
    model = build_model(row, device="meta")
    if spec.holds == "imagenet" and row.detector is not None:
        translation, only = backbone_translation(model, arrays, spec.format)
        account_for(model, translation, where, only=only)
    else:
        account_for(model, form.translate(arrays), where)
