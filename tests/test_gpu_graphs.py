"""CUDA graphs on a GPU: each family finds in other images what it finds without, and shapes may alternate."""

from __future__ import annotations

import pytest
import torch
from slim_families import ROWS, SIDE, pictures

from detection_zoo.zoo.build import build_model
from detection_zoo.zoo.cuda_capture import with_graphs
from detection_zoo.zoo.graphs import GraphDetector, Recordings
from detection_zoo.zoo.records import tensors_in

SIZES = torch.tensor([[SIDE, SIDE - 12], [SIDE - 7, SIDE]])
ORIGINAL = torch.tensor([[400, 370], [306, 320]])


@pytest.mark.gpu
@pytest.mark.parametrize("family", ROWS)
def test_replayed_on_other_images(family: str) -> None:
    """Two shapes in turn, of which one is evicted: labels equal, boxes and scores up to rounding."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU here, so no graph")
    model, images = build_model(ROWS[family], "published", device="cuda").eval(), pictures(2).cuda()
    replaying, notes = with_graphs(model, images.device)
    assert isinstance(replaying, GraphDetector) and not notes
    replaying.recordings = Recordings(most=1)
    with torch.inference_mode():
        for rows in (slice(0, 1), slice(1, 2), slice(0, 2), slice(0, 1), slice(1, 2)):
            given = images[rows], SIZES[rows], ORIGINAL[rows]
            pairs = zip(replaying.predict(*given), model.predict(*given), strict=True)
            for one, other in pairs:
                assert torch.equal(one.labels, other.labels)
                for ours, expected in zip(tensors_in(one), tensors_in(other), strict=True):
                    torch.testing.assert_close(ours.float(), expected.float(), rtol=1e-4, atol=1e-3)
    assert replaying.recordings.failure is None and replaying.recordings.evictions >= 2
