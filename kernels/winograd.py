"""3x3 convolution on a CPU by Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray 2016, section 4.3): 36
products give 16 outputs, where the definition takes 144.

Y = A^T [(G g G^T) * (B^T d B)] A for each 6x6 tile d of the input and filter g. The matrices are of the
algorithm of Toom and Cook for the points 0, 1, -1, 2, -1/2 and infinity. In float32 its error is about twice
that of the direct sum, 1e-6 of the map's norm; in bfloat16 1e-2, where that of the direct sum is 2e-3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from detection_zoo.kernels.backend import cpu_form
from detection_zoo.kernels.machine_code import as_array, in_threads

TILE = 4  # outputs of a tile, each way
TILES = 256  # transformed together for a thread: they stay in the cache between transform and product
G = (
    (1, 0, 0),
    (-1 / 3, -1 / 3, -1 / 3),
    (1 / 3, -1 / 3, 1 / 3),
    (1 / 15, 2 / 15, 4 / 15),
    (-16 / 15, 8 / 15, -4 / 15),
    (0, 0, 1),
)


def winograd_filters(weight: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Transform the filters of a 3x3 convolution, in double precision: G g G^T.

    Args:
        weight: (K, C, 3, 3). dtype: of the answer, float32 or bfloat16.

    Returns:
        (36, C, K), contiguous.

    Raises:
        ValueError: filters of another size.
    """
    if weight.dim() != 4 or weight.shape[2:] != (3, 3):
        raise ValueError(f"filters are (K, C, 3, 3), got {tuple(weight.shape)}")
    matrix = torch.tensor(G, dtype=torch.float64)
    filters = torch.einsum("ai,kcij,bj->abck", matrix, weight.detach().double().cpu(), matrix)
    return filters.reshape(36, weight.shape[1], weight.shape[0]).to(dtype).contiguous()


def winograd_conv(maps: Tensor, filters: Tensor, bias: Tensor | None = None) -> Tensor:
    """3x3 convolution of stride 1 with a border of one zero; without a gradient.

    Args:
        maps: (N, C, H, W) float32 or bfloat16 on a CPU; fastest in channels-last.
        filters: (36, C, K) of `winograd_filters`, of the type of maps. bias: (K,) float32.

    Returns:
        (N, K, H, W) of the type of maps, channels-last.

    Raises:
        ValueError: another type, device or number of channels.
        RuntimeError: numba is not installed.
    """
    _, channels, outputs = filters.shape
    if not maps.is_cpu or maps.dtype != filters.dtype or maps.dim() != 4 or maps.shape[1] != channels:
        kind = str(filters.dtype).removeprefix("torch.")
        raise ValueError(
            f"maps are (N, {channels}, H, W) {kind} on a CPU, got {tuple(maps.shape)} {maps.dtype} on"
            f" {maps.device}"
        )
    images, _, height, width = maps.shape
    shift = torch.zeros(outputs) if bias is None else bias
    found = maps.new_empty(images, height, width, outputs)
    across, threads = -(-width // TILE), torch.get_num_threads()
    step = TILE * max(1, TILES * threads // across)  # rows of pixels that go together
    for image, answer in zip(maps.detach().permute(0, 2, 3, 1), found, strict=True):
        for top in range(0, height, step):
            rows = min(step, height - top)
            strip = _strip(image, top, -(-rows // TILE), across)
            part = answer[top : top + rows]
            whole = rows % TILE == 0 and width % TILE == 0
            out = part if whole else answer.new_empty(strip.shape[0] - 2, strip.shape[1] - 2, outputs)
            _convolve(strip, filters, shift.detach(), threads, out)
            if not whole:
                part.copy_(out[:rows, :width])
    return found.permute(0, 3, 1, 2)


def _strip(image: Tensor, top: int, down: int, across: int) -> Tensor:
    """Rows of tiles with their border (4 * down + 2, 4 * across + 2, C) of an image (H, W, C)."""
    height, width, channels = image.shape
    strip = image.new_empty(TILE * down + 2, TILE * across + 2, channels)
    first = max(top - 1, 0)
    last = min(top + TILE * down + 1, height)
    begin, end = first - top + 1, last - top + 1
    for border in (strip[:begin], strip[end:], strip[begin:end, :1], strip[begin:end, width + 1 :]):
        border.zero_()
    strip[begin:end, 1 : width + 1] = image[first:last]
    return strip


def _convolve(strip: Tensor, filters: Tensor, bias: Tensor, threads: int, out: Tensor) -> None:
    """Write out (4 * R, 4 * S, K), the outputs of R rows of S tiles."""
    form = cpu_form("winograd")
    tiles = out.shape[0] * out.shape[1] // TILE**2
    values = strip.new_empty(36, tiles, strip.shape[2])
    given = as_array(strip), as_array(values)
    in_threads(lambda first, end: form.transform_input(first, end, *given), tiles, threads, least=8)
    products = torch.bmm(values, filters)
    taken = as_array(products), bias.numpy(), as_array(out)
    in_threads(lambda first, end: form.transform_output(first, end, *taken), tiles, threads, least=8)
