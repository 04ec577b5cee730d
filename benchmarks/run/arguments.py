"""Check a command's arguments before any work: rows, data, weights. Does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from detection_zoo.benchmarks.run.subject import Sources, identify_weights, open_data, weights_file
from detection_zoo.benchmarks.spec import ExportedFile
from detection_zoo.zoo.created_row import CREATED, row_named
from detection_zoo.zoo.errors import DatasetError, ManifestError, UnknownName, ZooError
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.registry import did_you_mean
from detection_zoo.zoo.trained_row import row_of_checkpoint
from detection_zoo.zoo.weights.fetch.availability import availability


def chosen_rows(patterns: Iterable[str]) -> list[ModelEntry]:
    """Return the rows matched by names, patterns or sources, without duplicates.

    Raises:
        UnknownName: a pattern matches no row; the message lists similar names.
    """
    manifests, chosen = load_manifests(), {}
    for pattern in patterns:
        exact = (
            [row_named(pattern)]
            if pattern in manifests.entries or pattern.endswith(CREATED)
            else [e for e in manifests.find(pattern) if _fits(e, pattern)]
        )
        if not exact:
            raise UnknownName(
                f"no row matches {pattern!r}: {did_you_mean(pattern, manifests.entries)} (see bench.py list)"
            )
        chosen |= {entry.name: entry for entry in exact}
    return list(chosen.values())


def _fits(entry: ModelEntry, pattern: str) -> bool:
    """A plain word must be a source, not a part of a name, so that a typo does not start many
    benchmarks."""
    return any(c in pattern for c in "*?[") or entry.source == pattern


def checked_rows(
    patterns: Iterable[str],
    sources: Sources,
    images: int | None,
    say: Callable[[str], None],
    fetch: bool = True,
) -> list[ModelEntry]:
    """Return the rows that can be measured with this data and these weights.

    Args:
        patterns: names, shell patterns or sources.
        sources: data and weights.
        images: keep only the first N.
        say: called with a line for each row of a pattern or source that is skipped.
        fetch: download published weights that are missing.

    Raises:
        ZooError: no row matches, or the data or weights cannot be used for a row given by name, or for any
        row.
    """
    patterns = list(patterns)
    entries, left_out, notes = [], dict[str, ZooError](), dict[str, None]()
    for entry in chosen_rows(patterns):
        try:
            notes |= dict.fromkeys(check_row(entry, sources, images, fetch))
            entries.append(entry)
        except ZooError as error:
            if entry.name in patterns:
                raise
            left_out[entry.name] = error
    if not entries:
        raise next(iter(left_out.values()))
    for name, error in left_out.items():
        say(f"skipped: {name}: {error}")
    for note in notes:
        say(f"data: {note}")
    return entries


def check_row(
    entry: ModelEntry, sources: Sources, images: int | None = None, fetch: bool = True
) -> tuple[str, ...]:
    """Check that a row can be built and measured; `fetch` downloads missing published weights.

    Returns:
        Notes on the data: the folder layout that was recognised, and the classes measured.

    Raises:
        ZooError: it has published numbers only; its data or weights cannot be used.
    """
    if entry.published_only:
        raise ManifestError(f"row {entry.name} has published numbers only: {entry.published_only}")
    check_weights(entry, sources.weights, fetch)
    entry = row_of_checkpoint(entry, str(weights_file(sources.weights)))
    try:
        notes = open_data(entry, sources.data, images).notes
    except OSError as error:
        raise DatasetError(f"--data {sources.data}: {error}") from None
    if sources.train_data is not None:
        open_data(entry, sources.train_data)
    return notes


def check_weights(entry: ModelEntry, weights: str, fetch: bool = True) -> None:
    """Check that a row can use these weights; `fetch` downloads missing published ones.

    Raises:
        ZooError: the file is missing, or the row has no published weights that can be loaded.
    """
    if weights == "published" and not (found := availability(entry)).usable:
        raise ManifestError(
            f"row {entry.name}: weights ({found.state}): {found.reason}. Use --weights random"
            " to measure it untrained"
        )
    if fetch or weights != "published":
        identify_weights(entry, weights)


def exported_file(file: Path, batch: int = 1) -> tuple[str, str, ExportedFile]:
    """Return the row of a file that `bench.py export` wrote, the engine that runs it, and its description.

    Raises:
        ManifestError: it is missing, another program wrote it, no engine runs it, or it takes another batch.
    """
    from detection_zoo.zoo.export.files import digest_of_file, notes_of
    from detection_zoo.zoo.export.kinds import ENGINE_SUFFIXES

    engine = next((name for name, suffix in ENGINE_SUFFIXES.items() if suffix == file.suffix), None)
    if engine is None:
        kinds = ", ".join(f"{name} runs {suffix}" for name, suffix in ENGINE_SUFFIXES.items())
        raise ManifestError(f"{file}: {kinds}")
    if not file.is_file():
        raise ManifestError(f"{file}: no such file")
    if not (notes := notes_of(file)):
        raise ManifestError(f"{file} is not written by bench.py export")
    if batch != notes["inputs"]["images"][0]:
        raise ManifestError(f"{file} takes one image; leave --batch out")
    quantised = notes.get("quantisation")
    if quantised is None:
        return notes["row"], engine, ExportedFile(sha256=digest_of_file(file))
    how = (
        f"{quantised['how']}; calibrated on the first {len(quantised['images'])} images of"
        f" {quantised['dataset']}"
    )
    return notes["row"], engine, ExportedFile(sha256=digest_of_file(file), bits=8, quantised=how)
