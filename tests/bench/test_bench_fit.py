"""bench.py fit: few trials to a size that fits beside one that does not, whatever becomes of the processes
that try."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace

import psutil
import pytest
from forked import Forked
from typer.testing import CliRunner

from bench import app
from detection_zoo.benchmarks.ask.fit_find import Fit, check_row, exhausted, text_of
from detection_zoo.benchmarks.ask.fit_search import Search
from detection_zoo.benchmarks.ask.fit_trial import OBJECTS, Case, RandomImages, run_trial
from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.manifest_files import load_manifests

DEMO = "mask_rcnn_resnet14_slim_fpn.demo"
CASE = Case(DEMO, "random", "cpu", "float32", False, 1, (640, 480))
BLOCK_MIB = 32  # an image of the processes below


@pytest.mark.parametrize("known_above", [True, False], ids=["told", "killed"])
@pytest.mark.parametrize(
    ("memory", "limit", "largest", "most_trials"),
    [
        (lambda n: 300 + 50 * n, 8192, 157, 7),  # 300 + 50 * 157 = 8150
        (
            lambda n: max(400, 100 + 3 * n),
            1500,
            466,
            15,
        ),  # what a process holds at rest hides the line at first
        (lambda n: 300 + n * n, 8192, 88, 14),  # 88 * 88 = 7744, 89 * 89 = 7921
        (lambda n: 300 + 40 * n**0.5, 1100, 400, 15),
        (lambda n: 300 + (9000 if n > 77 else 0), 8192, 77, 18),  # a step that no line foresees
        (lambda n: 9000, 8192, None, 1),
        (lambda n: 300, 8192, 1024, 11),
        (
            lambda n: {1: 1726, 2: 2226, 3: 2715}.get(n, 3200 * n / 4),
            3072,
            3,
            4,
        ),  # what Faster R-CNN on VoVNet-39 took on a CPU: 1, 2, 3 and then 4
    ],
    ids=["line", "rest", "square", "root", "step", "nothing fits", "everything fits", "vovnet39"],
)
def test_the_neighbours_are_found_in_few_trials(
    memory: Callable[[int], float], limit: float, largest: int | None, most_trials: int, known_above: bool
) -> None:
    """known_above: a process that needs too much lives to tell how much."""
    search, tried = Search(1, 1, 1024, limit), []
    while (size := search.next_size()) is not None:
        assert size not in tried and 1 <= size <= 1024
        tried.append(size)
        fits = memory(size) <= limit
        search.tell(size, fits, memory(size) if fits or known_above else None)
    assert search.fitting == largest and search.exceeding == (None if largest == 1024 else (largest or 0) + 1)
    assert {search.fitting, search.exceeding} - {None} <= set(tried)
    assert len(tried) <= most_trials


def test_a_search_goes_down_from_its_start_where_that_is_too_much() -> None:
    search = Search(0, -9, 300, 2000, lambda number: float((320 + 32 * number) ** 2))
    while (size := search.next_size()) is not None:
        search.tell(size, 500 + search.cost(size) * 0.02 <= 2000, None)
    assert (search.fitting, search.exceeding) == (-2, -1)  # 256 * 256 * 0.02 = 1311, 288 * 288 * 0.02 = 1659


def resident_mib() -> float:
    return psutil.Process().memory_info().rss / 2**20


def holds(case: Case, report: Callable[[object], None]) -> None:
    """Holds BLOCK_MIB an image of the batch."""
    block = b"\1" * (case.batch * BLOCK_MIB * 2**20)
    report({"peak_mib": resident_mib(), "how": f"planted, {len(block)} bytes", "network": case.image})


def killed_from_three(case: Case, report: Callable[[object], None]) -> None:
    """What Linux does to a process when the machine's memory runs out."""
    if case.batch >= 3:
        os.kill(os.getpid(), signal.SIGKILL)
    report({"peak_mib": 10.0 * case.batch})


def refuses_from_three(case: Case, report: Callable[[object], None]) -> None:
    if case.batch >= 3:
        raise ValueError("the kernel takes two images at most")
    report({"peak_mib": 10.0 * case.batch})


def hangs(case: Case, report: Callable[[object], None]) -> None:
    threading.Event().wait()


def rest_mib() -> float:
    alone = Fit(CASE, 2.0**20, work=holds)
    alone.batches(1)
    return alone.trials[0].peak_mib - BLOCK_MIB


@pytest.mark.usefixtures("forked_measurements")
def test_processes_that_hold_memory() -> None:
    """Room for five blocks and a half: the sixth is too much, whether the process was ended or lived to
    tell."""
    found = Fit(CASE, rest_mib() + 5.5 * BLOCK_MIB, work=holds)
    found.batches(64)
    assert (found.answers[0].fits.batch, found.answers[0].exceeds.batch) == (5, 6) and found.ok
    assert found.answers[0].fits.peak_mib <= found.limit_mib
    assert "largest batch: 5 fits" in text_of(found, "a machine")


@pytest.mark.usefixtures("forked_measurements")
def test_what_the_smallest_needs_is_found_without_the_limit() -> None:
    found = Fit(CASE, rest_mib() / 2, work=holds)
    found.batches(64)
    answer = found.answers[0]
    assert (
        answer.fits is None
        and answer.exceeds.batch == 1
        and answer.exceeds.peak_mib > BLOCK_MIB
        and not found.ok
    )
    assert f"none fits; 1 needs {answer.exceeds.peak_mib:.0f} MiB" in text_of(found, "a machine")


@pytest.mark.usefixtures("forked_measurements")
def test_a_killed_process_is_an_answer_and_an_error_ends_the_search() -> None:
    killed = Fit(CASE, 1000, work=killed_from_three)
    killed.batches(64)
    assert (killed.answers[0].fits.batch, killed.answers[0].exceeds.batch, killed.answers[0].bound) == (
        2,
        3,
        None,
    ) and killed.ok
    refused = Fit(CASE, 1000, work=refuses_from_three)
    refused.batches(64)
    assert refused.answers[0].fits.batch == 2 and refused.answers[0].exceeds is None and not refused.ok
    assert "ValueError: the kernel takes two images at most" in text_of(refused, "a machine")
    slow = Fit(CASE, 1000, limit_s=0.1, work=hangs)
    slow.batches(64)
    assert (
        len(slow.trials) == 1
        and "ran longer than its limit of 0.1 s" in slow.answers[0].bound
        and not slow.ok
    )


@pytest.mark.parametrize(
    ("reason", "device", "memory"),
    [
        ("out of memory: CUDA out of memory. Tried to allocate 2.00 GiB", "cuda", True),
        ("AcceleratorError: CUDA error: out of memory", "cuda", True),
        (
            "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "cuda",
            True,
        ),
        ("out of memory: the process held 30000 MiB, its limit is 29000 MiB, and was killed", "cuda", False),
        (
            "out of memory: [enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory",
            "cuda",
            False,
        ),
        ("the process was ended by SIGKILL; typically the out-of-memory killer", "cuda", False),
        ("the process was ended by SIGKILL; typically the out-of-memory killer", "cpu", True),
        ("out of memory: the process held 800 MiB, its limit is 700 MiB, and was killed", "cpu", True),
        ("RuntimeError: CUDA error: an illegal memory access was encountered", "cuda", False),
        ("the process ran longer than its limit of 600 s and was killed", "cpu", False),
    ],
)
def test_whose_memory_ran_out(reason: str, device: str, memory: bool) -> None:
    assert exhausted(reason, device) is memory


def test_a_trial_sees_what_the_row_makes_of_an_image() -> None:
    """maskrcnn-benchmark's rule makes 224 x 160 of 640 x 480; an image that is searched for stays as it is,
    but for padding to multiples of 32."""
    seen: dict[str, object] = {}
    run_trial(Case(DEMO, "random", "cpu", "float32", False, 1, (640, 480)), seen.update)
    most = load_manifests().entry(DEMO).conventions.detections.max_detections
    assert seen["network"] == (224, 160) and seen["peak_mib"] > 100 and 0 <= seen["detections"] <= most
    run_trial(Case(DEMO, "random", "cpu", "float32", True, 1, (400, 300), short_side=300), seen.update)
    assert seen["network"] == (416, 320)


@pytest.mark.usefixtures("forked_measurements")
def test_a_fixed_size_is_not_searched_and_ssd_trains_on_random_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SSD has its own augmentation, and a schedule that counts epochs."""
    monkeypatch.setattr("detection_zoo.benchmarks.ask.fit_trial.TRAINING_STEPS", 1)
    case, seen = Case("ssd300_vgg16_voc.hardnet", "random", "cpu", "float32", True, 1, (96, 64)), {}
    run_trial(case, seen.update)
    assert seen["network"] == (300, 300)
    found = Fit(case, 1e6)
    found.images(8192)
    assert (
        found.trials == []
        and found.answers[0].bound == "not searched: the row resizes every image to 300 x 300"
    )


def test_random_images_are_the_same_for_everybody_and_lie_inside() -> None:
    images = RandomImages(2, (64, 48), 3, keypoints=True)
    truth = images.target(1)
    assert (
        images.load_image(0).shape == (48, 64, 3)
        and (images.load_image(1) == RandomImages(2, (64, 48), 3).load_image(1)).all()
    )
    assert (
        truth.boxes.shape == (OBJECTS, 4)
        and truth.boxes.min() >= 0
        and (truth.boxes.max(axis=0) <= [64, 48, 64, 48]).all()
    )
    assert (
        truth.keypoints.shape == (OBJECTS, 17, 3) and truth.labels.max() < 3 and len(truth.masks) == OBJECTS
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["no_such_row", "--gb", "1"], 2, "no_such_row"),
        ([DEMO], 2, "--gb"),
        ([DEMO, "--gb", "1", "--image", "640"], 2, "WIDTHxHEIGHT"),
        (["resnet18_imagenet.registry", "--gb", "1", "--train"], 2, "classifier"),
        ([DEMO, "--gb", "1", "--weights", "nowhere.pth"], 2, "nowhere.pth"),
    ],
)
def test_wrong_usage(arguments: list[str], code: int, said: str) -> None:
    result = CliRunner().invoke(app, ["fit", "--weights", "random", *arguments, "--device", "cpu"])
    assert result.exit_code == code and said in result.output and result.stdout == ""


def test_rows_that_stand_for_their_numbers_alone_are_refused() -> None:
    for entry in load_manifests().entries.values():
        if entry.published_only is not None:
            with pytest.raises(ManifestError, match="published numbers only"):
                check_row(entry, train=False)
            return
    pytest.fail("no row has published numbers only, so nothing was tested")


@pytest.mark.usefixtures("forked_measurements")
def test_the_door_answers() -> None:
    result = CliRunner().invoke(
        app,
        [
            "fit",
            DEMO,
            "--weights",
            "random",
            "--gb",
            "64",
            "--only",
            "batch",
            "--max-batch",
            "1",
            "--device",
            "cpu",
            "--json",
        ],
    )
    told = json.loads(result.stdout)
    assert result.exit_code == 0, result.output
    assert told["limit_mib"] == 64 * 1024 and [trial["verdict"] for trial in told["trials"]] == ["fits"]
    assert [(answer["fits"]["batch"], answer["bound"]) for answer in told["answers"]] == [
        (1, "larger ones were not tried (--max-batch 1)")
    ]


@pytest.mark.gpu
@pytest.mark.skipif("not __import__('torch').cuda.is_available()", reason="needs a CUDA device")
def test_on_a_gpu_the_process_stays_within_the_limit() -> None:
    found = Fit(replace(CASE, device="cuda"), 1536)
    found.batches(1024)
    answer = found.answers[0]
    assert found.ok and answer.exceeds.batch == answer.fits.batch + 1
    assert 100 < found.trials[0].peak_mib < answer.fits.peak_mib <= 1536
    none = Fit(replace(CASE, device="cuda"), 50)
    none.batches(1024)
    assert none.answers[0].fits is None and none.answers[0].exceeds.peak_mib > 100, (
        "the context alone takes more; without the limit the need is told"
    )


def test_ctrl_c_leaves_what_is_known() -> None:
    words = ("bench.py", "fit", DEMO, "--weights", "random", "--gb", "64", "--device", "cpu")
    stopped = Forked(*words, forks=True)
    for line in stopped.stderr:
        if "batch 1: fits" in line:
            break
    os.killpg(stopped.pid, signal.SIGINT)
    out, _ = stopped.communicate(timeout=60)
    assert stopped.returncode == 130
    assert "largest batch: 1 fits" in out and "stopped by Ctrl-C" in out
