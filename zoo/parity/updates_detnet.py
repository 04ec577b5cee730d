"""Recorded updates of DetNet_pytorch: its own draws from first to last, and losses from recorded RoIs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from detection_zoo.zoo.build import assemble
from detection_zoo.zoo.data.cropping import fit_to_ratio
from detection_zoo.zoo.data.samplers import Entry, PaddedRatioGroups
from detection_zoo.zoo.data.training_images import Item, collate, training_item
from detection_zoo.zoo.data.training_loader import target_rules
from detection_zoo.zoo.data.transforms import Preprocess, ShorterSide
from detection_zoo.zoo.data.voc import VocDataset
from detection_zoo.zoo.detectors.joint_rcnn import JointRCNN, padded_truth
from detection_zoo.zoo.manifest import ModelEntry, load_manifests
from detection_zoo.zoo.parity.schedules import flags
from detection_zoo.zoo.parity.standin import standin_arrays
from detection_zoo.zoo.parity.updates import Batch, Recorded, Replay
from detection_zoo.zoo.parts.joint_proposals import joint_proposals, padded_iou, sample_rois
from detection_zoo.zoo.weights.load import checkpoint_format, load_arrays

FORMAT = "detnet_pytorch_pth"
NUMPY_SEED, TORCH_SEED = 3, 3
DECAY_STEP = 5  # of the script, where its command does not say another


def set_up(recorded: Recorded, entry: ModelEntry) -> Replay:
    """The run of a folder, from its command line and settings."""
    command = flags(shlex.split(recorded.meta["command"]))
    model = assemble(entry)
    if not isinstance(model, JointRCNN):
        raise TypeError(f"row {entry.name} is no joint Faster R-CNN")
    arrays = standin_arrays(recorded.folder)
    load_arrays(model, arrays, FORMAT, where=f"start of {recorded.folder}")
    translation = checkpoint_format(FORMAT).translate(dict(arrays))
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

    def __init__(self, model: JointRCNN, recorded: Recorded, entry: ModelEntry, batch: int) -> None:
        self.model, self.recorded = model, recorded
        self.draws = model.draws = np.random.RandomState(NUMPY_SEED)
        settings = recorded.meta["settings"]
        model.rois_per_image = settings["TRAIN.BATCH_SIZE"]
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
        rules = replace(self.rules, max_objects=None)
        item = training_item(self.dataset, entry.index, self.preprocess, rules, flip=bool(entry.flip))
        height, width = item[0].original_size
        return fit_to_ratio(item, entry.ratio, width / height, self.draws, self.rules.max_objects)

    def truth(self, batch: Batch) -> dict[str, np.ndarray]:
        """Objects and sizes of a batch as the folder has them."""
        _, sizes, targets = batch
        boxes, labels = padded_truth(targets)
        scales = torch.tensor([target.scale[:1] for target in targets])
        return {
            "gt": torch.cat([boxes, labels[..., None].float()], dim=2).numpy(),
            "im_info": torch.cat([sizes.float(), scales], dim=1).numpy(),
        }

    def losses(self, number: int, batch: Batch) -> dict[str, Tensor]:
        """Every loss of a pass: from the anchors drawn here, and from the recorded RoIs."""
        images, sizes, targets = batch
        model = self.model
        truth, labels = padded_truth(targets)
        found = model.pyramid(images)
        losses = model.rpn_losses(found, truth, sizes)
        rois = joint_proposals(
            found.scores.detach(), found.deltas.detach(), found.anchors, sizes, **model.train_proposals
        )
        drawn = sample_rois(rois, truth, labels, self.draws, count=model.rois_per_image, coder=model.coder)
        shape = drawn.labels.shape
        boxes = self.recorded.tensor(f"rois|{number}").view(*shape, 5)
        classes = self.recorded.tensor(f"labels|{number}").view(shape)
        nearest = torch.stack(
            [padded_iou(own[:, 1:], objects).argmax(dim=1) for own, objects in zip(boxes, truth, strict=True)]
        )
        inside = (classes > 0)[..., None].expand(*shape, 4).to(boxes)
        deltas = self.recorded.tensor(f"box_targets|{number}").view(*shape, 4)
        recorded = replace(drawn, rois=boxes, labels=classes, assigned=nearest, targets=deltas, inside=inside)
        box = model.box_losses(found.levels, recorded, sizes)
        return {
            "rpn_cls": losses["loss_rpn_cls"],
            "rpn_box": losses["loss_rpn_box"],
            "rcnn_cls": box["loss_rcnn_cls"],
            "rcnn_box": box["loss_rcnn_box"],
        }
