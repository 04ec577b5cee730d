"""NMS of presorted groups on every backend: the contract's cases by hand, the general form as judge, and what
is launched on a GPU."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from cuda_on_cpu import FORWARD, SHUFFLED, CudaOnCpu
from kernel_backends import Backend, clustered_boxes, every_backend  # noqa: F401 - a fixture
from torch.utils._python_dispatch import TorchDispatchMode

import detection_zoo.kernels.launch as launching
from detection_zoo.kernels.backend import use_backend
from detection_zoo.kernels.nms import batched_nms
from detection_zoo.kernels.nms_cuda import cuda_nms
from detection_zoo.kernels.nms_labelled import cuda_nms_labelled
from detection_zoo.kernels.nms_reference import NmsRule
from detection_zoo.kernels.nms_sorted import cuda_nms_sorted, nms_sorted
from detection_zoo.zoo.conventions import ProposalConventions
from detection_zoo.zoo.parts.boxes import BoxCoder
from detection_zoo.zoo.parts.proposals import select_proposals

# IoU of rows 0 and 1 is 8 / 16 = 0.5 exactly; row 2 is apart
HALF = torch.tensor([[[0.0, 0, 4, 4], [0, 0, 4, 2], [10, 10, 12, 12]]])
# neighbours share 6 / 14
CHAIN = torch.tensor([[[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10], [12, 0, 22, 10]]])


def kept(
    backend: Backend, boxes: torch.Tensor, threshold: float, present: torch.Tensor | None = None, **more
) -> list[list[int]]:
    """Kept rows of each group."""
    present = None if present is None else present.to(backend.device)
    found = nms_sorted(boxes.to(backend.device), threshold, present=present, backend=backend.name, **more)
    assert found.shape == boxes.shape[:2] and found.dtype == torch.bool
    return [group.nonzero().squeeze(1).tolist() for group in found]


def sorted_groups(groups: int, rows: int, seed: int) -> torch.Tensor:
    """(G, P, 4) boxes in clusters; coarse corners, so that IoU equal to a threshold is common."""
    return torch.stack(
        [clustered_boxes(rows, seed=seed + group)[0].mul(0.5).round() for group in range(groups)]
    )


def judged(boxes: torch.Tensor, present: torch.Tensor, threshold: float, **more) -> list[list[int]]:
    """The general form's answer, group by group."""
    answers = []
    for group, own in zip(boxes, present, strict=True):
        rows = own.nonzero().squeeze(1)
        scores = torch.arange(len(rows), 0, -1.0)
        answers.append(
            rows[batched_nms(group[rows], scores, None, threshold, **more, backend="reference")].tolist()
        )
    return answers


def test_iou_equal_to_the_threshold_and_the_offset(backend: Backend) -> None:
    for boxes in (HALF, HALF.double(), HALF.half()):
        assert kept(backend, boxes, 0.5) == [[0, 1, 2]]
        assert kept(backend, boxes, 0.5, inclusive=True) == [[0, 2]]
    pair = torch.tensor([[[0.0, 0, 9, 9], [0, 5, 9, 14]]])  # 50/150 with inclusive pixels, 36/126 without
    assert kept(backend, pair, 0.3, offset=1.0) == [[0]] and kept(backend, pair, 0.3) == [[0, 1]]
    flat = torch.tensor([[[5.0, 5, 4, 4], [5, 5, 4, 4]]])  # width 0 under the legacy rule: not inverted
    assert kept(backend, flat, 0.3, offset=1.0) == [[0, 1]]


def test_a_removed_box_removes_nothing(backend: Backend) -> None:
    assert kept(backend, CHAIN, 0.4) == [[0, 2]]
    assert kept(backend, CHAIN.flip(1), 0.4) == [[0, 2]]


def test_an_absent_row_removes_nothing(backend: Backend) -> None:
    present = torch.tensor([[False, True, True, True]])
    assert kept(backend, CHAIN, 0.4, present) == [[1, 3]]
    for wrong in ([0.0, 0, torch.inf, 10], [0, torch.nan, 10, 10], [10, 0, 0, 10], [0, 10, 10, -50.0]):
        boxes = CHAIN.clone()
        boxes[0, 0] = torch.tensor(wrong)
        assert kept(backend, boxes, 0.4) == [[1, 3]]
        assert kept(backend, boxes, 0.4, torch.tensor([[True, False, True, True]])) == [[2]]


def test_a_limit_of_each_group(backend: Backend) -> None:
    boxes = torch.tensor([[20.0 * row, 0, 20.0 * row + 10, 10] for row in range(70)]).repeat(2, 1, 1)
    present = torch.ones(2, 70, dtype=torch.bool)
    present[1, 1:66] = False
    for limit in (0, 1, 3, 65, 66, 70, 99):
        assert kept(backend, boxes, 0.5, present, max_keep=limit) == [
            list(range(70))[:limit],
            [0, 66, 67, 68, 69][:limit],
        ]


@pytest.mark.parametrize("rows", [0, 1, 2, 63, 64, 65, 128, 700])
def test_groups_of_every_length_are_those_of_the_general_form(backend: Backend, rows: int) -> None:
    boxes = sorted_groups(3, rows, seed=rows)
    present = torch.rand(3, rows, generator=torch.Generator().manual_seed(rows)) > 0.2
    for threshold, more in (
        (0.5, {}),
        (1 / 3, {"offset": 1.0, "inclusive": True}),
        (0.7, {"max_keep": 9}),
        (0.0, {}),
    ):
        assert kept(backend, boxes, threshold, present, **more) == judged(boxes, present, threshold, **more)
    assert kept(backend, boxes[:0], 0.5) == []


def test_more_words_than_a_warp_has_lanes(backend: Backend) -> None:
    boxes = sorted_groups(1, 2200, seed=3)
    present = torch.ones(1, 2200, dtype=torch.bool)
    assert kept(backend, boxes, 0.6) == judged(boxes, present, 0.6)


def test_a_group_that_is_longer_than_a_walk(backend: Backend) -> None:
    boxes = sorted_groups(2, 4200, seed=4)
    boxes[0, 5] = torch.nan
    present = torch.rand(2, 4200, generator=torch.Generator().manual_seed(0)) > 0.5
    whole = present & ~boxes.isnan().any(2)
    assert kept(backend, boxes, 0.5, present, max_keep=150) == judged(boxes, whole, 0.5, max_keep=150)


def test_strides_are_copied(backend: Backend) -> None:
    boxes = sorted_groups(2, 130, seed=2)
    expected = kept(backend, boxes, 0.5)
    assert kept(backend, boxes.permute(2, 1, 0).contiguous().permute(2, 1, 0), 0.5) == expected
    every = torch.ones(130, 2, dtype=torch.bool).t()
    assert kept(backend, boxes, 0.5, every) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(3))
def test_the_form_for_cpus_is_the_reference_bit_for_bit(dtype: torch.dtype, seed: int) -> None:
    boxes = sorted_groups(4, 300, seed=10 * seed).to(dtype)
    boxes[:, ::37, 2] = torch.nan
    present = torch.rand(4, 300, generator=torch.Generator().manual_seed(seed)) > 0.1
    for threshold in (0.0, 1 / 3, 0.5, 1.0):
        for more in ({}, {"inclusive": True}, {"offset": 1.0}, {"max_keep": 7}):
            found, expected = (
                nms_sorted(boxes, threshold, present=present, backend=name, **more)
                for name in ("cpu", "reference")
            )
            assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("boxes", "present", "what"),
    [
        (HALF[0], None, "boxes must be"),
        (HALF.long(), None, "boxes must be"),
        (HALF[:, :, :3], None, "boxes must be"),
        (HALF, torch.ones(3, dtype=torch.bool), "present must be"),
        (HALF, torch.ones(1, 3), "present must be"),
    ],
)
def test_shapes_that_raise(boxes: torch.Tensor, present: torch.Tensor | None, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        nms_sorted(boxes, 0.5, present=present)


def test_other_arguments_that_raise() -> None:
    with pytest.raises(ValueError, match="max_keep is -1"):
        nms_sorted(HALF, 0.5, max_keep=-1)
    with pytest.raises(ValueError, match="'torchvision' has no sorted NMS"):
        nms_sorted(HALF, 0.5, backend="torchvision")


# ---- what a GPU is asked to do ----


class Allocations(TorchDispatchMode):
    """Counts torch operations by name, and those whose result has one element."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.of_one_element: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.calls[name] += 1
        if isinstance(found, torch.Tensor) and found.numel() == 1 and name not in ("slice", "detach", "view"):
            self.of_one_element.append(name)
        return found


@pytest.fixture(name="launched")
def every_launch(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that are launched, on the host shim."""
    names: list[str] = []
    run = CudaOnCpu(FORWARD)

    def note(file: str, kernel: str, *more) -> None:
        names.append(kernel)
        run(file, kernel, *more)

    monkeypatch.setattr(launching, "runner", note)
    return names


def test_presorted_groups_take_two_launches_and_two_allocations(launched: list[str]) -> None:
    boxes, rule = sorted_groups(5, 100, seed=0), NmsRule(0.7, 0.0, False, 100, 100, 100)
    with Allocations() as taken:
        cuda_nms_sorted(boxes, None, rule)
    assert launched == ["nms_tiles", "nms_walk"]
    assert taken.calls == {"new_empty": 2} and not taken.of_one_element


def test_lists_with_labels_take_two_launches_and_three_allocations(launched: list[str]) -> None:
    """Nothing is sorted, scattered, filled or merged, and no value decides a shape."""
    boxes, rule = sorted_groups(2, 200, seed=0), NmsRule(0.5, 0.0, False, 100, 200, 200)
    labels = torch.arange(400).view(2, 200) % 5
    with Allocations() as taken:
        cuda_nms_labelled(boxes, labels, None, rule)
    assert launched == ["nms_tiles", "nms_walk"]
    assert taken.calls == {"new_empty": 3} and not taken.of_one_element


@pytest.mark.parametrize(
    ("groups", "kernels"),
    [
        (None, ["nms_keys", "nms_rank", "nms_mask", "nms_scan"]),
        (5, ["nms_keys", "nms_starts", "nms_scatter", "nms_rank", "nms_mask", "nms_scan", "nms_merge"]),
    ],
)
def test_the_general_form_fills_once_and_joins_nothing(
    launched: list[str], groups: int | None, kernels: list[str]
) -> None:
    boxes, scores = clustered_boxes(100, seed=0)
    rule = NmsRule(0.7, 0.0, False, 100, 100, 100)
    of = None if groups is None else torch.arange(100) % groups
    with Allocations() as taken:
        cuda_nms(boxes, scores, of, groups or 0, rule)
    assert launched == kernels and not taken.of_one_element
    assert taken.calls["new_zeros"] == 1 and not {"zeros_like", "zero_", "fill_", "cat"} & set(taken.calls)


@pytest.mark.parametrize("order", [FORWARD, SHUFFLED])
def test_proposals_of_a_pyramid_sort_no_second_time(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels of different lengths in two images: the top-k has sorted, so only tiles and walk are launched,
    and the proposals are those of the reference, bit for bit."""
    run = CudaOnCpu(order)
    monkeypatch.setattr(launching, "runner", run)
    counts = (150, 70, 5)
    random = torch.Generator().manual_seed(0)
    levels = [
        (
            torch.rand(2, count, generator=random),
            0.1 * torch.randn(2, count, 4, generator=random),
            clustered_boxes(count, seed=count)[0],
        )
        for count in counts
    ]
    given = [list(part) for part in zip(*levels, strict=True)]
    rule = ProposalConventions(pre_nms=100, post_nms=40, collect=50, min_size=30)
    results = []
    for name in ("cuda", "reference"):
        with use_backend(name):
            results.append(select_proposals(*given, [(300, 300), (200, 250)], coder=BoxCoder(), rule=rule))
    assert set(run.counts) == {"nms_tiles", "nms_walk"}
    for ours, expected in zip(*results, strict=True):
        assert torch.equal(ours.boxes, expected.boxes) and torch.equal(ours.scores, expected.scores)
        assert len(ours.scores) == 50


def test_objectness_that_is_no_number_is_an_error() -> None:
    scores, deltas = torch.rand(1, 50), torch.zeros(1, 50, 4)
    scores[0, 7] = torch.nan
    with pytest.raises(ValueError, match="1 objectness scores of the best anchors are NaN"):
        select_proposals(
            [scores],
            [deltas],
            [clustered_boxes(50, seed=0)[0]],
            [(300, 300)],
            coder=BoxCoder(),
            rule=ProposalConventions(),
        )
