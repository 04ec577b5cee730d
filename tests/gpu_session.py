"""Everything that a GPU shows, most valuable first, within some minutes: `make gpu`.

    python tests/gpu_session.py [--out DIR] [--minutes 10] [--data coco:DIR] [--list]

Each step has its own time limit and writes its output to DIR as it comes; DIR/summary.md is written again
after each. A step that fails or takes too long ends nothing else. Exit status: 0 where every step passed, 1
where one did not, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
OURS, PEER = "faster_rcnn_resnet50_fpn_1x.maskrcnn_benchmark", "faster_rcnn_resnet50_fpn_coco_v1.torchvision"
MASK, MASK_PEER = "mask_rcnn_resnet50_fpn_1x.maskrcnn_benchmark", "mask_rcnn_resnet50_fpn_coco_v1.torchvision"
SSD, SSD_PEER = "ssd300_vgg16_voc.hardnet", "ssd300_vgg16_coco_v1.torchvision"
ENDED_AFTER_S = 5.0  # from the polite signal to the other


@dataclass(frozen=True)
class Step:
    """A part of the session: a name for its files, what it runs, and how long it may take."""

    name: str
    command: tuple[str, ...]
    limit_s: float


@dataclass(frozen=True)
class Result:
    """How a step ended: its exit status, None where it was stopped at its limit or never begun."""

    step: Step
    status: int | None
    seconds: float

    def __str__(self) -> str:
        ended = "not begun" if not self.seconds else "took too long" if self.status is None else "passed"
        if self.status:
            ended = f"exit {self.status}"
        return f"| {self.step.name} | {ended} | {self.seconds:.0f} | `{shlex.join(self.step.command)}` |"


def steps(folder: Path, data: str) -> list[Step]:
    """The session, most valuable first."""
    python, bench = sys.executable, (sys.executable, "bench.py")
    store = ("--store", str(folder / "runs"))
    timed = (
        "--data",
        data,
        "--weights",
        "random",
        "--device",
        "cuda",
        "--timed-images",
        "8",
        "--processes",
        "1",
    )
    found = [
        Step("doctor", (*bench, "doctor"), 60),
        Step("gpu-tests", (python, "-m", "pytest", "-q", "-m", "gpu", "-x", "tests"), 150),
        Step("kernels", (*bench, "kernels", "--device", "cuda", "--store", str(folder / "kernels")), 120),
    ]
    forms = {
        "fp16-fast": ("--dtype", "float16", "--path", "fast"),
        "fp32": (),
        "tf32-fast": ("--tf32", "--path", "fast"),
        "fp16": ("--dtype", "float16"),
        "tf32": ("--tf32",),
    }
    for batch, (form, options) in itertools.product((1, 8), forms.items()):
        rows = (OURS,) if "fast" in form else (OURS, PEER)
        command = (*bench, "run", *rows, "--metrics", "inference", "--batch", str(batch), *options, *timed)
        found.append(Step(f"detectors-{form}-batch{batch}", (*command, "--budget-s", "6", *store), 90))
    training = ("--metrics", "memory,epoch", "--train-steps", "60", "--budget-s", "12")
    for form in ("fp16", "fp32"):
        command = (*bench, "run", OURS, PEER, *training, *forms[form], *timed, *store)
        found.append(Step(f"training-{form}", command, 90))
    for rows in ((MASK, MASK_PEER), (SSD, SSD_PEER)):
        command = (*bench, "run", *rows, "--metrics", "inference", *forms["fp16"], *timed, "--budget-s", "6")
        found.append(Step(f"detectors-{rows[0].partition('_')[0]}-fp16", (*command, *store), 90))
    compared = ("--weights", "random", "--device", "cuda", "--dtype", "float16", "--timed-images", "8")
    compared += ("--blocks", "6", "--rounds", "4", "--budget-s", "90", "--store", str(folder / "comparisons"))
    found.append(Step("compare", (*bench, "compare", OURS, PEER, "--data", data, *compared), 150))
    return found


def run_step(step: Step, folder: Path, left_s: float) -> Result:
    """Run a step with its output in a file; stop it and its children at its limit."""
    start, limit = time.monotonic(), min(step.limit_s, left_s)
    with (folder / f"{step.name}.txt").open("w") as output:
        process = subprocess.Popen(
            step.command, cwd=PROJECT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(limit)
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as stopped:
            _stop(process)
            if isinstance(stopped, KeyboardInterrupt):
                raise
            status = None
    return Result(step, status, time.monotonic() - start)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children: politely, then at once."""
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(ENDED_AFTER_S)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def run_all(wanted: Sequence[Step], folder: Path, minutes: float) -> list[Result]:
    """Run the steps one after another; none begins after so many minutes. The summary is kept up to date."""
    folder.mkdir(parents=True, exist_ok=True)
    end, results = time.monotonic() + 60 * minutes, []
    for step in wanted:
        left = end - time.monotonic()
        results.append(run_step(step, folder, left) if left > 0 else Result(step, None, 0.0))
        text = "\n".join(map(str, results))
        (folder / "summary.md").write_text(
            f"| step | result | seconds | command |\n|---|---|---|---|\n{text}\n"
        )
        print(results[-1], flush=True)
    return results


def main() -> int:
    """Run the session; see the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=PROJECT / "results" / "local" / "gpu")
    parser.add_argument("--minutes", type=float, default=10.0, help="none begins later")
    parser.add_argument(
        "--data", default="shapes", help="as of bench.py run: photographs, where there are any"
    )
    parser.add_argument("--list", action="store_true", help="print the commands and run none")
    options = parser.parse_args()
    wanted = steps(options.out, options.data)
    if options.list:
        print("\n".join(f"{one.name} ({one.limit_s:.0f} s): {shlex.join(one.command)}" for one in wanted))
        return 0
    import torch

    if not torch.cuda.is_available():
        print(
            "gpu_session: torch sees no GPU here; run it where `bench.py doctor` shows one", file=sys.stderr
        )
        return 2
    return int(any(one.status != 0 for one in run_all(wanted, options.out, options.minutes)))


if __name__ == "__main__":
    sys.exit(main())
