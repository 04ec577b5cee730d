"""The store: whole records or none, cut ones reported, several writers at once, a full disk."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
from pathlib import Path

import pytest
from forked import LIGHT, ROOT, Forked
from records import measured, run_of

from detection_zoo.benchmarks import store
from detection_zoo.benchmarks.compare.record import stored_comparisons
from detection_zoo.benchmarks.report.kernel_cases import stored_timings
from detection_zoo.benchmarks.spec import BenchmarkSpec, digest_of
from detection_zoo.benchmarks.store import (
    read_record,
    read_runs,
    record_folders,
    results_folder,
    sealed,
    store_file,
    stored_runs,
    write_record,
)


def test_a_run_comes_back_as_it_was(tmp_path: Path) -> None:
    run = run_of(
        "a.demo",
        {
            "model_ms": measured(
                1 / 3, "ms", samples=[0.1, 0.2, 1e-17], interval=(0.25, 0.5), percentiles={"p5": 0.1}
            )
        },
    )
    path = write_record(tmp_path / "deep" / "runs", run)
    assert path.name == f"{run.id}.json" and read_record(path) == run
    assert read_runs(path.parent).runs == [run] and not read_runs(path.parent).problems


def test_records_are_never_changed(tmp_path: Path) -> None:
    run = run_of("a.demo", {})
    write_record(tmp_path, run)
    with pytest.raises(FileExistsError, match="never changed"):
        write_record(tmp_path, run.model_copy(update={"duration_s": 9.0}))
    assert read_runs(tmp_path).runs == [run]


@pytest.mark.parametrize("keep", [0, 5, 60, 90, 200, -1])
def test_a_cut_record_is_reported_and_stops_no_other(tmp_path: Path, keep: int) -> None:
    whole, cut = run_of("a.demo", {}), run_of("b.demo", {})
    write_record(tmp_path, whole)
    path = write_record(tmp_path, cut)
    path.write_bytes(path.read_bytes()[:keep])
    stored = read_runs(tmp_path)
    assert stored.runs == [whole]
    assert len(stored.problems) == 1 and path.name in stored.problems[0] and "truncated" in stored.problems[0]


def test_an_edited_record_is_reported(tmp_path: Path) -> None:
    path = write_record(tmp_path, run_of("a.demo", {"box_ap": measured(37.5, "%")}))
    path.write_bytes(path.read_bytes().replace(b"37.5", b"47.5"))
    assert not read_runs(tmp_path).runs and "changed after it was written" in read_runs(tmp_path).problems[0]


def test_a_record_under_another_name_and_an_unfinished_write_are_reported(tmp_path: Path) -> None:
    path = write_record(tmp_path, run_of("a.demo", {}))
    path.rename(tmp_path / "other.json")
    (tmp_path / ".x.json.12345678.part").write_bytes(b"{")
    problems = read_runs(tmp_path).problems
    assert (
        len(problems) == 2
        and any("Rename the file back" in p for p in problems)
        and any("incomplete write" in p for p in problems)
    )


def test_runs_are_sorted_by_time(tmp_path: Path) -> None:
    late, early = (run_of("a.demo", {}, started=f"2030-01-0{day}T00:00:00+00:00") for day in (2, 1))
    write_record(tmp_path, late)
    write_record(tmp_path, early)
    assert read_runs(tmp_path).runs == [early, late]


def _write_many(folder: str, count: int) -> None:
    for _ in range(count):
        write_record(Path(folder), run_of("a.demo", {"model_ms": measured(1.0, "ms", samples=[1.0] * 500)}))


def test_several_writers_share_a_store(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(str(tmp_path), 10)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    stored = read_runs(tmp_path)
    assert len(stored.runs) == 40 and not stored.problems


def test_a_writer_killed_at_any_time_leaves_whole_records_only(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = ['tests']; from pathlib import Path; from records import run_of,"
        " measured; from detection_zoo.benchmarks.store import write_record\nwhile True:"
        " print(write_record(Path(sys.argv[1]), run_of('a.demo', {'model_ms': measured(1.0, 'ms',"
        " samples=[0.1] * 20000)})).name, flush=True)"
    )
    writer = Forked("-c", code, tmp_path, imports=LIGHT)
    announced = [writer.stdout.readline().strip() for _ in range(5)]
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    stored = read_runs(tmp_path)
    assert set(announced) <= {f"{run.id}.json" for run in stored.runs}
    assert all("incomplete write" in problem for problem in stored.problems)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_of("a.demo", {})
    write_record(tmp_path, whole)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_record(tmp_path, run_of("b.demo", {}))
    assert [path.name for path in tmp_path.iterdir()] == [f"{whole.id}.json"]


def test_numbers_that_are_none_cannot_be_stored() -> None:
    with pytest.raises(ValueError, match="finite"):
        measured(float("nan"), "ms")


def test_stored_files_carry_their_digest(tmp_path: Path) -> None:
    found = store_file(tmp_path, "x.bbox.json", b"[]")
    assert (tmp_path / "x.bbox.json").read_bytes() == b"[]" and found.bytes == 2
    assert (
        found.sha256 == "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"
    )  # sha256sum of "[]"


def test_equal_specifications_have_equal_digests() -> None:
    assert BenchmarkSpec().digest == BenchmarkSpec().digest != BenchmarkSpec(batch_size=2).digest
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1}) != digest_of({"a": 1, "b": [3]})


def test_files_that_are_no_records_are_skipped_with_a_sentence(tmp_path: Path) -> None:
    """A folder, a pipe, a device, a dangling link and a link to a folder, all called *.json; JSON that is no
    record; a file that is too large."""
    folders = {"runs": read_folder_of_runs, "comparisons": stored_comparisons, "kernels": stored_timings}
    for kind in folders:
        folder = tmp_path / kind
        (folder / "folder.json").mkdir(parents=True)
        os.mkfifo(folder / "pipe.json")
        (folder / "device.json").symlink_to("/dev/zero")
        (folder / "dangling.json").symlink_to(folder / "nowhere")
        (folder / "loop.json").symlink_to(folder / "loop.json")
        (folder / "deep.json").write_bytes(sealed(b"[" * 200_000 + b"]" * 200_000))
        (folder / "deep-object.json").write_bytes(sealed(b'{"a":' * 9_000 + b"1" + b"}" * 9_000))
        for name, text in {"list": b"[]", "number": b"7", "null": b"null", "huge": b"9" * 5000}.items():
            (folder / f"{name}.json").write_bytes(sealed(text))
        (folder / "plain.json").write_bytes(b"[" * 200_000)
        with (folder / "large.json").open("wb") as file:
            file.truncate(store.MOST_BYTES + 1)
    whole = run_of("a.demo", {})
    write_record(tmp_path / "runs", whole)
    for kind, read in folders.items():
        records, problems = read(tmp_path / "runs")
        assert records == ([whole] if kind == "runs" else [])
        assert len(problems) == 13 and all(f"{kind}/" in text for text in problems), problems
        assert [text for text in problems if "large.json" in text and "more than the 64 MiB" in text]
        assert not [text for text in problems if len(text) > 400 or "\n" in text]


def read_folder_of_runs(folder: Path) -> tuple[list, list[str]]:
    stored = stored_runs(folder)
    return stored.runs, stored.problems


def test_results_go_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert results_folder() == tmp_path / "results"
    assert record_folders("runs") == [tmp_path / "results" / "runs"]
    assert record_folders("kernels", tmp_path / "x" / "runs") == [tmp_path / "x" / "kernels"]


def test_in_a_checkout_own_results_are_apart_from_tracked_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PROJECT_RESULTS", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    assert results_folder() == tmp_path / "results" / "local"
    tracked, own = run_of("a.demo", {}), run_of("b.demo", {})
    write_record(tmp_path / "results" / "runs", tracked)
    write_record(results_folder() / "runs", own)
    assert {run.id for run in stored_runs().runs} == {tracked.id, own.id}


def test_git_ignores_what_commands_write() -> None:
    names = ["local/runs/x.json", "report.html", "tables/wide.md", "tables/wide.csv"]
    ignored = subprocess.run(
        ["git", "check-ignore", *(f"results/{name}" for name in names)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if ignored.returncode == 128:
        pytest.skip("needs a git checkout")
    assert ignored.stdout.split() == [f"results/{name}" for name in names]
