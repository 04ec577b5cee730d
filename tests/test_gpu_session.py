"""The session of `make gpu`: its commands exist, and a step that fails or hangs ends nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import typer
from gpu_session import Step, main, run_all, steps

from bench import app
from detection_zoo.zoo.manifest_files import load_manifests


def test_every_command_and_row_exists(tmp_path: Path) -> None:
    """Options are parsed, nothing is run."""
    rows, commands = load_manifests().entries, typer.main.get_command(app)
    for step in steps(tmp_path, "shapes"):
        if step.command[1] != "bench.py":
            continue
        command = commands.commands[step.command[2]]
        given = command.make_context(step.command[2], list(step.command[3:])).params
        for row in given.get("rows") or []:
            assert row in rows, step.name


def test_a_step_that_fails_or_hangs_ends_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each has its output and its line in the summary; what the time did not reach says so."""
    wanted = [
        Step("good", (sys.executable, "-c", "print('seen')"), 60),
        Step("bad", (sys.executable, "-c", "print('before', flush=True); raise SystemExit(3)"), 60),
        # plays a step that hangs: it is stopped after half a second, nothing waits for its end
        Step("hanging", (sys.executable, "-c", "import time; time.sleep(600)"), 0.5),
    ]
    results = run_all(wanted, tmp_path, 5)
    assert [one.status for one in results] == [0, 3, None]
    assert (tmp_path / "good.txt").read_text() == "seen\n" and (
        tmp_path / "bad.txt"
    ).read_text() == "before\n"
    summary = (tmp_path / "summary.md").read_text()
    assert all(
        text in summary for text in ("| good | passed |", "| bad | exit 3 |", "| hanging | took too long |")
    )
    assert str(run_all(wanted[:1], tmp_path, 0)[0]).startswith("| good | not begun |")
    assert "| good | passed |" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Exit 2 and one line, nothing written."""
    monkeypatch.setattr(sys, "argv", ["gpu_session.py", "--out", str(tmp_path / "out")])
    assert main() == 2 and "no GPU" in capsys.readouterr().err and not (tmp_path / "out").exists()
