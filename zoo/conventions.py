"""Conventions: the numeric settings that a checkpoint depends on, as plain records. No torch.

A bundle in manifests/conventions.toml is one `Conventions`; rows may adjust single values. The sections are
the objects that the parts take: `BoxConventions` makes coders, `ProposalConventions` chooses proposals, and
so on. A detector's builder declares the sections that it uses by its parameter `rules`, a dataclass of them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Section(BaseModel):
    """Base of the sections: no unknown fields, no silent conversion, not changed after reading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)


class ImageConventions(Section):
    """How pixels become the network's input (maskrcnn-benchmark, Detectron, DetNet_pytorch and SSD each
    differ)."""

    channel_order: Literal["rgb", "bgr"]
    value_range: Literal["0..255", "0..1", "-1..1"] = Field(
        description="range of the values before mean and std"
    )
    mean: list[float] = Field(min_length=3, max_length=3, description="subtracted, in channel order")
    std: list[float] = Field(min_length=3, max_length=3, description="divided by, in channel order")
    resize: Literal["shorter_side", "fixed", "centre_crop", "none"]
    size: int | None = Field(
        None, gt=0, description="shorter_side: its length; fixed: both sides; centre_crop: the crop"
    )
    max_size: int | None = Field(
        None, gt=0, description="shorter_side: bound of the longer side; none: unbounded"
    )
    resize_short: int | None = Field(None, gt=0, description="centre_crop: the short side before the crop")
    interpolation: Literal["pil_bilinear", "cv2_bilinear", "tf1_bilinear"] = "pil_bilinear"
    rounding: Literal["truncate", "round", "half_up"] = Field(
        "truncate", description="how the resized sides become whole pixels"
    )
    crop_rounding: Literal["round", "truncate"] = Field(
        "round", description="centre_crop: how its corner becomes whole pixels, halves to even or down"
    )
    through_fractions: bool = Field(
        False,
        description="mean and std are applied in float32 to bytes divided by 255 (and multiplied again, where"
        " value_range is 0..255), as after torchvision's to_tensor; otherwise in float64 to the bytes",
    )
    normalise_first: bool = Field(
        False, description="mean and std are applied before resizing (on float pixels), not after"
    )
    size_divisor: int = Field(
        1, gt=0, description="batches are zero-padded at the right and bottom to multiples of this"
    )


class SSDConventions(Section):
    """Priors, coding, scores and selection of the SSD family (SSD, RFB, SSDLite)."""

    variances: list[float] = Field(
        [0.1, 0.2], min_length=2, max_length=2, description="of centres and of sides"
    )
    scores: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="over all classes with background, or each class by itself"
    )
    channels: Literal["dense", "coco_ids"] = Field(
        "dense",
        description="class channels after background: one per class, or one per COCO category id (90)",
    )
    clip: bool = Field(False, description="boxes are clipped to the image before NMS")
    background_filter: float | None = Field(
        None,
        description="priors whose best class is background at this or more are left out; none: no prior is",
    )
    score_threshold: float = Field(0.02, ge=0, description="scores must be above it")
    nms_iou: float = Field(0.45, gt=0, le=1)
    nms_offset: float = Field(
        0.0, description="added to widths and heights in NMS; 1.0: the CUDA NMS before December 2019"
    )
    per_class_keep: int = Field(50, gt=0, description="detections of a class that NMS keeps")
    per_image_keep: int = Field(200, gt=0, description="detections per image, plus ties with the last")
    match_iou: float = Field(0.5, description="IoU from which a prior is trained as an object")
    negatives: int = Field(3, description="background priors trained for each object prior")


class ObjectConventions(Section):
    """Which objects and images training uses, and how boxes are written (zoo/data/targets.py)."""

    inclusive: bool = Field(True, description="x2 is the last pixel inside; otherwise the far edge")
    extent_from_clipped: bool = Field(
        False, description="x2 is computed from the clipped x1, not from the annotated one"
    )
    crowd: bool = Field(False, description="crowd regions are used as ordinary objects in training")
    difficult: bool = Field(True, description="difficult objects are trained on")
    keep_thin: bool = Field(False, description="boxes with x2 == x1 or y2 == y1 stay")
    need_area: bool = Field(False, description="objects of annotated area 0 are dropped")
    whole_pixels: bool = Field(False, description="corners are cut to whole pixels")
    images: Literal["all", "annotated", "usable"] = Field(
        "annotated", description="images trained on: all, those with an annotation, with a usable box"
    )
    flip_first: bool = Field(False, description="flip before resizing, not after")
    max_objects: int | None = Field(None, description="no more than the first so many")


class TargetConventions(ObjectConventions):
    """Objects and images that training uses, and how images are ordered and augmented."""

    augmentation: Literal["flip", "ssd"] = Field(
        "flip", description="flip, half the time; or SSD's crop, colours, expansion, mirror and resize"
    )
    batching: Literal["aspect_pairs", "ratio_groups", "padded_ratio_groups", "shuffled"] = Field(
        "aspect_pairs", description="order of the images: maskrcnn-benchmark's, Detectron's, DetNet's, SSD's"
    )
    aspect_cropping: bool = Field(
        False, description="images wider or taller than 2 to 1 are cropped to their group's ratio"
    )
    vertical_flip: float = Field(0.0, ge=0, le=1, description="probability of a mirror top to bottom")
    jitter: list[float] = Field(
        default_factory=list,
        description="ranges of brightness, contrast, saturation and hue, drawn for each image; empty: none",
    )


class BoxConventions(Section):
    """Box arithmetic and the coding of boxes as deltas."""

    offset: float = Field(
        1.0, description="added to x2 - x1 for a width: 1 where far corners are inclusive pixels"
    )
    far_offset: float = Field(1.0, description="subtracted from decoded far corners")
    cap: float | None = Field(
        4.135166556742356, description='bound of dw and dh when decoding, log(1000/16); "none": unbounded'
    )
    frame: Literal["network", "original", "scaled"] = Field(
        "network",
        description="pixels in which boxes are decoded, clipped and chosen: of the network's input, of the"
        " original image, or decoded and clipped in the input's and then scaled to the original's",
    )
    weights: list[float] = Field(
        [10.0, 10.0, 5.0, 5.0],
        min_length=4,
        max_length=4,
        description="multiply the deltas of the box branch (and of RetinaNet)",
    )
    rpn_weights: list[float] = Field(
        [1.0, 1.0, 1.0, 1.0], min_length=4, max_length=4, description="multiply the deltas of the proposals"
    )

    @field_validator("cap", mode="before")
    @classmethod
    def _unbounded(cls, value: Any) -> Any:
        return None if value == "none" else value  # TOML has no null


class AnchorConventions(Section):
    """Anchors of the proposals, or of RetinaNet."""

    rule: Literal["rounded", "centred", "torchvision"] = Field(
        "rounded", description="recipe of the cell anchors, see zoo/parts/anchors.py"
    )
    sizes: list[list[float]] | None = Field(
        None, description="pixels, one list per level; none: 8 strides on a pyramid, 32 to 512 on one level"
    )
    ratios: list[float] = Field([0.5, 1.0, 2.0], min_length=1)
    strides: list[int] | None = Field(None, description="pixels from cell to cell; none: those of the levels")
    slow: Literal["rule", "size"] = Field(
        "rule", description="order of a cell's anchors: by the rule, or with the size changing last"
    )


class RpnConventions(Section):
    """The proposal network's head and training."""

    channels: int | None = Field(None, gt=0, description="of the 3x3 convolution; none: as its input")
    head: Literal["sigmoid", "paired"] = Field(
        "sigmoid", description="one sigmoid per anchor, or two logits (see zoo.parts.rpn.PairedRpnHead)"
    )
    samples: int = Field(256, gt=0, description="anchors of an image that are trained on")
    positive_fraction: float = Field(0.5, ge=0, le=1)
    foreground_iou: float = 0.7
    background_iou: float = 0.3
    low_quality: bool = Field(
        True, description="the anchors with a ground truth's best IoU are positive at any IoU"
    )
    zero_overlap: bool = Field(True, description="low_quality even where that best IoU is 0")
    straddle: float | None = Field(
        0.0, description="anchors further outside the image than this are not trained on; none: all are"
    )
    inside_only: bool = Field(False, description="anchors outside take no part in the matching either")
    smooth_l1_beta: float = Field(0.1111111111111111, gt=0)
    sampling: Literal["balanced", "detectron", "faster_rcnn_pytorch"] = Field(
        "balanced",
        description="how anchors are sampled and weighted in training: zoo/parts/anchor_targets.py",
    )
    objectness_over: Literal["sampled", "configured"] = Field(
        "sampled", description="detectron: whose count divides the loss"
    )


class ProposalConventions(Section):
    """How proposals are chosen, in training or at test time."""

    pre_nms: int = Field(1000, gt=0, description="best anchors of a level")
    post_nms: int = Field(1000, gt=0, description="proposals of a level after NMS")
    nms_iou: float = 0.7
    inclusive: bool = Field(True, description="NMS removes at IoU equal to the threshold too")
    together: bool = Field(False, description="all levels are one list for the limits and the NMS")
    fill: bool = Field(False, description="zero boxes fill the proposals of an image to post_nms")
    min_size: float = Field(0.0, ge=0, description="pixels")
    collect: int = Field(1000, ge=0, description="best over all levels; 0: no such cut")
    collect_over: Literal["image", "batch"] = "image"
    collect_order: Literal["score", "level"] = "score"
    clip_to: Literal["image", "batch"] = Field(
        "image", description="true size of the image, or padded size of the batch"
    )


class PoolingConventions(Section):
    """RoI pooling; a RoI's level is floor(canonical_level + log2(sqrt(area) / canonical_scale + level_eps)),
    with level_offset in its sides."""

    size: int = Field(7, gt=0, description="cells on a side of the pooled map")
    sampling_ratio: int = Field(2, ge=0, description="points per bin and axis; 0: as many as cells")
    aligned: bool = Field(False, description="RoIAlign shifted by half a cell")
    canonical_scale: float = 224.0
    canonical_level: int = 4
    level_offset: float = 1.0
    level_eps: float = 1e-6
    method: Literal["roi_align", "roi_align_averaged", "roi_pool", "roi_crop"] = "roi_align"
    scale: Literal["stride", "height"] = Field(
        "stride", description="of a level: 1 / its stride, or its height over that of the first image"
    )


class RoiConventions(Section):
    """Training of the box branch."""

    samples: int = Field(512, gt=0, description="proposals of an image that are trained on")
    positive_fraction: float = Field(0.25, ge=0, le=1)
    foreground_iou: float = 0.5
    background_iou: float = 0.5
    background_low: float = Field(0.0, description="proposals below this IoU are not used")
    ground_truth: Literal["last", "first"] = Field(
        "last", description="position of the ground truth boxes among the proposals"
    )
    order: Literal["position", "foreground_first"] = Field("position", description="of the sampled proposals")
    smooth_l1_beta: float = Field(1.0, gt=0)
    sampling: Literal["balanced", "detectron", "faster_rcnn_pytorch"] = Field(
        "balanced", description="how proposals are sampled in training, see zoo/parts/targets.py"
    )


class DetectionConventions(Section):
    """How detections are chosen."""

    score_threshold: float = Field(0.05, ge=0, description="scores must be above it")
    nms_iou: float = 0.5
    inclusive: bool = True
    max_detections: int = Field(100, description="per image, plus ties with the last; 0: all")
    soft: Literal["none", "linear", "gaussian"] = Field(
        "none", description="soft-NMS in place of NMS, by this decay"
    )
    soft_sigma: float = Field(0.5, gt=0, description="of the gaussian decay")
    soft_least: float = Field(
        1e-4, ge=0, description="boxes whose decayed score is below this are removed (soft-NMS)"
    )
    vote_iou: float | None = Field(
        None, description="boxes are refined by voting among those of this IoU; none: they are not"
    )
    vote_method: Literal["id", "temp_avg", "avg", "iou_avg", "generalized_avg", "quasi_sum"] = Field(
        "id", description="score after voting"
    )


class MaskConventions(Section):
    """The mask branch."""

    pooling: PoolingConventions | None = Field(None, description="none: as the box branch, with 14 cells")
    threshold: float = Field(0.5, description="a pasted pixel's probability must be above it")
    interpolation: Literal["torch", "cv2"] = Field("torch", description="bilinear resize that pastes masks")
    width: int = Field(256, gt=0, description="channels of the convolutions and of the upsampling")
    dilation: int = Field(1, gt=0, description="of the convolutions")


class KeypointConventions(Section):
    """The keypoint branch."""

    keypoints: int = Field(17, gt=0)
    pooling: PoolingConventions | None = Field(None, description="none: as the box branch, with 14 cells")
    convs: int = Field(8, gt=0, description="3x3 convolutions")
    width: int = Field(512, gt=0, description="their channels")
    upsampling: Literal["interpolate", "deconvolution"] = Field(
        "interpolate", description="the last doubling: bilinear, or a fixed bilinear deconvolution"
    )
    samples: int = Field(512, gt=0)
    positive_fraction: float = 0.25


class RetinaNetConventions(Section):
    """RetinaNet's training and selection."""

    scales_per_octave: int = Field(3, gt=0)
    octave: float = 2.0
    sizes: list[float] | None = Field(None, description="pixels, one per level; none: 4 strides")
    foreground_iou: float = 0.5
    background_iou: float = 0.4
    low_quality: bool = True
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    box_weight: float = Field(4.0, description="the box loss is divided by it, and by the positives")
    smooth_l1_beta: float = 0.11
    class_normalizer: Literal["positives_and_images", "positives"] = "positives_and_images"
    box_normalizer: Literal["positives_and_images", "positives"] = "positives"
    weak_background: bool = Field(
        False,
        description="a low-quality match below background_iou is trained as background, though it is counted",
    )
    prior: float = Field(0.01, description="probability that the class logits start from")
    score_threshold: float = 0.05
    last_score_threshold: float | None = Field(
        None, description="of the coarsest level; none: as on the others"
    )
    pre_nms: int = Field(1000, description="best (anchor, class) pairs of a level")
    nms_iou: float = 0.4
    inclusive: bool = True
    max_detections: int = 100


class Views(Section):
    """Copies of an image for test-time augmentation, in addition to the image itself."""

    flip: bool = Field(False, description="mirrored, at the image's own scale")
    scales: list[int] = Field(default_factory=list, description="shorter sides, in pixels")
    max_size: int = Field(4000, gt=0, description="bound of the longer side at those scales")
    scale_flip: bool = Field(False, description="each of those mirrored too")
    aspect_ratios: list[float] = Field(
        default_factory=list, description="widths as multiples of the image's own"
    )
    aspect_flip: bool = Field(False, description="each of those mirrored too")


class AugmentationConventions(Section):
    """Test-time augmentation that a row's published numbers were measured with; none of a kind: the image
    alone."""

    boxes: Views | None = None
    masks: Views | None = None
    mask_combine: Literal["soft_avg", "soft_max", "logit_avg"] = "soft_avg"
    keypoints: Views | None = None
    keypoint_combine: Literal["mean", "max"] = "mean"


class Conventions(Section):
    """One named bundle. `image`, `targets` and `augmentation` are for the data and for every detector; a row
    may have no other section than its detector uses."""

    image: ImageConventions
    targets: TargetConventions | None = None
    boxes: BoxConventions | None = None
    anchors: AnchorConventions | None = None
    rpn: RpnConventions | None = None
    proposals: ProposalConventions | None = None
    training_proposals: ProposalConventions | None = None
    pooling: PoolingConventions | None = None
    roi: RoiConventions | None = None
    detections: DetectionConventions | None = None
    mask: MaskConventions | None = None
    keypoint: KeypointConventions | None = None
    retinanet: RetinaNetConventions | None = None
    ssd: SSDConventions | None = None
    augmentation: AugmentationConventions | None = Field(None, description="of bench.py run --tta")
