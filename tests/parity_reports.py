"""Parity reports of reference folders as they were recorded, computed once in a process."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from detection_zoo.zoo.parity.base import ParityReport, parity

FOLDERS = Path(__file__).resolve().parent / "reference"


@cache
def report_of(name: str) -> ParityReport:
    """The report of a folder (source/name) in float32."""
    return parity(FOLDERS / name)
