"""This project's operators as ONNX operators (opset 18: NonMaxSuppression, RoiAlign) for `torch.onnx`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from detection_zoo.kernels.roi_levels import RULES, LevelRule

OPSET = 18
COORDINATES = {"legacy": "output_half_pixel", "aligned": "half_pixel"}  # of RoiAlign, by our rule


def translations(classes: int, static: bool = False) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Operators of a graph -> functions that build them in ONNX.

    Args:
        classes: K, number of labels of labelled NMS. static: RoIAlign pools every RoI from every level, so
            that no size depends on values.
    """
    # importing them registers the operators
    import detection_zoo.kernels.nms_labelled
    import detection_zoo.kernels.nms_sorted
    import detection_zoo.zoo.parts.keypoint_head  # noqa: F401

    ours, aten = torch.ops.detection_zoo, torch.ops.aten
    return {
        ours.nms_sorted.default: nms_sorted,
        ours.nms_labelled.default: lambda *given: nms_labelled(classes, *given),
        ours.decode_heatmaps.default: decode_heatmaps,
        ours.roi_align.default: lambda *given: roi_align(static, *given),
        # what torch.onnx lacks, or takes apart before
        aten.sort.stable: stable_sort,
        aten.relu_.default: lambda values: _op().Relu(values),
        aten.to.dtype: lambda values, kind, *_: _op().Cast(values, to=kind),
        aten.to.dtype_layout: lambda values, *, dtype, **_: _op().Cast(values, to=dtype),
        aten.__and__.Tensor: lambda *given: _by_kind("And", *given),
        aten.__or__.Tensor: lambda *given: _by_kind("Or", *given),
        aten.conv_transpose2d.input: conv_transpose2d,
    }


def in_onnx(program: torch.export.ExportedProgram, **settings: Any) -> Any:
    """What `torch.onnx.export` makes of a program. It would trace it anew, to take operators apart and to
    change nothing in place, for longer than all else takes: where nobody needs that, it does not."""
    settings |= {"dynamo": True, "opset_version": OPSET, "verbose": False}
    if not any(program.graph_module.children()) and not any(map(_overwrites, program.graph.nodes)):
        program.run_decompositions = lambda table: program
        with suppress(torch.onnx.OnnxExporterError):  # of an operator without a translation
            return torch.onnx.export(program, **settings)
        del program.run_decompositions
    return torch.onnx.export(program, **settings)


def _overwrites(node: torch.fx.Node) -> bool:
    """Whether it changes what others may read: relu_ that alone reads its input, which is new, does not."""
    if node.target != torch.ops.aten.relu_.default:
        return getattr(getattr(node.target, "_schema", None), "is_mutable", False)
    made = getattr(node.args[0].target, "_schema", None)
    return made is None or len(node.args[0].users) > 1 or any(one.alias_info for one in made.returns)


def _op() -> Any:
    import onnxscript

    return onnxscript.opset18


def _by_kind(name: str, one: Any, other: Any) -> Any:
    return getattr(_op(), name if one.dtype.name == "BOOL" else f"Bitwise{name}")(one, other)


def _numbers(values: Any, kind: Any = np.int64) -> Any:
    return _op().Constant(value=_tensor(np.asarray(values, dtype=kind)))


def _tensor(values: np.ndarray) -> Any:
    import onnx

    return onnx.numpy_helper.from_array(values)


def _usable(boxes: Any, present: Any, offset: float) -> tuple[Any, Any]:
    """Boxes (..., 4) with far corners moved by the offset, 0 where absent, and which (...) are not absent.

    The IoU of sides x2 - x1 + offset is that of the boxes so moved.
    """
    op = _op()
    size = op.Abs(boxes)
    finite = op.Cast(op.Less(size, _numbers(np.inf, np.float32)), to=6)  # NaN is not less either
    least = op.Squeeze(op.ReduceMin(finite, _numbers([-1]), keepdims=1), _numbers([-1]))
    usable = op.Cast(least, to=9)
    if present is not None:
        usable = op.And(usable, present)
    moved = op.Add(boxes, _numbers([0.0, 0.0, offset, offset], np.float32))
    return op.Where(op.Unsqueeze(usable, _numbers([-1])), moved, _numbers(0.0, np.float32)), usable


def _threshold(iou: float, inclusive: bool) -> Any:
    """NonMaxSuppression removes above its threshold: for "at least", the next number below."""
    number = np.float32(iou)
    return _numbers(np.nextafter(number, np.float32(-1)) if inclusive else number, np.float32)


def _kept(boxes: Any, scores: Any, most: int, iou: float, inclusive: bool, shape: Sequence[int]) -> Any:
    """Which rows (N, M) are kept of any class, 1 or 0 int64; scores (N, K, M), 0 where absent."""
    op = _op()
    chosen = op.NonMaxSuppression(
        boxes, scores, _numbers([most]), _threshold(iou, inclusive), _numbers([0.0], np.float32)
    )
    places = op.Gather(chosen, _numbers([0, 2]), axis=1)  # image, class, row
    ones = op.Expand(_numbers([1]), op.Shape(places, end=1))
    return op.ScatterND(_numbers(np.zeros(shape)), places, ones)


def _ramp(length: int) -> Any:
    """Scores (M,) that fall as the rows do."""
    return _numbers(np.arange(length, 0, -1), np.float32)


def stable_sort(values: Any, *, stable: bool, dim: int = -1, descending: bool = False) -> tuple[Any, Any]:
    """Sorted values and their places; TopK leaves equal values in their order."""
    length = _shape(values)[dim]
    return _op().TopK(values, _numbers([length]), axis=dim, largest=int(descending), sorted=1)


def conv_transpose2d(values: Any, weight: Any, bias: Any = None, *given: Any) -> Any:
    """A transposed convolution (N, C, H, W)."""
    usual = ((1, 1), (0, 0), (0, 0), 1, (1, 1))
    stride, padding, more, groups, dilations = (*given, *usual[len(given) :])
    sides = {"strides": stride, "pads": [*padding] * 2, "output_padding": more, "dilations": dilations}
    return _op().ConvTranspose(values, weight, bias, **sides, group=groups)


def nms_sorted(
    boxes: Any, present: Any, iou: float, offset: float, inclusive: bool, max_keep: int, backend: str
) -> Any:
    """Kept rows (G, P) bool."""
    op, shape = _op(), _shape(boxes)[:2]
    moved, usable = _usable(boxes, present, offset)
    scores = op.Mul(op.Cast(usable, to=1), _ramp(shape[1]))
    kept = _kept(moved, op.Unsqueeze(scores, _numbers([1])), max_keep, iou, inclusive, shape)
    return op.Cast(kept, to=9)


def nms_labelled(
    classes: int,
    boxes: Any,
    labels: Any,
    present: Any,
    iou: float,
    offset: float,
    inclusive: bool,
    max_keep: int,
    backend: str,
) -> tuple[Any, Any]:
    """Kept rows (N, max_keep) int64, -1 after the last, and counts (N,)."""
    op, shape = _op(), _shape(boxes)[:2]
    moved, usable = _usable(boxes, present, offset)
    own = op.Equal(op.Unsqueeze(labels, _numbers([1])), _numbers(np.arange(classes)[None, :, None]))
    here = op.And(own, op.Unsqueeze(usable, _numbers([1])))  # (N, K, M)
    scores = op.Mul(op.Cast(here, to=1), _ramp(shape[1]))
    kept = _kept(moved, scores, shape[1], iou, inclusive, shape)
    rows = op.Where(op.Cast(kept, to=9), _numbers(np.arange(shape[1])), _numbers(shape[1]))
    first, _ = op.TopK(rows, _numbers([min(max_keep, shape[1])]), axis=1, largest=0, sorted=1)
    rows = op.Where(op.Less(first, _numbers(shape[1])), first, _numbers(-1))
    if max_keep > shape[1]:
        rows = op.Pad(rows, _numbers([0, 0, 0, max_keep - shape[1]]), _numbers(-1))
    counts = op.ReduceSum(kept, _numbers([1]), keepdims=0)
    return rows, op.Min(counts, _numbers(max_keep))


def roi_align(
    static: bool,
    features: Sequence[Any],
    rois: Any,
    output_size: Sequence[int],
    scales: Sequence[float],
    sampling_ratio: int,
    rule: int,
    levels: Sequence[float],
    channels_last: bool,
    backend: str,
) -> Any:
    """Pooled features (R, C, PH, PW): each level's RoIs are pooled separately, then restored to their
    order."""
    op = _op()
    image = op.Gather(rois, _numbers(0), axis=1)
    present = op.Not(op.Less(image, _numbers(0.0, np.float32)))
    boxes = op.Gather(rois, _numbers([1, 2, 3, 4]), axis=1)
    boxes = op.Where(op.Unsqueeze(present, _numbers([1])), boxes, _numbers(0.0, np.float32))
    image = op.Cast(op.Max(image, _numbers(0.0, np.float32)), to=7)
    level = _levels(op, boxes, LevelRule.of(list(levels)), len(features))
    count, channels = _shape(rois)[0], _shape(features[0])[1]
    pooled = _numbers(np.zeros((count, channels, *output_size)), np.float32)
    for number, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        here = op.And(op.Equal(level, _numbers(number)), present)
        rows = None if static else op.Squeeze(op.NonZero(here), _numbers([0]))
        own = (boxes, image) if static else (op.Gather(boxes, rows), op.Gather(image, rows))
        if RULES[rule] == "points":
            part = _points(feature, *own, output_size, scale)
        else:
            part = op.RoiAlign(
                feature,
                *own,
                mode="avg",
                output_height=output_size[0],
                output_width=output_size[1],
                sampling_ratio=sampling_ratio,
                spatial_scale=scale,
                coordinate_transformation_mode=COORDINATES[RULES[rule]],
            )
        if static:
            pooled = op.Where(op.Unsqueeze(here, _numbers([1, 2, 3])), part, pooled)
        else:
            pooled = op.ScatterND(pooled, op.Unsqueeze(rows, _numbers([1])), part)
    return pooled


def _points(feature: Any, boxes: Any, image: Any, output_size: Sequence[int], scale: float) -> Any:
    """`roi_align_points` (R, C, PH, PW) of boxes (R, 4) in images (R,) of one map: ONNX's RoiAlign has other
    points."""
    op, (channels, height, width) = _op(), _shape(feature)[1:]
    cells = op.Reshape(op.Transpose(feature, perm=[0, 2, 3, 1]), _numbers([-1, channels]))
    (top, bottom), (left, right) = (
        _taps(op, boxes, axis, pooled, side, scale)
        for axis, pooled, side in ((1, output_size[0], height), (0, output_size[1], width))
    )
    first = op.Unsqueeze(op.Mul(image, _numbers(height * width)), _numbers([1, 2]))
    total = None
    for y, down in (top, bottom):
        for x, across in (left, right):
            line = op.Mul(op.Unsqueeze(y, _numbers([2])), _numbers(width))
            cell = op.Add(op.Add(first, line), op.Unsqueeze(x, _numbers([1])))  # (R, PH, PW)
            weight = op.Mul(op.Unsqueeze(down, _numbers([2])), op.Unsqueeze(across, _numbers([1])))
            part = op.Mul(op.Gather(cells, cell, axis=0), op.Unsqueeze(weight, _numbers([3])))
            total = part if total is None else op.Add(total, part)
    return op.Transpose(total, perm=[0, 3, 1, 2])


def _taps(op: Any, boxes: Any, axis: int, pooled: int, side: int, scale: float) -> list[tuple[Any, Any]]:
    """The two cells (R, P) int64 of each point of an axis, 0 for x, and their weights, 0 outside the map."""
    zero, one = _numbers(0.0, np.float32), _numbers(1.0, np.float32)
    start, end = (
        op.Mul(op.Gather(boxes, _numbers([place]), axis=1), _numbers(scale, np.float32))
        for place in (axis, axis + 2)
    )
    step = op.Div(op.Max(op.Add(op.Sub(end, start), one), zero), _numbers(pooled - 1, np.float32))
    position = op.Add(start, op.Mul(_numbers(np.arange(pooled)[None], np.float32), step))
    inside = op.And(op.GreaterOrEqual(position, zero), op.Less(position, _numbers(side, np.float32)))
    position = op.Where(inside, position, zero)
    low = op.Min(op.Floor(position), _numbers(max(side - 2, 0), np.float32))
    fraction, present = op.Sub(position, low), op.Cast(inside, to=1)
    high = op.Min(op.Add(low, one), _numbers(side - 1, np.float32))
    weights = op.Mul(op.Sub(one, fraction), present), op.Mul(fraction, present)
    return [(op.Cast(cell, to=7), weight) for cell, weight in zip((low, high), weights, strict=True)]


def decode_heatmaps(heatmaps: Any, boxes: Any) -> Any:
    """Key points (R, P, 4): each detection's maps (P, S, S) are resized to its box, one after another."""
    import onnx

    op, (points, side) = _op(), _shape(heatmaps)[1:3]
    body = onnx.parser.parse_graph(DECODE.replace("POINTS", str(points)).replace("SIDE", str(side)))
    present = op.Where(op.IsNaN(boxes), _numbers(0.0, np.float32), boxes)
    return op.Scan(heatmaps, present, body=body, num_scan_inputs=2)


DECODE = """
decode (float[POINTS, SIDE, SIDE] maps, float[4] box) => (float[POINTS, 4] found) <
  int64[1] first = {0}, int64[1] second = {1}, int64[1] third = {2}, int64[1] end = {4},
  int64[2] maps_each = {1, POINTS}, int64[2] flat_each = {POINTS, -1}, int64[2] turned = {1, 0},
  float least = {1.0}, float half = {0.5}
> {
  near = Slice(box, first, third)
  far = Slice(box, third, end)
  apart = Sub(far, near)
  sides = Max(apart, least)
  whole = Ceil(sides)
  pixels = Cast<to = 7>(whole)
  height_width = Gather(pixels, turned)
  sizes = Concat<axis = 0>(maps_each, height_width)
  batch = Unsqueeze(maps, first)
  resized = Resize<mode = "cubic", cubic_coeff_a = -0.75, coordinate_transformation_mode = "half_pixel">(
    batch, , , sizes)
  flat = Reshape(resized, flat_each)
  best = ReduceMax<keepdims = 1>(flat, second)
  place = ArgMax<axis = 1, keepdims = 1>(flat)
  width = Slice(pixels, first, second)
  column = Mod(place, width)
  row = Div(place, width)
  cell = Concat<axis = 1>(column, row)
  corner = Cast<to = 1>(cell)
  centre = Add(corner, half)
  factor = Div(sides, whole)
  within = Mul(centre, factor)
  position = Add(within, near)
  below = Sub(flat, best)
  weights = Exp(below)
  total = ReduceSum<keepdims = 1>(weights, second)
  chance = Reciprocal(total)
  found = Concat<axis = 1>(position, best, chance)
}
"""


def _levels(op: Any, boxes: Any, rule: LevelRule, count: int) -> Any:
    """Level (R,) int64 of boxes (R, 4), 0 the finest: `assign_levels`."""
    x1, y1, x2, y2 = (op.Gather(boxes, _numbers(i), axis=1) for i in range(4))
    offset = _numbers(rule.offset, np.float32)
    area = op.Mul(op.Add(op.Sub(x2, x1), offset), op.Add(op.Sub(y2, y1), offset))
    side = op.Sqrt(op.Max(area, _numbers(0.0, np.float32)))
    size = op.Add(op.Div(side, _numbers(rule.canonical_scale, np.float32)), _numbers(rule.eps, np.float32))
    level = op.Mul(op.Cast(op.Less(size, size), to=7), _numbers(0))
    for candidate in range(rule.min_level + 1, rule.min_level + count):
        bound = _numbers(2.0 ** (candidate - rule.canonical_level), np.float32)
        level = op.Add(level, op.Cast(op.GreaterOrEqual(size, bound), to=7))
    return level


def _shape(value: Any) -> list[int]:
    """The shape of a value of fixed size."""
    return [int(side) for side in value.shape]
