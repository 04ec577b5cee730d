"""Weight files selected by a command, and their state on this machine. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from detection_zoo.zoo.errors import ManifestError, UnknownName
from detection_zoo.zoo.manifest import Manifests, ModelEntry, WeightSpec
from detection_zoo.zoo.registry import did_you_mean
from detection_zoo.zoo.weights.fetch.cache import Pin, WeightCache, spec_filename, spec_key
from detection_zoo.zoo.weights.fetch.hosts import host_of
from detection_zoo.zoo.weights.fetch.one import refusal_of


@dataclass(frozen=True)
class Chosen:
    """One weight file of one row."""

    entry: ModelEntry
    spec: WeightSpec

    @property
    def row(self) -> str:
        """Name of the row."""
        return self.entry.name

    @property
    def filename(self) -> str:
        """Name the file is exported under."""
        return spec_filename(self.spec)

    @property
    def same_as(self) -> str:
        """Equal for two rows with the same file."""
        return self.spec.sha256 or spec_key(self.spec)


def choose(
    manifests: Manifests,
    patterns: Iterable[str] = (),
    everything: bool = False,
    holds: str | None = None,
    role: str = "all",
) -> list[Chosen]:
    """Weight files of the rows that match.

    Args:
        patterns: row names, shell patterns, parts of names or sources.
        everything: all rows, instead of patterns.
        holds: "detector", "imagenet", "results" or "all"; None: all weights, but no stored results.
        role: "trained" (a row's own weights), "initial" (what its training starts from) or "all".

    Raises:
        ManifestError: a pattern matches no row, or no row with such files.
    """
    wanted = {"all": ("detector", "imagenet", "results"), None: ("detector", "imagenet")}.get(holds, (holds,))
    entries: dict[str, ModelEntry] = dict(manifests.entries) if everything else {}
    for pattern in patterns:
        found = [manifests.entries[pattern]] if pattern in manifests.entries else manifests.find(pattern)
        if not found:
            raise UnknownName(
                f"no row matches {pattern!r}: {did_you_mean(pattern, manifests.entries)} (download_weights.py"
                " list shows all)"
            )
        entries |= {entry.name: entry for entry in found}
    chosen = [
        Chosen(entry, spec)
        for entry in entries.values()
        for spec in entry.weights
        if spec.holds in wanted and role in (spec.role, "all")
    ]
    if entries and not chosen:
        kinds = f"role {role} that holds {' or '.join(map(str, wanted))}"
        raise ManifestError(
            f"{', '.join(list(entries)[:3])}: no weight file of {kinds} is published; see --role and --holds"
        )
    return chosen


def state_of(chosen: Chosen, cache: WeightCache, pins: dict[str, Pin]) -> dict[str, object]:
    """One line of `list`: row, file, contents, size in bytes, source of its hash, whether it is on this
    machine, licence, hosts, remark."""
    spec, pin = chosen.spec, cache.pin_of(chosen.spec, pins)
    trust = "pinned" if spec.sha256 else "recorded" if pin else "unpinned"
    size = spec.bytes or (pin.bytes if pin else None)
    remark = "wrong link" if spec.wrong else "by hand" if refusal_of(spec) else ""
    return {
        "row": chosen.row,
        "file": chosen.filename,
        "holds": spec.holds,
        "format": spec.format,
        "bytes": size,
        "hash": trust,
        "sha256": cache.expected_sha256(spec, pins),
        "here": cache.find(spec, pins) is not None,
        "licence": spec.licence or "not stated",
        "hosts": list(dict.fromkeys(host_of(url) for url in spec.urls)),
        "remark": remark,
    }


def paste_lines(chosen: Chosen, sha256: str, size_bytes: int) -> str:
    """The lines that pin a file, to paste under its [[model.weights]]."""
    size = "" if chosen.spec.bytes else f"\nbytes = {size_bytes}"
    return (
        f'# manifests/{chosen.entry.source}.toml, {chosen.row}, {chosen.filename}\nsha256 = "{sha256}"{size}'
    )
