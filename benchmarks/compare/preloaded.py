"""Imported once by the process from which a comparison's processes are forked: what each of them needs."""

from __future__ import annotations

import torch

from detection_zoo.benchmarks.compare import contestant  # noqa: F401
from detection_zoo.benchmarks.run.isolation import freeze_objects
from detection_zoo.kernels.nms import nms

nms(torch.zeros(1, 4), torch.zeros(1), 0.5)  # loads numba, which takes as long as all but torch
freeze_objects()
