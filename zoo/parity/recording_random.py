"""A source of randomness that notes its draws, to compare them with the draws that a reference folder
records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any


class RecordingRandom(Random):
    """Draws as `random.Random`, noting name, arguments and result of each: what the folder records."""

    def __init__(self, seed: int) -> None:
        self.draws: list[list[Any]] = []
        self._nested = False
        super().__init__(seed)

    def getrandbits(self, k: int) -> int:
        """As inherited; overriding it keeps the choice of whole numbers as it is."""
        return super().getrandbits(k)

    def _note(self, name: str, arguments: Any, draw: Callable[[], Any]) -> Any:
        if self._nested:  # choice and randint call randrange and random
            return draw()
        self._nested = True
        value = draw()
        self._nested = False
        self.draws.append([name, arguments, value])
        return value

    def random(self) -> float:
        """As inherited, noted."""
        return self._note("random", [], super().random)

    def uniform(self, a: float, b: float) -> float:
        """As inherited, noted."""
        return self._note("uniform", [a, b], lambda: Random.uniform(self, a, b))

    def randrange(self, stop: int) -> int:
        """As inherited, noted."""
        return self._note("randrange", [stop], lambda: Random.randrange(self, stop))

    def randint(self, a: int, b: int) -> int:
        """As inherited, noted."""
        return self._note("randint", [a, b], lambda: a + Random.randrange(self, b - a + 1))

    def choice(self, seq: Sequence[Any]) -> Any:
        """As inherited, noted: the folder has the number of options, and writes a mode as (minimum, maximum)
        IoU."""
        value = self._note("choice", len(seq), lambda: Random.choice(self, seq))
        self.draws[-1][2] = None if value is None else [None if value < 0 else value, None]
        return value
