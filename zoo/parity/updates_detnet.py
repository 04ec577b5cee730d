"""Recorded updates of DetNet_pytorch: its own draws from first to last, and losses from recorded RoIs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detection_zoo.zoo.conventions import RoiConventions
from detection_zoo.zoo.data.cropping import fit_to_ratio
from detection_zoo.zoo.data.resizing import ShorterSide
from detection_zoo.zoo.data.samplers import Entry, PaddedRatioGroups
from detection_zoo.zoo.data.training_images import Item, collate, training_item
from detection_zoo.zoo.data.training_loader import target_rules
from detection_zoo.zoo.data.transforms import Preprocess
from detection_zoo.zoo.data.voc import VocDataset
from detection_zoo.zoo.detectors.faster_rcnn import FasterRcnn
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.parity.schedules import flags
from detection_zoo.zoo.parity.standin import standin_model
from detection_zoo.zoo.parity.updates import Batch, Recorded, Replay
from detection_zoo.zoo.parts.boxes import BoxCoder
from detection_zoo.zoo.parts.targets import Draws, FixedCountBoxSampler, SampledBoxes
from detection_zoo.zoo.records import Target

FORMAT = "detnet_pytorch_pth"
NUMPY_SEED, TORCH_SEED = 3, 3
DECAY_STEP = 5  # of the script, where its command does not set another


def set_up(recorded: Recorded, entry: ModelEntry) -> Replay:
    """The run of a folder, from its command line and settings."""
    command = flags(shlex.split(recorded.meta["command"]))
    model, translation = standin_model(recorded.folder, entry, FasterRcnn, FORMAT)
    run = _Run(model.train(), recorded, entry, int(command["--bs"]))
    decay = int(command.get("--lr_decay_step", DECAY_STEP))
    schedule = load_manifests().schedules[entry.schedule or ""]
    first, last = int(command["--start_epoch"]), int(command["--epochs"])
    changes = {"lr": float(command["--lr"]), "steps": [decay], "epochs": last - 1}
    return Replay(
        model,
        {theirs: ours for ours, theirs in translation.origin.items()},
        schedule.model_copy(update=changes),
        run.losses,
        run.batches(),
        first=(first - 1) * run.per_epoch,
        per_epoch=run.per_epoch,
        unused=frozenset(translation.dropped),
        order=run.images,
        truth=run.truth,
    )


class _Run:
    """Batches and losses of a run; everything is drawn in the original's order from one legacy generator."""

    def __init__(self, model: FasterRcnn, recorded: Recorded, entry: ModelEntry, batch: int) -> None:
        self.model, self.recorded = model, recorded
        self.draws = np.random.RandomState(NUMPY_SEED)
        settings = recorded.meta["settings"]
        rule = model.sampler.rule.model_copy(update={"samples": settings["TRAIN.BATCH_SIZE"]})
        self.sampler = _RecordedRois(model.coder, rule, self.draws, recorded)
        model.rpn.sampler.draws, model.sampler = self.draws, self.sampler
        self.dataset = VocDataset(recorded.data / "voc", ["2007"], "trainval").subset(
            recorded.meta["images_of_the_set"]
        )
        image = entry.conventions.image
        (side,) = settings["TRAIN.SCALES"]
        self.preprocess = replace(
            Preprocess.from_conventions(image), resize=ShorterSide(side, image.max_size, image.rounding)
        )
        self.rules = target_rules(entry, self.dataset)
        indices = range(len(self.dataset))
        sizes = [self.dataset.image_size(index) for index in indices]
        self.order = PaddedRatioGroups(indices, sizes, batch, aspect_cropping=True)
        self.per_epoch = self.order.entries // batch
        self.images: list[list[tuple[int, int]]] = []

    def batches(self) -> Iterator[Batch]:
        """The batches of the run's epochs."""
        state = torch.Generator().manual_seed(TORCH_SEED)
        while True:
            torch.empty((), dtype=torch.int64).random_(generator=state)  # a loader's seed of its workers
            groups = torch.randperm(self.order.entries // self.order.batch_size, generator=state).tolist()
            for batch in self.order.arranged(groups):
                ids = self.dataset.image_ids
                self.images.append([(int(ids[each.index]), int(bool(each.flip))) for each in batch])
                yield collate([self.item(entry) for entry in batch], 1)

    def item(self, entry: Entry) -> Item:
        """One image, cropped and padded by the run's draws."""
        rules = self.rules.model_copy(update={"max_objects": None})
        item = training_item(self.dataset, entry.index, self.preprocess, rules, flip=bool(entry.flip))
        height, width = item[0].original_size
        return fit_to_ratio(item, entry.ratio, width / height, self.draws, self.rules.max_objects)

    def truth(self, batch: Batch) -> dict[str, np.ndarray]:
        """Objects and sizes of a batch as the folder has them."""
        _, sizes, targets = batch
        scales = torch.tensor([target.scale[:1] for target in targets])
        rows = [torch.cat([each.boxes, each.labels[:, None] + 1.0], dim=1) for each in targets]
        return {
            "gt": pad_sequence(rows, batch_first=True).numpy(),
            "im_info": torch.cat([sizes.float(), scales], dim=1).numpy(),
        }

    def losses(self, number: int, batch: Batch) -> dict[str, Tensor]:
        """Every loss of a pass: from the anchors drawn here, and from the recorded RoIs."""
        self.sampler.number = number
        found = self.model.losses(*batch)
        return {
            "rpn_cls": found["loss_rpn_objectness"],
            "rpn_box": found["loss_rpn_box"],
            "rcnn_cls": found["loss_class"],
            "rcnn_box": found["loss_box"],
        }


class _RecordedRois(FixedCountBoxSampler):
    """Draws as its parent, so that later draws are the original's, and gives the recorded RoIs."""

    def __init__(self, coder: BoxCoder, rule: RoiConventions, draws: Draws, recorded: Recorded) -> None:
        super().__init__(coder, rule, draws)
        self.recorded, self.number = recorded, 0

    def __call__(self, proposals: Sequence[Tensor], targets: Sequence[Target]) -> list[SampledBoxes]:
        """The RoIs of a pass, image by image."""
        drawn = super().__call__(proposals, targets)
        rois, labels, deltas = (
            self.recorded.tensor(f"{name}|{self.number}") for name in ("rois", "labels", "box_targets")
        )
        rows = [torch.nonzero(rois[:, 0] == image).squeeze(1) for image in range(len(drawn))]
        return [
            replace(each, boxes=rois[own, 1:], labels=labels[own], targets=deltas[own])
            for each, own in zip(drawn, rows, strict=True)
        ]
