"""Networks of OpenVINO in 8 bits: post-training quantisation by NNCF."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from torch import Tensor

from detection_zoo.zoo.export.files import NOTES, no_usage_statistics

LAYERS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul")


def quantise(path: Path, batches: Sequence[tuple[Tensor, Tensor]], images: dict[str, Any]) -> None:
    """Quantise the weights and maps of the network in an OpenVINO file, in place.

    Post-processing (decoding, scores, NMS) stays in float32, as do the boxes of RoIs and single pooled
    levels.

    Args:
        path: of the .xml. batches: images (N, 3, H, W) of the file's shape and sizes (N, 2), whose maps set
            the ranges. images: their description for the metadata.
    """
    import openvino as ov

    with no_usage_statistics():
        import nncf

    nncf.set_log_level(40)  # errors only
    model = ov.Core().read_model(path)
    given = nncf.Dataset(batches, lambda batch: {"images": batch[0].numpy(), "sizes": batch[1].numpy()})
    with redirect_stdout(sys.stderr):  # of its progress
        quantised = nncf.quantize(
            model,
            given,
            subset_size=len(batches),
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=selection(model), validate=False),
        )
    how = f"NNCF {nncf.__version__} after training: weights symmetric, maps asymmetric, 8 bits"
    notes = json.loads(model.get_rt_info(NOTES).astype(str))
    quantised.set_rt_info(json.dumps(notes | {"quantisation": {"how": how, **images}}), NOTES)
    part = path.with_name(f"int8-{path.name}")
    ov.save_model(quantised, part, compress_to_fp16=False)
    for suffix in (".xml", ".bin"):
        part.with_suffix(suffix).replace(path.with_suffix(suffix))


def selection(model: Any) -> list[str]:
    """Names of an OpenVINO model's operators that stay in float32.

    They are those whose results reach no layer with weights but as boxes of RoIs, as indices or as marks, and
    those of maps of any length: a level without RoIs has none that could set a range.
    """
    names = {one.get_friendly_name() for one in model.get_ops()}
    found = [one for one in model.get_ops() if one.get_type_name() in LAYERS]
    network = set()
    while found:
        one = found.pop()
        if one.get_friendly_name() not in network:
            network.add(one.get_friendly_name())
            found += _sources(one)
    ragged = {one.get_friendly_name() for one in model.get_ops() if _any_length(one)}
    return sorted(names - network | ragged)


def _any_length(operator: Any) -> bool:
    """Whether it takes or gives something of a size that depends on values."""
    return any(port.get_partial_shape().is_dynamic for port in (*operator.inputs(), *operator.outputs()))


def _sources(operator: Any) -> Iterator[Any]:
    """Operators that give the maps which one reads."""
    for number, given in enumerate(operator.inputs()):
        boxes = operator.get_type_name() == "ROIAlign" and number > 0
        if not boxes and given.get_element_type().is_real():
            yield given.get_source_output().get_node()
