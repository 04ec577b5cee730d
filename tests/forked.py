"""A program, such as bench.py, in a process of its own, forked from one that has imported what a training
needs: it can be killed, joined by torchrun's variables and limited like any other, and starts at once."""

from __future__ import annotations

import importlib
import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMPORTS = ("detection_zoo.bench", "detection_zoo.benchmarks.train.start", "detection_zoo.zoo.build")
IMPORTS += ("torch._dynamo", "torch.distributed", "matplotlib.figure", "matplotlib.backends.backend_svg")


class Forked:
    """A running program: `pid`, which is its process group too, and `stderr`, a text file; like a Popen.

    Args:
        arguments: a file of Python, and its arguments. environment: variables added to those of this process.
        largest_file: limit on the bytes of a file that it writes.
    """

    def __init__(
        self, *arguments: object, environment: dict[str, str] | None = None, largest_file: int | None = None
    ) -> None:
        errors, errors_end = os.pipe()
        status, status_end = os.pipe()
        request = {
            "argv": [*map(str, arguments)],
            "environment": {**os.environ, **(environment or {})},
            "largest_file": largest_file,
        }
        socket.send_fds(_server(), [json.dumps(request).encode()], [errors_end, status_end])
        os.close(errors_end)
        os.close(status_end)
        self.stderr, self._status = os.fdopen(errors), os.fdopen(status)
        self.pid = int(self._status.readline())

    def wait(self) -> int:
        """Its exit code, minus the number of the signal that killed it."""
        with self._status:
            return int(self._status.readline())

    def finish(self) -> tuple[int, str]:
        """Its exit code, and what it wrote to stderr from here on."""
        with self.stderr:
            said = self.stderr.read()
        return self.wait(), said


@cache
def _server() -> socket.socket:
    """The connection to the process that forks; it ends with this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    return ours


def serve(requests: socket.socket) -> None:
    """Import, then fork for each request until the connection ends; a forked process returns from here."""
    for name in IMPORTS:
        importlib.import_module(name)
    from torch import zeros

    from detection_zoo.kernels.nms import nms

    nms(zeros(1, 4), zeros(1), 0.5)  # loads compiled functions
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while message := socket.recv_fds(requests, 1 << 20, 2):
        text, (errors, status) = message[0], message[1] or (0, 0)
        if not text:
            return
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.close()
            pid = os.fork()
            if pid == 0:
                os.close(status)
                return run(json.loads(text), errors)
            os.close(errors)
            os.write(status, f"{pid}\n".encode())
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os.write(status, f"{code}\n".encode())
            os._exit(0)
        os.close(errors)
        os.close(status)


def run(request: dict, errors: int) -> None:
    """Become the program."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream, place in enumerate((nothing, nothing, errors)):
        os.dup2(place, stream)
    os.close(nothing)
    os.close(errors)
    if request["largest_file"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"],) * 2)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["argv"]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
