"""Detection zoo: pretrained detectors, reproducible benchmark tables, head-to-head comparison.

>>> import detection_zoo as dz
>>> dz.list_models("faster_rcnn_*", source="vovnet", backbone="vovnet39")
['faster_rcnn_vovnet39_fpn_2x.vovnet']

`load` and `create` make a model, `Model.detect` finds objects, `evaluate`, `benchmark` and `compare` are the
commands of the same names, `ops` has the operators. Names are imported when they are first used, so
`import detection_zoo` needs no torch.

In a checkout the packages `zoo`, `kernels` and `benchmarks` lie in the root beside this folder; in an
installed wheel they lie inside it. Both import as `detection_zoo.zoo`, `detection_zoo.kernels` and
`detection_zoo.benchmarks`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "manifests" / "metrics.toml").is_file() and (_ROOT / "zoo" / "registry.py").is_file():
    __path__.append(str(_ROOT))

_PLACES = {
    "list_models": "models",
    "load": "models",
    "create": "models",
    "Model": "models",
    "Prediction": "predictions",
    "evaluate": "measuring",
    "benchmark": "measuring",
    "compare": "measuring",
}
__all__ = [*_PLACES, "ops"]


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used."""
    if name == "ops":
        return import_module("detection_zoo.ops")
    if name not in _PLACES:
        raise AttributeError(f"module 'detection_zoo' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"detection_zoo.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
