"""What a command was given, checked before any work: rows, data, weights. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from detection_zoo.benchmarks.run.subject import Sources, identify_weights, open_data, weights_file
from detection_zoo.zoo.created_row import CREATED, row_named
from detection_zoo.zoo.errors import DatasetError, ManifestError, UnknownName, ZooError
from detection_zoo.zoo.manifest import ModelEntry, load_manifests
from detection_zoo.zoo.registry import did_you_mean
from detection_zoo.zoo.trained_row import row_of_checkpoint
from detection_zoo.zoo.weights.fetch.availability import availability


def chosen_rows(patterns: Iterable[str]) -> list[ModelEntry]:
    """The rows that names, shell patterns or sources mean, each once.

    Raises:
        UnknownName: a pattern fits no row; reports similar names.
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
                f"no row matches {pattern!r}: {did_you_mean(pattern, manifests.entries)} (bench.py list shows"
                " all)"
            )
        chosen |= {entry.name: entry for entry in exact}
    return list(chosen.values())


def _fits(entry: ModelEntry, pattern: str) -> bool:
    """A plain word means a source here, never a part of a name: so that a typo does not start a day of
    benchmarks."""
    return any(c in pattern for c in "*?[") or entry.source == pattern


def checked_rows(
    patterns: Iterable[str],
    sources: Sources,
    images: int | None,
    say: Callable[[str], None],
    fetch: bool = True,
) -> list[ModelEntry]:
    """The rows that can be measured with these data and weights.

    Args:
        patterns: names, shell patterns or sources.
        sources: data and weights.
        images: keep only the first N.
        say: called with a line about rows that a pattern or source covers and that are left out.
        fetch: get published weights that are missing here.

    Raises:
        ZooError: no row fits; data or weights of a row that was named cannot be used, or of no row at all.
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
        say(f"left out: {name}: {error}")
    for note in notes:
        say(f"data: {note}")
    return entries


def check_row(
    entry: ModelEntry, sources: Sources, images: int | None = None, fetch: bool = True
) -> tuple[str, ...]:
    """Whether a row can be built and measured; `fetch` gets published weights that are missing here.

    Returns:
        Notes on the data: its layout, where it was recognised, and the classes measured.

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
    """Whether a row can have these weights; `fetch` gets published ones that are missing here.

    Raises:
        ZooError: the file is not there, or the row has no published weights that a program can load.
    """
    if weights == "published" and not (found := availability(entry)).usable:
        raise ManifestError(
            f"row {entry.name}: weights ({found.state}): {found.reason}. --weights random measures"
            " it untrained"
        )
    if fetch or weights != "published":
        identify_weights(entry, weights)
