"""The house stands as README draws it: who imports whom, what stays light, what is documented, what must not
be here."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("zoo", "benchmarks", "kernels")
DOORS = ("bench.py", "download_weights.py")
# Who may import whom: a file belongs to the first prefix that fits; it may import the listed prefixes and
# what stands below its own.
MAY_IMPORT = [
    ("kernels/", ("kernels",)),
    ("zoo/errors.py", ()),
    ("zoo/registry.py", ()),
    ("zoo/conventions.py", ()),
    ("zoo/home.py", ()),
    (
        "zoo/manifest.py",
        ("detection_zoo.zoo.errors", "detection_zoo.zoo.registry", "detection_zoo.zoo.conventions"),
    ),
    (
        "zoo/weights/",
        (
            "detection_zoo.zoo.errors",
            "detection_zoo.zoo.registry",
            "detection_zoo.zoo.conventions",
            "detection_zoo.zoo.manifest",
            "detection_zoo.zoo.home",
            "detection_zoo.zoo.weights",
        ),
    ),
    (
        "zoo/parts/",
        (
            "kernels",
            "detection_zoo.zoo.errors",
            "detection_zoo.zoo.registry",
            "detection_zoo.zoo.conventions",
            "detection_zoo.zoo.parts",
            "detection_zoo.zoo.backbones.base",
            "detection_zoo.zoo.detectors.base",
        ),
    ),
    (
        "zoo/backbones/",
        (
            "kernels",
            "detection_zoo.zoo.errors",
            "detection_zoo.zoo.registry",
            "detection_zoo.zoo.conventions",
            "detection_zoo.zoo.parts",
            "detection_zoo.zoo.backbones",
        ),
    ),
    (
        "zoo/detectors/",
        (
            "kernels",
            "detection_zoo.zoo.errors",
            "detection_zoo.zoo.registry",
            "detection_zoo.zoo.conventions",
            "detection_zoo.zoo.parts",
            "detection_zoo.zoo.backbones",
            "detection_zoo.zoo.detectors",
        ),
    ),
    (
        "zoo/data/",
        (
            "detection_zoo.zoo.errors",
            "detection_zoo.zoo.registry",
            "detection_zoo.zoo.conventions",
            "detection_zoo.zoo.manifest",
            "detection_zoo.zoo.home",
            "detection_zoo.zoo.data",
            "detection_zoo.zoo.detectors.base",
        ),
    ),
    ("zoo/", ("kernels", "zoo")),
    (
        "benchmarks/spec.py",
        (
            "detection_zoo.zoo.errors",
            "detection_zoo.zoo.manifest",
            "detection_zoo.zoo.registry",
            "detection_zoo.benchmarks.spec",
        ),
    ),
    (
        "benchmarks/store.py",
        (
            "detection_zoo.zoo.errors",
            "detection_zoo.zoo.manifest",
            "detection_zoo.zoo.registry",
            "detection_zoo.benchmarks.spec",
            "detection_zoo.benchmarks.store",
        ),
    ),
    (
        "benchmarks/report/",
        (
            "detection_zoo.zoo.errors",
            "detection_zoo.zoo.manifest",
            "detection_zoo.zoo.registry",
            "detection_zoo.benchmarks.spec",
            "detection_zoo.benchmarks.store",
            "detection_zoo.benchmarks.statistics",
            "detection_zoo.benchmarks.compare.record",
            "detection_zoo.benchmarks.compare.text",
            "detection_zoo.benchmarks.report",
        ),
    ),
    ("benchmarks/", ("zoo", "kernels", "benchmarks")),
    ("bench.py", ("zoo", "benchmarks", "kernels")),
    (
        "download_weights.py",
        (
            "detection_zoo.zoo.errors",
            "detection_zoo.zoo.manifest",
            "detection_zoo.zoo.registry",
            "detection_zoo.zoo.home",
            "detection_zoo.zoo.weights",
            "detection_zoo.zoo.build",
        ),
    ),  # build: to convert alone
]
DRAWERS = {"utils", "util", "misc", "common", "helpers", "helper", "tools", "stuff"}
NO_TORCH_AT_START = [
    "detection_zoo.zoo.manifest",
    "detection_zoo.zoo.registry",
    "detection_zoo.zoo.conventions",
    "detection_zoo.zoo.weights.fetch.one",
    "detection_zoo.zoo.weights.fetch.hosts",
    "detection_zoo.benchmarks.spec",
    "detection_zoo.benchmarks.store",
    "detection_zoo.benchmarks.report.table",
    "bench",
    "download_weights",
]
HEAVY = ("torch", "torchvision", "pandas", "cupy", "matplotlib", "scipy", "cv2", "pycocotools")


@cache
def tracked() -> list[Path]:
    """Every file of the checkout that git tracks or would add; without git, every file outside the virtual
    environment."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode == 0:
        return [path for line in listed.stdout.splitlines() if (path := ROOT / line).is_file()]
    return [
        path
        for path in ROOT.rglob("*")
        if path.is_file() and not {".venv", ".git", "__pycache__"} & set(path.relative_to(ROOT).parts)
    ]


def sources() -> list[Path]:
    """The Python files of the rooms and the two doors."""
    return [
        path
        for path in tracked()
        if path.suffix == ".py"
        and (path.relative_to(ROOT).parts[0] in ROOMS or path.name in DOORS and path.parent == ROOT)
    ]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> list[str]:
    """Absolute names of the project modules that a file imports, inside functions too."""
    found, package = (
        [],
        (name_of(path).split(".") if path.name == "__init__.py" else name_of(path).split(".")[:-1]),
    )
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                found.append(
                    whole
                    if (ROOT / Path(*whole.split("."))).with_suffix(".py").exists()
                    or (ROOT / Path(*whole.split("."))).is_dir()
                    else module
                )
    return [name for name in found if name.split(".")[0] in (*ROOMS, "bench", "download_weights")]


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_nothing_imports_upward(path: Path) -> None:
    relative = path.relative_to(ROOT).as_posix()
    allowed = next(names for prefix, names in MAY_IMPORT if relative.startswith(prefix))
    wrong = [
        name
        for name in imports_of(path)
        if not any(name == ok or name.startswith(ok + ".") for ok in allowed)
    ]
    assert not wrong, f"{relative} imports {sorted(set(wrong))}; it may import {allowed}"


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_resolve_inside_the_checkout(room: str) -> None:
    found = importlib.util.find_spec(room)
    assert found is not None and found.origin is not None and Path(found.origin).is_relative_to(ROOT), (
        f"'import {room}' finds {found and found.origin}, not this checkout: uninstall the package of that"
        " name, or run from the project's root"
    )


@pytest.mark.parametrize("path", [p for p in sources() if p.name == "__init__.py"], ids=name_of)
def test_init_files_hold_a_docstring_alone(path: Path) -> None:
    body = ast.parse(path.read_text()).body
    assert len(body) == 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant), (
        f"{path.relative_to(ROOT)} holds more than a docstring"
    )


def public_definitions(path: Path) -> list[tuple[str, ast.AST]]:
    """Public functions and classes of a module, and public methods of its public classes."""
    found: list[tuple[str, ast.AST]] = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            found.append((node.name, node))
            if isinstance(node, ast.ClassDef):
                found += [
                    (f"{node.name}.{inner.name}", inner)
                    for inner in node.body
                    if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_")
                ]
    return found


INHERITED = {
    "forward",
    "losses",
    "raw",
    "postprocess",
}  # the contract's own docstring says what they take and give


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_public_functions_say_what_they_do(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path.relative_to(ROOT)} has no docstring"
    bare = [
        name
        for name, node in public_definitions(path)
        if not ast.get_docstring(node) and name.split(".")[-1] not in INHERITED
    ]
    assert not bare, f"{path.relative_to(ROOT)}: no docstring: {bare}"


@pytest.mark.parametrize(
    "path", [p for p in sources() if p.relative_to(ROOT).parts[0] in ("kernels", "zoo")], ids=name_of
)
def test_public_functions_over_tensors_give_shapes(path: Path) -> None:
    silent = []
    for name, node in public_definitions(path):
        if isinstance(node, ast.FunctionDef) and "." not in name:
            takes = [
                ast.unparse(a.annotation)
                for a in [*node.args.args, *node.args.kwonlyargs]
                if a.annotation is not None
            ]
            given = re.search(r"\([A-Z0-9.]|\([a-z]+,|scalar", ast.get_docstring(node) or "")
            if not given and any(re.search(r"\bTensor\b|\bndarray\b", text) for text in takes):
                silent.append(name)
    assert not silent, f"{path.relative_to(ROOT)}: docstrings without a shape: {silent}"


def test_no_file_is_a_drawer() -> None:
    assert not [
        p.relative_to(ROOT)
        for p in tracked()
        if p.stem.lower() in DRAWERS or p.stem.lower().endswith(tuple(f"_{d}" for d in DRAWERS))
    ]


@pytest.mark.parametrize("folder", ["backbones", "detectors"])
def test_every_family_is_listed_in_build(folder: str) -> None:
    listed = imports_of(ROOT / "zoo" / "build.py")
    families = [
        f"zoo.{folder}.{p.stem}"
        for p in (ROOT / "zoo" / folder).glob("*.py")
        if p.stem not in ("__init__", "base")
    ]
    assert families and not [name for name in families if name not in listed], (
        f"zoo/build.py must list {[n for n in families if n not in listed]}"
    )


@pytest.mark.parametrize("module", NO_TORCH_AT_START)
def test_light_modules_stay_light(module: str) -> None:
    code = f"import sys, {module}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.split(), f"importing {module} pulls in {done.stdout.split()}"


FORBIDDEN = {
    r"strict\s*=\s*False": "half-loaded weights go unnoticed",
    r"\bpickle\.loads?\(": "executes what a download says",
    r"except\s*:|except (Base)?Exception\s*:\s*pass": "swallows errors",
    r"\btime\.sleep\(": "waits for the clock instead of the event",
}


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_known_bad_habits_are_absent(path: Path) -> None:
    lines = path.read_text().splitlines()
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()} ({why})"
        for pattern, why in FORBIDDEN.items()
        for number, line in enumerate(lines, 1)
        if re.search(pattern, line) and "house: allowed, " not in line
    ]
    assert not found, "\n".join(found)


def test_tracked_files_are_small_and_name_no_place() -> None:
    big = [p.relative_to(ROOT) for p in tracked() if p.stat().st_size > 10_000_000]
    assert not big, f"over 10 MB: {big}"
    place = re.compile(
        rb"(?<![\w}!])/(?:work|root|home)/[a-z]|/tmp/bash_jobs|registry\.npmjs|files\.pythonhosted|pypi\.org/simple"
    )
    texts = [p for p in tracked() if p.suffix not in (".npz", ".png", ".jpg") and p != Path(__file__)]
    named = [p.relative_to(ROOT).as_posix() for p in texts if place.search(p.read_bytes())]
    assert not named, f"paths of a machine or registry addresses stand in {named}"


def test_readme_draws_the_house() -> None:
    readme = (ROOT / "README.md").read_text()
    parts = {p.relative_to(ROOT).parts for p in tracked()}
    shown = {part[0] for part in parts if len(part) > 1 and not part[0].startswith(".")} | {
        p.name for p in tracked() if p.parent == ROOT and p.suffix == ".py"
    }
    shown |= {f"{part[1]}/" for part in parts if part[0] == "zoo" and len(part) > 2}
    missing = [name for name in sorted(shown) if name not in readme]
    assert not missing, f"README.md's picture of the house lacks {missing}"
