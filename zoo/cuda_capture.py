"""CUDA graphs: GPU work recorded once, and replayed by one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from detection_zoo.zoo.detectors.base import Detector
from detection_zoo.zoo.graphs import CaptureError, GraphClassifier, GraphDetector, Replay

Result = TypeVar("Result")


class CudaCapture:
    """The `Capture` of a GPU: all recordings share one pool of temporary memory, so they run one after
    another, on the current stream.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], Result]) -> tuple[Result, Replay]:
        """Run work once on a side stream, record it there, and replay it; see `graphs.Capture`."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            work()  # compiles and loads kernels and fills caches, which is not allowed during recording
        current.wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # thread-local: other threads may load data into page-locked memory meanwhile
            with torch.cuda.graph(
                graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
            ):
                result = work()
        except RuntimeError as error:
            torch.cuda.set_stream(current)  # a failed capture leaves its own stream current
            raise CaptureError(str(error).partition("\n")[0]) from error
        graph.replay()
        return result, graph.replay


def with_graphs(model: nn.Module, device: torch.device) -> tuple[nn.Module, list[str]]:
    """A model that replays its work as CUDA graphs where it can on a GPU, and why it cannot; on a CPU the
    model itself."""
    if device.type != "cuda":
        return model, []
    if not isinstance(model, Detector):
        return GraphClassifier(model, CudaCapture(device)), []
    if model.needs_any_size is not None:
        return model, [f"no CUDA graphs: {model.needs_any_size}"]
    return GraphDetector(model, CudaCapture(device)), []
