"""Launches of roi_align.cu: description of maps for the kernels, and the choice of kernel by memory
format."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from detection_zoo.kernels.cell_sums import sum_type
from detection_zoo.kernels.launch import SHARED_BYTES, launch
from detection_zoo.kernels.roi_levels import Sampling

FILE, MAX_LEVELS, SLICE, TILE, THREADS, ENTRIES, MAX_CELLS = "roi_align.cu", 8, 32, 8, 256, 16, 80
PLACED_BYTES = {torch.float32: 44, torch.float64: 64}  # sizeof(Placed), by the type of sums
SCALARS = {
    torch.float32: "float",
    torch.float64: "double",
    torch.float16: "__half",
    torch.bfloat16: "__nv_bfloat16",
}
_MAP = np.dtype(
    [("cells", "u8"), ("strides", "i8", 4), ("scale", "f8"), ("height", "i4"), ("width", "i4")], align=True
)
_PYRAMID = np.dtype(
    [
        ("maps", _MAP, MAX_LEVELS),
        ("canonical_scale", "f8"),
        ("area_offset", "f8"),
        ("eps", "f8"),
        ("second_size", "f8"),
        ("levels", "i4"),
        ("images", "i4"),
        ("channels", "i4"),
        ("sampling_ratio", "i4"),
        ("rule", "i4"),
        ("padding", "i4"),
    ],
    align=True,
)
_UPSTREAM = np.dtype([("cells", "u8"), ("strides", "i8", 4)], align=True)


def cuda_forward(features: Sequence[Tensor], rois: Tensor, pooled: Tensor, sampling: Sampling) -> Tensor:
    """Fill pooled (R, C, PH, PW), NCHW or channels-last; other arguments as in
    `kernels.roi_align.multilevel_roi_align`."""
    size, channels_last = tuple(pooled.shape[2:]), not pooled.is_contiguous()
    pyramid = _describe(features, sampling)
    rois = rois.to(sum_type(pooled)).contiguous()
    if not all(each.stride(1) == 1 for each in features):
        defines = _defines(features, size, 1)
        grid = (len(rois), -(-pooled.shape[1] // SLICE))
        launch(
            FILE,
            "roi_align_forward",
            defines,
            grid,
            (THREADS,),
            (pyramid, rois, pooled, np.int32(channels_last)),
            _table_bytes(defines),
        )
        return pooled
    pack, band, shared = _pack(features, size, channels_last)
    if pack == 0:  # a tile of the bins does not fit: compute channels-last, and convert with torch
        turned = torch.empty_like(pooled, memory_format=torch.channels_last)
        return pooled.copy_(cuda_forward(features, rois, turned, sampling))
    launch(
        FILE,
        "roi_align_forward_packed",
        _defines(features, size, pack) | ({} if band == size[0] else {"BAND": band}),
        (len(rois), -(-pooled.shape[1] // (32 * pack))),
        (32, min(band, 8)),
        (pyramid, rois, pooled, np.int32(channels_last)),
        shared,
    )
    return pooled


def cuda_backward(
    grad: Tensor, maps: Sequence[Tensor], rois: Tensor, sampling: Sampling, deterministic: bool
) -> list[Tensor]:
    """Fill maps, one (N, C, H_l, W_l) per level, with the gradient of the features; grad (R, C, PH, PW) may
    have any strides.

    The fast kernel adds with atomics, in float32 for half types, so that the last bits vary between runs.
    """
    size, number = tuple(grad.shape[2:]), sum_type(grad)
    rois = rois.to(number).contiguous()
    upstream = np.array([(grad.data_ptr(), grad.stride())], dtype=_UPSTREAM)
    channels_fastest = np.int32(maps[0].stride(1) == 1)
    slices = -(-grad.shape[1] // SLICE)
    if deterministic:
        defines = _defines(maps, size, 1)
        tiles = sum(each.shape[0] * -(-each.shape[2] // TILE) * -(-each.shape[3] // TILE) for each in maps)
        launch(
            FILE,
            "roi_align_backward_tiles",
            defines,
            (tiles, slices),
            (THREADS,),
            (_describe(maps, sampling), rois, upstream, np.int32(len(rois)), channels_fastest),
            number.itemsize * TILE * sum(size) + PLACED_BYTES[number] + 4 * THREADS,
        )
        return list(maps)
    sums = [each.zero_() if each.dtype == number else torch.zeros_like(each, dtype=number) for each in maps]
    pack = 4 if number == torch.float32 and channels_fastest and _in_packs(sums, 4) else 1
    defines = _defines(sums, size, pack) | {"SCALAR": SCALARS[grad.dtype]}
    slice_, shared = _gathered(defines, number.itemsize)
    launch(
        FILE,
        "roi_align_backward",
        defines,
        (len(rois), -(-grad.shape[1] // (slice_ or SLICE))),
        (THREADS,),
        (_describe(sums, sampling), rois, upstream, channels_fastest, np.int32(slice_)),
        shared,
    )
    return [each if each is total else each.copy_(total) for each, total in zip(maps, sums, strict=True)]


def _describe(maps: Sequence[Tensor], sampling: Sampling) -> np.ndarray:
    if len(maps) > MAX_LEVELS:
        raise ValueError(f"{len(maps)} feature maps; the kernels take at most {MAX_LEVELS} levels")
    pyramid, levels = np.zeros(1, dtype=_PYRAMID), sampling.levels
    for level, (each, scale) in enumerate(zip(maps, sampling.scales, strict=True)):
        pyramid["maps"][0, level] = (each.data_ptr(), each.stride(), scale, each.shape[2], each.shape[3])
    pyramid["canonical_scale"], pyramid["area_offset"], pyramid["eps"] = (
        levels.canonical_scale,
        levels.offset,
        levels.eps,
    )
    pyramid["second_size"] = 2.0 ** (levels.min_level + 1 - levels.canonical_level)
    pyramid["levels"], pyramid["images"], pyramid["channels"] = len(maps), *maps[0].shape[:2]
    pyramid["sampling_ratio"], pyramid["rule"] = sampling.ratio, sampling.rule
    return pyramid


def _defines(maps: Sequence[Tensor], size: tuple[int, ...], pack: int) -> dict[str, object]:
    reach = max(
        sum((extent - 1) * stride for extent, stride in zip(each.shape[1:], each.stride()[1:], strict=True))
        for each in maps
    )
    return {
        "SCALAR": SCALARS[maps[0].dtype],
        "SUM": SCALARS[sum_type(maps[0])],
        "POOLED_H": size[0],
        "POOLED_W": size[1],
        "PACK": pack,
        "OFFSET": "int" if reach < 2**31 else "long long",
    }


def _table_bytes(defines: dict[str, object]) -> int:
    """Size of the kernels' struct `Table` in bytes, rounded up to 16: rows of weights, offsets and a count,
    and the RoI."""
    number, offset = 8 if defines["SUM"] == "double" else 4, 4 if defines["OFFSET"] == "int" else 8
    rows = (defines["POOLED_H"] + defines["POOLED_W"]) * (ENTRIES * (number + offset) + 4)
    placed = PLACED_BYTES[torch.float64 if number == 8 else torch.float32]
    return -(-(-(-rows // 8) * 8 + placed) // 16) * 16


def _in_packs(maps: Sequence[Tensor], pack: int) -> bool:
    """Whether every `pack` channels of channels-last maps (N, C, H_l, W_l) are contiguous and aligned, so
    that one load reads them."""
    return maps[0].shape[1] % pack == 0 and all(
        each.data_ptr() % (pack * each.element_size()) == 0
        and all(each.stride(k) % pack == 0 for k in (0, 2, 3))
        for each in maps
    )


def _gathered(defines: dict[str, object], number: int) -> tuple[int, int]:
    """Channels per block of the backward pass, and its shared memory: the table, the gradient of the bins,
    the weights of MAX_CELLS cells of each axis and their ends; 0 channels if the bins do not fit."""
    high, wide, pack = defines["POOLED_H"], defines["POOLED_W"], defines["PACK"]
    fixed = _table_bytes(defines) + MAX_CELLS * ((high + wide) * number + 4)
    slice_ = SLICE
    while slice_ >= pack:
        shared = fixed + high * wide * (slice_ + (4 if pack == 4 else 1)) * number
        if shared <= SHARED_BYTES and max(high, wide) < 256:
            return slice_, shared
        slice_ //= 2
    return 0, _table_bytes(defines)


def _pack(features: Sequence[Tensor], size: tuple[int, ...], channels_last: bool) -> tuple[int, int, int]:
    """Channels that a thread loads at once (at most 16 bytes), rows of bins in the tile of NCHW output (all
    or half), and the shared memory; 0 channels if no tile fits."""
    item, halves = features[0].element_size(), size[0] % 2 == 0 and not channels_last
    for pack, band in product((8, 4, 2, 1), (size[0], size[0] // 2) if halves else (size[0],)):
        table = _table_bytes(_defines(features, size, pack))
        tile = 0 if channels_last else band * size[1] * (32 * pack + max(4 // item, 1)) * item
        if pack * item <= 16 and _in_packs(features, pack) and table + tile <= SHARED_BYTES:
            return pack, band, table + tile
    # without a tile only the table can be too large; then the launch raises
    return int(channels_last), size[0], table
