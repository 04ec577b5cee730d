"""What rounding alone does to a training: the same updates with sums in another order.

A freshly filled network opens or closes ReLU units whose input is zero to within rounding. Gradients jump
there, and from update to update the jumps grow. A recorded number is held to its tolerance, or, where this
project's own updates are further apart than that, to a stated multiple of how far they are apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
import torch
from torch import Tensor

MULTIPLE = 10.0  # of the distance between two of this project's own trainings
MOST = 0.25  # a number that is further off differs, whatever rounding does
PIECE = 1 << 16  # numbers that are summed at once: a double copy of them stays in a processor's cache
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Quantity:
    """A recorded number of every update (or pass).

    name: of its array. kind: loss, grad, param, buffer or stat; rounding is measured over all of a kind.
    size: (updates,) what a difference is divided by. tolerance: of the quotient. steps: (updates,) length of
    the way that the number has gone, in sizes; rounding is counted in it. None: in sizes.
    """

    name: str
    kind: str
    size: np.ndarray
    tolerance: float
    steps: np.ndarray | None = None

    def apart(self, first: Arrays, second: Arrays) -> np.ndarray:
        """Differences (updates,), of vectors their length, in sizes."""
        count = len(self.size)
        difference = np.abs(np.asarray(first[self.name])[:count] - np.asarray(second[self.name])[:count])
        if difference.ndim > 1:
            difference = np.linalg.norm(difference, axis=1)
        return difference / np.maximum(np.abs(self.size), 1e-12)

    def allowed(self, rounding: Arrays) -> np.ndarray:
        """Tolerance of each update; rounding: of `measured_rounding`, or empty."""
        whole = np.full(len(self.size), self.tolerance)
        if self.kind not in rounding:
            return whole
        own = np.minimum(MULTIPLE * rounding[self.kind][: len(whole)], MOST)
        return np.maximum(whole, own if self.steps is None else own * self.steps)


def measured_rounding(quantities: Sequence[Quantity], made: Sequence[Arrays]) -> Arrays:
    """How far trainings by the same rules are apart, by kind: (updates,), the largest of any two up to each
    update.

    Args:
        quantities: what was recorded. made: arrays by name of each training.
    """
    found: dict[str, np.ndarray] = {}
    for one, (first, second) in product(quantities, combinations(made, 2)):
        apart = one.apart(first, second)
        if one.steps is not None:
            apart = np.where(one.steps > 0, apart / np.maximum(one.steps, 1e-30), 0.0)
        found[one.kind] = np.maximum(found.get(one.kind, 0.0), apart)
    return {kind: np.maximum.accumulate(apart) for kind, apart in found.items()}


def rounding_note(rounding: Arrays) -> str:
    """A sentence for the report: what was measured, by kind, after the last update."""
    last = ", ".join(f"{kind} {apart[-1]:.1e}" for kind, apart in rounding.items())
    return (
        f"with sums in another order (one thread; no oneDNN) the updates end {last} apart;"
        f" numbers beyond their tolerance are held to {MULTIPLE:g} times that, at most {MOST:g}"
    )


@contextmanager
def summed_by(threads: int, *, onednn: bool = True) -> Iterator[None]:
    """Within the block operators of a CPU use so many threads, and convolutions oneDNN or torch's own
    products of matrices."""
    before, was = torch.get_num_threads(), torch.backends.mkldnn.enabled
    torch.set_num_threads(threads)
    torch.backends.mkldnn.enabled = onednn
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.backends.mkldnn.enabled = was


def double_sums(tensor: Tensor) -> list[float]:
    """Sums (2,) of a tensor's numbers and their magnitudes, in double precision; piece by piece, as a double
    copy of millions of numbers takes ten times as long."""
    sums = torch.zeros(2, dtype=torch.float64)
    for piece in tensor.reshape(-1).split(PIECE):
        values = piece.double()
        sums += torch.stack([values.sum(), values.abs().sum()])
    return sums.tolist()


def double_squares(tensor: Tensor) -> float:
    """The sum (scalar) of the squares of a tensor's numbers, in the same way."""
    pieces = (piece.double() for piece in tensor.reshape(-1).split(PIECE))
    return float(sum(values.dot(values) for values in pieces))
