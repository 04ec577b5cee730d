"""The README: its links open, and its quick start runs line by line in a fresh clone."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from contracts import check_backbone, check_detector

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
QUICK_START = ("Install", "Detect", "Benchmark a model")  # sections whose commands are run
PAGES = (README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))


def commands(section: str) -> list[str]:
    """The commands in a section's blocks, without their comments."""
    text = re.split(r"^##+ ", README.read_text().partition(f"\n## {section}\n")[2], flags=re.M)[0]
    blocks = re.findall(r"^```(?:bash)?\n(.*?)^```", text, re.M | re.S)
    lines = (line.partition("  #")[0].strip() for block in blocks for line in block.splitlines())
    return [line for line in lines if line.startswith(("git ", "make ", "python "))]  # the rest is output


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_relative_links_open(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    here = [target for target in targets if "://" not in target]
    assert [target for target in here if not (page.parent / target).exists()] == []


def test_every_command_and_option_is_there() -> None:
    """Of README and docs/: a renamed option fails here."""
    import typer

    from detection_zoo import bench, download_weights

    known = {"bench.py": typer.main.get_command(bench.app).commands}
    known["download_weights.py"] = typer.main.get_command(download_weights.app).commands
    wrong = []
    for page in PAGES:
        for line in re.findall(r"^python ((?:bench|download_weights)\.py .*)$", page.read_text(), re.M):
            program, command, *words = shlex.split(line, comments=True)
            if command.startswith("-"):
                continue
            there = known[program].get(command)
            options = {option for one in getattr(there, "params", ()) for option in one.opts} | {"--help"}
            wrong += [line for word in words if word.startswith("--") and word not in options]
            wrong += [] if there else [line]
    assert wrong == []


def test_the_backbone_of_contributing_keeps_the_contract() -> None:
    """The example is registered, built and run as it stands there."""
    from detection_zoo.zoo.build import create_model
    from detection_zoo.zoo.registry import BACKBONES

    text = (ROOT / "CONTRIBUTING.md").read_text()
    example = next(
        code for code in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S) if "TwoStage" in code
    )
    try:
        exec(compile(example, "CONTRIBUTING.md", "exec"), {"__name__": "two_stage"})
        check_backbone(BACKBONES["two_stage"](), device="cpu")
        check_detector(create_model("two_stage", "faster_rcnn", 3, dataset="shapes"), [(64, 64)])
    finally:
        BACKBONES._builders.pop("two_stage", None)


def test_the_number_of_rows_is_that_of_the_manifests() -> None:
    """Of the manifests that git tracks: a file of one's own changes nothing."""
    from detection_zoo.zoo.manifest_files import load_manifests

    listed = subprocess.run(["git", "ls-files", "manifests"], cwd=ROOT, capture_output=True, text=True)
    tracked = {Path(line).stem for line in listed.stdout.splitlines()}
    rows = [e for e in load_manifests().entries.values() if e.source in tracked or listed.returncode]
    said = re.search(r"^(\d+) rows from (\d+) sources", README.read_text(), re.M)
    assert said is not None
    assert tuple(map(int, said.groups())) == (len(rows), len({e.source for e in rows}))


def test_the_quick_start_gives_the_published_accuracy(
    package_weights: Path, data_folder: Path, tmp_path: Path
) -> None:
    """Every command of the first sections, in a fresh clone, with the weights that it chooses itself; only
    the environment is this one, so that nothing is installed."""
    skimage = pytest.importorskip("skimage")
    lines = [line for section in QUICK_START for line in commands(section)]
    assert lines[0].startswith("git clone") and not any("--weights" in line for line in lines)
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "clone")], check=True)
    clone, said = tmp_path / "clone", ""
    shutil.copy(Path(skimage.__file__).parent / "data" / "astronaut.png", clone)
    (clone / ".venv").symlink_to(sys.prefix)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for line in lines:
        if line.startswith(("git clone", "make setup")):
            continue
        line = line.replace("COCO_FOLDER", str(data_folder / "coco_mini"))
        done = subprocess.run(line, shell=True, cwd=clone, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stderr)
        said += done.stdout
    assert re.search(r"^Box AP +34\.8 ", said, re.M), said
    assert "weights: published" in said and "person" in said
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True)
    assert not [
        x for x in changed.stdout.splitlines() if not x.endswith((".venv", "drawn/", "astronaut.png"))
    ]


def test_the_site_builds_without_network(tmp_path: Path) -> None:
    """`make docs`: every page is in its list, links open, the API's docstrings are read; a name that is not
    there fails it."""
    pytest.importorskip("mkdocs")
    blocked = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **blocked}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "api.html").read_text()
    for name in ("list_models", "load", "create", "detect", "to_coco", "evaluate", "compare", "roi_align"):
        assert f">{name}</span>" in api, name
    fetched = re.findall(r'(?:src|href)="(https?://[^"]+)"[^>]*(?:rel="stylesheet"|></script>)', api)
    assert not fetched
