"""`bench.py fit`: find the largest batch and the largest image of a row that fit in a memory limit; every
trial runs in its own process. Does not import torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from detection_zoo.benchmarks.ask.fit_search import Search, Trial
from detection_zoo.benchmarks.ask.fit_trial import INFERENCE_TURNS, OBJECTS, TRAINING_STEPS, Case, run_trial
from detection_zoo.benchmarks.run.isolation import Limits, Outcome, run_isolated, usable_memory_mib
from detection_zoo.benchmarks.run.progress import clock
from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.manifest import ModelEntry

MIB_PER_GB = 1024  # GiB, as in `pick --max-gb`
# pixels of the shorter side from one image size to the next: the coarsest stride that most detectors have
SIDE_STEP = 32
LEAST_SIDE = 64
Axis = Literal["batch", "image"]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Answer:
    """Result for one axis: the largest trial that fits, and the smallest that does not; `bound` says why one
    is missing, or why there was no search."""

    axis: Axis
    fits: Trial | None = None
    exceeds: Trial | None = None
    bound: str | None = None


@dataclass
class Fit:
    """State of a search.

    case: row, weights, device, dtype, size of the image files. limit_mib: memory limit of a process.
        limit_s: time limit of a trial. say: called with a line per trial.
    """

    case: Case
    limit_mib: float
    limit_s: float = 600.0
    say: Say = lambda text: None
    work: Callable[..., None] = run_trial
    trials: list[Trial] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    interrupted: bool = False

    @property
    def ok(self) -> bool:
        """Whether every search found a size that fits, and no trial failed."""
        return not any(trial.verdict == "failed" for trial in self.trials) and all(
            answer.fits for answer in self.answers if answer.exceeds or answer.fits
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "row": self.case.row,
            "train": self.case.train,
            "device": self.case.device,
            "dtype": self.case.dtype,
            "weights": self.case.weights,
            "limit_mib": self.limit_mib,
            "interrupted": self.interrupted,
            "trials": [asdict(one) for one in self.trials],
            "answers": [asdict(one) for one in self.answers],
        }

    def batches(self, most: int) -> None:
        """Search for the largest batch, up to `most`, of images resized as the row specifies."""
        self._search(
            "batch",
            Search(1, 1, most, self.limit_mib),
            lambda size: replace(self.case, batch=size),
            f"larger ones were not tried (--max-batch {most})",
        )

    def images(self, most_side: int) -> None:
        """Search for the largest image at batch 1, its shorter side up to `most_side` pixels."""
        rule = self.case.entry.conventions.image
        if rule.resize != "shorter_side":
            why = {
                "fixed": f"the row resizes every image to {rule.size} x {rule.size}",
                "centre_crop": f"the row crops every image to {rule.size} x {rule.size}",
                "none": ("the model resizes images itself, so a larger file does not enlarge its input"),
            }[rule.resize]
            self.answers.append(Answer("image", bound=f"not searched: {why}"))
            return

        def case_of(number: int) -> Case:
            short = rule.size + number * SIDE_STEP
            scale = short / min(self.case.image)
            return replace(
                self.case,
                batch=1,
                image=tuple(round(side * scale) for side in self.case.image),
                short_side=short,
            )

        def pixels(number: int) -> float:
            width, height = case_of(number).image
            return float(width * height)

        most = max(0, (most_side - rule.size) // SIDE_STEP)
        search = Search(0, min(0, -((rule.size - LEAST_SIDE) // SIDE_STEP)), most, self.limit_mib, pixels)
        self._search("image", search, case_of, f"larger ones were not tried (--max-side {most_side})")

    def _search(self, axis: Axis, search: Search, case_of: Callable[[int], Case], bound: str) -> None:
        """Try sizes until the answer is known; keep partial results on Ctrl-C."""
        tried: dict[int | None, Trial] = {}
        ended = None
        try:
            while (size := search.next_size()) is not None:
                trial = tried[size] = self._try(axis, case_of(size), self.limit_mib)
                if trial.verdict == "failed":
                    ended = f"the search stopped at a failed trial: {trial.reason}"
                    return
                search.tell(size, trial.verdict == "fits", trial.peak_mib)
                self._tell(axis, trial)
            if search.fitting is None and tried[search.exceeding].peak_mib is None:
                # what it would need
                tried[search.exceeding] = self._try(axis, case_of(search.exceeding), None)
                self._tell(axis, tried[search.exceeding])
        except KeyboardInterrupt:
            ended, self.interrupted = "stopped by Ctrl-C", True
            raise
        finally:
            fits, exceeds = tried.get(search.fitting), tried.get(search.exceeding)
            self.answers.append(Answer(axis, fits, exceeds, ended or (None if exceeds else bound)))

    def _try(self, axis: Axis, case: Case, limit_mib: float | None) -> Trial:
        """Run one trial; limit_mib None: without a limit, to measure the required memory."""
        on_cpu, started, seen = case.device == "cpu", time.monotonic(), {}
        free = usable_memory_mib()
        limits = Limits(
            limit_s=self.limit_s,
            memory_mib=min(limit_mib, free) if on_cpu and limit_mib is not None else free,
        )
        with clock(f"{case.row}: {_size_text(axis, case.batch, case.image)}"):
            outcome = run_isolated(
                self.work,
                (replace(case, gpu_limit_mib=None if on_cpu else limit_mib),),
                seen.update,
                limits=limits,
            )
        trial = Trial(
            case.batch,
            case.image,
            self._verdict(outcome, seen.get("peak_mib")),
            reason=outcome.reason,
            seconds=time.monotonic() - started,
            **seen,
        )
        self.trials.append(trial)
        return trial

    def _tell(self, axis: Axis, trial: Trial) -> None:
        self.say(
            f"{_size_text(axis, trial.batch, trial.image)}: {trial.verdict}, {_peak_text(trial)},"
            f" {trial.seconds:.0f} s"
        )

    def _verdict(self, outcome: Outcome, peak_mib: float | None) -> Literal["fits", "too much", "failed"]:
        if peak_mib is not None:
            return "fits" if peak_mib <= self.limit_mib else "too much"
        return "too much" if exhausted(outcome.reason or "", self.case.device) else "failed"


def exhausted(reason: str, device: str) -> bool:
    """Return whether a process ran out of the limited memory; running out of RAM does not count for a
    GPU limit."""
    text = reason.lower()
    if device == "cpu":
        return text.startswith("out of memory") or "sigkill" in text
    return (
        "alloc_failed" in text
        or "out of memory" in text
        and "the process held" not in text
        and "cpuallocator" not in text
    )


def check_row(entry: ModelEntry, train: bool) -> None:
    """Raise ManifestError if a row cannot be built or trained."""
    where = entry.where
    if entry.published_only is not None:
        raise ManifestError(f"{where} has published numbers only and cannot be built: {entry.published_only}")
    if entry.conventions is None:
        raise ManifestError(
            f"{where} has no conventions, so its image size is unknown; set conventions in the row"
        )
    if train and (entry.task == "classification" or entry.schedule is None):
        why = (
            "is a classifier; training of classifiers is not measured"
            if entry.task == "classification"
            else "has no training schedule"
        )
        raise ManifestError(f"{where} {why}; leave out --train")


def fit(
    case: Case,
    limit_mib: float,
    axes: tuple[Axis, ...] = ("batch", "image"),
    *,
    most_batch: int = 1024,
    most_side: int = 8192,
    limit_s: float = 600.0,
    say: Say = lambda text: None,
) -> Fit:
    """Search for the sizes that fit in `limit_mib`.

    Args:
        case: row, weights, device, dtype, and the (width, height) of image files; its batch is ignored.
        limit_mib: memory limit of a process, as `meaning` explains.
        axes: quantities to search for.
        most_batch: largest batch to try; most_side: largest shorter image side to try, in pixels.
        limit_s: a longer trial stops the search.
        say: called with a line per trial.

    Returns:
        Every trial and the answers; after Ctrl-C, those known until then.

    Raises:
        ManifestError: the row cannot be built, or trained.
    """
    check_row(case.entry, case.train)
    found = Fit(case, limit_mib, limit_s, say)
    try:
        if "batch" in axes:
            found.batches(most_batch)
        if "image" in axes:
            found.images(most_side)
    except KeyboardInterrupt:
        found.interrupted = True
    return found


def text_of(found: Fit, hardware: str, width: int | None = None) -> str:
    """Return the answers, every trial, and an explanation as text; width: characters per line of the
    table."""
    from detection_zoo.benchmarks.tabular import text_table

    rows = [
        [
            str(trial.batch),
            _pixels(trial.image),
            _pixels(trial.network),
            "-" if trial.peak_mib is None else f"{trial.peak_mib:.0f}",
            trial.verdict,
            trial.reason or "",
        ]
        for trial in found.trials
    ]
    table = text_table(
        ["batch", "image file", "network's input", "peak (MiB)", "verdict", "why"], rows, width
    )
    case = found.case
    title = f"{case.row}: {'training' if case.train else 'inference'}, {case.dtype}, on {hardware}"
    return "\n".join(
        [title, *map(_answer_text, found.answers), "", table, "", *(f"- {line}" for line in meaning(found))]
    )


def meaning(found: Fit) -> list[str]:
    """Explain what is measured, and on what images."""
    case, how = found.case, next((trial.how for trial in found.trials if trial.how), None)
    lines = [
        f"The limit is {found.limit_mib / MIB_PER_GB:.4g} GiB ({found.limit_mib:.0f} MiB), the"
        " unit of `pick --max-gb`."
    ]
    if case.device == "cpu":
        lines.append(
            f"Fits: the memory of the process stays within the limit; {how or 'no trial succeeded'}."
        )
    else:
        lines.append(
            "Fits: the GPU memory of the whole process, including CUDA context and libraries,"
            " stays within the limit (torch's allocator is limited accordingly);"
            f" {how or 'no trial succeeded'}."
            " The driver and the desktop use a part of a GPU's nominal memory."
        )
    turns = (
        f"{TRAINING_STEPS} training steps, {OBJECTS} objects per image"
        if case.train
        else f"{INFERENCE_TURNS} iterations from image to results on the host"
    )
    lines.append(f"Each trial is a new process that builds the model and runs {turns}.")
    lines.append(
        f"Images are random pixels of {_pixels(case.image)} (--image), pre-processed as the"
        f" row specifies{_rule_text(case)}."
    )
    counts = [trial.detections for trial in found.trials if trial.detections is not None]
    if counts:
        lines.append(
            "Memory does not depend on image content, except through the number of detections: up to"
            f" {max(counts):.0f} detections per image here."
        )
    return lines


def _rule_text(case: Case) -> str:
    image = case.entry.conventions.image
    if image.resize != "shorter_side" or image.max_size is None:
        return ""
    return (
        f"; images with a larger aspect ratio become up to {image.max_size} x {image.size};"
        f" use --image {image.max_size}x{image.size} to try that"
    )


def _answer_text(answer: Answer) -> str:
    name = "largest batch" if answer.axis == "batch" else "largest image at batch 1"
    if answer.fits is None and answer.exceeds is None:
        return f"{name}: {answer.bound}"
    size = {
        trial: str(trial.batch) if answer.axis == "batch" else _pixels(trial.image)
        for trial in (answer.fits, answer.exceeds)
        if trial
    }
    first = (
        f"{name}: none fits"
        if answer.fits is None
        else f"{name}: {size[answer.fits]} fits ({_peak_text(answer.fits)})"
    )
    beyond = (
        ""
        if answer.exceeds is None
        else (
            f"; {size[answer.exceeds]} {'needs' if answer.exceeds.peak_mib else 'is too much:'}"
            f" {_peak_text(answer.exceeds)}"
        )
    )
    return first + beyond + (f"; {answer.bound}" if answer.bound else "")


def _peak_text(trial: Trial) -> str:
    return f"{trial.peak_mib:.0f} MiB" if trial.peak_mib is not None else str(trial.reason)


def _size_text(axis: Axis, batch: int, image: tuple[int, int]) -> str:
    return f"batch {batch}" if axis == "batch" else f"image {_pixels(image)}"


def _pixels(size: tuple[int, int] | None) -> str:
    return "-" if size is None else f"{size[0]} x {size[1]}"
