"""What the folders of maskrcnn-benchmark say in words: batches, tolerances, settings of single steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detection_zoo.zoo.conventions import DetectionConventions, PoolingConventions, ProposalConventions
from detection_zoo.zoo.parity.base import ParityError, Reference
from detection_zoo.zoo.parity.prose import Text

Size = tuple[int, int]


@dataclass
class Batch:
    """Images (N, 3, H, W) as the network sees them, and their true (height, width)."""

    images: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, text: Text, divisor: int) -> Batch:
        """The batch of "normal_input(seed, shape)" calls: one of all images, or of single images that are
        zero-padded.

        Args:
            text: the calls; then, where images are padded, "padded ... to (N,3,H,W)", and "true sizes ...
                (h,w) and (h,w)".
            divisor: padded sides are multiples of it where the text does not say to what.
        """
        text.call()
        arrays = [torch.from_numpy(call.array()) for call in text.calls()]
        images = [image for array in arrays for image in (array if array.ndim == 4 else array[None])]
        sides = [max(image.shape[axis] for image in images) for axis in (1, 2)]
        if "padded" in text:
            _, height, width = text.scan("padded...({whole},3,{whole},{whole})")
        else:
            height, width = (-(-side // divisor) * divisor for side in sides)
        batch = torch.zeros(len(images), 3, height, width)
        for i, image in enumerate(images):
            batch[i, :, : image.shape[1], : image.shape[2]] = image
        if "true size" in text:
            sizes = text.scan("true size...{pairs}")
        else:
            sizes = [tuple(image.shape[1:]) for image in images]
        if len(sizes) != len(images):
            raise text.error(f"the true sizes of {len(images)} images")
        return cls(batch, torch.tensor(sizes))


@dataclass(frozen=True)
class Tolerances:
    """Relative L2 differences that a folder advises for maps and head outputs, for lists of boxes and scores,
    and for gradients."""

    maps: float = 1e-4
    lists: float = 1e-4
    gradients: float = 5e-3

    @classmethod
    def of(cls, advice: Text | None) -> Tolerances:
        """From "1e-5 for maps and head outputs, 1e-4 for boxes/scores lists, 5e-3 for gradients"."""
        if advice is None:
            return cls()
        return cls(*(advice.scan(f"{{number}} for {what}") for what in ("maps", "boxes", "gradients")))


def advice(reference: Reference) -> Text | None:
    """What a folder says of tolerances."""
    given = "advice" in reference.meta.get("tolerance", {})
    return reference.text("tolerance", "advice") if given else None


def batches(reference: Reference, divisor: int) -> dict[str, Batch]:
    """Every input of a folder that is described by calls of normal_input; divisor: as of `Batch.of`."""
    texts = {
        name: reference.text("inputs", name)
        for name, described in reference.meta["inputs"].items()
        if isinstance(described, str)
    }
    return {name: Batch.of(text, divisor) for name, text in texts.items() if text.calls()}


def arrays(text: Text, kind: torch.dtype, sizes: Sequence[Size] = ()) -> list[list[Tensor]]:
    """For each call of normal_input in a text, its array of the shape it states, or one array a level where
    its seed counts up with i, as in "2*normal_input(100+i,(2,3,h,w))".

    Args:
        sizes: (h, w) of each level.
    """
    if not sizes and any(call.counts for call in text.calls()):
        raise text.error("the sizes of its levels")
    every = [dict(zip("hw", size, strict=True)) for size in sizes]
    return [
        [
            torch.from_numpy(call.array(level, **letters)).to(kind)
            for level, letters in enumerate(every if call.counts else [{}])
        ]
        for call in text.calls()
    ]


def array(text: Text, kind: torch.dtype) -> Tensor:
    """The first array of a text, which must have one."""
    return torch.from_numpy(text.call().array()).to(kind)


def halved(first: Size, last: Size) -> list[Size]:
    """Sizes (height, width) from the first to the last, each half of the one before it, rounded up as
    convolutions of stride 2 do."""
    sizes = [first]
    while sizes[-1] != last:
        if sizes[-1] == (1, 1):
            raise ParityError(f"no halving leads from a map of {first} to one of {last}")
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


def grids(text: Text) -> list[Size]:
    """(height, width) of each level, from "grids [(32, 40), (16, 20)]"."""
    return text.scan("grids [{pairs}]")


def image_size(text: Text) -> Size:
    """From "true image size 120x150 (height x width)"."""
    return text.scan("true image size {whole}x{whole} (height x width)")


def first_boxes(text: Text) -> int:
    """From "in.boxes.a[:5] x in.boxes.g"."""
    return text.scan("in.boxes.a[:{whole}]")


def flip(text: Text) -> tuple[int, int]:
    """Number of boxes and width, from "horizontal flip of in.boxes.a[:8] in an image 160 wide"."""
    return text.scan("in.boxes.a[:{whole}] in an image {whole} wide")


def resized(text: Text) -> tuple[Size, Size]:
    """(width, height) before and after, from "boxes scaled from 160x128 to 333x250 (w x h)"."""
    width, height, *new = text.scan("scaled from {whole}x{whole} to {whole}x{whole} (w x h)")
    return (width, height), tuple(new)


def least_side(text: Text) -> float:
    """From "both inclusive sides >= 40"."""
    return text.scan("sides >= {number}")


def classes(text: Text) -> int:
    """From "columns of the first three classes"."""
    word, counts = text.scan("columns of the first {word} classes"), {"two": 2, "three": 3, "four": 4}
    if word not in counts:
        raise text.error(f"how many classes: one of {', '.join(counts)}")
    return counts[word]


def weights(text: Text) -> tuple[float, ...]:
    """Of a box coder, from "weights (10.0, 10.0, 5.0, 5.0)"."""
    return text.scan("weights {list}")


def thresholds(text: Text) -> tuple[float, float]:
    """Of a matcher, the higher first, from "matcher 0.7/0.3 with low-quality matches"."""
    return text.scan("matcher {number}/{number}")


def shifted_pair(text: Text) -> tuple[Tensor, float]:
    """Two boxes (2, 4) float64 and the IoU they are suppressed at, from "two boxes 10x10 shifted by 5 rows:
    ... suppressed at 0.3"."""
    width, height, rows, threshold = text.scan(
        "boxes {whole}x{whole} shifted by {whole} rows...suppressed at {number}"
    )
    first = [0.0, 0.0, width - 1.0, height - 1.0]
    return torch.tensor(
        [first, [0.0, rows, width - 1.0, height - 1.0 + rows]], dtype=torch.float64
    ), threshold


def levels(text: Text) -> tuple[list[Size], list[Size]]:
    """(height, width) of each level and of each image, from "levels i=0..4 of sizes [(32, 40), (16, 20)],
    true sizes (h,w) (128,160) and (100,140)"."""
    return text.scan("levels...sizes [{pairs}], true sizes (h,w) {pairs}")


def proposal_rule(
    text: Text, test: ProposalConventions, training: ProposalConventions
) -> ProposalConventions:
    """One of two rules with the limits a text states: "(pre/post/all, NMS iou, min size s)", or "pre P[ and]
    post Q, best R over BOTH | R an image, min size s"."""
    limits = {"min_size": text.scan("min size {number}")}
    whole = text.scan("({whole}/{whole}/{whole}, NMS {number}", default=None)
    if whole:
        limits |= dict(zip(("pre_nms", "post_nms", "collect", "nms_iou"), whole, strict=True))
    else:
        part = "pre {whole}< and|,> post {whole}"
        some = text.scan(f"{part}...the best {{whole}} over BOTH", f"{part}...{{whole}} an image")
        limits |= dict(zip(("pre_nms", "post_nms", "collect"), some, strict=True))
    return (training if "training mode" in text else test).model_copy(update=limits)


def appended(text: Text) -> list[slice]:
    """The rows of in.boxes.a that each image has, from "ground truth in.boxes.a[:3] and [3:5] appended"."""
    return text.scan("ground truth in.boxes.a{slices}") if "ground truth" in text else []


def detection_rule(text: Text) -> DetectionConventions:
    """From "score 0.05, NMS 0.5, 100 an image"."""
    score, iou, most = text.scan("score {number}, NMS {number}, {whole} an image")
    return DetectionConventions(score_threshold=score, nms_iou=iou, max_detections=most)


def width_and_height(text: Text) -> Size:
    """From "proposals, image 160 wide 128 high"."""
    return text.scan("image {whole} wide {whole} high")


def dense_levels(text: Text) -> tuple[list[Size], Size]:
    """(height, width) of each level and of the image, from "levels [(16, 20)], true size 120x150"."""
    return text.scan("levels [{pairs}]"), text.scan("true size {whole}x{whole}")


def map_sizes(text: Text) -> list[Size]:
    """(height, width) of each level, from "of sizes (160,208)..(20,26)"."""
    height, width, *last = text.scan("of sizes ({whole},{whole})..({whole},{whole})")
    return halved((height, width), (last[0], last[1]))


def pooling(text: Text) -> PoolingConventions:
    """From "FPN pooling to 7x7, sampling 2"."""
    size, _, ratio = text.scan("to {whole}x{whole}, sampling {whole}")
    return PoolingConventions(size=size, sampling_ratio=ratio)


def single_pooling(text: Text) -> tuple[PoolingConventions, int]:
    """And the stride of the level, from "C4 pooling 14x14, scale 1/16, adaptive sampling (0)"."""
    size, _, stride, ratio = text.scan(
        "pooling {whole}x{whole}, scale 1/{whole}, adaptive sampling ({whole})"
    )
    return PoolingConventions(size=size, sampling_ratio=ratio), stride


def pasted(text: Text) -> tuple[int, Size, list[float]]:
    """Place of the mask among those of the array, (height, width) of the image, and the box, from "mask
    sigmoid(...)[2] pasted in a 50x40 (w x h) image at [3.2, 4.7, 20.1, 30.9]"."""
    place = text.scan(")))[{whole}]")
    width, height = text.scan("in a {whole}x{whole} (w x h) image")
    return place, (height, width), text.scan("at {list}")


def polygon_target(text: Text) -> tuple[int, int, list[float]]:
    """Side, number of the polygon, and the box, from "28x28 target of polygon 0 of 'mask_target_polygons' in
    box [5.0, 8.0, 50.0, 62.0]"."""
    _, *found = text.scan("{whole}x{whole} target of polygon {whole} of 'mask_target_polygons' in box {list}")
    return tuple(found)


def boxes(text: Text, kind: torch.dtype) -> Tensor:
    """(R, 4), from "boxes [[8,10,55,60],[45,33,85,80]]"."""
    return torch.tensor(text.scan("boxes {list}"), dtype=kind)


def heatmap_side(text: Text) -> int:
    """From "y*56+x of each key point"."""
    return text.scan("y*{whole}+x")


def image_width(text: Text) -> int:
    """From "horizontal flip in a 96x96 image"."""
    return text.scan("in a {whole}x{whole} image")[0]


def beta(text: Text) -> float:
    """Of smooth L1, from "beta 1/9"."""
    return text.scan("beta {number}")


def focal(text: Text) -> dict[str, float]:
    """From "gamma 2, alpha 0.25"."""
    return {name: text.scan(f"{name} {{number}}") for name in ("gamma", "alpha")}


def image(text: Text) -> np.ndarray:
    """The (H, W, 3) uint8 image of "image[y,x,c]=(3x+5y+80c+(x*y mod 7)) mod 256, 60 high 80 wide"."""
    across, down, channel, inner, outer, height, width = text.scan(
        "image[y,x,c]=({whole}x+{whole}y+{whole}c+(x*y mod {whole})) mod {whole}, {whole} high {whole} wide"
    )
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return ((across * x + down * y + channel * c + x * y % inner) % outer).astype(np.uint8)


def resizing(text: Text) -> tuple[int, int]:
    """Shorter side and most of the longer one, from "resized with min 96 max 1333" or "the 800/1333 rule"."""
    return text.scan("resized with min {whole} max {whole}", "{whole}/{whole} rule")


def divisor(text: Text) -> int:
    """From "padding to multiples of 32"."""
    return text.scan("multiples of {whole}")
