"""Training checkpoints: written atomically, read without executing code, resumed bit for bit."""

from __future__ import annotations

import os
import random
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from detection_zoo.zoo.data.training_loader import is_lost_worker
from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.training.distributed import Process, bare, gather

FORMAT = 1
LAST, BEST = "last.pth", "best.pth"  # links to the newest checkpoint and to the best evaluated one
_NAME = re.compile(r"^step_(\d{8})\.pth$")


def random_state(device: torch.device | str = "cpu") -> dict[str, Any]:
    """State of the generators of Python, NumPy, torch and the device, as tensors and plain values."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": [version, list(words), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.device(device).type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device | str = "cpu") -> None:
    """Restore the generators from a state of `random_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.device(device).type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def write_whole(path: Path, value: Any) -> None:
    """Write with torch.save atomically: the name never refers to a partial file, even after a power cut or
    kill -9."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    try:
        torch.save(value, temporary)  # by name: torch writes outside Python, where signals would raise
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself must survive a power cut
    finally:
        os.close(folder)


def save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    iteration: int,
    *,
    scaler: torch.amp.GradScaler | None = None,
    entry: str = "",
    keep: int = 2,
    process: Process | None = None,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Save a training state as step_<iteration>.pth, and as last.pth, and drop older ones.

    Args:
        folder: created if missing.
        model: saved without its distributed wrapper.
        iteration: updates made; `apply` returns it as the `start` of `train_steps`.
        entry: name of the manifest row, so that a checkpoint is not resumed into another model.
        keep: number of newest checkpoints kept; 0 keeps all.
        process: all processes call this, the first one writes; the generators of each are saved.
        more: plain values and tensors that `read` returns under these names.

    Raises:
        CheckpointError: the file could not be written; earlier checkpoints are kept.
    """
    device = next(model.parameters()).device
    path = folder / f"step_{iteration:08d}.pth"
    ranks = [random_state(device)] if process is None else gather([random_state(device)], process)
    if process is not None and not process.main:
        return path
    value = {
        "format": FORMAT,
        "entry": entry,
        "iteration": iteration,
        "model": bare(model).state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler else None,
        "random": ranks[0],
        "random_of_ranks": ranks,
        **(more or {}),
    }
    try:
        write_whole(path, value)
        point_to(folder / LAST, path)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError for errors of the file system
        if is_lost_worker(error):
            raise
        newest = latest(folder)
        raise CheckpointError(
            f"{path}: the checkpoint could not be written ({str(error).splitlines()[0]}); is the disk full?"
            f" {'No checkpoint is there' if newest is None else f'The last good one is {newest.name}'}"
        ) from error
    for old in _found(folder)[:-keep] if keep else []:
        old.unlink(missing_ok=True)
    for part in folder.glob(".step_*.part"):  # left by a process killed while writing
        part.unlink(missing_ok=True)
    return path


def point_to(name: Path, path: Path) -> None:
    """Link a second name to a file atomically; a copy if the file system has no hard links."""
    temporary = name.with_name(f".{name.name}.part")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    os.replace(temporary, name)


def _found(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step_*.pth") if _NAME.match(path.name))


def latest(folder: Path) -> Path | None:
    """The checkpoint with the most iterations, or none."""
    found = _found(folder)
    return found[-1] if found else None


def read(path: Path) -> dict[str, Any]:
    """A checkpoint as `save` wrote it, on the CPU, read with weights_only.

    Raises:
        CheckpointError: the file is truncated, contains something other than data, or is not a training
            checkpoint.
    """
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except (
        Exception
    ) as error:  # torch raises RuntimeError, UnpicklingError, EOFError, KeyError ... depending on the damage
        raise CheckpointError(
            f"{path}: not a readable training checkpoint ({type(error).__name__}); delete it and resume from"
            " an older one"
        ) from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: not a training checkpoint of format {FORMAT}; load weight files with the checkpoint"
            " formats instead"
        )
    return value


def apply(
    value: Mapping[str, Any],
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    scaler: torch.amp.GradScaler | None = None,
    entry: str = "",
    rank: int = 0,
) -> int:
    """Restore model, optimiser and random generators from the result of `read`.

    Args:
        value: result of `read`; path: its file, for messages.
        model, optimizer, scaler: are changed.
        entry: the row being trained.
        rank: of this process; a rank missing in the checkpoint keeps its generators.

    Returns:
        the iteration to resume from.

    Raises:
        CheckpointError: of another row, or of another shape than the model.
    """
    if entry and value["entry"] and value["entry"] != entry:
        raise CheckpointError(
            f"{path}: a training of {value['entry']!r}, not of {entry!r}; choose another folder"
        )
    try:
        bare(model).load_state_dict(value["model"], strict=True)
        optimizer.load_state_dict(value["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: does not fit the model being trained: {error}") from error
    if scaler is not None and value["scaler"]:
        scaler.load_state_dict(value["scaler"])
    ranks = value.get("random_of_ranks", [value["random"]])
    if rank < len(ranks):
        set_random_state(ranks[rank], next(model.parameters()).device)
    return value["iteration"]
