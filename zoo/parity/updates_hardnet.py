"""Recorded updates of PytorchSSD-HarDNet: settings of its command, and its augmentation's inputs."""

from __future__ import annotations

import itertools
import shlex
from random import Random

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import RandomSampler

from detection_zoo.zoo.data.samplers import Shuffled
from detection_zoo.zoo.data.ssd_augmentation import SSDAugmentation
from detection_zoo.zoo.data.training_images import augmented_item, collate
from detection_zoo.zoo.data.training_loader import target_rules
from detection_zoo.zoo.data.transforms import Preprocess
from detection_zoo.zoo.data.voc import VocDataset
from detection_zoo.zoo.detectors.ssd import SSD
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.parity.schedules import flags, hardnet_schedule
from detection_zoo.zoo.parity.standin import standin_model
from detection_zoo.zoo.parity.updates import Batch, Recorded, Replay, Tolerances

FORMAT = "pytorchssd_pth"
FIRST_LOADER_SEED, SEEDS_OF_EPOCH = 70, 1000  # of the recording
# A freshly filled SSD amplifies rounding from update to update, so the recording compares the momentum of a
# run at a low rate within 2e-2; at the true rate only the updates of its caution are compared.
AMPLIFIED = Tolerances(momentum=2e-2)


def set_up(recorded: Recorded, entry: ModelEntry) -> Replay:
    """The run of a folder, from its command line."""
    command = flags(shlex.split(recorded.meta["command"]))
    model, translation = standin_model(recorded.folder, entry, SSD, FORMAT)
    dataset = VocDataset(recorded.data / "voc", ["2007"], "trainval")
    per_epoch = len(dataset) // int(command["-b"])
    published = load_manifests().schedules[entry.schedule or ""]
    held = _held(recorded)
    model.train()

    def losses(number: int, batch: Batch) -> dict[str, Tensor]:
        found = model.losses(*batch)
        return {"loc": found["loss_box"], "conf": found["loss_class"]}

    return Replay(
        model,
        {theirs.removeprefix("module."): ours for ours, theirs in translation.origin.items()},
        hardnet_schedule(published, command, per_epoch),
        losses,
        (_batch(recorded, number, dataset, entry) for number in range(recorded.forwards)),
        Tolerances() if held else AMPLIFIED,
        first=int(command["--resume_epoch"]) * per_epoch,
        per_epoch=per_epoch,
        held=held,
        order=_order(recorded.forwards, len(dataset), int(command["-b"])),
        truth=_truth,
    )


def _order(passes: int, images: int, batch: int) -> list[list[tuple[int, int]]]:
    """Images of each pass and the seeds of their augmentation, from what the original drew."""
    found: list[list[tuple[int, int]]] = []
    shuffled = Shuffled(range(images), [(1, 1)] * images, batch)
    for epoch in itertools.count():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(FIRST_LOADER_SEED + epoch)
            torch.empty((), dtype=torch.int64).random_()  # the seed that a loader gives to its workers
            order = list(RandomSampler(range(images)))
        for entries in shuffled.arranged(order):
            found.append([(each.index + 1, SEEDS_OF_EPOCH * epoch + each.index) for each in entries])
        if len(found) >= passes:
            return found


def _truth(batch: Batch) -> dict[str, np.ndarray]:
    """Rows image, box as fractions, label from 1."""
    images, _, targets = batch
    height, width = images.shape[2:]
    scale = torch.tensor([width, height, width, height])
    rows = [
        torch.cat([torch.full((len(t.boxes), 1), float(i)), t.boxes / scale, t.labels[:, None] + 1.0], dim=1)
        for i, t in enumerate(targets)
    ]
    return {"targets": torch.cat(rows).numpy()}


def _held(recorded: Recorded) -> int | None:
    """Updates of a run of which more than the rates are compared, by the folder's caution; None: all."""
    caution = recorded.settings.notes.get("caution")
    return caution.updates if caution and caution.run == recorded.name else None


def _batch(recorded: Recorded, number: int, dataset: VocDataset, entry: ModelEntry) -> Batch:
    """The recorded images of a pass, each augmented from its recorded seed."""
    rules = target_rules(entry, dataset)
    augmentation = SSDAugmentation(Preprocess.from_conventions(entry.conventions.image))
    items = [
        augmented_item(dataset, image - 1, augmentation, rules, Random(seed))
        for image, seed in recorded.array(f"images|{number}").tolist()
    ]
    return collate(items, 1)
