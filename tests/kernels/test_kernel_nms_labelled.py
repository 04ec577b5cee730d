"""NMS by label of presorted lists on every backend: cases by hand, and the general form as judge."""

from __future__ import annotations

import pytest
import torch
from kernel_backends import Backend, clustered_boxes, every_backend  # noqa: F401 - a fixture

from detection_zoo.kernels.nms import batched_nms
from detection_zoo.kernels.nms_labelled import nms_labelled

# neighbours share 6 / 14, rows 0 and 2 share 2 / 18
CHAIN = torch.tensor([[[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10], [12, 0, 22, 10]]])


def kept(
    backend: Backend, boxes: torch.Tensor, labels: torch.Tensor, threshold: float, **more
) -> list[list[int]]:
    """Kept rows of each list; what follows them must be -1."""
    more = {"max_keep": boxes.shape[1]} | more
    if more.get("present") is not None:
        more["present"] = more["present"].to(backend.device)
    indices, counts = nms_labelled(
        boxes.to(backend.device), labels.to(backend.device), threshold, backend=backend.name, **more
    )
    assert indices.shape == (len(boxes), more["max_keep"]) and counts.shape == (len(boxes),)
    assert indices.dtype == counts.dtype == torch.int64
    rows = [own[:count] for own, count in zip(indices.tolist(), counts.tolist(), strict=True)]
    assert indices.tolist() == [own + [-1] * (more["max_keep"] - len(own)) for own in rows]
    return rows


def lists(count: int, rows: int, num_labels: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes (N, M, 4) with coarse corners, so that IoU equal to a threshold is common, and labels (N, M)."""
    boxes = [clustered_boxes(rows, seed=seed + each)[0].mul(0.5).round() for each in range(count)]
    random = torch.Generator().manual_seed(seed)
    return torch.stack(boxes), torch.randint(num_labels, (count, rows), generator=random)


def judged(
    boxes: torch.Tensor, labels: torch.Tensor, present: torch.Tensor, threshold: float, max_keep: int, **more
) -> list[list[int]]:
    """The general form's answer, list by list."""
    answers = []
    for own, label, here in zip(boxes, labels, present, strict=True):
        rows = here.nonzero().squeeze(1)
        scores = torch.arange(len(rows), 0, -1.0)
        found = batched_nms(own[rows], scores, label[rows], threshold, **more, backend="reference")
        answers.append(rows[found].tolist()[:max_keep])
    return answers


def test_only_rows_of_the_same_label_are_removed(backend: Backend) -> None:
    for labels, expected in (
        ([0, 0, 0, 0], [0, 2]),
        ([0, 1, 0, 1], [0, 1, 2, 3]),
        ([5, 5, -7, -7], [0, 2]),
        ([1, 0, 0, 1], [0, 1, 3]),
        ([2**32, 0, 0, 0], [0, 1, 3]),  # equal to 0 in its low 32 bits
    ):
        assert kept(backend, CHAIN, torch.tensor([labels]), 0.4) == [expected]
    assert kept(backend, CHAIN.half(), torch.tensor([[1, 1, 2, 2]], dtype=torch.int32), 0.4) == [[0, 2]]


def test_absent_rows_remove_nothing_and_the_limit_is_of_the_list(backend: Backend) -> None:
    same = torch.zeros(1, 4, dtype=torch.int64)
    assert kept(backend, CHAIN, same, 0.4, present=torch.tensor([[False, True, True, True]])) == [[1, 3]]
    boxes = CHAIN.clone()
    boxes[0, 0, 2] = torch.nan
    assert kept(backend, boxes, same, 0.4) == [[1, 3]]
    for limit in (0, 1, 2, 3, 9):
        assert kept(backend, CHAIN, torch.tensor([[0, 0, 1, 0]]), 0.4, max_keep=limit) == [[0, 2, 3][:limit]]


@pytest.mark.parametrize(("rows", "num_labels"), [(0, 1), (1, 3), (64, 2), (65, 80), (300, 7), (700, 80)])
def test_lists_of_every_length_are_those_of_the_general_form(
    backend: Backend, rows: int, num_labels: int
) -> None:
    boxes, labels = lists(2, rows, num_labels, seed=rows)
    present = torch.rand(2, rows, generator=torch.Generator().manual_seed(rows)) > 0.2
    for threshold, limit, more in (
        (0.5, rows, {}),
        (1 / 3, rows + 3, {"offset": 1.0, "inclusive": True}),
        (0.0, 40, {}),
    ):
        found = kept(backend, boxes, labels, threshold, present=present, max_keep=limit, **more)
        assert found == judged(boxes, labels, present, threshold, limit, **more)
    assert kept(backend, boxes[:0], labels[:0], 0.5) == []


def test_more_words_than_a_warp_has_lanes(backend: Backend) -> None:
    boxes, labels = lists(1, 2200, 5, seed=3)
    every = torch.ones(1, 2200, dtype=torch.bool)
    assert kept(backend, boxes, labels, 0.6) == judged(boxes, labels, every, 0.6, 2200)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_form_for_cpus_is_the_reference_bit_for_bit(dtype: torch.dtype) -> None:
    boxes, labels = lists(3, 400, 6, seed=10)
    boxes = boxes.to(dtype)
    boxes[:, ::37, 2] = torch.nan
    present = torch.rand(3, 400, generator=torch.Generator().manual_seed(1)) > 0.1
    for threshold in (0.0, 1 / 3, 0.5, 1.0):
        for more in ({}, {"inclusive": True}, {"offset": 1.0}, {"max_keep": 7}):
            more = {"max_keep": 400, "present": present} | more
            found, expected = (
                nms_labelled(boxes, labels, threshold, backend=name, **more) for name in ("cpu", "reference")
            )
            assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_strides_are_copied(backend: Backend) -> None:
    boxes, labels = lists(2, 130, 3, seed=2)
    expected = kept(backend, boxes, labels, 0.5)
    turned = boxes.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert kept(backend, turned, labels.t().contiguous().t(), 0.5) == expected


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"boxes": CHAIN[0]}, "boxes must be"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, r"labels must be integers \(1, 4\)"),
        ({"labels": torch.zeros(1, 4)}, "labels must be integers"),
        ({"labels": torch.zeros(1, 4, dtype=torch.bool)}, "labels must be integers"),
        ({"present": torch.ones(1, 4)}, "present must be"),
        ({"max_keep": -1}, "max_keep is -1"),
        ({"backend": "torchvision"}, "'torchvision' has no labelled NMS"),
        (
            {
                "boxes": torch.zeros(1, 4097, 4),
                "labels": torch.zeros(1, 4097, dtype=torch.int64),
                "backend": "cuda",
            },
            "lists of 4097 rows, on a GPU it takes at most 4096; take the best by a top-k",
        ),
    ],
)
def test_arguments_that_raise(changed: dict[str, object], what: str) -> None:
    given = {"boxes": CHAIN, "labels": torch.zeros(1, 4, dtype=torch.int64), "max_keep": 4} | changed
    with pytest.raises(ValueError, match=what):
        nms_labelled(iou_threshold=0.5, **given)
