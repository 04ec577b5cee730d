"""Check this machine: hardware, libraries, state of the project, and what is
missing."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from detection_zoo.benchmarks.environment import ROOT, collect_environment, installed_packages
from detection_zoo.benchmarks.measure.telemetry import Gpu
from detection_zoo.benchmarks.store import stored_runs
from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.home import home_folder
from detection_zoo.zoo.manifest_files import load_manifests

FREE_GIB = 5  # GiB of free disk space below which a warning is given
PACKAGES = ("zoo", "benchmarks", "kernels")


@dataclass(frozen=True)
class Finding:
    """One finding."""

    what: str
    state: Literal["ok", "warning", "missing", "broken"]
    text: str


def examine() -> tuple[list[Finding], dict[str, Any]]:
    """Return all findings, and the environment that a new record would contain."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    environment = collect_environment(device)
    on_gpu = [_kernels()] if device == "cuda" else []
    findings = [
        _gpu(bool(on_gpu)),
        _cupy(),
        *on_gpu,
        *_packages(),
        _manifests(),
        _store(),
        _disk(),
        _checkout(environment.commit, environment.dirty),
    ]
    return findings, environment.model_dump(mode="json", exclude_defaults=True)


def _gpu(seen_by_torch: bool) -> Finding:
    try:
        gpu = Gpu()
    except RuntimeError as error:
        if seen_by_torch:
            return Finding(
                "gpu",
                "warning",
                f"torch finds a GPU, but {error}; records will have no clocks, power or process memory",
            )
        return Finding("gpu", "missing", f"everything runs on the CPU ({error})")
    if not seen_by_torch:
        return Finding(
            "gpu",
            "broken",
            f"NVML finds {gpu.name} with driver {gpu.driver}, but torch does not; install a torch"
            " built for that driver",
        )
    return Finding("gpu", "ok", f"{gpu.name}, driver {gpu.driver}")


def _cupy() -> Finding:
    version = installed_packages().get("cupy")
    if version is None:
        return Finding("cupy", "missing", "the GPU kernels need it: pip install -e .[gpu]")
    return Finding("cupy", "ok", version)


def _kernels() -> Finding:
    """Check that a kernel compiles and runs: CuPy, its compiler, the headers and the driver must be
    compatible."""
    import torch

    from detection_zoo.kernels.nms import nms

    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8], [20, 20, 30, 30]], device="cuda")
    try:
        kept = nms(boxes, torch.tensor([0.5, 0.9, 0.7], device="cuda"), 0.5).tolist()
    except Exception as error:  # report any error here
        return Finding("kernels", "broken", f"{type(error).__name__}: {error}")
    return (
        Finding("kernels", "ok", "compiled and run")
        if kept == [1, 2]
        else Finding("kernels", "broken", f"NMS of three boxes kept {kept}, not [1, 2]")
    )


def _packages() -> list[Finding]:
    """Check that no other installed package with the same name hides this project's packages."""
    import importlib.util

    findings = []
    for package in PACKAGES:
        spec = importlib.util.find_spec(f"detection_zoo.{package}")
        place = Path(spec.origin) if spec and spec.origin else None
        if place is None or not place.is_relative_to(ROOT):
            cure = f"uninstall the package of that name, or run from {ROOT.name}/"
            findings.append(
                Finding(f"import {package}", "broken", f"imports {place}, not this checkout; {cure}")
            )
    return findings or [Finding("imports", "ok", "imports resolve to this checkout")]


def _manifests() -> Finding:
    try:
        manifests = load_manifests()
    except ManifestError as error:
        return Finding("manifests", "broken", str(error))
    return Finding(
        "manifests",
        "ok",
        f"{len(manifests.entries)} rows of {len({e.source for e in manifests.entries.values()})} sources",
    )


def _store() -> Finding:
    stored = stored_runs()
    if stored.problems:
        return Finding("records", "warning", "; ".join(stored.problems))
    return Finding("records", "ok", f"{len(stored.runs)} runs")


def _disk() -> Finding:
    home = home_folder()
    place = next(path for path in (home, *home.parents) if path.exists())
    free_gib = shutil.disk_usage(place).free / 2**30
    state = "ok" if free_gib >= FREE_GIB else "warning"
    return Finding("disk", state, f"{free_gib:.0f} GiB free for weights and generated data")


def _checkout(commit: str | None, dirty: bool | None) -> Finding:
    if commit is None:
        return Finding("commit", "warning", "not a git checkout: records will not contain the code version")
    return Finding(
        "commit",
        "warning" if dirty else "ok",
        f"{commit[:10]}{' with changes: records will say so' if dirty else ''}",
    )
