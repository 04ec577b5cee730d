"""Choices that rounding may make either way: rows of nearly equal scores, and boxes whose IoU is nearly the
threshold. Lists of proposals and detections depend on them, and so on the processor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detection_zoo.zoo.conventions import DetectionConventions, ProposalConventions
from detection_zoo.zoo.parity.base import Output, Reference, Skip, compare, to_numpy
from detection_zoo.zoo.parts.boxes import BoxCoder, box_iou, clip_boxes
from detection_zoo.zoo.parts.proposals import Proposals, Size, select_proposals
from detection_zoo.zoo.records import Detections

SCORE_GAP = 2e-6  # between scores, or a score and its threshold
IOU_GAP = 1e-5  # between an IoU and its threshold
MASK_GAP = 1e-5  # between a mask's probability and its threshold
ROUNDED = 3e-7  # an IoU in float32 may be off by this
MOST = 12  # choices of a stage that are made as recorded
TRIED = 96  # choices of a stage that are tried at a time, the nearest to their decision
TRIALS = 240  # in all, so that a stage that is really wrong ends
SAME = 1e-3  # sum of the differences (pixels) of numbers that differ by rounding alone
ROW = 1e-3  # of the largest number: numbers further apart than this are of different rows

Outputs = dict[str, Output | Skip]


@dataclass(frozen=True)
class Nudge:
    """A change of what one row is chosen by, which changes a choice that is near.

    place: of the row, as the class that makes the nudge numbers rows. score: added to it. edges: how far
    x1, y1, x2, y2 move, as a share of the box's side. near: distance from the decision, as a share of the
    gap.
    """

    place: tuple[int, ...]
    score: float = 0.0
    edges: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    near: float = 0.0


def settle(compute: Callable[[], Outputs], choices: Choices, reference: Reference, dtype: str) -> Outputs:
    """What `compute` gives, near choices made as recorded where that makes all of it equal to the record.

    Choices are changed one after another, each time the one that brings the lists nearest to what is
    recorded; where not everything becomes equal, none is changed. Lines that depend on them state how many.

    Args:
        compute: runs the stage through `choices`; outputs by recorded name.
        choices: of the stage. dtype: of the comparison.
    """
    first = best = compute()
    start = apart = _apart(first, reference, dtype)
    left = TRIALS
    while apart and left > 0 and len(choices.nudges) < MOST:
        kept, trials = list(choices.nudges), []
        for nudge in sorted(choices.near(), key=lambda each: each.near)[:TRIED]:
            choices.nudges = [*kept, nudge]
            outputs = compute()
            trials.append((_apart(outputs, reference, dtype), len(trials), nudge, outputs))
            if not trials[-1][0]:
                break
        choices.nudges, left = kept, left - len(trials)
        if not trials or min(trials)[0] >= apart:
            break
        apart, _, nudge, best = min(trials)
        choices.nudges = [*kept, nudge]
    if apart:
        choices.nudges = []
        return first
    return best if not start else _noted(first, best, len(choices.nudges), reference, dtype)


def _noted(first: Outputs, best: Outputs, count: int, reference: Reference, dtype: str) -> Outputs:
    """The outputs, of which those that differed at first have the reason as a remark."""
    note = (
        f"{count} of its choices made as recorded: scores within {SCORE_GAP:g}, or an IoU within {IOU_GAP:g},"
        " of the decision"
    )
    return {
        name: replace(output, note=note) if _output_apart(name, first[name], reference, dtype) else output
        for name, output in best.items()
    }


def _apart(outputs: Outputs, reference: Reference, dtype: str) -> float:
    """How far outputs are from the record: 0 where all are equal to it."""
    return sum(_output_apart(name, output, reference, dtype) for name, output in outputs.items())


def _output_apart(name: str, output: Output | Skip, reference: Reference, dtype: str) -> float:
    """0 where an output equals the record, else 1 to 2: less, the later the first row that differs."""
    kept = reference.recorded.get(name)
    if isinstance(output, Skip) or compare(name, output, kept, dtype).verdict != "differs":
        return 0.0
    return 2.0 - _agreeing(to_numpy(output.value), _known(output, kept))


def _known(output: Output, kept: Mapping[str, np.ndarray] | None) -> tuple[np.ndarray, int]:
    """Recorded numbers, evenly taken, and their distance from each other."""
    if kept is None:
        return to_numpy(output.expected).reshape(-1), 1
    return kept["samples"], int(kept["stride"])


def _agreeing(value: np.ndarray, known: tuple[np.ndarray, int]) -> float:
    """The share of recorded numbers before the first that differs."""
    samples, stride = known
    own = value.reshape(-1)[::stride][: len(samples)].astype("float64")
    scale = max(float(np.abs(samples).max(initial=0.0)), 1e-12)
    differs = np.flatnonzero(~(np.abs(own - samples[: len(own)]) <= ROW * scale))
    return (differs[0] if len(differs) else len(own)) / max(len(samples), 1)


def settle_areas(
    paste: Callable[[float], Tensor],
    reference: Reference,
    name: str,
    own: Tensor,
    axis: int | tuple[int, ...],
) -> tuple[Tensor, str | None]:
    """Counts of pixels of masks as recorded, as far as pixels within `MASK_GAP` of the threshold may be on
    either side of it; and a remark.

    Args:
        paste: masks (R, H, W) bool with a distance added to the threshold, in double precision.
        name: of the counts. own: as computed, int64, the sums of masks over `axis`.
    """
    kept = reference.recorded.get(name)
    if kept is None or tuple(own.shape) != tuple(int(side) for side in kept["shape"]):
        return own, None
    stride, samples = int(kept["stride"]), torch.from_numpy(kept["samples"]).to(own.dtype)
    fewest, most = (paste(by).sum(dim=axis).reshape(-1)[::stride] for by in (MASK_GAP, -MASK_GAP))
    settled = own.clone()
    known = settled.view(-1)[::stride][: len(samples)]
    before = known.clone()
    known.copy_(samples.clamp(fewest[: len(samples)], most[: len(samples)]))
    wrong = (samples < fewest[: len(samples)]) | (samples > most[: len(samples)])
    known[wrong] = before[wrong]
    turned = int((known - before).abs().sum())
    if not turned:
        return own, None
    return settled, f"{turned} pixels within {MASK_GAP:g} of the threshold are counted on the recorded side"


def settle_ties(scores: np.ndarray, rows: np.ndarray, recorded: np.ndarray, gap: float = 2e-6) -> np.ndarray:
    """An order of rows in which neighbours of nearly equal scores are as recorded.

    Args:
        scores: (R,) by falling score. rows: (R, C) in that order, what distinguishes rows (boxes).
        recorded: (M, C), the first rows as recorded, M <= R, NaN where a number was not kept. gap: scores
            closer than this may change places.

    Returns:
        (R,) int64 positions.
    """
    order = np.arange(len(scores))
    start = 0
    while start < min(len(recorded), len(scores)):
        # no row of a tie is further than the gap from another
        end = start + int((scores[start] - scores[start:] < gap).sum())
        if end - start > 1:
            order[start:end] = start + _matched(rows[start:end], recorded[start:end])
        start = max(end, start + 1)
    return order


def _matched(rows: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    """An order (R,) of rows (R, C) by the recorded ones (M, C): those with the most known numbers get the
    nearest row first, the rest follow in order."""
    chosen: dict[int, int] = {}
    known = (~np.isnan(recorded)).sum(axis=1)
    for place in np.argsort(-known, kind="stable"):
        if known[place]:
            apart = np.nansum(np.abs(rows - recorded[place]), axis=1)
            apart[list(chosen.values())] = np.inf
            # clipped edges alone do not distinguish boxes
            stays = place < len(rows) and apart[place] <= apart.min() + SAME
            chosen[int(place)] = int(place if stays else apart.argmin())
    left = [row for row in range(len(rows)) if row not in set(chosen.values())]
    return np.array([chosen[place] if place in chosen else left.pop(0) for place in range(len(rows))])


class Choices(ABC):
    """The choices of a stage: `nudges` are in force in its calls, `near` lists those that may be changed."""

    def __init__(self) -> None:
        self.nudges: list[Nudge] = []

    @abstractmethod
    def near(self) -> list[Nudge]:
        """Nudges that change one choice each, of the calls since the last."""


class ProposalChoices(Choices):
    """Takes the place of `select_proposals` of one batch; places are (level, image, anchor)."""

    def __init__(self) -> None:
        super().__init__()
        self._given: tuple[Any, ...] | None = None

    def __call__(
        self,
        scores: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Sequence[Tensor],
        sizes: Sequence[Size],
        *,
        coder: BoxCoder,
        rule: ProposalConventions,
        level: int = 0,
    ) -> list[Proposals]:
        """Proposals; arguments as in `select_proposals`, and the number of the first level."""
        self._given = scores, deltas, anchors, sizes, coder, rule
        scores, deltas = list(scores), list(deltas)
        for nudge in self.nudges:
            own, image, row = nudge.place[0] - level, *nudge.place[1:]
            if 0 <= own < len(scores):
                scores[own], deltas[own] = scores[own].clone(), deltas[own].clone()
                scores[own][image, row] += nudge.score
                _move(deltas[own][image, row], nudge.edges, coder.weights)
        return select_proposals(scores, deltas, anchors, sizes, coder=coder, rule=rule)

    @torch.no_grad()
    def again(self) -> list[Proposals]:
        """The last call with the nudges of now."""
        *given, coder, rule = self._given
        return self(*given, coder=coder, rule=rule)

    def near(self) -> list[Nudge]:
        """Of the last call, which must have been of all levels."""
        scores, deltas, anchors, sizes, coder, rule = self._given
        rows = []
        for image, size in enumerate(sizes):
            for level, (own, change, start) in enumerate(zip(scores, deltas, anchors, strict=True)):
                group = len(scores) * image + (0 if rule.together else level)
                boxes = coder.decode(change[image].double(), start.double())
                boxes = clip_boxes(boxes, size, coder.offset)
                places = [(level, image, row) for row in range(len(boxes))]
                rows.append((boxes, own[image].double(), torch.full((len(boxes),), group), places))
        boxes, chances, groups, places = zip(*rows, strict=True)
        return _near(
            torch.cat(boxes),
            torch.cat(chances),
            torch.cat(groups),
            [place for own in places for place in own],
            rule.nms_iou,
            coder.offset,
            rule.pre_nms,
        )


class DetectionChoices(Choices):
    """Takes the place of a detector's `choose`; places are (image, row, class)."""

    def __init__(
        self, choose: Callable[[Tensor, Tensor], Detections], offset: float, rule: DetectionConventions
    ) -> None:
        super().__init__()
        self._choose, self._offset, self._rule = choose, offset, rule
        self._given: list[tuple[Tensor, Tensor]] = []

    def start(self) -> None:
        """The next call is of the first image."""
        self._given = []

    def __call__(self, probabilities: Tensor, boxes: Tensor) -> Detections:
        """Detections of the next image; arguments as in `FasterRcnn.choose`."""
        image = len(self._given)
        self._given.append((probabilities, boxes))
        probabilities, boxes = probabilities.clone(), boxes.clone()
        for nudge in self.nudges:
            owner, row, label = nudge.place
            if owner == image:
                probabilities[row, label] += nudge.score
                box = boxes[row, _column(label, boxes)]
                box += torch.tensor(nudge.edges).to(box) * (box[2:] - box[:2] + self._offset).repeat(2)
        return self._choose(probabilities, boxes)

    def near(self) -> list[Nudge]:
        """Of the images since the last `start`."""
        found = []
        for image, (probabilities, boxes) in enumerate(self._given):
            chances, placed = probabilities.double(), boxes.double()
            least = self._rule.score_threshold
            row, label = torch.nonzero(chances[:, 1:] > least - SCORE_GAP, as_tuple=True)
            label = label + 1
            scores = chances[row, label]
            own = placed[row, torch.tensor([_column(each, boxes) for each in label.tolist()]).long()]
            places = [(image, *each) for each in zip(row.tolist(), label.tolist(), strict=True)]
            found += _near(own, scores, label, places, self._rule.nms_iou, self._offset, 0)
            for place, score in zip(places, scores.tolist(), strict=True):
                if abs(score - least) <= SCORE_GAP:
                    near = abs(score - least) / SCORE_GAP
                    found.append(Nudge(place, score=2 * (least - score) or 1e-7, near=near))
        return found


def _move(deltas: Tensor, edges: Sequence[float], weights: Sequence[float]) -> None:
    """Change the deltas (4,) of a box so that its edges move by shares of its sides."""
    for axis in (0, 1):
        grown = (deltas[2 + axis] / weights[2 + axis]).exp()  # of the anchor's side
        deltas[axis] += weights[axis] * grown * (edges[axis] + edges[2 + axis]) / 2
        deltas[2 + axis] += weights[2 + axis] * (edges[2 + axis] - edges[axis])


def _column(label: int, boxes: Tensor) -> int:
    """The column of boxes (R, K + 1 or 2, 4) that a class 1..K has."""
    return label if boxes.shape[1] > 2 else boxes.shape[1] - 1


def _near(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    places: Sequence[tuple[int, ...]],
    threshold: float,
    offset: float,
    most: int,
) -> list[Nudge]:
    """Nudges of rows (R) in one image: neighbours by score that are nearly equal, and pairs of a group whose
    IoU is nearly the threshold.

    most: rows of each group that enter the NMS, the best by score; 0: all.
    """
    found: dict[tuple[int, int], Nudge] = {}
    every = [torch.nonzero(groups == group)[:, 0] for group in groups.unique()]
    every = [rows[scores[rows].argsort(descending=True, stable=True)][: most or None] for rows in every]
    for rows in (torch.cat(every)[scores[torch.cat(every)].argsort(descending=True)], *every):
        ranked = scores[rows]
        apart = ranked[:-1] - ranked[1:]
        gaps = _score_gap(ranked[1:])
        for upper in torch.nonzero(apart <= gaps)[:, 0].tolist():
            more = float(apart[upper]) + max(1e-9, 2.4e-7 * float(ranked[upper]))  # above float32's rounding
            near = float(apart[upper] / gaps[upper])
            pair = int(rows[upper + 1]), int(rows[upper])
            for row, other in (pair, pair[::-1]) if not apart[upper] else (pair,):  # equal: in any order
                found[row, other] = Nudge(places[row], score=more, near=near)
    nudges = list(found.values())
    for rows in every:
        margins = box_iou(boxes[rows], boxes[rows], offset) - threshold
        lower, upper = torch.nonzero((margins.abs() <= IOU_GAP).tril(-1), as_tuple=True)
        for row, other in zip(lower.tolist(), upper.tolist(), strict=True):
            margin, own = float(margins[row, other]), int(rows[row])
            for edges in _turning(boxes[own], boxes[rows[other]], margin, threshold, offset):
                nudges.append(Nudge(places[own], edges=edges, near=abs(margin) / IOU_GAP))
    return nudges


def _turning(
    box: Tensor, other: Tensor, margin: float, threshold: float, offset: float
) -> list[tuple[float, float, float, float]]:
    """Moves of one edge of a box (4,) that take its IoU with another (4,) to the other side of the threshold,
    which it is `margin` above; where float32 may round it to either side, one move for each."""
    found: dict[bool, tuple[float, float, float, float]] = {}
    side = (box[2:] - box[:2] + offset).repeat(2)
    for edge, sign in product(range(4), (1, -1)):
        edges = [0.0] * 4
        edges[edge] = sign * 4 * (abs(margin) + ROUNDED)
        moved = box + torch.tensor(edges).to(box) * side
        after = float(box_iou(moved[None], other[None], offset)) - threshold
        if abs(after) >= ROUNDED / 2 and (after > 0 > margin or after < 0 < margin or abs(margin) < ROUNDED):
            found.setdefault(after > 0, tuple(edges))
    return list(found.values())


def _score_gap(scores: Tensor) -> Tensor:
    """The gap (R,) of scores (R,): as that of a logit, which is the same for all, at scores near 0 and 1."""
    return SCORE_GAP * (4 * scores * (1 - scores)).clamp(min=0.05)
