"""What happens on a simulated GPU (tests/simulated_gpu.py), written down."""

from __future__ import annotations

import sys
from collections import Counter

OURS = ("/zoo/", "/kernels/", "/benchmarks/")


class Log:
    """What happened on the simulated GPU: waits by (kind, place), and kernels of ours by name.

    capturing: work is recorded, so that the host may neither wait nor copy anything to the device.
    """

    def __init__(self) -> None:
        self.capturing = False
        self.waits: Counter[tuple[str, str]] = Counter()
        self.kernels: Counter[str] = Counter()

    def wait(self, kind: str) -> None:
        """Count one wait, at the innermost frame of the project."""
        if self.capturing:
            raise RuntimeError(f"operation not permitted when stream is capturing: {kind} at {place()}")
        self.waits[kind, place()] += 1

    def clear(self) -> None:
        """Forget everything."""
        self.waits.clear()
        self.kernels.clear()

    def report(self) -> str:
        """The waits, the most frequent first."""
        return "\n".join(f"{count:4d} {kind}: {where}" for (kind, where), count in self.waits.most_common())


LOG = Log()


def place() -> str:
    """File, line and function of the innermost frame of the project."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        for root in OURS:
            if root in name and "/tests/" not in name and "/site-packages/" not in name:
                return f"{name[name.rindex(root) + 1 :]}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"
