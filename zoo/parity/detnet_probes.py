"""Outputs that DetNet_pytorch's reference folders record by samples at even steps and by values drawn
("@probe")."""

from __future__ import annotations

import zlib

import numpy as np

from detection_zoo.zoo.parity.base import Output, Reference, Skip, to_numpy


def with_probes(reference: Reference, computed: dict[str, Output | Skip]) -> dict[str, Output | Skip]:
    """What was computed, and the 512 drawn values of each output whose name is recorded with '@probe'."""
    computed = dict(computed)
    for name in reference.recorded:
        whole = name.removesuffix("@probe")
        output = computed.get(whole)
        if whole != name and isinstance(output, Output):
            flat = to_numpy(output.value).reshape(-1)
            computed[name] = Output(flat[_probed(whole, flat.size)] if flat.size else flat, output.tolerance)
        elif whole != name and isinstance(output, Skip):
            computed[name] = output
    return computed


def _probed(name: str, size: int) -> np.ndarray:
    """Places (512,) of an output's values that are recorded under its name with '@probe'."""
    return np.random.RandomState(zlib.crc32(name.encode())).randint(0, size, 512)


def known_values(reference: Reference, name: str) -> np.ndarray:
    """An output as far as it is recorded, evenly and by '@probe', in its whole shape; NaN elsewhere."""
    kept, probe = reference.recorded[name], reference.recorded.get(f"{name}@probe")
    flat = np.full(int(np.prod(kept["shape"])), np.nan)
    flat[:: int(kept["stride"])][: len(kept["samples"])] = kept["samples"]
    if probe is not None and flat.size:
        flat[_probed(name, flat.size)] = probe["samples"]
    return flat.reshape(kept["shape"])
