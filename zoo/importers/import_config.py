"""Convert a configuration file of Detectron or Detectron.pytorch to a manifest row, following its README's
six rules. No torch.

Every option of the file is in one of four groups: part of the row, without effect (with the reason), fixed
(with the change), or not supported (with the reason). None is silently dropped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detection_zoo.zoo.conventions import Conventions
from detection_zoo.zoo.importers.detectron_config import read_options
from detection_zoo.zoo.importers.detectron_sections import ConventionReader
from detection_zoo.zoo.manifest import Schedule

SCHEDULE_NAMES = {90000: "1x", 180000: "2x", 270000: "3x", 130000: "1.44x"}
CAFFE2_ONLY = (
    "TRAIN.WEIGHTS",
    "TRAIN.DATASETS",
    "TEST.DATASETS",
    "TRAIN.FREEZE_AT",
    "MODEL.EXECUTION_TYPE",
    "USE_NCCL",
)
MODEL_TYPES = (
    "generalized_rcnn",
    "retinanet",
    "rpn",
    "faster_rcnn",
    "mask_rcnn",
    "keypoint_rcnn",
    "mask_and_keypoint_rcnn",
)


@dataclass
class ImportedConfig:
    """A row from a configuration file, and the result for every option.

    row: fields of a [[model]] table; conventions: that row's, resolved; schedule: fields of a table of
        schedules.toml where none of
    its tables is the file's. notes: what was fixed or renamed; without_effect, refused: option -> reason.
    """

    row: dict[str, Any]
    conventions: Conventions
    schedule_name: str
    schedule: Schedule
    new_schedule: bool
    notes: list[str] = field(default_factory=list)
    without_effect: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def toml(self) -> str:
        """The row, and its schedule where it is new, as TOML."""
        tables = {"[[model]]": self.row}
        if self.new_schedule:
            fields = self.schedule.model_dump(exclude_defaults=True)
            tables = {f'# for schedules.toml\n["{self.schedule_name}"]': fields} | tables
        return "\n".join(
            "".join([f"{header}\n", *(f"{name} = {toml_value(value)}\n" for name, value in table.items())])
            for header, table in tables.items()
        )

    def report(self) -> list[str]:
        """Messages for the user, one per line."""
        lines = [f"note: {note}" for note in self.notes]
        lines += [f"without effect: {name}: {reason}" for name, reason in self.without_effect.items()]
        return lines + [f"not supported: {name}: {reason}" for name, reason in self.refused.items()]


def toml_value(value: Any) -> str:
    """A plain value as TOML writes it; tables inline."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {toml_value(part)}" for name, part in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(part) for part in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def import_config(path: Path | str, source: str | None = None) -> ImportedConfig:
    """Turn a configuration file into a manifest row.

    Args:
        path: a YAML file.
        source: manifest that the row is for; default: "detectron" where the file has options that only
            Caffe2's Detectron reads, else
            "detectron_pytorch".

    Raises:
        ManifestError: the file cannot be read, or describes a model that cannot be built here; names the
            options.
    """
    path = Path(path)
    options = read_options(path)
    caffe2 = any(name in options.given for name in CAFFE2_ONLY)
    return _Importer(path, options, source or ("detectron" if caffe2 else "detectron_pytorch")).result()


class _Importer(ConventionReader):
    """Importer of one file."""

    def result(self) -> ImportedConfig:
        """The row, and the result for every option."""
        backbone, neck, detector = self.backbone(), self.neck(), self.detector()
        schedule_name, schedule, new = self.schedule()
        bundle, adjust, conventions = self.conventions()
        row: dict[str, Any] = {
            "name": self.name(backbone, detector, schedule),
            "title": self.path.stem,
            "source_config": self.path.name,
        }
        if self.kind == "rpn":
            row["task"] = "proposals"
        row |= {"backbone": backbone, "neck": neck, "detector": detector, **self.dataset()}
        row |= {"schedule": schedule_name, "initial": self.initial(), "conventions": bundle, "adjust": adjust}
        row = {name: value for name, value in row.items() if value not in (None, {})}
        if row["name"] in self.manifests.entries:
            taken = self.manifests.entries[row["name"]]
            self.options.notes.append(
                f"name: manifests/{taken.source}.toml has a row {taken.name}; give this one another name"
            )
        if self.options["MODEL.TYPE"] not in MODEL_TYPES:
            raise self.cannot(
                f"MODEL.TYPE is {self.options['MODEL.TYPE']!r}; only generalized_rcnn and its older names,"
                " and retinanet, are known"
            )
        self.options.idle["TEST.WEIGHTS"] = (
            "weights are not part of a configuration here; add them to the row as [[model.weights]]"
        )
        for name in self.options.unread():
            self.options.refused[name] = f"{self.options.given[name]!r}: not used here for a {self.kind}"
        return ImportedConfig(
            row,
            conventions,
            schedule_name,
            schedule,
            new,
            self.options.notes,
            self.options.without_effect(),
            self.options.refused,
        )

    def name(self, backbone: dict[str, Any], detector: dict[str, Any], schedule: Schedule) -> str:
        """{detector}_{backbone}_{neck}_{schedule}.{source}"""
        gpus = schedule.images_per_batch / 16
        length = SCHEDULE_NAMES.get(
            round((schedule.iterations or 0) * gpus), f"{(schedule.iterations or 0) // 1000}k"
        )
        length = "s1x" if length == "1.44x" and self.kind == "keypoint_rcnn" else length
        norm = "_gn" if backbone["norm"] == "group" else ""
        neck = "fpn" if self.pyramid else self.last
        return f"{detector['name']}_{backbone['name']}_{neck}{norm}_{length}.{self.source}"
