"""Adapter of the HarDNet folders: detectors of PytorchSSD-HarDNet, classifiers of Pytorch-HarDNet, and the
folder of single steps."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detection_zoo.zoo.backbones import hardnet, vgg  # noqa: F401 - register their builders
from detection_zoo.zoo.build import WithoutRandomFills, build_model
from detection_zoo.zoo.conventions import ImageConventions, SSDConventions
from detection_zoo.zoo.data.transforms import Preprocess
from detection_zoo.zoo.detectors.classifier import Classifier
from detection_zoo.zoo.detectors.ssd import SSD
from detection_zoo.zoo.manifest import ModelEntry, Schedule
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.parity.base import (
    Output,
    ParityError,
    Reference,
    Skip,
    recorded_difference,
    step_outputs,
    to_numpy,
)
from detection_zoo.zoo.parity.gates import GATE_GAP, RecordedGradient, flipped, gates_as_recorded
from detection_zoo.zoo.parts.trace import trace
from detection_zoo.zoo.records import Target
from detection_zoo.zoo.registry import BACKBONES, DETECTORS
from detection_zoo.zoo.training.recipe import build_optimizer
from detection_zoo.zoo.weights.load import checkpoint_format, copy_into

FORMATS = {"detector": "pytorchssd_pth", "classifier": "hardnet_imagenet_pth"}
Outputs = dict[str, Output | Skip]
EXACT = 1e-12  # room for the mean of equal numbers summed in another order
LEAST = 1e-6  # the lowest tolerance of a continuous output in any folder
# of a gradient's mean and deviation: four times what SSE41 moved those of an extra layer by (2.3e-6)
ROUNDED = 1e-5


def outputs(reference: Reference, entry: ModelEntry | None, dtype: str, checkpoint: str | None) -> Outputs:
    """Every output of a folder, recomputed; see zoo.parity.base."""
    if reference.is_steps:
        reference.notes.append("single steps are computed in the original's own types, whatever --dtype is")
        return step_outputs(reference, getattr(torch, dtype))
    with torch.random.fork_rng(devices=[]):
        return _Folder(reference, entry, dtype, checkpoint).outputs()


def moments_in_double(output: Output, finer: Tensor, kept: Mapping[str, np.ndarray]) -> Output:
    """An output of which every recorded number is 0, so that the folder has no difference between float32 and
    float64 to judge its mean and deviation by: where rounding may have moved these, its value in double
    precision, which no processor changes.

    Args:
        output: in float32.
        finer: the same (C, D, KH, KW) in float64.
        kept: what was recorded of it.

    Returns:
        The output itself where it is within its tolerance, or further off than `ROUNDED`.
    """
    apart = recorded_difference(to_numpy(output.value), kept)
    if not output.tolerance < apart <= ROUNDED:
        return output
    note = (
        f"every recorded number is 0; the mean and deviation are {apart:.1e} off, which may be rounding (at"
        f" most {ROUNDED:g}), and were compared in double precision"
    )
    return Output(finer, output.tolerance, note=note)


def selection(reference: Reference) -> SSDConventions:
    """The test loop of a folder: numbers of its `postprocess`, and those that its notes state."""
    rules, notes = reference.meta["postprocess"], reference.settings.under("postprocess")
    return SSDConventions(
        **{name: rules[name] for name in ("score_threshold", "nms_iou", "per_class_keep", "per_image_keep")},
        nms_offset=0.0 if "nms" in notes and notes["nms"].without_plus_one else 1.0,
        background_filter=notes["background_filter"].background_filter
        if "background_filter" in notes
        else None,
    )


def build_detector(meta: dict[str, Any]) -> SSD:
    """The network that a detector folder's outputs.json describes by model, size, priors and classes."""
    found = re.fullmatch(r"(SSD|RFB)_(HarDNet\d+|vgg)", meta["model"], flags=re.IGNORECASE)
    if not found:
        raise ParityError(
            f"{meta['config']}: unknown model {meta['model']!r}; known: SSD_HarDNet68, SSD_HarDNet85,"
            " SSD_vgg, RFB_HarDNet68, RFB_HarDNet85"
        )
    heads, name = found[1].lower(), {"vgg": "vgg16_reduced"}.get(found[2].lower(), found[2].lower())
    backbone = BACKBONES[name](**({"bridge": heads == "ssd"} if name == "hardnet85" else {}))
    return DETECTORS["ssd"](
        backbone,
        num_classes=meta["classes"] - 1,
        size=meta["image_size"],
        heads=heads,
        priors=meta["priors"].lower(),
    )


def build_classifier(meta: dict[str, Any]) -> nn.Module:
    """The classifier that a folder's outputs.json describes by model and classes."""
    name = meta["model"].removeprefix("imagenet_").lower()
    return Classifier(
        BACKBONES[name](**({} if name.endswith("ds") else {"form": "classifier"})),
        num_classes=meta["classes"],
    )


class _Folder:
    """One folder with a model."""

    def __init__(
        self, reference: Reference, entry: ModelEntry | None, dtype: str, checkpoint: str | None
    ) -> None:
        self.reference, self.meta, self.dtype = reference, reference.meta, getattr(torch, dtype)
        self.is_detector = "image_size" in self.meta
        with WithoutRandomFills():
            self.model = self._build(entry)
        translation = checkpoint_format(
            checkpoint or FORMATS["detector" if self.is_detector else "classifier"]
        ).translate(reference.checkpoint())
        copy_into(self.model, translation, str(reference.folder))
        self.names = {file.removeprefix("module."): name for name, file in translation.origin.items()}
        self.model.to(self.dtype).eval()
        self.done: Outputs = {}

    def _build(self, entry: ModelEntry | None) -> nn.Module:
        if entry is None:
            self.reference.notes.append("no row has this source_config; built from outputs.json")
            return build_detector(self.meta) if self.is_detector else build_classifier(self.meta)
        return build_model(entry)

    def outputs(self) -> Outputs:
        with torch.no_grad():
            for letter in "ab" if self.is_detector else "abc":
                self._stages(letter)
            if not self.is_detector:
                self._classification()
            if self.is_detector and any(map(self._recorded, ("c.", "priors"))):
                self._whole_network()
            if self.is_detector and self._recorded("d."):
                self._detections()
        if self._recorded("e.") or self._recorded("f."):
            self._training()
        return self.done

    def _keep(self, name: str, value: Any, *, exact: bool = False) -> None:
        """File an output, and its part without first row and column where that was recorded too."""
        value = value.detach() if isinstance(value, Tensor) else value
        for whole, part in (
            (name, value),
            (f"{name}.inner", value[..., 1:, 1:] if value.ndim >= 2 else None),
        ):
            if whole in self.reference.recorded:
                said = self.meta["outputs"][whole]
                exact = exact or said["dtype"].startswith("int")
                self.done[whole] = Output(
                    part, tolerance=EXACT if exact else max(LEAST, 10 * said["float64_difference"])
                )

    def _path(self, output: str) -> str:
        """The path of the module that a file calls base.N..., bridge, loc.N or conf.N."""
        body = "stages" if hasattr(self.model.backbone, "stages") else "features"
        for theirs, ours in (
            ("base.", f"backbone.{body}."),
            ("bridge", "backbone.bridge"),
            ("loc.", "box_head."),
            ("conf.", "class_head."),
        ):
            if output.startswith(theirs):
                return ours + output.removeprefix(theirs)
        raise ParityError(f"{self.reference.folder}: no module is known for output {output!r}")

    def _input(self, name: str) -> Tensor:
        return self.reference.note("inputs", name).tensor(self.dtype)

    def _stages(self, letter: str) -> None:
        images = self._input(letter)
        last = None if self.is_detector else f"base.{len(self.model.backbone.stages)}"
        prefix = f"{letter}."
        names = {
            name.removeprefix(prefix).removesuffix(".inner")
            for name in self.reference.recorded
            if name.startswith((f"{prefix}base", f"{prefix}bridge"))
        }
        if not names:
            return
        paths = {name: self._path(name) for name in names - {last}}
        with trace(self.model, *paths.values()) as seen:
            end = self.model.backbone(images) if self.is_detector else self.model(images)
        if last is not None:
            self._keep(f"{letter}.{last}", end)
        for name, path in paths.items():
            self._keep(f"{letter}.{name}", seen[path])

    def _whole_network(self) -> None:
        model, images = self.model, self._input("c")
        heads = [f"{kind}.{level}" for kind in ("loc", "conf") for level in range(len(model.box_head))]
        paths = {name: self._path(name) for name in heads}
        with trace(model, "pyramid", "box_head", "class_head", *paths.values()) as seen:
            raw = model.raw(images, torch.tensor([images.shape[2:]]))
        for level, features in enumerate(seen["pyramid"]):
            self._keep(f"c.source.{level}", features)
        for name, path in paths.items():
            self._keep(f"c.{name}", seen[path])
        self._keep("c.loc", seen["box_head"].transpose(1, 2))
        self._keep("c.conf", seen["class_head"])
        self._keep("c.softmax", raw.scores[0])
        self._keep("c.decoded", raw.boxes[0].t())
        self._keep("priors", model.priors.float().t(), exact=True)

    def _preprocess(self, bundle: str, **changes: Any) -> Preprocess:
        image: ImageConventions = load_manifests().conventions[bundle].image
        return Preprocess.from_conventions(image.model_copy(update=changes))

    def _detections(self) -> None:
        preprocess = self._preprocess("hardnet_ssd300", size=self.meta["image_size"])
        image = preprocess(self.reference.note("inputs", "d").image())
        self._keep("d.input", image.tensor, exact=True)
        self.model.rule = selection(self.reference)
        found = self.model.predict(
            image.tensor[None].to(self.dtype), torch.tensor([image.size]), torch.tensor([image.original_size])
        )[0]
        self._keep("d.boxes", found.boxes.t())
        self._keep("d.scores", found.scores)
        self._keep("d.labels", found.labels + 1)
        self._keep("d.counts", torch.bincount(found.labels, minlength=self.model.num_classes))

    def _classification(self) -> None:
        pixels = self.reference.note("inputs", "d").image()
        image = self._preprocess("imagenet_torchvision")(pixels)
        self._keep("d.input", image.tensor[None])
        self._keep("d.logits", self.model(image.tensor[None].to(self.dtype)))

    def _targets(self) -> list[Target]:
        found = []
        for rows in self.meta["targets"]["values"]:
            table = torch.tensor(rows, dtype=torch.float64)
            found.append(
                Target((table[:, :4] * self.meta["image_size"]).to(self.dtype), table[:, 4].long() - 1)
            )
        return found

    def _training(self) -> None:
        images = self._input("e and f")
        sizes, targets = torch.tensor([images.shape[2:]] * len(images)), self._targets()
        if self._recorded("e."):
            with torch.no_grad():
                self._losses("e", self.model.losses(images, sizes, targets))
        start = copy.deepcopy(self.model)
        self._step(images, sizes, targets, {})

        def losses(model: nn.Module) -> Tensor:
            kind = next(model.parameters()).dtype
            goals = [dataclasses.replace(target, boxes=target.boxes.to(kind)) for target in targets]
            return sum(model.losses(images.to(kind), sizes, goals).values())

        extras = [name for name in self._recorded("f.grad.extras.") if name.endswith(".weight")]
        extras += [f"{name}.inner" for name in extras if f"{name}.inner" in self.reference.recorded]
        blank = [name for name in extras if not self.reference.recorded[name]["samples"].any()]
        extras = [name for name in extras if name not in blank]
        if any(1 < self._excess(name) <= ROUNDED / self.done[name].tolerance for name in blank):
            self._moments_in_double(copy.deepcopy(start).double().train(), losses, blank)
        if max((self._excess(name) for name in extras), default=0.0) <= 1:
            return
        recorded = [self._recorded_gradient(name) for name in extras]
        if units := gates_as_recorded(start, images, losses, recorded):
            self.model = start
            self._step(images, sizes, targets, units)
            self.reference.notes.append(
                f"f.grad, f.after: {sum(int(u.sum()) for u in units.values())} ReLU units of the extra"
                f" layers, whose input is within {GATE_GAP:g} of zero (of the layer's largest) in double"
                " precision, are open or closed as recorded"
            )

    def _moments_in_double(
        self, model: nn.Module, losses: Callable[[nn.Module], Tensor], names: list[str]
    ) -> None:
        """Judge gradients of which every recorded number is 0 by those of a model (N, C, H, W) in float64."""
        wholes = [name.removesuffix(".inner").removeprefix("f.grad.") for name in names]
        parameters = [model.get_parameter(self.names[whole]) for whole in wholes]
        for name, gradient in zip(names, torch.autograd.grad(losses(model), parameters), strict=True):
            finer = gradient[..., 1:, 1:] if name.endswith(".inner") else gradient
            self.done[name] = moments_in_double(self.done[name], finer, self.reference.recorded[name])

    def _recorded_gradient(self, name: str) -> RecordedGradient:
        """What is known of a gradient under one of its recorded names."""
        whole, kept = name.removesuffix(".inner"), self.reference.recorded[name]
        stride, samples = int(kept["stride"]), torch.from_numpy(kept["samples"]).double()

        def take(gradient: Tensor) -> Tensor:
            part = gradient[..., 1:, 1:] if whole != name else gradient
            return part.reshape(-1)[::stride][: len(samples)]

        return RecordedGradient(self.names[whole.removeprefix("f.grad.")], take, samples)

    def _excess(self, name: str) -> float:
        """How often a recomputed gradient differs by its tolerance."""
        output = self.done[name]
        return recorded_difference(output.value.numpy(), self.reference.recorded[name]) / output.tolerance

    def _step(self, images: Tensor, sizes: Tensor, targets: list[Target], flips: dict[int, Tensor]) -> None:
        """One update; flips: by number of an extra layer, the units (N, C, H, W) whose input changes sign."""
        step = self.meta["sgd_step"]
        decay = step["weight_decay"]
        schedule = Schedule(
            images_per_batch=len(images),
            lr=step["lr"],
            momentum=step["momentum"],
            weight_decay=decay,
            weight_decay_bias=decay,
        )
        optimizer = build_optimizer(self.model, schedule)
        compared = {
            self.names[name.removeprefix(prefix)]
            for prefix in ("f.grad.", "f.after.")
            for name in self._recorded(prefix)
        }
        updated = {name: p for name, p in self.model.named_parameters() if name in compared}
        self.model.train()
        with flipped(self.model.pyramid.extras, flips):
            losses = self.model(images, sizes, targets)
            self._losses("f", losses)
            sum(losses.values()).backward(inputs=list(updated.values()))
        for name in self._recorded("f.grad."):
            self._keep(name, updated[self.names[name.removeprefix("f.grad.")]].grad)
        optimizer.step()
        state = self.model.state_dict()
        for name in self._recorded("f.after."):
            self._keep(name, state[self.names[name.removeprefix("f.after.")]])

    def _recorded(self, prefix: str) -> list[str]:
        return [n for n in self.reference.recorded if n.startswith(prefix) and not n.endswith(".inner")]

    def _losses(self, letter: str, losses: dict[str, Tensor]) -> None:
        self._keep(f"{letter}.loss_l", losses["loss_box"])
        self._keep(f"{letter}.loss_c", losses["loss_class"])
