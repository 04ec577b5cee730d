"""Fetch, verify and convert the weights of the manifests. Data goes to stdout, messages to stderr.
Exit codes: 0, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

try:
    from detection_zoo.zoo.entry import INTERRUPTED, begin_command, run_command

    if __name__ == "__main__":
        begin_command()
    import typer

    from detection_zoo.zoo.errors import DownloadError, ZooError
    from detection_zoo.zoo.manifest import Manifests
    from detection_zoo.zoo.manifest_files import MANIFEST_FOLDER, load_manifests, read_manifests
    from detection_zoo.zoo.weights.command_line import (
        Commands,
        Everything,
        Folder,
        Holds,
        Home,
        Json,
        Offline,
        Role,
        Rows,
        say,
        show,
    )
    from detection_zoo.zoo.weights.fetch.cache import WeightCache
    from detection_zoo.zoo.weights.fetch.selection import Chosen, choose, paste_lines, state_of
except KeyboardInterrupt:
    print("stopped by Ctrl-C", file=sys.stderr)
    sys.exit(130)
except ModuleNotFoundError as error:
    if error.name != "typer":
        raise
    print("error: the commands need typer: pip install 'detection-zoo[commands]'", file=sys.stderr)
    sys.exit(2)

app = typer.Typer(
    cls=Commands,
    help=__doc__,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

AUDITS = Path(__file__).resolve().parent / "results" / "audits"


def manifests_of(folder: Path) -> Manifests:
    """The manifests of a folder."""
    return load_manifests() if folder == MANIFEST_FOLDER else read_manifests(folder)


def chosen_of(
    folder: Path,
    rows: list[str] | None,
    everything: bool,
    holds: str | None,
    role: str = "all",
    default_all: bool = False,
) -> list[Chosen]:
    """The weight files selected by a command's rows and options; wrong usage exits with 2."""
    if not rows and not everything and not default_all:
        raise typer.BadParameter("give rows or patterns, or --all", param_hint="ROW...")
    return choose(manifests_of(folder), rows or (), everything or not rows, holds, role)


@app.command("list")
def list_(
    rows: Rows = None,
    holds: Holds = None,
    here: Annotated[bool, typer.Option("--here", help="only files on this machine")] = False,
    home: Home = None,
    folder: Folder = MANIFEST_FOLDER,
    as_json: Json = False,
) -> None:
    """List every weight file: row, size, source of its hash, whether it is here, licence, host."""
    cache = WeightCache(home)
    pins = cache.pins()
    lines = [state_of(c, cache, pins) for c in chosen_of(folder, rows, False, holds, default_all=True)]
    lines = [line for line in lines if line["here"] or not here]
    show(lines, as_json, ("row", "file", "holds", "bytes", "hash", "here", "licence", "hosts", "remark"))
    counts = {
        state: sum(line["hash"] == state for line in lines) for state in ("pinned", "recorded", "unpinned")
    }
    say(
        f"{len(lines)} files, {sum(bool(line['here']) for line in lines)} here; "
        + ", ".join(f"{n} {state}" for state, n in counts.items())
    )


@app.command()
def get(
    rows: Rows = None,
    everything: Everything = False,
    holds: Holds = None,
    role: Role = "trained",
    jobs: Annotated[int, typer.Option(min=1, help="parallel downloads")] = 4,
    offline: Offline = False,
    home: Home = None,
    folder: Folder = MANIFEST_FOLDER,
    as_json: Json = False,
) -> None:
    """Fetch weight files and verify them; files that are here already are not fetched again."""
    from detection_zoo.zoo.weights.fetch.many import fetch_many

    chosen = chosen_of(folder, rows, everything, holds, role)
    outcomes = fetch_many(chosen, WeightCache(home), jobs, offline, exact=rows or (), quiet=as_json)
    show([o.values() for o in outcomes], as_json, ("row", "file", "status", "bytes", "hash_from", "path"))
    counts = {
        status: [o for o in outcomes if o.status == status]
        for status in ("fetched", "here", "skipped", "failed", "stopped")
    }
    for outcome in counts["failed"] + counts["skipped"]:
        say(
            f"{outcome.status}:"
            f" {outcome.reason if outcome.status == 'failed' else f'{outcome.chosen.row}: {outcome.reason}'}"
        )
    if fresh := [o for o in outcomes if o.fetched and o.fetched.hash_from == "first use"]:
        say(
            "Hashes seen for the first time; `download_weights.py pin ROW` writes these lines into the"
            " manifests:"
        )
        for outcome in fresh:
            say(paste_lines(outcome.chosen, outcome.fetched.sha256, outcome.fetched.bytes))
    say(", ".join(f"{len(found)} {status}" for status, found in counts.items() if found) or "nothing to do")
    raise typer.Exit(INTERRUPTED if counts["stopped"] else 1 if counts["failed"] else 0)


@app.command()
def verify(
    rows: Rows = None, home: Home = None, folder: Folder = MANIFEST_FOLDER, as_json: Json = False
) -> None:
    """Verify the hash of every fetched file; damaged files are moved aside."""
    from detection_zoo.zoo.weights.exchange import verify_files, verify_others

    cache = WeightCache(home)
    records = verify_files(chosen_of(folder, rows, False, "all", default_all=True), cache)
    records = [r for r in records if r["status"] != "absent" or rows]
    records += [] if rows else verify_others(cache, {str(r["sha256"]) for r in records})
    show(records, as_json, ("row", "file", "status", "sha256"))
    bad = sum(r["status"] != "good" for r in records)
    say(
        f"{len(records)} files read, {bad} damaged or absent; damaged ones are moved to"
        f" {cache.home / 'damaged'}"
    )
    raise typer.Exit(1 if bad else 0)


@app.command()
def audit(
    offline: Offline = False,
    jobs: Annotated[int, typer.Option(min=1, help="parallel requests")] = 8,
    results: Annotated[Path, typer.Option(help="folder of the dated record")] = AUDITS,
    folder: Folder = MANIFEST_FOLDER,
    as_json: Json = False,
) -> None:
    """Check every link of every manifest; find dead links, wrong sizes, duplicates, malformed rows, rows
    without a hash."""
    from collections import Counter
    from dataclasses import asdict
    from datetime import UTC, datetime

    from detection_zoo.zoo.weights.fetch.audit import audit as run_audit

    done = run_audit(
        folder,
        datetime.now(UTC).strftime("%Y-%m-%d"),
        offline,
        jobs,
        progress=lambda link: say(f"{link.status}: {link.url}"),
    )
    record = done.write(results)
    show(
        asdict(done) if as_json else [vars(link) for link in done.links],
        as_json,
        ("row", "status", "bytes", "type", "detail", "url"),
    )
    for fault in done.faults:
        say(f"fault: {fault}")
    counts = Counter(link.status for link in done.links)
    summary = ", ".join(f"{n} {status}" for status, n in counts.items())
    say(
        f"{len(done.links)} links: {summary}; {len(done.faults)} faults of rows, {len(done.unpinned)} files"
        f" without a hash; {record}"
    )
    unasked = not offline and done.links != [] and set(counts) <= {"no network", "not tried"}
    if unasked:
        say("no link could be checked: is there a network? (--offline checks the rows only)")
    raise typer.Exit(1 if done.faults or done.bad_links or unasked else 0)


@app.command()
def convert(
    rows: Rows = None,
    everything: Everything = False,
    holds: Holds = None,
    role: Role = "trained",
    offline: Offline = False,
    home: Home = None,
    folder: Folder = MANIFEST_FOLDER,
    as_json: Json = False,
) -> None:
    """Convert fetched checkpoints to safetensors, which the zoo loads from then on; --all: every fetched
    file."""
    from detection_zoo.zoo.build import weight_shapes
    from detection_zoo.zoo.weights.convert import convert as convert_one
    from detection_zoo.zoo.weights.fetch.one import fetch_weights

    cache, records, failed = WeightCache(home), [], 0
    for chosen in chosen_of(folder, rows, everything, holds, role):
        if everything and not cache.find(chosen.spec):
            continue
        try:
            fetch_weights(chosen.spec, chosen.row, cache, offline)
            records.append(
                convert_one(chosen.spec, cache, chosen.row, weight_shapes(chosen.entry, chosen.spec))
            )
            say(f"{chosen.row}: {chosen.filename} converted")
        except ZooError as error:
            failed += 1
            say(f"failed: {error}")
    show(records, as_json, ("row", "format", "bytes", "source_sha256", "converted_sha256", "converted"))
    say(f"{len(records)} converted, {failed} failed")
    raise typer.Exit(1 if failed else 0)


@app.command()
def pin(
    rows: Rows = None,
    everything: Everything = False,
    forget: Annotated[bool, typer.Option("--forget", help="forget the recorded hashes instead")] = False,
    show_only: Annotated[bool, typer.Option("--show", help="print the lines without writing them")] = False,
    home: Home = None,
    folder: Folder = MANIFEST_FOLDER,
    as_json: Json = False,
) -> None:
    """Write hashes that were recorded on first use into the manifests."""
    from detection_zoo.zoo.weights.fetch.pin import pin as pin_one

    cache = WeightCache(home)
    pins = cache.pins()
    known = [
        (c, found)
        for c in chosen_of(folder, rows, everything, "all")
        if not c.spec.sha256 and (found := cache.pin_of(c.spec, pins))
    ]
    if not known and not everything:
        raise DownloadError(
            f"no recorded hash for {', '.join(rows or ())}: pinned already, or never fetched here"
            " (download_weights.py list)"
        )
    for chosen, found in known:
        if forget:
            cache.remember(chosen.spec, "", 0, "forgotten", chosen.row)
        elif show_only:
            print(paste_lines(chosen, found.sha256, found.bytes))
        else:
            with cache.lock("manifests"):
                pin_one(chosen, found.sha256, found.bytes, folder)
    verb = "forgotten" if forget else "waiting" if show_only else "pinned"
    if not show_only:
        show(
            [{"row": c.row, "file": c.filename, "sha256": p.sha256, "status": verb} for c, p in known],
            as_json,
            ("row", "file", "status", "sha256"),
        )
    say(f"{len(known)} {verb}")


@app.command()
def export(
    target: Annotated[Path, typer.Argument(help="folder to write")],
    rows: Rows = None,
    everything: Everything = False,
    holds: Holds = None,
    role: Role = "trained",
    home: Home = None,
    folder: Folder = MANIFEST_FOLDER,
    as_json: Json = False,
) -> None:
    """Copy fetched files into a folder under readable names, for a machine without a network; --all: every
    fetched file."""
    from detection_zoo.zoo.weights.exchange import export_files

    cache = WeightCache(home)
    chosen = [
        c for c in chosen_of(folder, rows, everything, holds, role) if not everything or cache.find(c.spec)
    ]
    records = export_files(chosen, cache, target)
    show(records, as_json, ("row", "exported", "bytes", "sha256"))
    say(
        f"{len(records)} files in {target}; `sha256sum -c SHA256SUMS` checks them, `download_weights.py"
        f" import {target}` imports them"
    )


@app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(help="a file, or a folder written by export")],
    row: Annotated[str | None, typer.Argument(help="row of the file; needed if its hash is unknown")] = None,
    name: Annotated[
        str | None, typer.Option("--as", help="which file of the row: its name in `list`")
    ] = None,
    home: Home = None,
    folder: Folder = MANIFEST_FOLDER,
    as_json: Json = False,
) -> None:
    """Import a manually downloaded file: its hash is verified, or its tensors if no hash is known."""
    from detection_zoo.zoo.weights.exchange import import_path

    def check(chosen: Chosen, file: Path) -> None:
        from detection_zoo.zoo.build import check_weights

        check_weights(chosen.entry, chosen.spec, file)

    manifests = manifests_of(folder)
    entries = [manifests.entry(row)] if row else manifests.entries.values()
    taken = import_path(
        path,
        [Chosen(entry, spec) for entry in entries for spec in entry.weights],
        row is not None,
        WeightCache(home),
        check,
        name,
    )
    names = ("bytes", "hash_from", "sha256", "path")
    records = [
        {"row": c.row, "file": c.filename} | {name: getattr(f, name) for name in names} for c, f in taken
    ]
    show(records, as_json, ("row", "file", "bytes", "hash_from", "sha256"))
    for chosen, fetched in taken:
        if fetched.hash_from == "first use":
            say(paste_lines(chosen, fetched.sha256, fetched.bytes))
    say(f"{len(taken)} imported")


@app.command()
def remove(
    rows: Annotated[list[str], typer.Argument(metavar="ROW...", help="row names, or shell patterns")],
    holds: Holds = None,
    role: Role = "all",
    home: Home = None,
    folder: Folder = MANIFEST_FOLDER,
    as_json: Json = False,
) -> None:
    """Remove fetched files of rows, their conversions, and unfinished downloads."""
    from detection_zoo.zoo.weights.exchange import remove_files

    cache = WeightCache(home)
    cache.prepare()
    everything = choose(manifests_of(folder), everything=True, holds="all")
    records = remove_files(chosen_of(folder, rows, False, holds, role), cache, everything)
    show(records, as_json, ("row", "file", "status"))
    for record in records:
        if record["shared_with"]:
            say(f"{record['row']}: {record['file']} was also used by {', '.join(record['shared_with'])}")
    say(f"{sum(record['status'] == 'removed' for record in records)} removed")


@app.command()
def where(
    rows: Rows = None,
    role: Role = "trained",
    home: Home = None,
    folder: Folder = MANIFEST_FOLDER,
    as_json: Json = False,
) -> None:
    """Print the weight folder, or the paths of the rows' files."""
    cache = WeightCache(home)
    if not rows:
        print(json.dumps({"home": str(cache.home)}) if as_json else cache.home)
        return
    found = [
        {"row": c.row, "file": c.filename, "path": cache.find(c.spec)}
        for c in chosen_of(folder, rows, False, "all", role)
    ]
    show(found, as_json, ("path",)) if as_json else [print(line["path"]) for line in found if line["path"]]
    absent = [line for line in found if not line["path"]]
    for line in absent:
        say(f"{line['row']}: {line['file']} is not here; download_weights.py get {line['row']}")
    raise typer.Exit(1 if absent else 0)


def main() -> None:
    """The command `download-weights`."""
    run_command(app)


if __name__ == "__main__":
    main()
