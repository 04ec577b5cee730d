"""A sweep on a local Ray cluster of two workers, one of which is killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from records import MACHINE, make_small_shapes, measured

from detection_zoo.benchmarks.run.subject import Sources, identify_data, open_data
from detection_zoo.benchmarks.run.sweep import SweepOptions, run_sweep
from detection_zoo.benchmarks.spec import BenchmarkSpec, StoredFile
from detection_zoo.benchmarks.store import read_runs
from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.manifest_files import load_manifests

ROOT = Path(__file__).resolve().parents[2]
ROWS = ["mask_rcnn_resnet14_slim_fpn.demo", "mask_rcnn_vovnet27_tiny_fpn.demo"]
SOURCES, SPEC = Sources("shapes"), BenchmarkSpec(images=2)


def quick(row: str, spec: BenchmarkSpec, sources, weights: str, folder: Path, report) -> None:
    """Stands for a model: reports what the real work reports, without one."""
    data = identify_data(open_data(load_manifests().entry(row), sources.data, spec.images))
    report(
        {
            "stage": "timing",
            "environment": MACHINE,
            "data": data,
            "measurements": {"model_ms": measured(20.0, "ms")},
        }
    )


def lost_once(row: str, spec: BenchmarkSpec, sources, weights: str, folder: Path, report) -> None:
    """Like a model; the first time that the second row is measured, the worker it runs on is killed from
    outside, as the machine's loss would."""
    quick(row, spec, sources, weights, folder, report)
    folder.mkdir(parents=True)
    (folder / "bbox.json").write_text(f'["{row}"]')
    report(
        {"files": {"bbox": StoredFile(name=f"{folder.name}/bbox.json", sha256="0" * 64, bytes=len(row) + 4)}}
    )
    marker = Path(os.environ["DETECTION_ZOO_HOME"]) / "killed"
    if row == ROWS[1] and not marker.exists():
        marker.write_text(str(os.getppid()))
        os.kill(os.getppid(), signal.SIGKILL)
        threading.Event().wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory):
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTION_ZOO_HOME", str(make_small_shapes(tmp_path_factory.mktemp("home"))))
        patch.setenv(
            "PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}{os.pathsep}{ROOT / 'tests' / 'bench'}"
        )
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # no workers without the environment that tasks have
        patch.setenv("RAY_prestart_worker_first_driver", "0")
        # nobody reads its logs, and it gets no more nodes
        node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_log_monitor": False}
        two = Cluster(
            initialize_head=True, head_node_args={**node, "include_dashboard": False, "no_monitor": True}
        )
        two.add_node(**node)
        ray.init(address=two.address, log_to_driver=False)
        yield ray
        ray.shutdown()
        two.shutdown()


@pytest.mark.slow
def test_a_worker_that_is_lost_costs_no_row(cluster, tmp_path: Path) -> None:
    assert len([node for node in cluster.nodes() if node["Alive"]]) == 2
    entries = [load_manifests().entry(name) for name in ROWS]
    options = SweepOptions(tmp_path / "runs", engine="ray")
    sweep = run_sweep(entries, SPEC, SOURCES, options, work=lost_once)
    stored = read_runs(tmp_path / "runs")
    assert (Path(os.environ["DETECTION_ZOO_HOME"]) / "killed").is_file(), "the worker was killed"
    assert (
        {run.row: run.status for run in stored.runs} == {name: "finished" for name in ROWS}
        and not sweep.failed
        and not stored.problems
    )
    for run in stored.runs:
        assert (
            run.measurements["model_ms"].value == 20.0
            and (options.files / run.files["bbox"].name).read_text() == f'["{run.row}"]'
        )
    again = run_sweep(entries, SPEC, SOURCES, options, work=lost_once)
    assert {run.id for run in again.known} == {run.id for run in stored.runs} and not again.runs


def fails_on_the_second(row: str, *rest) -> None:
    if row == ROWS[1]:
        raise ValueError("the wheel came off")
    quick(row, *rest)


def test_a_model_that_fails_there_is_a_record_here(cluster, tmp_path: Path) -> None:
    entries = [load_manifests().entry(name) for name in ROWS]
    sweep = run_sweep(
        entries, SPEC, SOURCES, SweepOptions(tmp_path / "runs", engine="ray"), work=fails_on_the_second
    )
    assert {run.row: run.status for run in read_runs(tmp_path / "runs").runs} == {
        ROWS[0]: "finished",
        ROWS[1]: "failed",
    }
    assert sweep.failed[0].reason == "ValueError: the wheel came off"


def test_without_ray_the_engine_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # what import finds where it is not installed
    with pytest.raises(ManifestError, match="pip install -e .\\[ray\\]"):
        run_sweep(
            [load_manifests().entry(ROWS[0])], SPEC, SOURCES, SweepOptions(tmp_path / "runs", engine="ray")
        )


def test_an_old_ray_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    monkeypatch.setattr(ray, "__version__", "2.51.1")
    with pytest.raises(ManifestError, match="needs Ray 2.52 or later"):
        run_sweep(
            [load_manifests().entry(ROWS[0])], SPEC, SOURCES, SweepOptions(tmp_path / "runs", engine="ray")
        )


LOCAL_CLUSTER = """
import json, os, subprocess, sys
import psutil
from detection_zoo.benchmarks.run.ray_engine import installed_ray, start
ray, said = installed_ray(), []
start(ray, said.append)
hidden = ray.get(ray.remote(lambda: sorted(n for n in os.environ if "SECRET" in n or n.endswith("_TOKEN"))).remote())
processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
places = {c.laddr.ip for p in processes for c in p.net_connections("inet") if c.status == "LISTEN"}
mode, address = os.environ.get("RAY_AUTH_MODE"), ray.get_runtime_context().gcs_address
kept = os.environ["MY_SECRET"]
stranger = subprocess.run(
    [sys.executable, "-c", f"import ray; ray.init(address={address!r}, log_to_driver=False)"],
    env={**os.environ, "RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True, timeout=90,
)
ray.shutdown()
refused = [stranger.returncode, stranger.stderr[-600:]]
print(json.dumps([hidden, sorted(places), address, kept, said, mode, *refused]))
"""


@pytest.mark.slow
def test_a_cluster_of_this_machine_listens_on_loopback_and_knows_no_secrets() -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    environment = {**os.environ, "MY_SECRET": "hush", "HF_TOKEN": "hush", "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", LOCAL_CLUSTER], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    last = json.loads(done.stdout.splitlines()[-1])
    hidden, places, address, kept, said, mode, stranger, why = last
    assert mode == "token" and stranger != 0, why  # who has no token is not let in
    assert hidden == [] and kept == "hush" and said == []
    assert address.startswith("127.0.0.1:")
    assert set(places) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, places
