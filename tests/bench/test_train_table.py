"""The table of docs/training.md: each old command line of the sources has one here, and that one runs."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from detection_zoo.bench import app
from detection_zoo.zoo.build import build_model
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.settings import parse_setting, with_value

pytestmark = pytest.mark.usefixtures("kept_memory")

ROOT = Path(__file__).resolve().parents[2]
TRAIN_DATA = ROOT / "tests" / "reference" / "training" / "train_data"
# flag of a source -> flag here with the same value
SAME = {
    "--bs": "--batch",
    "--nw": "--workers",
    "--iter_size": "--accumulate",
    "--lr": "--lr",
    "--disp_interval": "--log-every",
    "--checkpoint_interval": "--save-every",
    "SOLVER.IMS_PER_BATCH": "--batch",
    "SOLVER.BASE_LR": "--lr",
    "SOLVER.MAX_ITER": "--iterations",
    "DTYPE": "--precision",
    "DATALOADER.NUM_WORKERS": "--workers",
    "--lr_decay_step": "--lr-steps",
    "-b": "--batch",
    "-max": "--epochs",
    "--num_workers": "--workers",
    "--load_detectron": "--weights",
    "MODEL.WEIGHT": "--weights",
    "--basenet": "--weights",
}
SWITCHES = {"--use_tfboard": "--tensorboard", "--no_save": "--no-save", "--cag": "--class-agnostic"}
SWITCHES |= {"--resume": "--resume", "--resume_net": "--resume", "--r": "--resume"}
# the smallest images that the rows take, one a pass, few RoIs, and a small box head where no file has one
ANY_SIZE = ["image.size=32", "image.max_size=48", "roi.samples=2"]
LARGER = ["image.size=64", "image.max_size=96"]  # a DetNet's anchors must lie inside
SMALL_HEAD = ["pooling.size=2"]
ONE_SIZE = ["image.size=160", "detector.size=160", "detector.priors=shapes_160"]  # an SSD's
# maps of few channels: two passes in half precision take ten seconds otherwise
NARROW = {
    "_vovnet39_": ["backbone.widths=[[8, 16], [8, 16], [8, 16], [8, 16]]"]
    + ["backbone.stem_channels=[8, 8, 16]"],
    "_resnet50_": ["backbone.width_per_group=8", "backbone.stem_channels=8"],
    "_detnet59_": ["backbone.stages={c2=[1,8,1,1], c3=[1,8,2,1], c4=[1,8,2,1], c5=[1,8,1,2], c6=[1,8,1,2]}"],
    "_fpn_": ["neck.channels=32"],
}
SMALL = ["--images", "4", "--batch", "1", "--accumulate", "1", "--workers", "0", "--threads", "1"]
SMALL += ["--device", "cpu", "--dry-run", "--json"]


def table() -> list[tuple[str, list[str]]]:
    """Old command and the words of ours, of each line."""
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| [^|]+ \| (.*) \| `((?:torchrun|bench\.py)[^`]*)` \|$", text, re.MULTILINE)
    return [(old, shlex.split(ours.partition("bench.py ")[2])) for old, ours in lines]


LINES = table()


def folder_of(tmp_path: Path) -> Path:
    """The recorded images as COCO folder, with an annotation file for keypoints too."""
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    (folder / "train").symlink_to(TRAIN_DATA / "coco" / "images")
    text = (TRAIN_DATA / "coco" / "annotations" / "instances_train.json").read_text(encoding="utf-8")
    (folder / "annotations" / "instances_train.json").write_text(text)
    content = json.loads(text)
    person = {"id": 1, "name": "person", "keypoints": [f"point {i}" for i in range(17)], "skeleton": []}
    for each in content["annotations"]:
        x, y, width, height = each["bbox"]
        points = [[x + width * (i + 1) / 18, y + height / 2, 2] for i in range(17)]
        each |= {"category_id": 1, "keypoints": sum(points, []), "num_keypoints": 17}
    content["categories"] = [person]
    (folder / "annotations" / "person_keypoints_train.json").write_text(json.dumps(content))
    return folder


def test_the_table_has_every_command_line_and_keeps_its_numbers() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "docs/training.md#the-sources-command-lines" in readme
    assert len(LINES) >= 25
    for old, ours in LINES:
        words = shlex.split(re.sub(r"[`()]", " ", old).replace("...", ""))
        for theirs, flag in SAME.items():
            if theirs in words:
                wanted = words[words.index(theirs) + 1]
                value = ours[ours.index(flag) + 1].removeprefix("backbone:")
                assert value.lower() == wanted.lower(), (old, flag)
        for theirs, flag in SWITCHES.items():
            assert theirs not in words or flag in ours, (old, flag)


@pytest.mark.parametrize("line", dict.fromkeys(shlex.join(ours[1:]) for _, ours in LINES), ids=str)
def test_each_command_line_runs(line: str, tmp_path: Path) -> None:
    words = ["train", *shlex.split(line)]
    row = words[1]
    settings = [*(ONE_SIZE if ".hardnet" in row else ANY_SIZE + SMALL_HEAD)]
    if ".detnet" in row:
        settings += LARGER
    for part, fewer in NARROW.items():
        settings += fewer if part in row else []
    if "--weights" in words:
        place = words.index("--weights") + 1
        entry = load_manifests().entry(row)
        for setting in settings:
            entry = with_value(entry, *parse_setting(setting))
        state = build_model(entry, device="meta").state_dict()
        state = {name: torch.full(each.shape, 0.01, dtype=each.dtype) for name, each in state.items()}
        if words[place].startswith("backbone:"):
            state = {name: tensor for name, tensor in state.items() if name.startswith("backbone.")}
        torch.save(state, tmp_path / "file.pth")
        words[place] = words[place].replace("FILE", str(tmp_path / "file.pth"))
    else:
        words += ["--weights", "random"]
    words[words.index("RUN")] = str(tmp_path / "run")
    place = words.index("--data") + 1
    words[place] = words[place].replace("DIR", str(folder_of(tmp_path))).replace("2007+2012", "2007")
    words[place] = words[place].replace("VOCDEVKIT", str(TRAIN_DATA / "voc"))
    done = CliRunner().invoke(app, [*words, *(word for one in settings for word in ("--set", one)), *SMALL])
    assert done.exit_code == 0, done.output + repr(done.exception)
    found = json.loads(done.stdout)
    assert found["updates"] > 0 and found["groups"] and found["seconds_of_an_update"] > 0
    for flag, value in (("--lr", found["schedule"]["lr"]), ("--iterations", found["updates"])):
        if flag in words:
            assert float(words[words.index(flag) + 1]) == value
