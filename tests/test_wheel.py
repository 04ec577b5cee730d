"""The wheel: it installs beside a package called `kernels`, works in any folder, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from records import make_small_shapes

ROOT = Path(__file__).resolve().parent.parent
ROW = "ssd160_hardnet_slim.demo"


def pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), ".")
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


class Installed:
    """A fresh virtual environment with the wheel, and this environment's packages below it."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.python = str(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
        self.packages = Path(
            self.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
        )
        (self.packages / "below.pth").write_text(sysconfig.get_path("purelib") + "\n")
        command = ("install", "--no-deps", "--no-index", "--no-compile", str(wheel))  # compiled where used
        assert pip("--python", self.python, *command).returncode == 0

    def run(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
        return subprocess.run(
            [self.python, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Installed:
    return Installed(tmp_path_factory.mktemp("fresh") / "venv", wheel)


def test_the_wheel_holds_one_package_with_its_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"detection_zoo"}
    inside = {name.removeprefix("detection_zoo/") for name in names}
    for folder, pattern in (
        *(("manifests", "*.toml"), ("manifests", "tables/*.toml"), ("kernels", "*.cu*")),
        *(("benchmarks", "report/page/*"), ("zoo", "**/*.py")),
    ):
        for path in (ROOT / folder).glob(pattern):
            if path.is_file() and "__pycache__" not in path.parts:
                assert path.relative_to(ROOT).as_posix() in inside
    assert {"bench.py", "download_weights.py", "__init__.py"} <= inside
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("list", "vovnet"), "faster_rcnn_vovnet39_fpn_2x.vovnet"),
        (("show", "faster_rcnn_vovnet39_fpn_2x.vovnet"), "39.8"),
        (("table", "vovnet"), "39.8/23.7/42.6/51.5"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_commands_work_in_another_folder(
    installed: Installed, tmp_path: Path, command: tuple[str, ...], said: str
) -> None:
    done = installed.run("-m", "detection_zoo.bench", *command, cwd=tmp_path)
    assert done.returncode == 0 and said in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())


def test_run_stores_below_the_working_folder(
    installed: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTION_ZOO_HOME", str(make_small_shapes(tmp_path / "home")))
    work = tmp_path / "work"
    work.mkdir()
    command = ("run", ROW, "--data", "shapes", "--weights", "random", "--metrics", "ap", "--images", "2")
    done = installed.run("-m", "detection_zoo.bench", *command, "--device", "cpu", cwd=work)
    assert done.returncode == 0, done.stderr
    assert "1 measured, 0 failed" in done.stderr and list((work / "results").rglob("*.json"))


def library_example() -> str:
    """The Python of README's section on the library."""
    section = (ROOT / "README.md").read_text().partition("\n## Library\n")[2]
    return section.partition("```python\n")[2].partition("```")[0]


def run_library_example(installed: Installed, folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run it as a user would, in a folder that holds the picture alone."""
    skimage = pytest.importorskip("skimage")
    shutil.copy(Path(skimage.__file__).parent / "data" / "astronaut.png", folder)
    done = installed.run("-c", code, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} == {"astronaut.png", "drawn.png"}
    return done


def test_the_library_example_runs_untrained(installed: Installed, tmp_path: Path) -> None:
    """As in the README, but for the weights, which are not fetched."""
    code = re.sub(r'dz\.load\("([^"]+)"\)', r'dz.load("\1", weights="random")', library_example())
    assert code.count("random") == 1
    run_library_example(installed, tmp_path, code)


@pytest.mark.usefixtures("package_weights")
def test_the_library_example_finds_the_astronaut(installed: Installed, tmp_path: Path) -> None:
    assert "'person'" in run_library_example(installed, tmp_path, library_example()).stdout


def test_the_import_is_the_wheel_and_no_other_name_is_taken(installed: Installed, tmp_path: Path) -> None:
    code = (
        "import detection_zoo, detection_zoo.zoo.manifest as m; print(detection_zoo.__file__, m.__file__);"
        "import importlib.util as u; print([n for n in ('zoo', 'kernels', 'benchmarks', 'bench') if u.find_spec(n)])"
    )
    done = installed.run(
        "-P", "-S", "-c", f"import site; site.addsitedir({str(installed.packages)!r}); {code}", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    files, others = done.stdout.strip().splitlines()
    assert all(Path(file).is_relative_to(installed.packages) for file in files.split())
    assert others == "[]" or "kernels" not in others


def test_it_leaves_another_package_called_kernels_alone(tmp_path: Path, wheel: Path) -> None:
    """The registry's `kernels` (Hugging Face) has the name that our wheel used to overwrite."""
    installed = Installed(tmp_path / "venv", wheel)
    done = pip("--python", installed.python, "install", "--no-deps", "kernels")
    if done.returncode != 0:
        pytest.skip("the package index cannot be reached, so the package `kernels` cannot be installed")
    place = "import importlib.util as u; print(u.find_spec('kernels').origin)"
    before = Path(installed.run("-c", place, cwd=tmp_path).stdout.strip())
    assert before.is_relative_to(installed.packages)
    held = before.read_bytes()
    assert pip("--python", installed.python, "uninstall", "-y", "detection-zoo").returncode == 0
    assert not (installed.packages / "detection_zoo").exists()
    assert (
        before.read_bytes() == held
        and Path(installed.run("-c", place, cwd=tmp_path).stdout.strip()) == before
    )
