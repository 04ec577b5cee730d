"""The command download_weights.py, from its door: what it prints, how it ends, and that it starts without
torch."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import termios
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import LIGHT, Forked
from hostile_server import BODY, SHA256, HostileServer, hostile_server
from typer.testing import CliRunner, Result

from detection_zoo.zoo.manifest_files import MANIFEST_FOLDER, SHARED_FILES, load_manifests
from detection_zoo.zoo.weights.fetch.selection import choose
from download_weights import app

ROOT = MANIFEST_FOLDER.parent
ROW = """
[[model]]  # {name}: a comment that stays
name = "{name}.sample"
title = "{name}"
backbone = {{ name = "resnet50" }}
classes = 80
dataset = "coco"
"""
FILE = """[[model.weights]]
urls = ["{url}"]   # the only address
format = "detectron_pkl"
holds = "detector"
{more}
"""


@pytest.fixture(scope="module")
def shared_server() -> Iterator[HostileServer]:
    with hostile_server() as state:
        state.files |= {"a.pkl": BODY, "b.pkl": BODY[::-1]}
        yield state


@pytest.fixture
def server(shared_server: HostileServer) -> HostileServer:
    shared_server.seen.clear()
    shared_server.count.clear()
    return shared_server


@pytest.fixture
def manifests(tmp_path: Path, server: HostileServer) -> Path:
    """A manifest folder with rows of every kind, on a server of this machine."""
    folder = tmp_path / "manifests"
    folder.mkdir()
    for name in SHARED_FILES:
        shutil.copyfile(MANIFEST_FOLDER / name, folder / name)
    files = {
        "pinned": FILE.format(
            url=server.url("files", "a.pkl"),
            more=f'sha256 = "{SHA256}"\nbytes = {len(BODY)}\nlicence = "MIT"',
        ),
        "unpinned": FILE.format(url=server.url("files", "b.pkl"), more=""),
        "dead": FILE.format(url=server.url("404"), more=""),
        "wrong": FILE.format(url=server.url("good"), more='wrong = "holds another model"'),
        "manual": (
            '[[model.weights]]\nmanual = "https://pan.baidu.com/s/1"\nfilename = "c.pth"\nformat ='
            ' "detectron_pkl"\nholds = "detector"\n'
        ),
    }
    (folder / "sample.toml").write_text(
        "# All rows\n" + "".join(ROW.format(name=name) + text for name, text in files.items()) + "# the end\n"
    )
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETECTION_ZOO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DETECTION_ZOO_OFFLINE", raising=False)
    return tmp_path / "home"


@pytest.fixture
def run(manifests: Path, home: Path) -> Any:
    def call(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(app, [*arguments, "--manifests", str(manifests)])
        assert result.exit_code == code, result.output
        return result

    return call


def rows(result: Result) -> list[dict[str, Any]]:
    return json.loads(result.stdout)


def test_list(run: Any) -> None:
    shown = rows(run("list", "--json"))
    assert [(r["row"], r["hash"], r["here"], r["remark"]) for r in shown] == [
        ("pinned.sample", "pinned", False, ""),
        ("unpinned.sample", "unpinned", False, ""),
        ("dead.sample", "unpinned", False, ""),
        ("wrong.sample", "unpinned", False, "wrong link"),
        ("manual.sample", "unpinned", False, "by hand"),
    ]
    text = run("list")
    assert "0.4 MiB" in text.stdout and "MIT" in text.stdout and "not stated" in text.stdout
    assert text.stderr == "5 files, 0 here; 1 pinned, 0 recorded, 4 unpinned\n"
    assert len(rows(run("list", "un*", "--json"))) == 1
    run("list", "nothing_like_it", code=2)
    run("list", "--holds", "cheese", code=2)


def test_get_all_ends_each_in_its_way(run: Any, home: Path) -> None:
    result = run("get", "--all", "--json", code=1)
    assert {r["row"].split(".")[0]: r["status"] for r in rows(result)} == {
        "pinned": "fetched",
        "unpinned": "fetched",
        "dead": "failed",
        "wrong": "skipped",
        "manual": "skipped",
    }
    assert "HTTP 404 the file is gone" in result.stderr and "2 fetched, 2 skipped, 1 failed" in result.stderr
    assert (
        '# manifests/sample.toml, unpinned.sample, b.pkl\nsha256 = "' + hashlib.sha256(BODY[::-1]).hexdigest()
        in result.stderr
    )
    again = rows(run("get", "pinned.sample", "unpinned.sample", "--json", "--offline"))
    assert [(r["status"], r["hash_from"]) for r in again] == [("here", "manifest"), ("here", "record")]
    assert [r["row"] for r in rows(run("list", "--here", "--json"))] == ["pinned.sample", "unpinned.sample"]


def test_get_by_name_fails_on_what_needs_a_person_or_is_wrong(run: Any, server: HostileServer) -> None:
    assert "marked wrong in its manifest: holds another model" in run("get", "wrong.sample", code=1).stderr
    assert "open https://pan.baidu.com/s/1" in run("get", "manual.sample", code=1).stderr
    assert "--offline forbids" in run("get", "pinned.sample", "--offline", code=1).stderr
    assert not server.seen
    assert "did you mean 'pinned.sample'" in run("get", "pinnedd.sample", code=2).stderr
    run("get", code=2)


def test_pin_writes_the_manifest_and_nothing_else(run: Any, manifests: Path) -> None:
    run("get", "unpinned.sample")
    before = (manifests / "sample.toml").read_text()
    sha256 = hashlib.sha256(BODY[::-1]).hexdigest()
    assert f'sha256 = "{sha256}"' in run("pin", "unpinned.sample", "--show").stdout
    assert (manifests / "sample.toml").read_text() == before
    run("pin", "unpinned.sample")
    after = (manifests / "sample.toml").read_text()
    added = f'sha256 = "{sha256}"\nbytes = {len(BODY)}\n'
    assert after.replace(added, "") == before and after.count(added) == 1
    row = tomllib.loads(after)["model"][1]
    assert (row["name"], row["weights"][0]["sha256"]) == ("unpinned.sample", sha256)
    assert rows(run("get", "unpinned.sample", "--json"))[0]["hash_from"] == "manifest"
    assert "no recorded hash for unpinned.sample" in run("pin", "unpinned.sample", code=1).stderr


def test_pin_refuses_a_layout_it_cannot_edit(run: Any, manifests: Path) -> None:
    path = manifests / "sample.toml"
    inline = (
        f'"weights" = [{{ urls = ["{tomllib.loads(path.read_text())["model"][1]["weights"][0]["urls"][0]}"],'
        ' format = "x", holds = "detector" }]'
    )
    path.write_text(ROW.format(name="inline") + inline + "\n")
    run("get", "inline.sample")
    before = path.read_text()
    assert (
        "paste by hand:\n# manifests/sample.toml, inline.sample" in run("pin", "inline.sample", code=1).stderr
    )
    assert path.read_text() == before


def test_forgotten_hash_is_recorded_anew(run: Any, server: HostileServer, home: Path) -> None:
    run("get", "unpinned.sample")
    run("pin", "unpinned.sample", "--forget")
    assert rows(run("list", "unpinned.sample", "--json"))[0]["hash"] == "unpinned"


def test_verify_sets_a_damaged_file_aside(run: Any, home: Path) -> None:
    run("get", "pinned.sample")
    assert "1 files read, 0 damaged" in run("verify").stderr
    stored = home / "sha256" / SHA256
    stored.chmod(0o644)
    stored.write_bytes(BODY[:-1] + b"x")
    assert rows(run("verify", "pinned.sample", "--json", code=1))[0]["status"] == "damaged"
    assert not stored.exists()
    assert (home / "damaged" / SHA256).exists()
    assert rows(run("get", "pinned.sample", "--json"))[0]["status"] == "fetched"
    (home / "sha256" / ("0" * 64)).write_bytes(b"nobody knows")
    assert [(r["file"], r["status"]) for r in rows(run("verify", "--json", code=1))] == [
        ("a.pkl", "good"),
        ("0" * 64, "damaged"),
    ]
    assert "1 files read, 0 damaged" in run("verify").stderr


def test_export_and_import(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("get", "pinned.sample", "unpinned.sample")
    target = tmp_path / "carried"
    run("export", str(target), "--all")
    check = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=target, capture_output=True, text=True)
    assert check.returncode == 0 and check.stdout.count("OK") == 2
    monkeypatch.setenv("DETECTION_ZOO_HOME", str(tmp_path / "offline machine"))
    # nothing vouches there for the bytes of the second file, which holds no tensors
    assert "b.pkl: refused" in run("import", str(target), code=1).stderr
    taken = rows(run("import", str(target / "a.pkl"), "--json"))
    assert [(r["row"], r["hash_from"]) for r in taken] == [("pinned.sample", "manifest")]
    assert rows(run("get", "pinned.sample", "--offline", "--json"))[0]["status"] == "here"
    assert Path(run("where", "pinned.sample").stdout.strip()).read_bytes() == BODY
    run("where", "manual.sample", code=1)


def test_import_of_a_file_fetched_by_hand(run: Any, tmp_path: Path) -> None:
    (tmp_path / "download (1).pth").write_bytes(b"\x80\x02by hand.")
    assert (
        "no row has such a file; name the row"
        in run("import", str(tmp_path / "download (1).pth"), code=1).stderr
    )
    refused = run("import", str(tmp_path / "download (1).pth"), "manual.sample", code=1).stderr
    assert "download (1).pth: refused" in refused
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02not it.")
    assert (
        "bytes received, the manifest says 384,002"
        in run("import", str(tmp_path / "a.pkl"), "pinned.sample", code=1).stderr
    )
    (tmp_path / "anything").write_bytes(BODY)
    assert rows(run("import", str(tmp_path / "anything"), "--json"))[0]["row"] == "pinned.sample"


def test_audit(run: Any, manifests: Path, tmp_path: Path, server: HostileServer) -> None:
    text = (manifests / "sample.toml").read_text()
    for name, url in (
        ("twin", server.url("files", "a.pkl")),
        ("loop", server.url("redirect-loop")),
        ("page", server.url("html")),
        ("moved", server.url("redirect")),
        ("malformed", "htp://x"),
        ("baidu", "https://pan.baidu.com/s/9"),
    ):
        text += ROW.format(name=name) + FILE.format(url=url, more="")
    text += ROW.format(name="resized") + FILE.format(url=server.url("larger"), more="bytes = 5")
    text += ROW.format(name="invalid") + FILE.format(url="https://example.org/x", more='sha256 = "short"')
    (manifests / "sample.toml").write_text(text)
    result = run("audit", "--results", str(tmp_path / "results"), "--json", code=1)
    record = json.loads(next((tmp_path / "results").glob("weights_????-??-??.json")).read_text())
    assert record == json.loads(result.stdout)
    status = {link["row"].split(".")[0]: link["status"] for link in record["links"]}
    assert status == {
        "pinned": "ok",
        "unpinned": "ok",
        "dead": "dead",
        "wrong": "ok",
        "twin": "ok",
        "loop": "error",
        "page": "page",
        "moved": "ok",
        "malformed": "error",
        "baidu": "by hand",
        "resized": "wrong size",
    }
    moved = next(link for link in record["links"] if link["row"] == "moved.sample")
    assert moved["redirects"] == [server.url("good")] and moved["bytes"] == len(BODY)
    for fault in (
        "pinned.sample, twin.sample: all have the address",
        "malformed.sample: htp://x: scheme 'htp' is unknown",
        "baidu.sample: https://pan.baidu.com/s/9: Baidu",
        "sample.toml: invalid.sample: weights: sha256",
        "unpinned.sample: http://localhost",
    ):
        assert any(fault in line for line in record["faults"]), (fault, record["faults"])
    assert any(line.startswith("unpinned.sample") for line in record["unpinned"]) and not any(
        line.startswith("pinned.") for line in record["unpinned"]
    )


def test_audit_without_a_network(run: Any, manifests: Path, tmp_path: Path) -> None:
    text = ROW.format(name="far") + FILE.format(url="https://weights.invalid/x.pth", more="")
    text += ROW.format(name="twin") + FILE.format(url="https://weights.invalid/x.pth", more="")
    (manifests / "sample.toml").write_text(text)
    for options in ([], ["--offline"]):
        result = run("audit", "--results", str(tmp_path / "results"), *options, "--json", code=1)
        record = json.loads(result.stdout)
        assert [link["status"] for link in record["links"]] == ["no network"] * 2
        assert (
            len(record["faults"]) == 1
            and "far.sample, twin.sample: all have the address https://weights.invalid/x.pth"
            in record["faults"][0]
        )
    assert "no network: https://weights.invalid/x.pth" in result.stderr


def test_an_audit_that_could_ask_nothing_has_not_passed(run: Any, manifests: Path, tmp_path: Path) -> None:
    (manifests / "sample.toml").write_text(
        ROW.format(name="far") + FILE.format(url="https://weights.invalid/x.pth", more="")
    )
    assert "no link could be checked" in run("audit", "--results", str(tmp_path), code=1).stderr
    assert "no link could be checked" not in run("audit", "--results", str(tmp_path), "--offline").stderr


@pytest.mark.parametrize(
    "command",
    [("export", "TAKEN", "pinned.sample"), ("audit", "--offline", "--results", "TAKEN")],
    ids=["export", "audit"],
)
def test_a_folder_that_cannot_be_made_is_told_in_one_line(
    run: Any, tmp_path: Path, command: tuple[str, ...]
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    run("get", "pinned.sample")
    assert f"error: {taken}: " in run(*(part.replace("TAKEN", str(taken)) for part in command), code=1).stderr


def test_audit_of_the_project_itself(tmp_path: Path) -> None:
    """The project's own manifests have no malformed row and no unexplained duplicate."""
    result = CliRunner().invoke(app, ["audit", "--offline", "--results", str(tmp_path), "--json"])
    assert json.loads(result.stdout)["faults"] == [], result.stdout[-2000:]
    assert result.exit_code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_leaves_something_that_resumes(
    number: signal.Signals, manifests: Path, home: Path, server: HostileServer
) -> None:
    """A real signal to a real process, while the server keeps it waiting."""
    row = ROW.format(name="slow") + FILE.format(url=server.url("drip"), more="")
    (manifests / "sample.toml").write_text(row)
    command = ("download_weights.py", "get", "slow.sample", "--manifests", manifests)
    process = Forked(*command, imports=LIGHT)
    while not list(home.glob("parts/*.part")) or next(home.glob("parts/*.part")).stat().st_size == 0:
        assert process.poll() is None, process.stderr.read()
    process.send_signal(number)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == 130 and "1 stopped" in talk and "Traceback" not in talk
    assert next(home.glob("parts/*.part")).stat().st_size > 0


def test_help_of_every_command() -> None:
    for command in (
        "list",
        "get",
        "verify",
        "audit",
        "convert",
        "pin",
        "export",
        "import",
        "remove",
        "where",
    ):
        result = CliRunner().invoke(app, [command, "--help"])
        assert result.exit_code == 0 and "--json" in result.stdout


def test_list_starts_fast_and_without_heavy_imports(home: Path) -> None:
    """Under 0.6 s of processor time, which is what it takes on a machine with nothing else to do."""
    code = "import sys; sys.argv = ['download_weights.py', 'list']\nimport atexit, download_weights\n"
    code += (
        "atexit.register(lambda: print('HEAVY', sorted({'torch', 'numpy', 'pandas', 'requests', 'tqdm'} &"
        " set(sys.modules))))\ndownload_weights.main()"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "HEAVY []"
    assert len(shown.stdout.splitlines()) == len(choose(load_manifests(), everything=True)) + 2
    spent_s = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "download_weights.py", "list"],
            cwd=ROOT,
            capture_output=True,
            check=True,
            env={**os.environ},
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent_s) < 0.6, spent_s


def test_bars_on_a_terminal(manifests: Path, home: Path, server: HostileServer) -> None:
    """One bar for each file and one for all, on a real pseudo-terminal."""
    master, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    server.files |= {"a.pkl": BODY, "b.pkl": BODY[::-1]}
    command = ("download_weights.py", "get", "pinned.sample", "unpinned.sample", "--manifests", manifests)
    process = Forked(*command, imports=LIGHT, stderr=terminal)
    os.close(terminal)
    shown = b""
    while piece := read_terminal(master):
        shown += piece
    assert process.wait() == 0 and process.stdout.read().count("fetched") == 2
    text = shown.decode()
    for title in ("a.pkl", "b.pkl", "total"):
        assert f"{title}: " in text
    assert f"total: {2 * len(BODY) / 1000:.0f}kB" in text


def read_terminal(master: int) -> bytes:
    """What was written to a pseudo-terminal; empty when the other side is closed."""
    try:
        return os.read(master, 1 << 16)
    except OSError:
        return b""
