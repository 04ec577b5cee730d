"""Commands that are stopped at random moments, by Ctrl-C, a polite kill and SIGKILL: what they had stored is
whole, nothing of theirs runs on, and they say so in one line.

python tests/killed_commands.py [KILLS [COMMAND...]]    prints the figures; 25 of each of four commands
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from forked import IMPORTS, LIGHT, ROOT, Forked, run_forked  # noqa: E402
from hostile_server import BODY, ETAG, SHA256, Handler, case, hostile_server  # noqa: E402

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
MARK = "DETECTION_ZOO_KILLED_COMMAND"  # in the environment of everything that a command starts
ROWS = ("faster_rcnn_vovnet27_tiny_fpn.demo", "faster_rcnn_resnet14_slim_fpn.demo")
MEASURE = ["--data", "shapes", "--images", "2", "--device", "cpu"]
RUN = [*MEASURE, "--metrics", "inference", "--processes", "1", "--warm-up-s", "0.1", "--budget-s", "0.2"]


@case("trickle")
def trickle(handler: Handler, number: int) -> None:
    """The file in pieces, within a second; the rest of it where that is asked for."""
    begin = handler.range_start()
    part = {"Content_Range": f"bytes {begin}-{len(BODY) - 1}/{len(BODY)}"} if begin else {}
    handler.start(206 if begin else 200, len(BODY) - begin, ETag=ETAG, **part)
    for start in range(begin, len(BODY), 10_000):
        handler.wfile.write(BODY[start : start + 10_000])
        time.sleep(0.025)


@dataclass
class Command:
    """A command, and what may be there after it was stopped.

    faults: what is wrong with its folder. longest_s: the latest moment of a kill.
    """

    arguments: list[str]
    faults: Callable[[Path], list[str]]
    longest_s: float


@dataclass
class Tally:
    """What became of the kills of one command."""

    kills: int = 0
    finished: int = 0
    codes: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest_s: float = 0.0

    def line(self, name: str) -> str:
        """The figures in one line."""
        codes = ", ".join(f"{code} {count}x" for code, count in sorted(self.codes.items()))
        return (
            f"{name}: {self.kills} killed, {self.finished} had finished before; exit codes {codes};"
            f" at most {self.slowest_s:.1f} s to the end; {len(self.faults)} faults"
        )


def unfinished(folder: Path) -> list[str]:
    """Hidden files of writes that were cut."""
    return [f"left behind: {path.name}" for path in folder.rglob(".*") if path.is_file()]


def store_faults(folder: Path) -> list[str]:
    """Records of runs and comparisons that cannot be read."""
    from detection_zoo.benchmarks.compare.record import stored_comparisons
    from detection_zoo.benchmarks.store import stored_runs

    store = folder / "runs"
    return stored_runs(store).problems + stored_comparisons(store)[1] + unfinished(folder)


def download_faults(folder: Path) -> list[str]:
    """Stored files whose bytes are not those of their name; each is removed, to be fetched again."""
    faults = []
    for path in (folder / "home" / "sha256").glob("*"):
        if hashlib.sha256(path.read_bytes()).hexdigest() != path.name:
            faults.append(f"{path.name}: other bytes")
        path.unlink()
    return faults


def report_faults(folder: Path) -> list[str]:
    """Files that differ from those of an unbroken report."""
    whole, cut = folder / "whole", folder / "cut"
    return [
        f"{path.name}: cut or changed"
        for path in cut.rglob("*")
        if path.is_file()
        and not path.name.startswith(".")
        and path.read_bytes() != (whole / path.relative_to(cut)).read_bytes()
    ] + unfinished(folder)


def commands(folder: Path, port: int, forks: bool) -> dict[str, Command]:
    """The four commands, each working below a folder of its own; what forks takes half as long."""
    from hostile_modes import manifest_folder

    store = ["--store", str(folder / "run" / "runs"), "--again"]
    against = ["--store", str(folder / "compare" / "comparisons"), "--blocks", "2", "--rounds", "2"]
    home = ["--home", str(folder / "get" / "home"), "--manifests"]
    (folder / "get").mkdir()
    urls = [f"http://localhost:{port}/trickle/file.pkl"]
    home.append(str(manifest_folder(folder / "get" / "manifests", urls, f'sha256 = "{SHA256}"')))
    report = ["bench.py", "report", "--store", str(ROOT / "results" / "runs"), "--out"]
    return {
        "run": Command(["bench.py", "run", *ROWS, *RUN, *store], store_faults, 4 if forks else 8),
        "compare": Command(
            ["bench.py", "compare", *ROWS, *MEASURE, *against], store_faults, 3.5 if forks else 7
        ),
        "report": Command([*report, str(folder / "report" / "cut")], report_faults, 3),
        "get": Command(["download_weights.py", "get", "--all", *home], download_faults, 1.3),
    }


def start(command: Command, folder: Path, shapes: Path, imports: tuple[str, ...], forks: bool) -> Forked:
    """Start a command in a session of its own, as from a terminal."""
    environment = {"DETECTION_ZOO_HOME": str(shapes), "OMP_NUM_THREADS": "1", "no_proxy": "localhost"}
    environment[MARK] = str(folder)
    options = {"stderr": subprocess.STDOUT, "imports": imports, "forks": forks}
    return Forked(*command.arguments, environment=environment, **options)


def left_running(folder: Path, session: int) -> list[int]:
    """Processes that were started for this folder, or forked in this session, and run on."""
    sign, pids = f"{MARK}={folder}\0".encode(), []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            ours = sign in (path / "environ").read_bytes() or os.getsid(int(path.name)) == session
            if ours and "\nState:\tZ" not in (path / "status").read_text():
                pids.append(int(path.name))
        except OSError:
            continue  # it has ended, or is another user's
    return pids


def stop(process: Forked, number: signal.Signals) -> str:
    """Send a signal as a terminal or a supervisor does, and return what the command said."""
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    return process.communicate(timeout=120)[0]


def kill_often(
    command: Command,
    folder: Path,
    shapes: Path,
    kills: int,
    draw: random.Random,
    imports: tuple[str, ...],
    forks: bool,
) -> Tally:
    """Start a command so often, each time to be stopped at a random moment; a command that has finished by
    then is started again."""
    tally = Tally()
    while tally.kills < kills and tally.finished < 3 * kills + 3:
        number = SIGNALS[tally.kills % len(SIGNALS)]
        process = start(command, folder, shapes, imports, forks)
        after_s = draw.uniform(0.1, command.longest_s)
        try:
            said, seconds = process.communicate(timeout=after_s)[0], 0.0
            tally.finished += 1
            fine = process.returncode == 0
        except subprocess.TimeoutExpired:
            began = time.monotonic()
            said, seconds = stop(process, number), time.monotonic() - began
            tally.kills += 1
            fine = process.returncode in (-number, 130, 0)
            tally.codes[process.returncode] += 1
        tally.slowest_s = max(tally.slowest_s, seconds)
        where = f"{number.name} after {after_s:.2f} s: "
        if not fine or "Traceback" in said:
            shown = said[max(0, said.find("Traceback")) :][:1500]
            tally.faults.append(f"{where}exit code {process.returncode}: {shown}")
        deadline = time.monotonic() + 5
        while (pids := left_running(folder, process.pid)) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in pids:
            tally.faults.append(f"{where}runs on: {Path(f'/proc/{pid}/cmdline').read_bytes()[-80:]}")
            os.kill(pid, signal.SIGKILL)
        tally.faults += [where + fault for fault in command.faults(folder)]
    return tally


def kill_command(name: str, kills: int, seed: int = 3, imports: tuple[str, ...] = IMPORTS) -> Tally:
    """Kill one of `run`, `compare`, `report` and `get` so often, in a folder that is removed afterwards.

    imports: modules that are imported before the first moment of a kill; with all of them, the processes
        that measure are forked too.
    """
    from records import make_small_shapes

    with tempfile.TemporaryDirectory() as temporary, hostile_server() as server:
        root = Path(temporary)
        shapes = make_small_shapes(root / "shapes")
        forks = imports == IMPORTS
        command, folder = commands(root, server.port, forks)[name], root / name
        folder.mkdir(exist_ok=True)
        if name == "report":
            whole = [*command.arguments[:-1], str(folder / "whole")]
            run_forked(*whole).check_returncode()
        tally = kill_often(command, folder, shapes, kills, random.Random(seed), imports, forks)
        # and undisturbed it works in what was left
        done = start(command, folder, shapes, imports, forks=True)
        said = done.communicate(timeout=300)[0]
        if done.returncode:
            tally.faults.append(f"the last one, undisturbed: exit code {done.returncode}: {said[-600:]}")
        return tally


def main() -> None:
    """Print the figures."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 25
    faults = 0
    for name in sys.argv[2:] or ("run", "compare", "report", "get"):
        tally = kill_command(name, kills, imports=LIGHT)
        print(tally.line(name), *tally.faults, sep="\n  ", flush=True)
        faults += len(tally.faults)
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
