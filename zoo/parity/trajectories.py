"""Parity of recorded trainings: folders of some updates of an original script, from data to momentum."""

from __future__ import annotations

from pathlib import Path

from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.parity import updates_benchmark, updates_detectron, updates_detnet, updates_hardnet
from detection_zoo.zoo.parity.base import ParityReport
from detection_zoo.zoo.parity.files import ParityError
from detection_zoo.zoo.parity.updates import FILE, read_runs, replayed

# source repository -> what sets a run of it up, and the sources of rows that it may be
SOURCES = {
    "roytseng-tw/Detectron.pytorch": (updates_detectron.set_up, ("detectron_pytorch",)),
    "stigma0617/maskrcnn-benchmark-vovnet": (updates_benchmark.set_up, ("vovnet", "maskrcnn_benchmark")),
    "guoruoqian/DetNet_pytorch": (updates_detnet.set_up, ("detnet",)),
    "PingoLH/PytorchSSD-HarDNet": (updates_hardnet.set_up, ("hardnet",)),
}


def check_trajectory(folder: Path, row: str | None = None) -> ParityReport:
    """Make the updates of every run of a folder again, and compare inputs, losses, gradients, parameters and
    momentum.

    Args:
        folder: holds train_steps.json, train_steps.npz and checkpoint.json.
        row: manifest row to train; default: the one of the folder's configuration.

    Raises:
        ParityError: a file cannot be read, or there is no adapter for the source.
    """
    meta, runs = read_runs(folder)
    repository = meta["source"].split("@")[0]
    if repository not in SOURCES:
        raise ParityError(
            f"{folder / FILE}: there is no adapter for source {repository!r}; known:"
            f" {', '.join(sorted(SOURCES))}"
        )
    set_up, sources = SOURCES[repository]
    manifests = load_manifests()
    entry = manifests.entry(row) if row else manifests.by_config(folder.name, sources)
    made = [replayed(lambda recorded: set_up(recorded, entry), recorded) for recorded in runs]
    lines, notes = (tuple(item for part in parts for item in part) for parts in zip(*made, strict=True))
    return ParityReport(str(folder), repository, entry.name, "float32", lines, notes)
