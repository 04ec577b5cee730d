"""The kernels as torch operators: schemas, fake implementations, compile and export without a graph break,
and the choice of a backend."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from forked import run_forked
from kernel_backends import Backend, clustered_boxes, every_backend, normal_input  # noqa: F401 - a fixture

from detection_zoo.kernels.backend import backend_for, use_backend
from detection_zoo.kernels.nms import _nms_op, _nms_padded_op, batched_nms, nms, nms_padded
from detection_zoo.kernels.nms_labelled import _nms_labelled_op, nms_labelled
from detection_zoo.kernels.nms_sorted import _nms_sorted_op, nms_sorted
from detection_zoo.kernels.roi_align import (
    _roi_align_backward_op,
    _roi_align_op,
    multilevel_roi_align,
    roi_align,
    roi_align_points,
)
from detection_zoo.kernels.roi_crop import _roi_crop_backward_op, _roi_crop_op, affine_grid, roi_crop
from detection_zoo.kernels.roi_levels import LevelRule
from detection_zoo.kernels.roi_pool import _roi_pool_backward_op, _roi_pool_op, roi_pool
from detection_zoo.kernels.soft_nms import _soft_nms_op, soft_nms

BOXES, SCORES = clustered_boxes(30, seed=0)
GROUPS = torch.arange(30) % 3
ROIS = torch.tensor([[0, 1.0, 2, 30, 20], [1, -5, -4, 100, 60], [1, 3, 3, 4, 4]])
GRID, IMAGES = affine_grid(ROIS, (8, 9), 2, 0.25), torch.tensor([0, 1, 1])
LEVELS = LevelRule(canonical_scale=40.0, min_level=3).numbers()


def maps(layout: torch.memory_format = torch.contiguous_format) -> list[torch.Tensor]:
    return [
        normal_input(level, (2, 4, 8 >> level, 9 >> level)).contiguous(memory_format=layout).requires_grad_()
        for level in range(2)
    ]


def operators(name: str) -> dict[str, tuple]:
    pooled, pool_cell = torch.randn(3, 4, 2, 2), torch.randint(-1, 72, (3, 4, 2, 2), dtype=torch.int32)
    last = maps(torch.channels_last)
    return {
        "nms": (_nms_op, (BOXES, SCORES, GROUPS, 0.5, 0.0, False, 3, -1, -1, -1, name)),
        "nms_padded": (_nms_padded_op, (BOXES, SCORES, GROUPS, 0.5, 1.0, True, 3, 7, 9, name)),
        "nms_sorted": (
            _nms_sorted_op,
            (BOXES.reshape(3, 10, 4), SCORES.reshape(3, 10) > 0.2, 0.5, 1.0, True, 7, name),
        ),
        "nms_labelled": (
            _nms_labelled_op,
            (
                BOXES.reshape(3, 10, 4),
                GROUPS.reshape(3, 10),
                SCORES.reshape(3, 10) > 0.2,
                0.5,
                1.0,
                True,
                7,
                name,
            ),
        ),
        "soft_nms": (_soft_nms_op, (BOXES, SCORES, "linear", 0.5, 0.3, 0.001, 0.0, name)),
        "roi_align": (_roi_align_op, (maps(), ROIS, [2, 3], [0.25, 0.125], 2, 1, LEVELS, False, name)),
        "roi_align_channels_last": (
            _roi_align_op,
            (last, ROIS, [2, 3], [0.25, 0.125], 2, 1, LEVELS, True, name),
        ),
        "roi_align_backward": (
            _roi_align_backward_op,
            (
                torch.randn(3, 4, 2, 3).requires_grad_(),
                ROIS,
                [2, 8, 9, 4, 4],
                [0, 1],
                [0.25, 0.125],
                2,
                0,
                LEVELS,
                name,
                True,
            ),
        ),
        "roi_pool": (_roi_pool_op, (maps()[0], ROIS, [2, 2], 0.25, name)),
        "roi_pool_backward": (
            _roi_pool_backward_op,
            (pooled, pool_cell, ROIS, 0.25, [2, 4, 8, 9], name, True),
        ),
        "roi_crop": (_roi_crop_op, (maps()[0], GRID, IMAGES, name)),
        "roi_crop_backward": (_roi_crop_backward_op, (pooled, GRID, IMAGES, [2, 4, 8, 9], name, True)),
    }


@pytest.mark.parametrize(("operator", "name"), product(operators("reference"), ("reference", "cpu", "cuda")))
def test_operators_keep_torchs_rules(operator: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schema, autograd registration, fake results against real ones, and tracing with dynamic shapes."""
    from cuda_on_cpu import CudaOnCpu

    monkeypatch.setattr("detection_zoo.kernels.launch.runner", CudaOnCpu())
    torch.library.opcheck(*operators(name)[operator])


class Detect(torch.nn.Module):
    """Every kernel in one graph."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend

    def forward(
        self,
        fine: torch.Tensor,
        coarse: torch.Tensor,
        rois: torch.Tensor,
        boxes: torch.Tensor,
        scores: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        indices, counts = nms_padded(boxes, scores, None, 0.5, max_keep=9, backend=self.backend)
        return {
            "indices": indices,
            "counts": counts,
            "kept": nms(boxes, scores, 0.5, backend=self.backend),
            "sorted": nms_sorted(boxes[None], 0.5, backend=self.backend),
            "labelled": nms_labelled(
                boxes[None], boxes[None, :, 0].long() % 3, 0.5, max_keep=40, backend=self.backend
            )[0],
            "soft": soft_nms(boxes, scores, backend=self.backend)[1],
            "aligned": multilevel_roi_align(
                [fine, coarse],
                rois,
                2,
                [0.25, 0.125],
                2,
                canonical_scale=40,
                min_level=3,
                backend=self.backend,
            ),
            "pooled": roi_pool(fine, rois, 2, 0.25, backend=self.backend),
            "cropped": roi_crop(
                fine,
                affine_grid(rois, (8, 9), 2, 0.25),
                torch.zeros(3, dtype=torch.int64, device=fine.device),
                backend=self.backend,
            ),
        }


def given(device: str) -> list[torch.Tensor]:
    return [each.detach().to(device) for each in (*maps(), ROIS, BOXES, SCORES)]


def test_compile_without_a_graph_break(backend: Backend) -> None:
    module, inputs = Detect(backend.name), given(backend.device)
    eager = module(*inputs)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")(*inputs)
    assert eager.keys() == compiled.keys()
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value)


def test_gradients_through_compile(backend: Backend) -> None:
    def loss(fine: torch.Tensor, coarse: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        pooled = multilevel_roi_align(
            [fine, coarse], rois, 2, [0.25, 0.125], 2, canonical_scale=40, min_level=3, backend=backend.name
        )
        return pooled.square().sum() + roi_pool(fine, rois, 2, 0.25, backend=backend.name).sum()

    found = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        fine, coarse, rois = (each.clone().requires_grad_() for each in given(backend.device)[:3])
        function(fine, coarse, rois).backward()
        assert rois.grad is None  # no gradient reaches the boxes
        found.append((fine.grad, coarse.grad))
    torch.testing.assert_close(*found)


def test_export(backend: Backend) -> None:
    inputs = tuple(given(backend.device))
    exported = torch.export.export(Detect(backend.name), inputs)
    called = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert {
        f"detection_zoo.{name}.default"
        for name in (
            "nms",
            "nms_padded",
            "nms_sorted",
            "nms_labelled",
            "soft_nms",
            "roi_align",
            "roi_pool",
            "roi_crop",
        )
    } <= called
    torch.testing.assert_close(exported.module()(*inputs), Detect(backend.name)(*inputs))


def test_torchs_compiler_is_not_imported_where_nothing_compiles() -> None:
    """It takes 150 MiB; an operator of `torch.library.custom_op` imports it at its first call."""
    code = """if True:
        import sys, torch
        from detection_zoo.kernels.nms_labelled import _nms_labelled_op
        from detection_zoo.kernels.roi_align import roi_align
        maps = torch.ones(1, 2, 4, 4, requires_grad=True)
        roi_align(maps, torch.tensor([[0.0, 0, 0, 3, 3]]), 2, 1.0, backend="reference").sum().backward()
        boxes, labels = torch.ones(1, 3, 4), torch.zeros(1, 3, dtype=torch.int64)
        _nms_labelled_op(boxes, labels, None, 0.5, 1.0, False, 2, "reference")
        assert maps.grad.sum() == 8 and "torch._dynamo" not in sys.modules
    """
    done = run_forked("-c", code, imports=("torch",))
    assert done.returncode == 0, done.stderr


def test_a_gradient_that_there_is_not_raises() -> None:
    """It is neither None nor 0."""
    scores = SCORES.clone().requires_grad_()
    with pytest.raises(
        RuntimeError, match="detection_zoo::soft_nms has no gradient; detach its inputs or outputs"
    ):
        _soft_nms_op(BOXES, scores, "linear", 0.5, 0.3, 0.001, 0.0, "reference")[1].sum().backward()


def test_the_backend_is_the_devices_own_unless_one_is_named() -> None:
    pooling = {"operator": "RoIPool", "known": ("reference", "cpu", "torchvision")}
    assert backend_for(BOXES, operator="NMS", known=("reference", "cpu", "cuda")) == "cpu"
    assert backend_for(BOXES, operator="NMS", known=("reference", "cuda")) == "reference"
    assert (
        backend_for(BOXES, **pooling) == "cpu" and backend_for(BOXES, "reference", **pooling) == "reference"
    )
    with use_backend("torchvision"):
        assert (
            backend_for(BOXES, **pooling) == "torchvision"
            and backend_for(BOXES, "reference", **pooling) == "reference"
        )
        with pytest.raises(ValueError, match="padded"):
            nms_padded(BOXES, SCORES, None, 0.5, max_keep=3)
    assert backend_for(BOXES, **pooling) == "cpu"
    for wrong in ("gpu", "CUDA", ""):
        with pytest.raises(ValueError, match="choose one of reference, cpu, cuda, torchvision"):
            backend_for(BOXES, wrong, **pooling)
    with pytest.raises(ValueError, match="'cuda' has no RoIPool; use one of reference, cpu, torchvision"):
        backend_for(BOXES, "cuda", **pooling)
    with pytest.raises(ValueError, match="needs CUDA tensors"):
        nms(BOXES, SCORES, 0.5, backend="cuda")


def test_the_peer_refuses_what_it_would_answer_otherwise() -> None:
    for call in (
        lambda: nms(BOXES, SCORES, 0.5, offset=1.0, backend="torchvision"),
        lambda: nms(BOXES, SCORES, 0.5, inclusive=True, backend="torchvision"),
        lambda: batched_nms(BOXES, SCORES, GROUPS, 0.5, max_keep=3, backend="torchvision"),
        lambda: soft_nms(BOXES, SCORES, backend="torchvision"),
        lambda: roi_align_points(maps()[0], ROIS, 2, 0.25, backend="torchvision"),
        lambda: roi_crop(maps()[0], GRID, IMAGES, backend="torchvision"),
    ):
        with pytest.raises(ValueError, match="torchvision"):
            call()
    expected = roi_align(maps()[0], ROIS, 2, 0.25, 2, backend="reference")
    torch.testing.assert_close(roi_align(maps()[0], ROIS, 2, 0.25, 2, backend="torchvision"), expected)
