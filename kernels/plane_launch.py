"""Launch kernels with one thread per output on a map with any strides: roi_pool.cu and roi_crop.cu."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from detection_zoo.kernels.cell_sums import sum_type
from detection_zoo.kernels.launch import launch
from detection_zoo.kernels.roi_align_cuda import SCALARS

THREADS = 256
_MAP = np.dtype(
    [
        ("cells", "u8"),
        ("strides", "i8", 4),
        ("images", "i4"),
        ("channels", "i4"),
        ("height", "i4"),
        ("width", "i4"),
    ],
    align=True,
)


def run_on_planes(
    file: str,
    kernel: str,
    features: Tensor,
    outputs: Tensor,
    *args: Tensor | np.generic | float,
    ordered: bool = False,
) -> None:
    """Launch kernel(map, args..., number of outputs).

    Args:
        features: (N, C, H, W) of any strides, the map or its gradient.
        outputs: (R, C, PH, PW), whose type is SCALAR.
        args: kernel arguments between the map and the number of outputs; a Python float is passed in the type
            of sums.
        ordered: use the deterministic kernel, named kernel + "_ordered", with one thread per image and
            channel.
    """
    images, channels = features.shape[:2]
    number = np.float64 if sum_type(outputs) == torch.float64 else np.float32
    described = np.array([(features.data_ptr(), features.stride(), *features.shape)], dtype=_MAP)
    values = [number(arg) if isinstance(arg, float) else arg for arg in args]
    threads = images * channels if ordered else outputs.numel()
    if threads >= 2**31 * THREADS:
        raise ValueError(
            f"{kernel} would need {threads} threads, more than a grid holds; pool fewer RoIs at a time"
        )
    launch(
        file,
        kernel + "_ordered" * ordered,
        {"SCALAR": SCALARS[outputs.dtype], "SUM": SCALARS[sum_type(outputs)]},
        (-(-threads // THREADS) if outputs.numel() else 0,),
        (THREADS,),
        (described, *values, np.int64(outputs.numel())),
    )
