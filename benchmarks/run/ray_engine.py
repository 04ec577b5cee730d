"""A sweep on a Ray cluster: one GPU and one process per task; records and detections are collected
in one store."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detection_zoo.benchmarks.environment import ROOT
from detection_zoo.benchmarks.run.isolation import Limits, Outcome, failure
from detection_zoo.benchmarks.run.options import SweepOptions
from detection_zoo.benchmarks.run.runner import Draft, Interrupted, run_row
from detection_zoo.benchmarks.run.subject import Sources, identify_data, identify_weights, open_data
from detection_zoo.benchmarks.spec import BenchmarkSpec, Run
from detection_zoo.benchmarks.store import store_file
from detection_zoo.zoo.created_row import row_named
from detection_zoo.zoo.errors import ManifestError, ZooError
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.trained_row import row_of_checkpoint

OLDEST = (2, 52)  # the first version with token authentication
LOOPBACK = "127.0.0.1"
# Environment variables passed to the cluster's processes; tokens and passwords are excluded.
ALLOWED = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|TEMP|TMP|TERM|VIRTUAL_ENV|PYTHON\w*|LD_\w+"
    r"|SYSTEMROOT|RAY_\w+|CUDA_\w+|NVIDIA_\w+|OMP_\w+|MKL_\w+|OPENBLAS_\w+|DETECTION_ZOO_\w+|XDG_CACHE_HOME"
)
RETRIES = 3  # retries of a task whose worker or machine was lost; a failing model is recorded and not retried


def run_on_ray(
    entries: Sequence[ModelEntry],
    spec: BenchmarkSpec,
    sources: Sources,
    options: SweepOptions,
    finished: dict[tuple[str, ...], Run],
    done: Callable[[ModelEntry, Run], None],
    say: Callable[[str], None],
    work: Callable[..., None],
) -> bool:
    """Measure rows on the cluster that RAY_ADDRESS names, or on this machine's GPUs if it is not set.

    Every machine of the cluster must have this checkout, its packages and the data at the same paths.

    Args:
        entries, spec, sources, options, work: as in `run_sweep`.
        finished: finished runs by key; a row already measured on any hardware is skipped.
        done: called with each row and its run, as they finish.
        say: called with a line when a row is submitted to the cluster.

    Returns:
        Whether Ctrl-C stopped it.

    Raises:
        ManifestError: Ray is not installed, or too old for token authentication.
    """
    ray = installed_ray()
    anywhere = {key[:-1]: run for key, run in finished.items()}
    started = not ray.is_initialized()
    if started:
        start(ray, say)
    resources = {"num_gpus": 1} if spec.device == "cuda" else {"num_cpus": 1}
    task = ray.remote(max_retries=RETRIES, runtime_env=_runtime(), **resources)(measure_on_node)
    drafts: dict[Any, tuple[ModelEntry, Draft]] = {}
    try:
        for entry in entries:
            own = spec.for_task(entry.task)
            known = _known(entry, own, sources, anywhere)
            if known is not None:
                done(entry, known)
                continue
            say(f"{entry.name}: submitted to the cluster")
            draft = Draft(entry.name, own, fields={"stage": "on the cluster"})
            drafts[task.remote(entry.name, own, sources, options.limits, work)] = (entry, draft)
        return _collect(ray, drafts, options.files, done)
    except KeyboardInterrupt:
        for reference in drafts:
            ray.cancel(reference, force=True)
        return True
    finally:
        if started:
            ray.shutdown()


def start(ray: Any, say: Callable[[str], None]) -> None:
    """Connect to the cluster named by RAY_ADDRESS, or start a local one: bound to loopback, with
    authentication, without a dashboard, and with only the environment variables in ALLOWED."""
    if address := os.environ.get("RAY_ADDRESS"):
        if os.environ.get("RAY_AUTH_MODE") != "token":
            say(
                f"the cluster {address} is used without authentication: anyone who can connect can run code"
                " on it; set RAY_AUTH_MODE=token on the cluster and here"
            )
        ray.init(log_to_driver=False, runtime_env=_runtime())
        return
    with allowed_environment():
        ray.init(
            "local",
            log_to_driver=False,
            runtime_env=_runtime(),
            include_dashboard=False,
            _node_ip_address=LOOPBACK,
        )


@contextmanager
def allowed_environment() -> Iterator[None]:
    """Remove variables that child processes do not need from os.environ; restore them afterwards."""
    before = dict(os.environ)
    try:
        for name in before:
            if not ALLOWED.fullmatch(name):
                del os.environ[name]
        yield
    finally:
        os.environ.update(before)


def installed_ray() -> Any:
    """Return the ray module with authentication enabled; raises ManifestError if it is missing or too old."""
    if not os.environ.get("RAY_ADDRESS") and "ray" not in sys.modules:
        # read when Ray is imported; the second makes it use loopback as this machine's address
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    try:
        import ray
    except ImportError:
        raise ManifestError(
            "--engine ray needs Ray: run `pip install -e .[ray]`, or leave out --engine"
        ) from None
    if tuple(int(part) for part in ray.__version__.split(".")[:2]) < OLDEST:
        raise ManifestError(
            f"--engine ray needs Ray {'.'.join(map(str, OLDEST))} or later (token"
            " authentication); installed is"
            f" {ray.__version__}: run `pip install -U -e .[ray]`"
        )
    return ray


def _runtime() -> dict[str, Any]:
    """Return what workers need to find this project and its files."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    passed = {
        name: os.environ[name]
        for name in ("DETECTION_ZOO_HOME", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
        if name in os.environ
    }
    return {"env_vars": {"PYTHONPATH": path, **passed}}


def _known(
    entry: ModelEntry, spec: BenchmarkSpec, sources: Sources, anywhere: dict[tuple[str, ...], Run]
) -> Run | None:
    """Return a finished run of the same row, specification, data and weights on any hardware."""
    if not anywhere:
        return None
    try:
        weights, path = identify_weights(entry, sources.weights)
        data = identify_data(open_data(row_of_checkpoint(entry, path), sources.data, spec.images))
    except (ZooError, OSError):
        return None  # the task reports what is missing device selection
    return anywhere.get((entry.name, spec.digest, data.digest, weights.digest))


def _collect(
    ray: Any,
    drafts: dict[Any, tuple[ModelEntry, Draft]],
    files: Path,
    done: Callable[[ModelEntry, Run], None],
) -> bool:
    """Collect results as they finish; a task that the cluster lost is a failed run."""
    while drafts:
        (reference,), _ = ray.wait(list(drafts), num_returns=1)
        entry, draft = drafts[reference]
        try:
            text, contents = ray.get(reference)
            run = Run.model_validate_json(text)
            for name, content in contents.items():
                store_file((files / name).parent, Path(name).name, content)
        except ray.exceptions.RayError as error:
            lost = failure(error)
            run = draft.finish(
                Outcome(
                    "failed", f"the cluster lost the task {RETRIES + 1} times: {lost.reason}", lost.traceback
                )
            )
        except OSError as error:
            run = run.model_copy(
                update={"notes": [*run.notes, f"its detections could not be stored: {error}"], "files": {}}
            )
        del drafts[reference]
        done(entry, run)
    return False


def measure_on_node(
    row: str, spec: BenchmarkSpec, sources: Sources, limits: Limits, work: Callable[..., None]
) -> tuple[str, dict[str, bytes]]:
    """Ray task: measure a row in its own process on the machine of the task.

    Returns:
        The run as JSON, and the content of its files by name.
    """
    entry = row_named(row)
    vars(sys.modules["__main__"]).pop("__file__", None)  # else the process would import Ray and its worker
    with tempfile.TemporaryDirectory(prefix="detection-zoo-") as folder:
        draft = Draft(row, spec, fields={"stage": "finding weights and data"})
        try:
            weights = identify_weights(entry, sources.weights)
            run = run_row(row, spec, sources, weights, Path(folder), limits=limits.with_memory(), work=work)
        except (ZooError, OSError) as error:
            run = draft.finish(failure(error))
        except Interrupted as stopped:
            run = stopped.run
        contents = {file.name: (Path(folder) / file.name).read_bytes() for file in run.files.values()}
    return run.model_dump_json(), contents
