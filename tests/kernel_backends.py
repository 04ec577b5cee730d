"""What every kernel test runs on, and the recorded outputs of the original implementations."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from cuda_on_cpu import BACKWARD, FORWARD, CudaOnCpu

RECORDED = np.load(Path(__file__).parent / "reference" / "kernels" / "recorded.npz")

# inside, wide, beyond every edge, far outside, a point, inverted, and the whole map
ROIS = torch.tensor(
    [
        [0, 10.3, 12.7, 100.2, 90.9],
        [1, 33.7, 20.2, 190.6, 40.8],
        [0, -42.4, -37.9, 90.3, 240.6],
        [1, 900, 900, 950, 990],
        [1, 60, 60, 60, 60],
        [0, 90.2, 80.6, 70.1, 60.3],
        [1, 0, 0, 239, 159],
    ]
)


class Backend(NamedTuple):
    """A backend's name and where its tensors live; under "cuda" on the CPU the .cu text runs in the host
    shim."""

    name: str
    device: str


BACKENDS = ("reference", "cpu", "source", "source-backward", pytest.param("gpu", marks=pytest.mark.gpu))


@pytest.fixture(name="backend", params=BACKENDS)
def every_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """The reference, the form compiled for a CPU, the CUDA source on the CPU with threads run forward and
    backward, and the CUDA source on a GPU."""
    return _backend(request.param, monkeypatch)


def _backend(kind: str, monkeypatch: pytest.MonkeyPatch) -> Backend:
    if kind in ("reference", "cpu"):
        return Backend(kind, "cpu")
    if kind == "gpu":
        if not torch.cuda.is_available():
            pytest.skip("no GPU here; the same test ran the kernels' source on the CPU")
        return Backend("cuda", "cuda")
    monkeypatch.setattr(
        "detection_zoo.kernels.launch.runner", CudaOnCpu(FORWARD if kind == "source" else BACKWARD)
    )
    return Backend("cuda", "cpu")


def normal_input(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The generated inputs of the recorded outputs."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype("float32"))


def recorded(name: str) -> torch.Tensor:
    """A recorded array that was stored whole."""
    if name in RECORDED:
        return torch.from_numpy(RECORDED[name])
    samples = RECORDED[f"{name}|samples"]
    assert int(RECORDED[f"{name}|stride"]) == 1 and samples.size == np.prod(RECORDED[f"{name}|shape"]), (
        f"{name} was sampled, compare with `matches`"
    )
    return torch.from_numpy(samples.reshape(RECORDED[f"{name}|shape"]))


def matches(value: torch.Tensor, name: str, tolerance: float = 1e-5) -> None:
    """Assert shape, evenly spaced samples and (where there is one) the random probe of a recorded output, to
    a relative L2 tolerance."""
    array = value.detach().cpu().numpy()
    assert array.shape == tuple(RECORDED[f"{name}|shape"]), (
        f"{name}: shape {array.shape}, recorded {tuple(RECORDED[f'{name}|shape'])}"
    )
    flat, kept = array.reshape(-1), RECORDED[f"{name}|samples"]
    close(flat[:: int(RECORDED[f"{name}|stride"])][: kept.size], kept, name, tolerance)
    if f"{name}@probe|samples" in RECORDED:
        at = np.random.RandomState(zlib.crc32(name.split("/")[1].encode())).randint(0, flat.size, 512)
        close(flat[at], RECORDED[f"{name}@probe|samples"], name + "@probe", tolerance)


def close(got: np.ndarray, kept: np.ndarray, name: str, tolerance: float) -> None:
    """Equal for integers, else a relative L2 difference within the tolerance."""
    if np.issubdtype(kept.dtype, np.integer):
        assert np.array_equal(got, kept), name
        return
    difference = np.linalg.norm(got.astype("f8") - kept.astype("f8")) / max(
        np.linalg.norm(kept.astype("f8")), 1e-12
    )
    assert difference <= tolerance, f"{name}: relative difference {difference:.2e}, at most {tolerance:.0e}"


def clustered_boxes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes (R, 4) in clusters, so that many overlap, and scores (R,) with every tenth repeated."""
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(max(count // 8, 1), 2, generator=random) * 300
    centre = torch.cat([corner, corner + 15 + 90 * torch.rand(len(corner), 2, generator=random)], 1)
    boxes = centre[torch.randint(len(centre), (count,), generator=random)] + 4 * torch.randn(
        count, 4, generator=random
    )
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2])
    scores = torch.rand(count, generator=random)
    scores[::10] = (scores[::10] * 8).round() / 8
    return boxes, scores
