"""Detection zoo: pretrained detectors, reproducible benchmark tables, head-to-head comparison.

In a checkout the packages `zoo`, `kernels` and `benchmarks` lie in the root beside this folder; in an
installed wheel they lie inside it. Both import as `detection_zoo.zoo`, `detection_zoo.kernels` and
`detection_zoo.benchmarks`.
"""

from __future__ import annotations

from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "manifests" / "metrics.toml").is_file() and (_ROOT / "zoo" / "registry.py").is_file():
    __path__.append(str(_ROOT))
