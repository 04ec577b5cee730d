"""Run `bench.py parity` on reference folders as different processors would, and print a table.

    python tests/parity_processors.py ROOT [ROOT ...] --log FILE

Each folder below ROOT that holds outputs runs in a process of its own, for each instruction set (as oneDNN
and ATen name it) and number of threads. Results are appended to FILE, and a rerun continues after them. The
exit status is 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
HOLDS_OUTPUTS = ("outputs.json", "steps.json", "expected.json")
SETTINGS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
PROCESSORS = {
    "own": {},
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "SSE41": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "SSE41+aten": {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"},
}


def folders(roots: list[Path]) -> list[Path]:
    """Every folder at or below the roots that holds recorded outputs."""
    files = {path for root in roots for name in HOLDS_OUTPUTS for path in root.rglob(name)}
    return sorted({path.parent for path in files})


def check(folder: Path, processor: str, threads: int) -> dict[str, Any]:
    """One run of the command: exit status, counts by verdict, lines that differ, seconds."""
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    count = str(threads)
    environment |= PROCESSORS[processor] | {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}
    command = [sys.executable, "bench.py", "parity", "--reference", str(folder), "--json"]
    start = time.monotonic()
    ended = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    result: dict[str, Any] = {
        "folder": str(folder),
        "processor": processor,
        "threads": threads,
        "exit": ended.returncode,
        "seconds": round(time.monotonic() - start),
    }
    try:
        report = json.loads(ended.stdout)
    except json.JSONDecodeError:
        return result | {"error": ended.stderr.strip()[-500:]}
    verdicts = [line["verdict"] for line in report["lines"]]
    counts = {verdict: verdicts.count(verdict) for verdict in ("ok", "differs", "skipped")}
    wrong = [
        f"{line['name']} {line['difference']} of {line['tolerance']}"
        for line in report["lines"]
        if line["verdict"] == "differs"
    ]
    return result | counts | {"wrong": wrong, "notes": report["notes"]}


def table(results: list[dict[str, Any]]) -> str:
    """A row a folder, a column a processor and number of threads: "ok" and how many, or what differs."""
    columns = list(dict.fromkeys((each["processor"], each["threads"]) for each in results))
    lines = ["| folder | " + " | ".join(f"{name}, {n} threads" for name, n in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for folder in dict.fromkeys(each["folder"] for each in results):
        cells = {(each["processor"], each["threads"]): each for each in results if each["folder"] == folder}
        texts = [_cell(cells.get(column)) for column in columns]
        lines.append(f"| {'/'.join(Path(folder).parts[-2:])} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _cell(result: dict[str, Any] | None) -> str:
    if result is None:
        return ""
    if "ok" not in result:
        return f"exit {result['exit']}: {result['error'][-80:]}"
    return f"{result['ok']} ok" if not result["exit"] else f"{result['differs']} differ"


def main() -> int:
    """Run what the log does not hold yet; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("roots", nargs="+", type=Path)
    parser.add_argument("--log", type=Path, required=True, help="one JSON object a line; continued")
    parser.add_argument("--processors", nargs="+", choices=PROCESSORS, default=list(PROCESSORS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    options = parser.parse_args()
    lines = options.log.read_text().splitlines() if options.log.is_file() else []
    results = [json.loads(line) for line in lines]
    finished = {(each["folder"], each["processor"], each["threads"]) for each in results}
    for processor in options.processors:
        for threads in options.threads:
            for folder in folders(options.roots):
                if (str(folder), processor, threads) in finished:
                    continue
                result = check(folder, processor, threads)
                results.append(result)
                with options.log.open("a") as log:
                    log.write(json.dumps(result) + "\n")
                print(f"{folder} {processor} {threads}: {_cell(result)}, {result['seconds']} s", flush=True)
                for line in result.get("wrong", []):
                    print(f"    {line}", flush=True)
    print(table(results))
    return int(any(result["exit"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
