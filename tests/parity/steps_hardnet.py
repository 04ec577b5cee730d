"""PytorchSSD-HarDNet's single steps (priors, coding, matching, losses, test loops, transforms, augmentation,
schedules), recomputed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detection_zoo.kernels.nms import nms
from detection_zoo.zoo.build import WithoutRandomFills
from detection_zoo.zoo.conventions import SSDConventions
from detection_zoo.zoo.data.base import GroundTruth
from detection_zoo.zoo.data.ssd_augmentation import (
    SSDAugmentation,
    box_ious,
    distort_colours,
    random_crop,
    random_expand,
    random_mirror,
)
from detection_zoo.zoo.data.targets import TargetRules, training_boxes
from detection_zoo.zoo.data.transforms import Preprocess
from detection_zoo.zoo.data.voc import voc_classes
from detection_zoo.zoo.detectors.ssd import select_priors
from detection_zoo.zoo.manifest import Schedule
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.parity.base import Output, Reference, Skip
from detection_zoo.zoo.parity.hardnet import EXACT, Outputs, build_detector
from detection_zoo.zoo.parts.boxes import box_iou
from detection_zoo.zoo.parts.multibox import MultiBoxLoss, PriorCoder, match_priors, prior_corners
from detection_zoo.zoo.parts.priors import prior_table
from detection_zoo.zoo.records import Detections
from detection_zoo.zoo.training.recipe import learning_rate, total_iterations
from detection_zoo.zoo.weights.rename import rename

CLOSE = 1e-6
CUBIC = 1  # place of the interpolation whose rounding differs between versions of OpenCV
SCORED = (
    "evaluation belongs to benchmarks; tests/bench/test_bench_accuracy_voc.py and"
    " test_bench_accuracy_results.py compare it"
)
COCO_RULES = TargetRules(extent_from_clipped=True, crowd=True, keep_thin=True, need_area=True, images="all")
VOC_RULES = TargetRules(keep_thin=True, images="all")
CODER = PriorCoder()


class RecordingRandom(Random):
    """Draws as `random.Random`, noting name, arguments and result of each: what the folder records."""

    def __init__(self, seed: int) -> None:
        self.draws: list[list[Any]] = []
        self._nested = False
        super().__init__(seed)

    def getrandbits(self, k: int) -> int:
        """As inherited; overriding it keeps the choice of whole numbers as it is."""
        return super().getrandbits(k)

    def _note(self, name: str, arguments: Any, draw: Callable[[], Any]) -> Any:
        if self._nested:  # choice and randint call randrange and random
            return draw()
        self._nested = True
        value = draw()
        self._nested = False
        self.draws.append([name, arguments, value])
        return value

    def random(self) -> float:
        """As inherited, noted."""
        return self._note("random", [], super().random)

    def uniform(self, a: float, b: float) -> float:
        """As inherited, noted."""
        return self._note("uniform", [a, b], lambda: Random.uniform(self, a, b))

    def randrange(self, stop: int) -> int:
        """As inherited, noted."""
        return self._note("randrange", [stop], lambda: Random.randrange(self, stop))

    def randint(self, a: int, b: int) -> int:
        """As inherited, noted."""
        return self._note("randint", [a, b], lambda: a + Random.randrange(self, b - a + 1))

    def choice(self, seq: Sequence[Any]) -> Any:
        """As inherited, noted: the folder has the number of options, and writes a mode as (minimum, maximum)
        IoU."""
        value = self._note("choice", len(seq), lambda: Random.choice(self, seq))
        self.draws[-1][2] = None if value is None else [None if value < 0 else value, None]
        return value


def number(value: Any, expected: Any, tolerance: float = EXACT) -> Output:
    """A number or array beside the one that the folder's text states."""
    return Output(np.asarray(value, dtype=np.float64), tolerance, np.asarray(expected, dtype=np.float64))


def same(value: Any, expected: Any) -> Output:
    """1 where two plain values (draws, names) are equal."""
    return number(value == expected, True)


def step_outputs(reference: Reference, kind: torch.dtype) -> Outputs:
    """Every array and number of the folder."""
    found: Outputs = {}
    for part in (
        _priors,
        _boxes,
        _matching,
        _losses,
        _test_loops,
        _suppression,
        _transforms,
        _augmentation,
        _augmentation_parts,
        _schedules,
        _annotations,
        initialisation,
    ):
        found.update(part(reference))
    return {**found, "coco_result": Skip(SCORED), "voc_eval": Skip(SCORED)}


def _truths(rows: Sequence[Sequence[float]]) -> tuple[Tensor, Tensor]:
    """Boxes (G, 4) and classes (G,) of an image's targets; its placeholder of class 0 is no object."""
    table = torch.tensor([row for row in rows if row[4] > 0], dtype=torch.float32).reshape(-1, 5)
    return table[:, :4], table[:, 4].long()


def _priors(reference: Reference) -> Outputs:
    found: Outputs = {}
    for name, said in reference.meta["priors"].items():
        priors = prior_table(name.lower()).priors()
        found[f"priors|{name}"] = Output(priors, EXACT)
        found[f"priors.{name}.count"] = number(len(priors), said["count"])
        found[f"priors.{name}.first"] = number(priors[: len(said["first"])], said["first"])
        found[f"priors.{name}.last"] = number(priors[-1], said["last"])
    return found


def _boxes(reference: Reference) -> Outputs:
    priors, (boxes, _) = prior_table("voc_300").priors(), _truths(reference.meta["targets"][0])
    crossed = reference.meta["matrix_iou"]
    summed = reference.meta["log_sum_exp"]
    return {
        "boxes|decode": Output(
            CODER.decode(_array(reference, "array_meaning", "boxes|decode"), priors)[::7], CLOSE
        ),
        "boxes|jaccard": Output(box_iou(boxes, prior_corners(priors))[:, ::7], CLOSE),
        "boxes|encode": Output(
            CODER.encode(boxes[torch.arange(len(priors)) % len(boxes)], priors)[::7], CLOSE
        ),
        "matrix_iou": number(box_ious(np.array(crossed["a"]), np.array(crossed["b"])), crossed["result"]),
        "log_sum_exp": number(
            _array(reference, "log_sum_exp", "input").logsumexp(dim=1), summed["result"], CLOSE
        ),
    }


def _matching(reference: Reference) -> Outputs:
    found: Outputs = {}
    priors = prior_table("voc_300").priors()
    for name, key in (("match", "targets"), ("match_edge", "edge_targets")):
        for image, rows in enumerate(reference.meta[key]):
            target = match_priors(*_truths(rows), priors, threshold=0.5, coder=CODER)
            positive = target.classes.nonzero().squeeze(1)
            found[f"{name}|{image}|positive"] = Output(positive, EXACT)
            found[f"{name}|{image}|label"] = Output(target.classes[positive], EXACT)
            found[f"{name}|{image}|loc"] = Output(target.offsets[positive], CLOSE)
    return found


def _losses(reference: Reference) -> Outputs:
    found: Outputs = {}
    truths = [_truths(rows) for rows in reference.meta["targets"]]
    for name, said in ((key, value) for key, value in reference.meta.items() if key.startswith("loss_")):
        priors = prior_table(said["priors"].lower()).priors()
        offsets = _array(reference, name, "loc").requires_grad_()
        logits = _logits(reference, name, "conf")
        losses = MultiBoxLoss(CODER)(offsets, logits.requires_grad_(), priors, *zip(*truths, strict=True))
        sum(losses.values()).backward()
        with torch.no_grad():
            double = MultiBoxLoss(CODER)(
                offsets.double(),
                logits.double(),
                priors.double(),
                *(
                    [t.to(kind) for t in part]
                    for part, kind in zip(
                        zip(*truths, strict=True), (torch.float64, torch.int64), strict=True
                    )
                ),
            )
        found[f"{name}.float64"] = number([double["loss_box"], double["loss_class"]], said["float64"], CLOSE)
        positive = [match_priors(*truth, priors, threshold=0.5, coder=CODER).classes > 0 for truth in truths]
        used = [
            row.abs().sum(dim=1) > 0 for row in logits.grad
        ]  # priors that the class loss reaches: positives and mined negatives
        for image in range(2):
            found[f"{name}|{image}|positive"] = Output(positive[image].nonzero().squeeze(1), EXACT)
            found[f"{name}|{image}|negative"] = Output(
                (used[image] & ~positive[image]).nonzero().squeeze(1), EXACT
            )
        found[f"{name}|loc_grad_positive"] = Output(
            torch.cat([offsets.grad[i][positive[i]] for i in range(2)]), CLOSE
        )
        found[f"{name}|conf_grad_rows"] = Output(
            torch.cat([logits.grad[i][used[i]] for i in range(2)])[:40], CLOSE
        )
        found[f"{name}.losses"] = number(
            [losses["loss_box"].item(), losses["loss_class"].item()], [said["loss_l"], said["loss_c"]], CLOSE
        )
        found[f"{name}.positives"] = number([int(p.sum()) for p in positive], said["positives"])
        found[f"{name}.negatives"] = number(
            [int((u & ~p).sum()) for u, p in zip(used, positive, strict=True)], said["negatives"]
        )
    return found


def _array(reference: Reference, *fields: str) -> Tensor:
    return reference.note(*fields).tensor(torch.float32)


def _logits(reference: Reference, *fields: str) -> Tensor:
    """Logits (N, P, C) or (P, C) with a number added to those of the background."""
    logits = _array(reference, *fields)
    logits[..., 0] += np.float32(reference.note(*fields).need("added"))
    return logits


def _test_loops(reference: Reference) -> Outputs:
    """Both test loops on the recorded cases: with the filter on background and without +1 since December
    2019."""
    found: Outputs = {}
    for name, said in ((key, value) for key, value in reference.meta.items() if key.startswith("detect_")):
        priors = prior_table(said["priors"].lower()).priors()
        height, width = said["image_hw"]
        boxes = CODER.decode(_array(reference, name, "loc")[0], priors) * torch.tensor(
            [width, height, width, height]
        )
        scores = _logits(reference, name, "prob").double().softmax(dim=1).float()
        for suffix, offset, background in (("", 0.0, 0.9), ("_before_dec2019", 1.0, None)):
            rule = SSDConventions(
                score_threshold=said["score_threshold"],
                per_image_keep=said["top_k"],
                nms_offset=offset,
                background_filter=background,
            )
            found.update(_loop(f"{name}{suffix}", suffix, rule, boxes, scores, said))
    return found


def _loop(
    name: str, suffix: str, rule: SSDConventions, boxes: Tensor, scores: Tensor, said: dict[str, Any]
) -> Outputs:
    """Detections of one case, and how many were left after each stage."""
    columns = torch.arange(1, said["classes"])
    result: Detections = select_priors(boxes, scores, columns, rule)
    all_kept = rule.model_copy(update={"per_image_keep": len(columns) * rule.per_class_keep})
    uncut: Detections = select_priors(boxes, scores, columns, all_kept)
    capped = int((torch.bincount(uncut.labels, minlength=len(columns)) == rule.per_class_keep).sum())
    found: Outputs = {
        f"{name}|boxes": Output(result.boxes, CLOSE),
        f"{name}|scores": Output(result.scores, EXACT),
        f"{name}|labels": Output(result.labels + 1, EXACT),
        f"{name}.counts": number(
            [capped, len(uncut), len(result)],
            [said[key + suffix] for key in ("classes_at_the_cap", "kept_after_nms", "final")],
        ),
    }
    if not suffix:
        kept = scores[~((scores.argmax(dim=1) == 0) & (scores[:, 0] >= 0.9))]
        found[f"{name}.candidates"] = number(
            [len(kept), len(scores), int((kept[:, 1:] > rule.score_threshold).sum())],
            [said["after_background_filter"], said["priors_total"], said["candidates_above_threshold"]],
        )
    return found


def _suppression(reference: Reference) -> Outputs:
    said = reference.meta["nms"]
    note = reference.note("nms", "boxes")
    draw = np.random.RandomState(note.seed)
    corners = draw.uniform(note.low, note.high, (note.count, 2))
    sides = draw.uniform(note.least, note.most, (note.count, 2))
    scores = torch.from_numpy((draw.permutation(note.count) / note.count).astype(np.float32))
    boxes = torch.from_numpy(np.concatenate([corners, corners + sides], axis=1).astype(np.float32))
    found: Outputs = {}
    for name, offset in (("torchvision", 0.0), ("plus_one", 1.0)):
        kept = nms(boxes, scores, said["iou"], offset=offset)
        found[f"nms|{name}"] = Output(kept, EXACT)
        found[f"nms.kept_{name}"] = number(len(kept), said[f"kept_{name}"])
    return found


def _preprocess(size: int) -> Preprocess:
    image = load_manifests().conventions["hardnet_ssd300"].image
    return Preprocess.from_conventions(image.model_copy(update={"size": size}))


def _transforms(reference: Reference) -> Outputs:
    """The folder's images are in the order of OpenCV, blue first; `Preprocess` takes RGB."""
    small, large = (reference.note("transform", name).image() for name in ("small", "large"))
    found: Outputs = {}
    for name in [name for name in reference.recorded if name.startswith("transform|")]:
        size, _, corner = name.removeprefix("transform|").partition("_")
        result = _preprocess(int(size))((large if corner else small)[:, :, ::-1]).tensor
        found[name] = Output(result[:, :9, -11:] if corner else result, EXACT)
    found["transform.largest_deviation_from_rounded_float_bilinear"] = Skip(
        "a property of OpenCV's fixed-point arithmetic, which is called as it is"
    )
    return found


def _augmentation(reference: Reference) -> Outputs:
    found: Outputs = {}
    said = reference.meta["augment"]
    objects = np.array(said["boxes"])
    augment = SSDAugmentation(_preprocess(said["size"]), said["p"])
    for run, rules in enumerate(said["runs"]):
        pixels = (
            np.random.RandomState(rules["image_seed"])
            .randint(0, 256, (30, 40, 3))
            .astype(np.uint8)
            .repeat(8, axis=0)
            .repeat(8, axis=1)
        )
        draw = RecordingRandom(rules["seed"])
        image, boxes, labels = augment(pixels[:, :, ::-1], objects[:, :4], objects[:, 4], draw)
        found[f"augment|{run}|image"] = Output(
            image.tensor, 1e-3 if rules["draws"][-1][2] == CUBIC else EXACT
        )
        found[f"augment|{run}|targets"] = Output(np.concatenate([boxes, labels[:, None]], axis=1), EXACT)
        found[f"augment.{run}.draws"] = same(draw.draws, rules["draws"])
    return found


def _augmentation_parts(reference: Reference) -> Outputs:
    found: Outputs = {}
    said = reference.meta["augment_parts"]
    boxes, labels, canvas = np.array(said["boxes"]), np.array(said["labels"]), np.zeros((60, 80, 3), np.uint8)
    for run, rules in enumerate(said["runs"]):
        pixels = (
            np.random.RandomState(rules["distort"]["image_seed"]).randint(0, 256, (6, 8, 3)).astype(np.uint8)
        )
        draws = {name: RecordingRandom(rules[name]["seed"]) for name in rules}
        found[f"distort|{run}"] = Output(distort_colours(pixels, draws["distort"]), EXACT)
        part, cut, left = random_crop(canvas, boxes, labels, draws["crop"])
        wide, moved = random_expand(canvas, boxes, draws["expand"])
        _, mirrored = random_mirror(canvas, boxes, draws["mirror"])
        results = {
            "crop.shape": part.shape,
            "crop.boxes": cut,
            "crop.labels": left,
            "expand.shape": wide.shape,
            "expand.boxes": moved,
            "mirror.boxes": mirrored,
        }
        for name, value in results.items():
            step, field = name.split(".")
            found[f"augment_parts.{run}.{name}"] = number(value, rules[step][field])
        for name, draw in draws.items():
            found[f"augment_parts.{run}.{name}.draws"] = same(draw.draws, rules[name]["draws"])
    return found


def _schedules(reference: Reference) -> Outputs:
    said, known = reference.meta["schedule"], load_manifests().schedules
    coco, voc = said["coco"]["epoch_size"], said["voc"]["epoch_size"]
    # the ramp starts at 1e-6 and is laid out over n epochs, but ends a whole epoch early
    warm = known["hardnet_voc"].model_copy(
        update={
            "warmup_iterations": 5 * voc,
            "warmup_stop": 4 * voc,
            "warmup_factor": 1e-6 / known["hardnet_voc"].lr,
        }
    )
    plans = {
        "coco": (known["hardnet_coco"], coco),
        "voc": (known["hardnet_voc"], voc),
        "voc_warm_1": (known["hardnet_voc"], voc),
        "voc_warm_5": (warm, voc),
        "imagenet": (known["hardnet_imagenet"], 1),
    }
    found: Outputs = {f"schedule.{name}.lr": _rates(*plan, said[name]["lr"]) for name, plan in plans.items()}
    for name, (plan, size) in list(plans.items())[:2]:
        found[f"schedule.{name}.plan"] = number(
            [plan.epochs, *plan.steps, total_iterations(plan, size) - plan.extra_iterations],  # max_iter
            [said[name]["epochs"], *said[name]["steps"], said[name]["epochs"] * size],
        )
    found["schedule.coco_resumed_at_100"] = Skip(
        "the original forgets on resuming which steps have passed; ours goes on as if it had not been"
        " interrupted"
    )
    return found


def _rates(plan: Schedule, size: int, said: dict[str, float]) -> Output:
    return number([learning_rate(plan, int(iteration), size) for iteration in said], list(said.values()))


def _truth(boxes: Sequence[Sequence[float]], labels: Sequence[int], area: Sequence[float]) -> GroundTruth:
    none = np.zeros(len(labels), bool)
    return GroundTruth(np.array(boxes, np.float64), np.array(labels), none, none, np.array(area, np.float64))


def _annotations(reference: Reference) -> Outputs:
    """Training rows of a VOC object and of COCO annotations; labels are counted from 1 there."""
    voc, coco = reference.meta["voc_annotation"], reference.meta["coco_annotation"]
    x1, y1, x2, y2 = voc["xml_box"]
    sides = [x2 - x1 + 1, y2 - y1 + 1]
    one = _truth(
        [[x1 - 1, y1 - 1, *sides]], [voc_classes().index(voc["name"].lower())], [sides[0] * sides[1]]
    )
    boxes, _ = training_boxes(one, (500, 500), VOC_RULES)
    known = sorted({category for *_, category in coco["bbox_area_cat"]})
    many = _truth(
        [b for b, _, _ in coco["bbox_area_cat"]],
        [known.index(c) for _, _, c in coco["bbox_area_cat"]],
        [a for _, a, _ in coco["bbox_area_cat"]],
    )
    kept, rows = training_boxes(many, (coco["image_wh"][1], coco["image_wh"][0]), COCO_RULES)
    return {
        "voc_annotation": number([[*boxes[0], one.labels[0] + 1]], voc["row"]),
        "coco_annotation": number(
            [[*box, many.labels[row] + 1] for box, row in zip(kept, rows, strict=True)], coco["rows"]
        ),
    }


def initialisation(reference: Reference) -> Outputs:
    """Which new layers a training run draws again, and how many biases it sets to zero."""
    found: Outputs = {}
    for name, said in reference.meta["initialisation"].items():
        with torch.random.fork_rng(devices=[]):
            whole = {"classes": 81, "image_size": 512, "priors": "COCO_512"}
            with WithoutRandomFills():
                model = build_detector({"config": "initialisation", "model": name, **whole})
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(7.0)
            model.initialise()
            ends = {key: value.aminmax() for key, value in model.named_parameters()}
        changed = {key for key, (least, most) in ends.items() if not least == most == 7.0}
        weights = sorted(_original_name(key) for key in changed if key.endswith(".weight"))
        found[f"initialisation.{name}.weights_drawn_again"] = same(
            weights, sorted(said["weights_drawn_again"])
        )
        biases = [
            key for key in changed if key.endswith(".bias") and bool((model.get_parameter(key) == 0).all())
        ]
        found[f"initialisation.{name}.biases_zeroed"] = number(len(biases), said["biases_zeroed"])
        found[f"initialisation.{name}.standard_deviation"] = number(
            _deviation_ratio(model, changed), 1.0, 0.05
        )
    return found


def _deviation_ratio(model: nn.Module, changed: set[str]) -> float:
    """Measured deviation of the drawn weights over sqrt(2 / (out_channels * kernel_area)), pooled over all of
    them; 1 without any."""
    drawn = [model.get_parameter(key).detach() for key in changed if key.endswith(".weight")]
    scaled = [(w / (2 / (w.shape[0] * w.shape[2:].numel())) ** 0.5).flatten() for w in drawn]
    return float(torch.cat(scaled).std()) if scaled else 1.0


def _original_name(name: str) -> str:
    """The name that the source gives a new layer."""
    back = (
        (r"^backbone\.bridge\.", "bridge."),
        (r"^pyramid\.norm\.", "Norm."),
        (r"^pyramid\.", ""),
        (r"\.branches\.(\d)\.", r".branch\1."),
        (r"\.linear\.", ".ConvLinear."),
        (r"^box_head\.", "loc."),
        (r"^class_head\.", "conf."),
    )
    return rename(name, back)
