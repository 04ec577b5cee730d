"""A program of Python, such as bench.py, in a process of its own that is forked from one that has imported
what the commands need: it starts at once, and is a process like any other, with its own exit code, streams,
signals, limits, folder and environment. Tests of the start itself (imports, Ctrl-C meanwhile) start
Python."""

from __future__ import annotations

import atexit
import fcntl
import gc
import hashlib
import importlib
import json
import multiprocessing
import multiprocessing.util
import os
import pickle
import resource
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from functools import cache
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
LIGHT = ("detection_zoo.bench", "detection_zoo.download_weights")  # what their start imports: no torch
IMPORTS = (
    *LIGHT,
    "detection_zoo.benchmarks.train.start",
    "detection_zoo.zoo.build",
    "detection_zoo.kernels.nms",
)
IMPORTS += ("detection_zoo.zoo.weights.fetch.many", "requests")
IMPORTS += ("detection_zoo.benchmarks.report.generate", "detection_zoo.benchmarks.run.sweep")
IMPORTS += ("torch._dynamo", "torch.distributed", "matplotlib.figure", "matplotlib.backends.backend_svg")
IMPORTS += ("detection_zoo.benchmarks.measure.detector_cases", "scipy.special", "filelock", "psutil")


class Forked(subprocess.Popen):
    """A running program: a Popen of text, in a session of its own; Ctrl-C raises KeyboardInterrupt in it.

    Args:
        arguments: a file of Python, or "-c" and code, and its arguments.
        environment: variables added to those of this process. folder: its working folder.
        imports: modules that the process it is forked from has imported.
        largest_file: limit on the bytes of a file that it writes.
        forks: whether its processes that measure are forked as well, in place of new ones of Python, and a
            run makes two passes over its images in place of 12.
        streams: stdin, stdout and stderr of a Popen; without them, nothing to read and two pipes.

    Once it has ended, `cpu_s` is the processor time in seconds of it and of the processes it waited for, and
    `peak_mib` the largest memory of one of them.
    """

    def __init__(
        self,
        *arguments: object,
        environment: dict[str, str] | None = None,
        folder: Path = ROOT,
        imports: tuple[str, ...] = IMPORTS,
        largest_file: int | None = None,
        forks: bool = False,
        **streams: Any,
    ) -> None:
        self._imports, self._largest_file, self._forks = imports, largest_file, forks
        streams = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        } | streams
        variables = {**os.environ, **(environment or {})}
        super().__init__([*map(str, arguments)], cwd=folder, env=variables, text=True, **streams)

    def finish(self) -> tuple[int, str]:
        """Its exit code, and what it wrote to stderr from here on."""
        with self.stderr:
            said = self.stderr.read()
        return self.wait(), said

    # what Popen does by fork and waitpid is done by the server: the program is a child of that process

    def _execute_child(self, *given: Any) -> None:
        status, status_end = os.pipe()
        request = {"argv": given[0], "folder": str(given[5]), "environment": given[6]}
        request |= {"largest_file": self._largest_file, "forks": self._forks}
        ends = given[10:16]  # of pipes: theirs and ours of stdin, ours and theirs of stdout and of stderr
        theirs = [number if end < 0 else end for number, end in enumerate((ends[0], ends[3], ends[5]))]
        socket.send_fds(start_server(self._imports), [json.dumps(request).encode()], [*theirs, status_end])
        os.close(status_end)
        self._close_pipe_fds(*ends)
        self._status = os.fdopen(status)
        self.pid, self._child_created = int(self._status.readline()), True

    def _wait(self, timeout: float | None) -> int:
        if self.returncode is None:
            with selectors.DefaultSelector() as ready:
                ready.register(self._status, selectors.EVENT_READ)
                if not ready.select(timeout):
                    raise subprocess.TimeoutExpired(self.args, timeout)
            with self._status:
                code, self.cpu_s, self.peak_mib = map(float, self._status.readline().split())
            self.returncode = int(code)
        return self.returncode

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        try:
            return self._wait(0)
        except subprocess.TimeoutExpired:
            return None


def run_forked(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run such a program to its end; see `Forked`."""
    with Forked(*arguments, **options) as process:
        out, err = process.communicate()
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    done.cpu_s = process.cpu_s
    return done


@cache
def start_server(imports: tuple[str, ...] = IMPORTS) -> socket.socket:
    """The connection to a process that forks: one that this process started, or, in the folder of sockets
    that FORK_SERVERS names, one that any process of a session of tests started."""
    if "torch._dynamo" in imports:
        start_server(("torch",))  # it is forked from that one
    shared = os.environ.get("FORK_SERVERS")
    folder = Path(shared or own_folder())
    address = str(folder / hashlib.sha256(" ".join(imports).encode()).hexdigest()[:8])
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            ours.connect(address)
        except OSError:  # nobody has started it, or it has ended
            Path(address).unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                listener.bind(address)
                listener.listen()
                ours.connect(address)
                environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
                if "torch._dynamo" in imports:
                    streams = {"stdin": listener, "stdout": None, "stderr": None}
                    server = Forked(
                        __file__, *imports, imports=("torch",), environment=environment, **streams
                    )
                else:
                    server = subprocess.Popen(
                        [sys.executable, __file__, *imports],
                        cwd=ROOT,
                        env=os.environ | environment,
                        stdin=listener,
                        start_new_session=True,
                    )
            if not shared:
                atexit.register(server.wait)
    atexit.register(ours.close)
    return ours


@cache
def own_folder() -> str:
    """A folder that ends with this process."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return folder.name


def serve(listener: socket.socket, *imports: str) -> NoReturn:
    """Import, then fork for each request until all connections have ended."""
    for name in imports:
        importlib.import_module(name)
    if "detection_zoo.bench" in imports:
        sys.modules["detection_zoo.zoo.manifest_files"].load_manifests()
    if "detection_zoo.kernels.nms" in imports:
        zeros = sys.modules["torch"].zeros
        sys.modules["detection_zoo.kernels.nms"].nms(zeros(1, 4), zeros(1), 0.5)  # loads compiled functions
    gc.freeze()  # collecting what was imported would copy its memory to each program
    events = selectors.DefaultSelector()
    events.register(listener, selectors.EVENT_READ)
    connections = {listener.accept()[0]}
    events.register(*connections, selectors.EVENT_READ)
    while connections:
        for key, _ in events.select():
            if key.data:  # a program has ended
                events.unregister(key.fd)
                os.close(key.fd)
                tell_end(*key.data)
            elif key.fileobj is listener:
                connection, _ = listener.accept()
                connections.add(connection)
                events.register(connection, selectors.EVENT_READ)
            else:
                text, descriptors = socket.recv_fds(key.fileobj, 1 << 20, 4)[:2]
                if not text:
                    events.unregister(key.fileobj)
                    connections.remove(key.fileobj)
                    key.fileobj.close()
                    continue
                *streams, status = descriptors
                if (pid := os.fork()) == 0:
                    for each in (events, listener, *connections):
                        each.close()
                    os.close(status)
                    become(json.loads(text), streams)
                for stream in streams:
                    os.close(stream)
                tell(status, pid)
                events.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, status))
    listener.close()
    os._exit(0)


def tell_end(pid: int, status: int) -> None:
    """Exit code, processor time in seconds and largest memory in MiB of a program that has ended."""
    _, how, used = os.wait4(pid, 0)
    tell(status, os.waitstatus_to_exitcode(how), used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
    os.close(status)


def tell(status: int, *values: float) -> None:
    """A line for who started the program, unless that has ended."""
    with suppress(BrokenPipeError):
        os.write(status, " ".join(map(str, values)).encode() + b"\n")


def become(request: dict, streams: list[int]) -> NoReturn:
    """Become the program, to its end."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
        os.close(stream)
    if request["largest_file"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"],) * 2)
    if request["forks"]:
        fork_measurements()
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = request["argv"]
    more = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.path[:1] = [str(Path(sys.argv[0]).resolve().parent), *more]
    code = 0
    try:
        execute()
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))  # clearing modules takes 0.4 s


def fork_measurements() -> None:
    """Fork the processes that would be new ones of Python; what would be pickled for them is."""
    context, kept = multiprocessing.get_context("fork"), []

    def pipe(**options: Any) -> tuple[Connection, Connection]:
        ends = context.Pipe(**options)
        kept.append(ends[0])
        return ends

    def process(*, target: Any, args: tuple, **options: Any) -> multiprocessing.Process:
        def work() -> None:
            for end in kept:  # a new process has none; with it, who writes would not see that nobody reads
                end.close()
            target(*(v if isinstance(v, Connection) else pickle.loads(pickle.dumps(v)) for v in args))

        return context.Process(target=work, **options)

    importlib.import_module("detection_zoo.benchmarks.spec").BenchmarkSpec.least_passes = 2
    kinds = {"spawn": SimpleNamespace(Pipe=pipe, Process=process)}
    get_context = multiprocessing.get_context
    multiprocessing.get_context = lambda kind=None: kinds.get(kind) or get_context(kind)
    start = multiprocessing.util.spawnv_passfds

    def start_forked(path: str, words: list[str], kept: list[int]) -> int:
        """As `start`; what the workers of a comparison are forked from has imported all by now."""
        if "multiprocessing.forkserver" not in words[-1]:
            return start(path, words, kept)
        if pid := os.fork():
            return pid
        with suppress(BaseException):
            for first, last in pairwise([2, *sorted(kept), os.sysconf("SC_OPEN_MAX")]):
                os.closerange(first + 1, last)
            exec(words[-1], {})
        os._exit(0)

    multiprocessing.util.spawnv_passfds = start_forked


def execute() -> None:
    """What Python does for its command line."""
    if sys.argv[0] != "-c":
        runpy.run_path(sys.argv[0], run_name="__main__")
        return
    code = compile(sys.argv.pop(1), "<string>", "exec")
    sys.modules["__main__"] = ModuleType("__main__")
    exec(code, vars(sys.modules["__main__"]))


if __name__ == "__main__":
    with socket.socket(fileno=os.dup(0)) as ours:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        serve(ours, *sys.argv[1:])
