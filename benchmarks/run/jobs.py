"""Run several models in parallel on one machine: one thread and one GPU per slot; Ctrl-C stops all of
them."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Sequence
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
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    results: queue.SimpleQueue[tuple[Any, Any, BaseException | None]] = queue.SimpleQueue()
    cancelled, cancel = multiprocessing.get_context("spawn").Pipe(duplex=False)
    for piece in work:
        waiting.put(piece)

    def serve(slot: Environment) -> None:
        while True:
            try:
                piece = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                results.put((piece, one(piece, slot, cancelled), None))
            except BaseException as error:
                results.put((piece, None, error))

    threads = [
        threading.Thread(target=serve, args=(slot,), name=f"job {number}", daemon=True)
        for number, slot in enumerate(slots)
    ]
    for thread in threads:
        thread.start()
    left, stopped, fault = len(work), False, None
    while left:
        try:
            piece, result, error = results.get()
            left -= 1
            if error is None:
                done(piece, result)
            else:
                fault = fault or error
                left -= _end(waiting, cancel)
        except KeyboardInterrupt:
            stopped = True
            left -= _end(waiting, cancel)
    for thread in threads:
        thread.join()
    if fault is not None:
        raise fault
    return stopped


def _end(waiting: queue.SimpleQueue[Any], cancel: Any) -> int:
    """Stop every job and remove items that have not started; returns their number."""
    cancel.close()
    taken = 0
    while True:
        try:
            waiting.get_nowait()
        except queue.Empty:
            return taken
        taken += 1
