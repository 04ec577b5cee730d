"""Run several models in parallel on one machine: one thread and one GPU per slot; Ctrl-C stops all of
them."""

from __future__ import annotations

import multiprocessing
import os
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from detection_zoo.zoo.errors import ManifestError

Environment = dict[str, str]


def slots_of(jobs: int, device: str) -> list[Environment]:
    """Return the environment variables that give each job its own GPU; on a CPU, jobs share the cores.

    Raises:
        ManifestError: there are fewer GPUs than jobs.
    """
    if device == "cpu":
        return [{} for _ in range(jobs)]
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = (
        [name.strip() for name in given.split(",") if name.strip()]
        if given
        else [str(number) for number in range(torch.cuda.device_count())]
    )
    if len(gpus) < jobs:
        raise ManifestError(
            f"--jobs {jobs}: this machine has {len(gpus)} visible GPUs; two models on one GPU would"
            " disturb each other's times"
        )
    return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus[:jobs]]


def run_parallel(
    work: Sequence[Any],
    one: Callable[[Any, Environment, Any], Any],
    done: Callable[[Any, Any], None],
    slots: Sequence[Environment],
) -> bool:
    """Process work items in parallel, one thread per slot.

    Args:
        work: work items, started in order.
        one: processes an item, given the slot's variables and a connection that becomes readable when the
            work must stop; returns a result.
        done: called in this thread with each item and its result, as they finish.
        slots: environment variables of each slot.

    Returns:
        Whether Ctrl-C stopped it; items in progress then are passed to `done` too.

    Raises:
        Any exception of `one`, after the other items have been stopped.
    """
    free: queue.SimpleQueue[Environment] = queue.SimpleQueue()
    for slot in slots:
        free.put(slot)
    cancelled, cancel = multiprocessing.get_context("spawn").Pipe(duplex=False)

    def serve(piece: Any) -> Any:
        slot = free.get()
        try:
            return one(piece, slot, cancelled)
        finally:
            free.put(slot)

    stopped, fault = False, None
    pool = ThreadPoolExecutor(len(slots), "job")
    pieces = {pool.submit(serve, piece): piece for piece in work}
    try:
        while pieces:
            try:
                future = next(as_completed(pieces))
                piece = pieces.pop(future)
                if (error := future.exception()) is None:
                    done(piece, future.result())
                    continue
                fault = fault or error
            except KeyboardInterrupt:
                stopped = True
            cancel.close()  # ends the items in progress; the others do not start
            pieces = {future: piece for future, piece in pieces.items() if not future.cancel()}
    finally:
        cancel.close()
        pool.shutdown(cancel_futures=True)
    if fault is not None:
        raise fault
    return stopped
