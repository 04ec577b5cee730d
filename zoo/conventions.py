"""Conventions: everything numeric that a checkpoint silently assumes, as plain records. No torch.

A bundle in manifests/conventions.toml is one `Conventions`; rows may adjust single values. Parts never see these records:
zoo.build hands each value to the part that needs it as an explicit keyword argument.
"""
from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of the sections: no unknown fields, no silent conversion, not changed after reading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ImageConventions(Section):
    """How pixels become the network's input (maskrcnn-benchmark, Detectron, DetNet_pytorch and SSD each differ)."""

    channel_order: Literal["rgb", "bgr"]
    value_range: Literal["0..255", "0..1", "-1..1"] = Field(description="range of the values before mean and std")
    mean: list[float] = Field(min_length=3, max_length=3, description="subtracted, in channel order")
    std: list[float] = Field(min_length=3, max_length=3, description="divided by, in channel order")
    resize: Literal["shorter_side", "fixed", "centre_crop", "none"]
    size: int | None = Field(None, gt=0, description="shorter_side: its length; fixed: both sides; centre_crop: the crop")
    max_size: int | None = Field(None, gt=0, description="shorter_side: bound of the longer side; none: unbounded")
    resize_short: int | None = Field(None, gt=0, description="centre_crop: the short side before the crop")
    interpolation: Literal["pil_bilinear", "cv2_bilinear", "tf1_bilinear"] = "pil_bilinear"
    rounding: Literal["truncate", "round"] = Field("truncate", description="how the resized sides become whole pixels")
    normalise_first: bool = Field(False, description="mean and std are applied before resizing (on float pixels), not after")
    size_divisor: int = Field(1, gt=0, description="batches are zero-padded at the right and bottom to multiples of this")


class SSDConventions(Section):
    """Priors, coding, scores and selection of the SSD family (SSD, RFB, SSDLite)."""

    variances: list[float] = Field([0.1, 0.2], min_length=2, max_length=2, description="of centres and of sides")
    scores: Literal["softmax", "sigmoid"] = Field("softmax", description="over all classes with background, or each class by itself")
    channels: Literal["dense", "coco_ids"] = Field("dense", description="class channels behind background: one a class, or one a COCO category id (90)")
    background_filter: float | None = Field(None, description="a prior whose best class is background at this probability or more is left out; none: no prior is")
    score_threshold: float = Field(ge=0, description="scores must be above it")
    nms_iou: float = Field(gt=0, le=1)
    nms_offset: float = Field(0.0, description="added to widths and heights in NMS; 1.0: the CUDA NMS before December 2019")
    per_class_keep: int = Field(gt=0, description="detections of a class that NMS keeps")
    per_image_keep: int = Field(gt=0, description="detections of an image, and those that tie with the last")
    match_iou: float = Field(0.5, description="IoU from which a prior is trained as an object")
    negatives: int = Field(3, description="background priors trained for each object prior")


class Conventions(Section):
    """One named bundle."""

    image: ImageConventions
    ssd: SSDConventions | None = None
