"""The architecture of docs/architecture.md holds: imports, light modules, docstrings, sizes, forbidden habits."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("zoo", "benchmarks", "kernels")
COMMANDS = ("bench.py", "download_weights.py")
PUBLIC = "detection_zoo."
ROOTS = ("zoo.errors", "zoo.registry", "zoo.conventions", "zoo.records")
MANIFESTS = ("zoo.manifest", "zoo.manifest_files")
# A file belongs to the first prefix that fits. It may import the listed modules and what lies below them.
MAY_IMPORT = [
    ("kernels/", ("kernels",)),
    ("zoo/errors.py", ()),
    ("zoo/registry.py", ()),
    ("zoo/conventions.py", ()),
    ("zoo/records.py", ()),
    ("zoo/plain.py", ()),
    ("zoo/entry.py", ()),
    ("zoo/regular.py", ()),
    ("zoo/home.py", ()),
    ("zoo/templates.py", ROOTS),
    ("zoo/manifest.py", ROOTS),
    ("zoo/manifest_files.py", (*ROOTS, "zoo.entry", "zoo.manifest", "zoo.regular", "zoo.templates")),
    ("zoo/settings.py", (*ROOTS, *MANIFESTS)),
    ("zoo/weights/command_line.py", (*ROOTS[:1], *MANIFESTS, "zoo.entry")),
    (
        "zoo/weights/",
        (*ROOTS, *MANIFESTS, "zoo.plain", "zoo.regular", "zoo.templates", "zoo.home", "zoo.weights"),
    ),
    ("zoo/parts/", ("kernels", *ROOTS, "zoo.parts")),
    ("zoo/necks.py", (*ROOTS, "zoo.parts")),
    ("zoo/backbones/", ("kernels", *ROOTS, "zoo.parts", "zoo.backbones")),
    # test-time augmentation makes its views with the data's own transforms
    ("zoo/detectors/tta.py", ("kernels", "zoo")),
    ("zoo/detectors/", ("kernels", *ROOTS, "zoo.parts", "zoo.necks", "zoo.backbones", "zoo.detectors")),
    # images are enlarged by a compiled operator, which needs no torch
    ("zoo/data/resizing.py", ("kernels.bilinear_cpu", *ROOTS, "zoo.data")),
    ("zoo/data/", (*ROOTS, *MANIFESTS, "zoo.regular", "zoo.home", "zoo.data")),
    ("zoo/", ("kernels", "zoo")),
    ("detection_zoo/programs.py", ("bench", "download_weights", "zoo.entry")),
    ("detection_zoo/", (*PACKAGES, "models", "predictions", "ops")),
    ("benchmarks/spec.py", (*MANIFESTS, "zoo.errors", "zoo.registry", "benchmarks.spec")),
    ("benchmarks/folders.py", ()),
    (
        "benchmarks/store.py",
        (
            *(*MANIFESTS, "zoo.errors", "zoo.registry", "zoo.regular"),
            *("benchmarks.folders", "benchmarks.spec", "benchmarks.store"),
        ),
    ),
    ("benchmarks/terminal.py", ()),
    ("benchmarks/tabular.py", ("zoo.plain", "benchmarks.terminal")),
    (
        "benchmarks/report/",
        (
            *(*MANIFESTS, "zoo.errors", "zoo.plain", "zoo.registry"),
            *("benchmarks.folders", "benchmarks.spec", "benchmarks.store", "benchmarks.statistics"),
            *("benchmarks.tabular", "benchmarks.terminal"),
            *("benchmarks.compare.record", "benchmarks.compare.text", "benchmarks.report"),
        ),
    ),
    ("benchmarks/", PACKAGES),
    ("bench.py", PACKAGES),
    # zoo.build: to convert alone
    (
        "download_weights.py",
        (*ROOTS[:2], *MANIFESTS, "zoo.plain", "zoo.entry", "zoo.home", "zoo.weights", "zoo.build"),
    ),
]
DRAWERS = {"utils", "util", "misc", "common", "helpers", "helper", "tools", "stuff"}
NO_TORCH_AT_START = [
    "zoo.manifest",
    "zoo.manifest_files",
    "zoo.registry",
    "zoo.conventions",
    "zoo.weights.fetch.one",
    "zoo.weights.fetch.hosts",
    "benchmarks.spec",
    "benchmarks.store",
    "benchmarks.report.table",
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


@cache
def sources() -> list[Path]:
    """The Python files of the packages and of the two commands."""
    folders = (*PACKAGES, "detection_zoo")
    return [
        path
        for path in tracked()
        if path.suffix == ".py"
        and (path.relative_to(ROOT).parts[0] in folders or path.name in COMMANDS and path.parent == ROOT)
    ]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@dataclass
class Code:
    """What the tests ask of a file of Python: its lines, imports, docstring, definitions and texts."""

    lines: list[str]
    imports: list[str]
    docstring: str | None
    holds_docstring_alone: bool
    stray_texts: list[int]  # lines
    public: list[Definition]


@dataclass
class Definition:
    """A public function, class or method: its docstring, and of a function the annotations."""

    name: str
    docstring: str
    takes: list[str] | None


@cache
def code_of(path: Path) -> Code:
    """A file, parsed once."""
    text = path.read_text()
    tree = ast.parse(text)
    nodes = list(ast.walk(tree))
    return Code(
        text.splitlines(),
        imports_in(path, nodes),
        ast.get_docstring(tree),
        len(tree.body) == 1
        and isinstance(tree.body[0], ast.Expr)
        and isinstance(tree.body[0].value, ast.Constant),
        stray_texts(nodes),
        [
            Definition(name, ast.get_docstring(node) or "", annotations(node))
            for name, node in public_definitions(tree)
        ],
    )


def imports_of(path: Path) -> list[str]:
    """Modules of the project that a file imports, inside functions too, without `detection_zoo.`."""
    return code_of(path).imports


def imports_in(path: Path, nodes: list[ast.AST]) -> list[str]:
    found: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: relative import; write detection_zoo...."
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                file = ROOT / Path(*whole.removeprefix(PUBLIC).split("."))
                found.append(whole if file.with_suffix(".py").exists() or file.is_dir() else str(node.module))
    bare = [name for name in found if name.split(".")[0] in (*PACKAGES, *("bench", "download_weights"))]
    assert not bare, f"{path} imports {bare}: the one import name is detection_zoo"
    return [name.removeprefix(PUBLIC) for name in found if name.startswith(PUBLIC)]


def stray_texts(nodes: list[ast.AST]) -> list[int]:
    """Lines of strings that are statements of their own and no docstrings: the rest of a text that lost its
    bracket."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    first = {id(node.body[0]) for node in nodes if isinstance(node, documented) and node.body}
    return [
        node.lineno
        for node in nodes
        if isinstance(node, ast.Expr)
        and id(node) not in first
        and (
            isinstance(node.value, ast.JoinedStr)
            or (isinstance(node.value, ast.Constant) and isinstance(node.value.value, str))
        )
    ]


def annotations(node: ast.AST) -> list[str] | None:
    """Of the arguments of a function; None of a class."""
    if isinstance(node, ast.ClassDef):
        return None
    given = [argument.annotation for argument in (*node.args.args, *node.args.kwonlyargs)]
    return [ast.unparse(annotation) for annotation in given if annotation is not None]


def public_definitions(tree: ast.Module) -> list[tuple[str, ast.AST]]:
    """Public functions and classes of a module, and public methods of its public classes."""
    found: list[tuple[str, ast.AST]] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            found.append((node.name, node))
            if isinstance(node, ast.ClassDef):
                found += [
                    (f"{node.name}.{inner.name}", inner)
                    for inner in node.body
                    if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_")
                ]
    return found


def circles() -> list[list[str]]:
    """Groups of modules that import one another, directly or through others."""
    modules = {name_of(path): path for path in sources() if path.name != "__init__.py"}
    imports = {name: {n for n in imports_of(path) if n in modules} for name, path in modules.items()}

    def reached(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            for name in imports[todo.pop()] - seen:
                seen.add(name)
                todo.append(name)
        return seen

    reach = {name: reached(name) for name in modules}
    inside = [name for name in modules if name in reach[name]]
    return sorted({tuple(sorted(b for b in inside if b in reach[a] and a in reach[b])) for a in inside})


FAMILY_FILES = ("zoo/backbones/", "zoo/detectors/")  # blocks, network, variants, builders in one file


def test_no_import_circles() -> None:
    found = circles()
    assert not found, f"modules import one another: {found}"


def test_lines_and_files_are_short() -> None:
    long, large = [], []
    for path in sources():
        lines, relative = code_of(path).lines, path.relative_to(ROOT).as_posix()
        long += [f"{relative}:{number}" for number, line in enumerate(lines, 1) if len(line) > 110]
        if len(lines) > 400 and not relative.startswith(FAMILY_FILES):
            large.append(f"{relative} has {len(lines)}")
    assert not long, f"over 110 columns: {long}"
    assert not large, f"files to split, of more than 400 lines: {large}"


def test_no_text_is_cut_off() -> None:
    """A string that is a statement of its own is a docstring, or the rest of a text that lost its bracket."""
    stray = {name_of(path): lines for path in sources() if (lines := code_of(path).stray_texts)}
    assert not stray, f"texts without effect in these lines: {stray}"


def test_nothing_imports_upward() -> None:
    wrong = []
    for path in sources():
        relative = path.relative_to(ROOT).as_posix()
        allowed = next(names for prefix, names in MAY_IMPORT if relative.startswith(prefix))
        wrong += [
            f"{relative} imports {name}; it may import {allowed}"
            for name in sorted(set(imports_of(path)))
            if not any(name == ok or name.startswith(ok + ".") for ok in allowed)
        ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_resolve_inside_the_checkout(package: str) -> None:
    found = importlib.util.find_spec(PUBLIC + package)
    assert found is not None and found.origin is not None and Path(found.origin).is_relative_to(ROOT), (
        f"'import {package}' finds {found and found.origin}, not this checkout: uninstall the package of that"
        " name, or run from the project's root"
    )


def test_init_files_hold_a_docstring_alone() -> None:
    files = [p for p in sources() if p.name == "__init__.py" and p.parent.name != "detection_zoo"]
    more = [name_of(path) for path in files if not code_of(path).holds_docstring_alone]
    assert files and not more, f"these hold more than a docstring: {more}"


INHERITED = {
    "forward",
    "losses",
    "raw",
    "postprocess",
    "frames",
    "fixed_detections",
    "finish_fixed",
    "head_stage",
    "classifier_norm",
}  # the contract's own docstring says what they take and give


def test_public_functions_say_what_they_do() -> None:
    files = [name_of(path) for path in sources() if not code_of(path).docstring]
    assert not files, f"no docstring: {files}"
    bare = [
        f"{name_of(path)}.{definition.name}"
        for path in sources()
        for definition in code_of(path).public
        if not definition.docstring and definition.name.split(".")[-1] not in INHERITED
    ]
    assert not bare, f"no docstring: {bare}"


def test_public_functions_over_tensors_give_shapes() -> None:
    silent = [
        f"{name_of(path)}.{definition.name}"
        for path in sources()
        if path.relative_to(ROOT).parts[0] in ("kernels", "zoo")
        for definition in code_of(path).public
        if definition.takes is not None
        and "." not in definition.name
        and not re.search(r"\([A-Z0-9.]|\([a-z]+,|scalar", definition.docstring)
        and any(re.search(r"\bTensor\b|\bndarray\b", text) for text in definition.takes)
    ]
    assert not silent, f"docstrings without a shape: {silent}"


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
        if p.stem not in ("__init__", "base", "classifier", "tta")
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


def test_known_bad_habits_are_absent() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()} ({why})"
        for path in sources()
        for pattern, why in FORBIDDEN.items()
        for number, line in enumerate(code_of(path).lines, 1)
        if re.search(pattern, line) and "house: allowed, " not in line
    ]
    assert not found, "\n".join(found)


def test_tracked_files_are_small_and_name_no_place() -> None:
    big = [p.relative_to(ROOT) for p in tracked() if p.stat().st_size > 10_000_000]
    assert not big, f"over 10 MB: {big}"
    words = (b"/tmp/bash_jobs", b"registry.npmjs", b"files.pythonhosted", b"pypi.org/simple")
    folders = re.compile(rb"/(?<![\w}!]/)(?:work|root|home)/[a-z]")
    named = []
    for path in tracked():
        if path.suffix not in (".npz", ".png", ".jpg") and path != Path(__file__):
            text = path.read_bytes()
            if folders.search(text) or any(word in text for word in words):
                named.append(path.relative_to(ROOT).as_posix())
    assert not named, f"paths of a machine or registry addresses stand in {named}"


def test_architecture_page_shows_every_folder() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    parts = {p.relative_to(ROOT).parts for p in tracked()}
    shown = {part[0] for part in parts if len(part) > 1 and not part[0].startswith(".")}
    shown |= {p.name for p in tracked() if p.parent == ROOT and p.suffix == ".py"}
    shown |= {f"{part[1]}/" for part in parts if part[0] in ("zoo", "benchmarks") and len(part) > 2}
    missing = [name for name in sorted(shown) if name not in page]
    assert not missing, f"docs/architecture.md lacks {missing}"
