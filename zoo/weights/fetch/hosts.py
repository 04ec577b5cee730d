"""Rules of each host: direct links for share links, new addresses of moved buckets, confirmation pages,
tokens. No network."""

from __future__ import annotations

import base64
import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from html.parser import HTMLParser
from urllib.parse import parse_qs, parse_qsl, quote, urlencode, urljoin, urlsplit, urlunsplit

from detection_zoo.zoo.errors import DownloadError
from detection_zoo.zoo.plain import one_line, without_secrets

DRIVE_DOWNLOAD = "https://drive.usercontent.google.com/download"
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
PERSON_HOSTS = {"pan.baidu.com": "Baidu requires an account and a code"}
# Buckets that moved, and the new addresses of their files. The new address is tried first, then the old one.
MOVED = {
    "https://s3-us-west-2.amazonaws.com/detectron/": "https://dl.fbaipublicfiles.com/detectron/",
    "https://s3.amazonaws.com/pytorch/models/": "https://download.pytorch.org/models/",
}
TOKEN_NAMES = {
    "huggingface.co": "HF_TOKEN",
    "github.com": "GITHUB_TOKEN",
    "raw.githubusercontent.com": "GITHUB_TOKEN",
}
LONGEST_ADDRESS = 8192
SCHEMES = ("https", "http", "file", "pypi", "npm", "s3", "hf")


def host_of(url: str) -> str:
    """The host of an address in lower case ('file', 'pypi' or 'npm' if it has none), for tables and
    messages."""
    parts = urlsplit(url)
    return (parts.hostname or parts.scheme).lower()


def problem_of(url: str) -> str | None:
    """Reason why an address of a row is invalid, or None."""
    try:
        parts = urlsplit(url)
        port_ok = parts.port is None or parts.port > 0
    except ValueError as error:
        return f"not an address ({error})"
    if parts.scheme not in SCHEMES:
        return f"scheme {parts.scheme!r} is unknown; known: {', '.join(SCHEMES)}"
    if parts.scheme in ("https", "http") and (not parts.hostname or not port_ok):
        return "no host in the address"
    if parts.username or parts.password:
        return "the address contains a user name or password; use a token in the environment"
    if any(c.isspace() or ord(c) < 32 for c in url):
        return "white space in the address"
    return None


def is_private_address(address: str) -> bool:
    """Whether an IP address is of this machine or a private network."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None) or getattr(parsed, "sixtofour", None)
    return not (mapped or parsed).is_global


def is_private_host(host: str) -> bool:
    """Whether a host name is of this machine or a private network."""
    name = host.lower().rstrip(".")
    if re.fullmatch(r"(0x[0-9a-f]+|[0-9]+)(\.(0x[0-9a-f]+|[0-9]+)){0,3}", name):
        try:  # every form that a resolver accepts: 127.1, 0x7f000001, 2130706433
            return is_private_address(socket.inet_ntoa(socket.inet_aton(name)))
        except OSError:
            return False
    local = ("localhost", "local", "internal", "home.arpa", "localdomain")
    return name.split(".")[-1] in local or name.endswith(".home.arpa") or is_private_address(name)


def needs_person(url: str) -> str | None:
    """Why this address needs a manual download, or None."""
    return PERSON_HOSTS.get(host_of(url))


def routes(url: str) -> list[str]:
    """The addresses to try for one address of a manifest, in order.

    Args:
        url: as the manifest states it: a share page, a bucket, a plain file.

    Raises:
        DownloadError: the address is malformed.
    """
    if reason := problem_of(url):
        raise DownloadError(f"{url}: {reason}; fix the row")
    parts = urlsplit(url)
    host = host_of(url)
    for old, new in MOVED.items():
        if url.startswith(old):
            return [new + url.removeprefix(old), url]
    if parts.scheme == "s3":
        return [f"https://{parts.netloc}.s3.amazonaws.com{quote(parts.path, safe='/%')}"]
    if parts.scheme == "hf" or host in ("huggingface.co", "www.huggingface.co"):
        return [_hugging_face(url)]
    if host in ("www.dropbox.com", "dropbox.com", "dl.dropbox.com"):
        return _dropbox(url)
    if host in ("drive.google.com", "docs.google.com"):
        return [_drive(url)]
    if host in ("1drv.ms", "onedrive.live.com"):
        share = base64.urlsafe_b64encode(url.encode()).decode().rstrip("=")
        return [f"https://api.onedrive.com/v1.0/shares/u!{share}/root/content"]
    if host == "github.com":
        return [url.replace("/blob/", "/raw/", 1)]
    return [url]


def _dropbox(url: str) -> list[str]:
    parts = urlsplit(url)
    query = [(k, v) for k, v in parse_qsl(parts.query) if k not in ("dl", "raw")]
    page = urlunsplit(("https", "www.dropbox.com", parts.path, urlencode([*query, ("dl", "1")]), ""))
    direct = urlunsplit(("https", "dl.dropboxusercontent.com", parts.path, urlencode(query), ""))
    return [page, direct]


def drive_id(url: str) -> str | None:
    """The file id in a Google Drive address of any shape, or none."""
    parts = urlsplit(url)
    if match := re.search(r"/file/d/([\w-]+)", parts.path):
        return match[1]
    return parse_qs(parts.query).get("id", [None])[0]


def _drive(url: str) -> str:
    if not (key := drive_id(url)):
        raise DownloadError(
            f"{url}: no file id in this Google Drive address; a folder or a malformed link, fix the row"
        )
    return f"{DRIVE_DOWNLOAD}?{urlencode({'id': key, 'export': 'download'})}"


def _hugging_face(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme == "https":
        return url.replace("/blob/", "/resolve/", 1)
    match = re.fullmatch(r"([^/]+/[^/@]+)(?:@([^/]+))?/(.+)", url.removeprefix("hf://"))
    if not match:
        raise DownloadError(f"{url}: write hf://OWNER/NAME@REVISION/FILE; fix the row")
    return f"https://huggingface.co/{match[1]}/resolve/{match[2] or 'main'}/{quote(match[3])}"


def same_file(url: str) -> str:
    """A key that is equal for addresses of the same file: share links of one id, an old bucket and its new
    address."""
    if problem_of(url) or needs_person(url):
        return url
    if key := drive_id(url) if host_of(url) == "drive.google.com" else None:
        return f"drive:{key}"
    try:
        first = routes(url)[0]
    except DownloadError:
        return url
    return first.partition("?dl=1")[0]


# --- tokens ----------


def token_name(host: str) -> str:
    """The environment variable of a host's token: HF_TOKEN, GITHUB_TOKEN, else the host in
    capitals and _TOKEN."""
    return TOKEN_NAMES.get(host) or re.sub(r"[^A-Z0-9]", "_", host.upper()) + "_TOKEN"


def token_header(url: str, origin: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The Authorization header for an address, or nothing.

    Args:
        url: the address about to be requested, perhaps after a redirect.
        origin: the address of the first request: a token is sent only there, and only encrypted or within
            this machine.

    Raises:
        DownloadError: the token's variable has characters that are invalid in a header; its value is not
            shown.
    """
    here, first = urlsplit(url), urlsplit(origin)
    same_origin = (here.scheme, here.hostname, here.port) == (first.scheme, first.hostname, first.port)
    private = here.scheme == "https" or here.hostname in LOCAL_HOSTS
    name = token_name(host_of(url))
    token = environment.get(name, "").strip()
    if not (token and same_origin and private):
        return {}
    if not re.fullmatch(r"[!-~]+", token):  # libraries quote it in their errors
        raise DownloadError(f"{name} contains white space or invalid characters; set it again")
    return {"Authorization": f"Bearer {token}"}


def hide(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """A message without secrets: the values of all *_TOKEN variables; names, passwords and fields of
    addresses that look like secrets."""
    for name, value in environment.items():
        if name.endswith("_TOKEN") and len(value) >= 4:
            text = text.replace(value, "***")
    return without_secrets(text)


def scrub(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """A message about an address that a server chose: secrets hidden, and every query cut off, since
    it may contain signatures."""
    text = hide(text[:LONGEST_ADDRESS], environment)
    return re.sub(r"\b(\w{1,20}:/{1,9}[^\s?'\"]+)\?[^\s'\"),]*", r"\1?...", text)


# --- pages in place of files ----------


class _Page(HTMLParser):
    """Collects the title, the visible text and the forms of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.title, self.text, self.in_title = "", [], False
        self.forms: list[tuple[str, dict[str, str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.in_title = tag == "title"
        if tag == "form":
            self.forms.append((given.get("action") or "", {}))
        elif tag == "input" and self.forms and given.get("type") == "hidden" and given.get("name"):
            self.forms[-1][1][given["name"] or ""] = given.get("value") or ""
        elif tag == "a" and "confirm=" in (given.get("href") or ""):
            self.forms.append((given["href"] or "", {}))

    def handle_data(self, data: str) -> None:
        if self.in_title:
            self.title += data
            self.in_title = False
        else:
            self.text.append(data)


def read_page(url: str, body: bytes) -> str:
    """The file's address from a page that was served instead of it (Google Drive's "cannot scan for viruses"
    page).

    Args:
        url: the address that gave the page.
        body: the beginning of the page.

    Raises:
        DownloadError: the page has no link to the file.
    """
    page = _Page()
    page.feed(body.decode("utf-8", "replace"))
    title, text = one_line(" ".join(page.title.split()))[:100], " ".join(" ".join(page.text).split())
    if host_of(url) == host_of(DRIVE_DOWNLOAD) or host_of(url).endswith(".google.com"):
        if re.search(
            r"quota exceeded|too many users have viewed or downloaded", f"{title} {text}", re.IGNORECASE
        ):
            raise DownloadError(
                "Google Drive's download quota for this file is used up; try again in a day, or fetch it in a"
                " browser and `import` it"
            )
        if host_of(url) == "accounts.google.com":
            raise DownloadError("Google Drive requires a login: the file is not public (any more)")
        for action, fields in page.forms:
            target = urljoin(url, action)
            if host_of(target) in (host_of(url), host_of(DRIVE_DOWNLOAD)) and (
                "confirm" in fields or "confirm=" in target
            ):
                query = dict(parse_qsl(urlsplit(target).query)) | fields
                return f"{target.partition('?')[0]}?{urlencode(query)}"
    raise DownloadError(
        f"the server sent a web page instead of the file (title {title!r}); the link is dead or manual"
    )


def redirect_target(url: str, location: str) -> str:
    """The target address of a redirect.

    Raises:
        DownloadError: it leaves http(s), leaves encryption, or leads from a public host to a private one.
    """
    try:
        target = urljoin(url, location)
    except ValueError:
        raise DownloadError("a redirect to an invalid address is refused") from None
    shown = one_line(scrub(target))[:200]
    if len(target) > LONGEST_ADDRESS:
        raise DownloadError(f"a redirect to an address of {len(target):,} characters is refused")
    if problem_of(target) or urlsplit(target).scheme not in ("http", "https"):
        raise DownloadError(f"a redirect to {shown!r} is refused: only http(s) addresses may follow")
    if urlsplit(url).scheme == "https" and urlsplit(target).scheme == "http":
        raise DownloadError(f"a redirect from https to plain http ({shown}) is refused")
    if is_private_host(host_of(target)) and not is_private_host(host_of(url)):
        raise DownloadError(f"a redirect from a public host to a private one ({shown}) is refused")
    return target
