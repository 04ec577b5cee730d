"""NMS on every backend: the contract's cases by hand, torchvision and the recorded originals as judges, and
inputs that must not break it."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_backends import Backend, clustered_boxes, every_backend, recorded  # noqa: F401 - a fixture

from detection_zoo.kernels.nms import batched_nms, nms, nms_padded

# IoU of rows 0 and 1 is 8 / 16 = 0.5 exactly; row 2 is apart
HALF = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2], [10, 10, 12, 12]])
FALLING = torch.tensor([0.9, 0.8, 0.7])


def kept(
    backend: Backend,
    boxes: torch.Tensor,
    scores: torch.Tensor,
    threshold: float,
    groups: torch.Tensor | None = None,
    **more,
) -> list[int]:
    groups = None if groups is None else groups.to(backend.device)
    return batched_nms(
        boxes.to(backend.device), scores.to(backend.device), groups, threshold, backend=backend.name, **more
    ).tolist()


def test_iou_equal_to_the_threshold(backend: Backend) -> None:
    assert kept(backend, HALF, FALLING, 0.5) == [0, 1, 2]
    assert kept(backend, HALF, FALLING, 0.5, inclusive=True) == [0, 2]
    assert kept(backend, HALF.double(), FALLING.double(), 0.5) == [0, 1, 2]
    assert kept(backend, HALF.double(), FALLING.double(), 0.5, inclusive=True) == [0, 2]


@pytest.mark.parametrize("ulps", [-1, 0, 1])
def test_thresholds_beside_the_rounded_iou(backend: Backend, ulps: int) -> None:
    """IoU of the pair is 3/9 + ..., its float32 quotient q: removed at thresholds below q, at q only when
    inclusive."""
    boxes = torch.tensor([[0.0, 0, 3, 3], [0, 0, 3, 1]])
    quotient = np.float32(3) / np.float32(9)
    threshold = float(quotient if ulps == 0 else np.nextafter(quotient, np.float32(np.inf * ulps)))
    assert len(kept(backend, boxes, FALLING[:2], threshold)) == (1 if ulps < 0 else 2)
    assert len(kept(backend, boxes, FALLING[:2], threshold, inclusive=True)) == (2 if ulps > 0 else 1)


def test_equal_scores_go_by_index(backend: Backend) -> None:
    boxes = torch.tensor([[50.0, 50, 60, 60], [0, 0, 10, 10], [0, 0, 10, 11]])
    assert kept(backend, boxes, torch.tensor([0.5, 0.5, 0.5]), 0.5) == [0, 1]
    assert kept(backend, boxes, torch.tensor([-0.0, 0.0, -0.0]), 0.5) == [0, 1]
    assert kept(backend, boxes, torch.tensor([-1.0, -torch.inf, 3.0]), 0.5) == [2, 0]


def test_subnormal_numbers_are_numbers(backend: Backend) -> None:
    """IoU of equal boxes is 1 although their area is 1e-40; scores of 1e-40 have an order."""
    boxes = torch.tensor([[0, 0, 1e-20, 1e-20], [0, 0, 1e-20, 1e-20], [5, 5, 6, 6]], device=backend.device)
    scores = torch.tensor([1e-40, 2e-40, 3e-40], device=backend.device)
    assert nms(boxes, scores, 0.5, backend=backend.name).tolist() == [2, 1]
    assert nms_padded(boxes, scores, None, 0.5, max_keep=3, backend=backend.name)[0].tolist() == [[2, 1, -1]]


def test_a_removed_box_removes_nothing(backend: Backend) -> None:
    chain = torch.tensor(
        [[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10], [12, 0, 22, 10]]
    )  # neighbours share 6/14
    assert kept(backend, chain, torch.tensor([0.9, 0.8, 0.7, 0.6]), 0.4) == [0, 2]
    assert kept(backend, chain, torch.tensor([0.6, 0.9, 0.7, 0.8]), 0.4) == [1, 3]


def test_offset_of_legacy_boxes(backend: Backend) -> None:
    pair = torch.tensor([[0.0, 0, 9, 9], [0, 5, 9, 14]])  # 50/150 with inclusive pixels, 36/126 without
    assert kept(backend, pair, FALLING[:2], 0.3, offset=1.0) == [0]
    assert kept(backend, pair, FALLING[:2], 0.3) == [0, 1]
    flat = torch.tensor([[5.0, 5, 4, 4], [5, 5, 4, 4]])  # width 0 under the legacy rule: not inverted
    assert kept(backend, flat, FALLING[:2], 0.3, offset=1.0) == [0, 1]


def test_empty_boxes_remove_nothing(backend: Backend) -> None:
    points = torch.tensor([[3.0, 3, 3, 3], [3, 3, 3, 3]])
    assert kept(backend, points, FALLING[:2], 0.0) == [0, 1]
    assert kept(backend, points, FALLING[:2], 0.0, inclusive=True) == [0, 1]


@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 128, 700])
@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_sizes_against_torchvision(backend: Backend, count: int, threshold: float) -> None:
    boxes, scores = clustered_boxes(count, seed=count)
    order = torch.sort(
        scores, descending=True, stable=True
    ).indices  # torchvision's own order of ties is not stable
    expected = order[torchvision.ops.nms(boxes[order], torch.arange(count, 0, -1.0), threshold)]
    assert kept(backend, boxes, scores, threshold) == expected.tolist()
    assert kept(backend, boxes, scores, threshold, max_keep=5) == expected[:5].tolist()


def test_more_than_one_chunk(backend: Backend) -> None:
    """A group is settled in chunks of 4,096 rows; rows kept in one must remove rows of the next."""
    boxes, scores = clustered_boxes(4500, seed=3)
    scores += torch.linspace(0, 1e-3, 4500)
    expected = torchvision.ops.nms(boxes, scores, 0.5).tolist()
    assert kept(backend, boxes, scores, 0.5) == expected
    groups = torch.zeros(4500, dtype=torch.int64)
    groups[expected[3]] = 4
    assert kept(backend, boxes, scores, 0.5, groups, num_groups=5)[:5] == expected[:5]


@pytest.mark.parametrize("name", ["reference", "cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_hundred_thousand_boxes(name: str) -> None:
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    boxes, scores = clustered_boxes(800, seed=5)
    many = boxes.repeat(125, 1) + torch.arange(100_000)[:, None] % 7 * 0.25
    scores = torch.rand(100_000, generator=torch.Generator().manual_seed(1))
    order = torch.sort(scores, descending=True, stable=True).indices
    expected = order[torchvision.ops.nms(many[order[:20_000]], torch.arange(20_000, 0, -1.0), 0.5)]
    for limit in ("max_keep", "max_total"):
        assert (
            kept(Backend(name, "cuda" if name == "cuda" else "cpu"), many, scores, 0.5, **{limit: 150})
            == expected[:150].tolist()
        )


def test_ragged_groups_with_any_values(backend: Backend) -> None:
    boxes, scores = clustered_boxes(400, seed=11)
    groups = torch.tensor([-7, 10**12, 3, 4, 4, 4])[
        torch.randint(6, (400,), generator=torch.Generator().manual_seed(0))
    ]
    separate = [
        rows[kept(backend, boxes[rows], scores[rows], 0.4)]
        for rows in ((groups == value).nonzero().squeeze(1) for value in groups.unique())
    ]
    together = torch.cat(separate).sort().values
    expected = together[torch.sort(scores[together], descending=True, stable=True).indices]
    assert kept(backend, boxes, scores, 0.4, groups) == expected.tolist()
    assert len(separate) == 4 and min(map(len, separate)) > 10


def test_more_groups_than_a_block_finds_the_beginnings_of(backend: Backend) -> None:
    boxes, scores = clustered_boxes(60, seed=3)
    groups = torch.arange(60) % 20 * 55  # 0 ... 1045, three rows each
    expected = kept(backend, boxes, scores, 0.3, torch.arange(60) % 20, num_groups=20)
    assert kept(backend, boxes, scores, 0.3, groups, num_groups=1100) == expected and 20 < len(expected) < 60


def test_limits_of_each_group(backend: Backend) -> None:
    boxes = torch.tensor([[20.0 * i, 0, 20.0 * i + 10, 10] for i in range(8)])  # none overlap
    boxes[1] = boxes[0]
    scores, groups = (
        torch.tensor([0.9, 0.8, 0.7, 0.6, 0.55, 0.5, 0.4, 0.3]),
        torch.tensor([0, 0, 0, 0, 2, 2, 2, 2]),
    )
    assert kept(backend, boxes, scores, 0.5, groups, num_groups=3, max_keep=2) == [0, 2, 4, 5]
    assert kept(backend, boxes, scores, 0.5, groups, num_groups=3, max_candidates=2) == [0, 4, 5]
    assert kept(backend, boxes, scores, 0.5, groups, num_groups=3, max_keep=0) == []


def test_a_limit_over_all_groups_and_what_ties_with_its_last(backend: Backend) -> None:
    boxes = torch.tensor([[20.0 * i, 0, 20.0 * i + 10, 10] for i in range(8)])  # none overlap
    boxes[1] = boxes[0]
    scores, groups = (
        torch.tensor([0.9, 0.8, 0.7, 0.6, 0.6, 0.5, 0.6, 0.9]),
        torch.tensor([0, 0, 0, 0, 2, 2, 2, 2]),
    )
    for most, expected in (
        (0, []),
        (1, [0, 7]),
        (2, [0, 7]),
        (3, [0, 7, 2]),
        (4, [0, 7, 2, 3, 4, 6]),
        (7, [0, 7, 2, 3, 4, 6, 5]),
        (99, [0, 7, 2, 3, 4, 6, 5]),
    ):
        assert kept(backend, boxes, scores, 0.5, groups, num_groups=3, max_total=most) == expected
    assert kept(backend, boxes, scores, 0.5, groups, num_groups=3, max_total=4, max_keep=2) == [
        0,
        7,
        2,
        4,
    ]  # 3 and 6 find their group full
    assert kept(backend, boxes, scores, 0.5, groups, num_groups=3, max_total=4, max_candidates=2) == [
        0,
        7,
        4,
    ]  # group 0 ends at row 1
    assert kept(backend, boxes, scores, 0.5, max_total=3) == [0, 7, 2]


@pytest.mark.parametrize("tied", [False, True])
def test_a_limit_over_all_groups_that_the_best_rows_do_not_fill(backend: Backend, tied: bool) -> None:
    """The 700 best boxes are one box, or two in two groups; the others stand apart."""
    boxes = torch.tensor([[0.0, 0, 10, 10]] * 700 + [[20.0 * i, 0, 20.0 * i + 10, 10] for i in range(1, 6)])
    scores = torch.cat(
        [torch.ones(700) if tied else torch.linspace(2, 1, 700), torch.tensor([0.5, 0.4, 0.4, 0.3, 0.2])]
    )
    groups = torch.arange(705) % 2
    assert kept(backend, boxes, scores, 0.5, max_total=3) == [0, 700, 701, 702]
    assert kept(backend, boxes, scores, 0.5, groups, num_groups=2, max_total=3) == [0, 1, 700]
    assert kept(backend, boxes, scores, 0.5, groups, num_groups=2, max_total=7) == [0, 1, *range(700, 705)]


def test_a_cpu_looks_at_no_more_rows_than_the_limit_needs() -> None:
    """20,000 boxes that are all kept are 200 million pairs; the best 100 are 5,000."""
    apart = torch.arange(20_000.0)[:, None] * 20 + torch.tensor([0.0, 0, 10, 10])
    scores = torch.linspace(1, 0, 20_000)
    batched_nms(apart, scores, None, 0.5, max_total=1, backend="cpu")
    took = []
    for limit, expected in ((100, 100), (None, 20_000)):
        start = time.process_time()
        found = batched_nms(apart, scores, None, 0.5, max_total=limit, backend="cpu")
        took.append(time.process_time() - start)
        assert found.tolist() == list(range(expected))
    assert took[1] > 4 * took[0]


def test_bad_values_raise_below_the_best_rows_too(backend: Backend) -> None:
    boxes, scores = clustered_boxes(700, seed=0)
    boxes[int(scores.argmin()), 2] = torch.inf
    with pytest.raises(ValueError, match=rf"boxes\[{int(scores.argmin())}\]"):
        kept(backend, boxes, scores, 0.5, max_total=1)


def test_padded_form(backend: Backend) -> None:
    boxes = torch.tensor(
        [
            [0.0, 0, 10, 10],
            [0, 0, 10, 9],
            [30, 30, 40, 40],
            [0, 0, 10, 10],
            [60, 60, 70, 70],
            [5, 5, 1, 1],
            [0, 0, torch.inf, 1],
        ]
    )
    scores = torch.tensor([0.8, 0.9, 0.5, 0.7, torch.nan, 0.6, 0.6])
    groups = torch.tensor([1, 1, 1, 0, 1, 1, 1])
    given = (boxes.to(backend.device), scores.to(backend.device), groups.to(backend.device))
    indices, counts = nms_padded(*given, 0.5, num_groups=3, max_keep=4, backend=backend.name)
    assert indices.tolist() == [[3, -1, -1, -1], [1, 2, -1, -1], [-1] * 4] and counts.tolist() == [1, 2, 0]
    scores[3], groups[2] = -torch.inf, 9  # absent, and of no group
    indices, counts = nms_padded(
        given[0],
        scores.to(backend.device),
        groups.to(backend.device),
        0.5,
        num_groups=3,
        max_keep=1,
        backend=backend.name,
    )
    assert indices.tolist() == [[-1], [1], [-1]] and counts.tolist() == [0, 1, 0]
    alone, count = nms_padded(*given[:2], None, 0.5, max_keep=9, backend=backend.name)
    assert alone.tolist() == [[1, 2] + [-1] * 7] and count.tolist() == [2]
    empty, count = nms_padded(given[0][:0], given[1][:0], None, 0.5, max_keep=2, backend=backend.name)
    assert empty.tolist() == [[-1, -1]] and count.tolist() == [0]


@pytest.mark.gpu
def test_the_padded_form_in_a_cuda_graph() -> None:
    """A graph that was captured on some boxes answers for others, as the reference does."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU here, so no graph")
    groups = torch.arange(300) % 4
    options = {"num_groups": 4, "max_keep": 50, "max_candidates": 60}
    boxes, scores = (each.cuda() for each in clustered_boxes(300, seed=1))
    on_gpu = groups.cuda()
    nms_padded(boxes, scores, on_gpu, 0.5, **options)  # compiled before, which no capture allows
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = nms_padded(boxes, scores, on_gpu, 0.5, **options)
    for seed in (2, 3):
        others = clustered_boxes(300, seed=seed)
        boxes.copy_(others[0])
        scores.copy_(others[1])
        graph.replay()
        for ours, expected in zip(
            found, nms_padded(*others, groups, 0.5, backend="reference", **options), strict=True
        ):
            assert torch.equal(ours.cpu(), expected)


@pytest.mark.parametrize("groups", [None, torch.tensor([0, 1, 0])])
@pytest.mark.parametrize(
    ("row", "column", "value", "what"),
    [
        (1, 4, torch.nan, "scores"),
        (2, 0, torch.nan, "boxes"),
        (0, 2, torch.inf, "boxes"),
        (1, 2, -50.0, "boxes"),
    ],
)
def test_values_that_raise(
    backend: Backend, groups: torch.Tensor | None, row: int, column: int, value: float, what: str
) -> None:
    rows = torch.cat([HALF, FALLING[:, None]], 1)
    rows[row, column] = value
    with pytest.raises(ValueError, match=rf"{what}\[{row}\]"):
        kept(backend, rows[:, :4], rows[:, 4], 0.5, groups)


def test_groups_beyond_their_number_raise(backend: Backend) -> None:
    with pytest.raises(ValueError, match="groups"):
        kept(backend, HALF, FALLING, 0.5, torch.tensor([0, 1, 2]), num_groups=2)


@pytest.mark.parametrize(
    ("boxes", "scores", "groups"),
    [
        (HALF[:, :3], FALLING, None),
        (HALF, FALLING[:2], None),
        (HALF.long(), FALLING, None),
        (HALF, FALLING, torch.tensor([0, 1])),
        (HALF, FALLING, torch.tensor([0.0, 1, 1])),
        (HALF[None], FALLING, None),
    ],
)
def test_shapes_that_raise(boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor | None) -> None:
    with pytest.raises(ValueError, match="must be"):
        batched_nms(boxes, scores, groups, 0.5)


def test_half_types_and_strides_are_widened_and_copied(backend: Backend) -> None:
    boxes, scores = clustered_boxes(130, seed=2)
    expected = kept(backend, boxes.half().float(), scores, 0.5)
    assert kept(backend, boxes.half(), scores, 0.5) == expected
    assert (
        kept(backend, boxes.half().float().t().contiguous().t(), torch.stack([scores, scores], 1)[:, 0], 0.5)
        == expected
    )


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_recorded_detnet(backend: Backend, threshold: float) -> None:
    dets = recorded("detnet/in.nms_dets")
    assert (
        kept(backend, dets[:, :4], dets[:, 4], threshold, offset=1.0)
        == recorded(f"detnet/nms_{threshold}").tolist()
    )


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_recorded_detectron(backend: Backend, threshold: float) -> None:
    dets = recorded("detectron/nms.dets")
    found = kept(backend, dets[:, :4], dets[:, 4], threshold, offset=1.0, inclusive=True)
    assert (
        sorted(found) == recorded(f"detectron/nms.keep_{threshold}").tolist()
    )  # the original returns rising rows


@pytest.mark.parametrize("threshold", [0.3, 0.4, 0.5, 0.7])
def test_recorded_maskrcnn_benchmark(backend: Backend, threshold: float) -> None:
    boxes, scores = recorded("maskrcnn_benchmark/in.nms.boxes"), recorded("maskrcnn_benchmark/in.nms.scores")
    found = kept(backend, boxes, scores, threshold, offset=1.0, inclusive=True)
    assert sorted(found) == recorded(f"maskrcnn_benchmark/nms.{threshold}").tolist()


def test_recorded_inclusive_pair(backend: Backend) -> None:
    pair = torch.tensor([[0.0, 0, 9, 9], [0, 5, 9, 14]])
    assert (
        kept(backend, pair, FALLING[:2], 0.3, offset=1.0, inclusive=True)
        == recorded("maskrcnn_benchmark/nms.inclusive_pair").tolist()
    )


@pytest.mark.parametrize(("name", "offset"), [("torchvision", 0.0), ("plus_one", 1.0)])
def test_recorded_hardnet(backend: Backend, name: str, offset: float) -> None:
    random = np.random.RandomState(41)
    corner, side = random.uniform(0, 40, (200, 2)), random.uniform(2, 14, (200, 2))
    boxes = torch.from_numpy(np.concatenate([corner, corner + side], 1).astype("float32"))
    scores = torch.from_numpy(random.permutation(200) / 200)
    assert kept(backend, boxes, scores, 0.45, offset=offset) == recorded(f"hardnet/nms.{name}").tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(4))
def test_the_form_for_cpus_is_the_reference_bit_for_bit(dtype: torch.dtype, seed: int) -> None:
    """Coarse scores and corners, so that ties and IoU equal to the threshold are common, in groups shorter
    and longer than a block."""
    draw = torch.Generator().manual_seed(seed)
    boxes, scores = clustered_boxes(600, seed=seed)
    boxes, scores = boxes.mul(0.5).round().to(dtype), (scores * 40).round().to(dtype)
    sizes = torch.tensor([1, 70, 3, 200, 64, 5, 1, 190, 66])
    mixed = torch.repeat_interleave(torch.arange(9), sizes)[torch.randperm(600, generator=draw)]
    for threshold in (0.0, 1 / 3, 0.5, 1.0):
        for limits in (
            {},
            {"max_keep": 7},
            {"max_keep": 40, "max_candidates": 65},
            {"max_total": 20},
            {"max_total": 90, "max_keep": 9},
        ):
            for groups in (None, mixed):
                for rule in ({}, {"inclusive": True}, {"offset": 1.0}):
                    expected = batched_nms(
                        boxes, scores, groups, threshold, **limits, **rule, backend="reference"
                    )
                    assert torch.equal(
                        batched_nms(boxes, scores, groups, threshold, **limits, **rule, backend="cpu"),
                        expected,
                    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("seed", range(3))
def test_the_padded_form_for_cpus_is_the_reference(dtype: torch.dtype, seed: int) -> None:
    """Absent rows of every kind among ties and ragged groups."""
    draw = torch.Generator().manual_seed(seed)
    boxes, scores = clustered_boxes(500, seed=seed)
    boxes, scores = boxes.round().to(dtype), (scores * 40).round().to(dtype)
    groups = torch.randint(-1, 7, (500,), generator=draw)
    scores[::17], scores[5::19], boxes[3::23, 1], boxes[7::29, 2] = torch.nan, -torch.inf, torch.inf, -99
    for max_keep, candidates, offset in ((500, None, 0.0), (9, 40, 1.0), (1, 1, 0.0), (0, None, 0.0)):
        for chosen, count in ((groups, 6), (None, 1), (groups.int(), 900)):
            more = {"num_groups": count, "max_keep": max_keep, "max_candidates": candidates, "offset": offset}
            found, expected = (
                nms_padded(boxes, scores, chosen, 0.4, **more, backend=name) for name in ("cpu", "reference")
            )
            assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_tiny_and_touching_boxes_are_decided_as_by_the_reference(dtype: torch.dtype) -> None:
    """Areas that overflow or vanish, and IoU within an ulp of the threshold."""
    number = torch.finfo(dtype)
    values = [0.0, number.tiny, number.tiny**0.5, 1, 3, number.max**0.5, number.max / 2]
    sides = torch.tensor(values, dtype=dtype)
    corners = torch.cartesian_prod(sides, sides, sides, sides)
    boxes = torch.cat([corners[:, :2].minimum(corners[:, 2:]), corners[:, :2].maximum(corners[:, 2:])], 1)
    boxes = boxes[torch.randperm(len(boxes), generator=torch.Generator().manual_seed(0))][:700]
    scores = torch.arange(len(boxes), 0, -1).to(dtype)
    third = torch.tensor(1.0).to(dtype) / 3
    for threshold in (0.0, float(third), float(torch.nextafter(third, third * 2)), 1.0):
        for inclusive in (False, True):
            more = {"inclusive": inclusive, "offset": 0.0}
            found, expected = (
                nms(boxes, scores, threshold, **more, backend=name) for name in ("cpu", "reference")
            )
            assert torch.equal(found, expected)


coordinate = st.integers(0, 12).map(float)


@pytest.mark.parametrize("backend_name", ["reference", "cpu"])
@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate, st.integers(0, 4)), max_size=80),
    threshold=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
def test_what_is_kept_and_what_is_removed(
    backend_name: str, rows: list[tuple[float, ...]], threshold: float
) -> None:
    """From the definition: kept boxes do not overlap, and every other box overlaps a better kept one (small
    integers: IoU is exact)."""
    table = torch.tensor(rows).reshape(-1, 5)
    boxes, scores = (
        torch.cat(
            [torch.minimum(table[:, :2], table[:, 2:4]), torch.maximum(table[:, :2], table[:, 2:4])], 1
        ),
        table[:, 4],
    )
    found = nms(boxes, scores, threshold, backend=backend_name).tolist()
    iou = torchvision.ops.box_iou(boxes.double(), boxes.double()).nan_to_num(0.0) > threshold
    better = [(-scores[row].item(), row) for row in range(len(rows))]
    for row in range(len(rows)):
        removers = [other for other in found if better[other] < better[row] and iou[other, row]]
        assert bool(removers) == (row not in found)
    assert [better[row] for row in found] == sorted(better[row] for row in found)
