"""Table layouts: manifests/tables/<source>.toml defines rows and columns of the tables of a source. Does not
import torch."""

from __future__ import annotations

import fnmatch
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from detection_zoo.zoo.errors import ManifestError, UnknownName, first_problem
from detection_zoo.zoo.manifest import MetricSource, ModelEntry, Strict
from detection_zoo.zoo.manifest_files import MANIFEST_FOLDER, read_toml
from detection_zoo.zoo.registry import did_you_mean

LAYOUT_FOLDER = MANIFEST_FOLDER / "tables"
WIDE = "wide"  # the layout of sources without a layout file


class Number(Strict):
    """One number of a cell: a published metric; metrics.toml defines which measured metrics correspond to
    it."""

    metric: str = Field(description="name of the published metric")
    measured: list[MetricSource] = Field(
        default_factory=list, description="metrics of records, instead of those in metrics.toml"
    )
    digits: int | None = Field(None, ge=0, description="decimal places; none: those of the metric")
    optional: bool = Field(False, description="omitted from the cell if absent")


class Column(Strict):
    """One column: text of the row, numbers, or the link to its weights."""

    title: str
    text: str | None = Field(
        None,
        description=(
            "a key of the row's `table`, or one of: row, title, backbone, neck, detector, dataset,"
            " schedule, licence, data (splits), scale (pixels), roi (RoI pooling method)"
        ),
    )
    own: Literal["hardware", "schedule"] | None = Field(
        None,
        description=(
            "of measured lines: hardware shows the hardware of the measurement; schedule is shown only for"
            " published weights"
        ),
    )
    numbers: list[Number] = Field(default_factory=list, description="of a cell, joined by `separator`")
    separator: str = "/"
    setting: bool = Field(
        False, description="a setting of the source, such as the learning rate; a dash in measured lines"
    )
    ratio: bool = Field(
        False, description="append the ratio of the first number to the reference row, in parentheses"
    )
    weights: bool = Field(
        False, description="link to the weights; in measured lines, which weights were used"
    )


class Layout(Strict):
    """One table of a source."""

    name: str = Field(description="unique among all tables")
    title: str
    source: str = Field(description="manifest of the rows; set on reading, from the file name")
    rows: list[str] = Field(
        default_factory=lambda: ["*"],
        description="shell patterns of row names, in table order; !PATTERN excludes rows",
    )
    task: Literal["detection", "classification", "proposals"] | None = None
    reference: list[str] = Field(
        default_factory=list, description="reference rows of ratios, one per detector"
    )
    columns: list[Column]
    overview: bool = Field(
        False, description="insert a column for each overview metric of metrics.toml before the last column"
    )
    note: str | None = None

    def select(self, entries: dict[str, ModelEntry]) -> list[ModelEntry]:
        """Return the rows of this table, in order; the wide table has the rows of all sources."""
        mine = [
            e
            for e in entries.values()
            if self.source in (e.source, WIDE) and (self.task is None or e.task == self.task)
        ]
        out = [pattern[1:] for pattern in self.rows if pattern.startswith("!")]
        picked = {e.name: e for pattern in self.rows for e in mine if fnmatch.fnmatchcase(e.name, pattern)}
        return [
            e for name, e in picked.items() if not any(fnmatch.fnmatchcase(name, pattern) for pattern in out)
        ]


def read_layouts(folder: Path) -> dict[str, Layout]:
    """Read and validate every layout file of a folder; return layouts by table name. Raises ManifestError
    with file, table and field."""
    layouts: dict[str, Layout] = {}
    for path in sorted(folder.glob("*.toml")):
        document = read_toml(path)
        if set(document) != {"table"}:
            raise ManifestError(
                f"{path}: a layout file has only [[table]], this one has"
                f" {', '.join(sorted(document)) or 'nothing'}"
            )
        for number, table in enumerate(document["table"], start=1):
            try:
                layout = Layout.model_validate({**table, "source": path.stem})
            except ValidationError as error:
                where = f"{path}: table {number} ({table.get('name', 'without a name')})"
                raise ManifestError(f"{where}: {first_problem(error)}") from None
            if layout.name in layouts:
                raise ManifestError(
                    f"{path}: table {number}: the name {layout.name!r} is taken by a table of"
                    f" {layouts[layout.name].source}; names are unique"
                )
            layouts[layout.name] = layout
    return layouts


@cache
def load_layouts() -> dict[str, Layout]:
    """Return the layouts of this project, read once per process."""
    return read_layouts(LAYOUT_FOLDER)


def layouts_of(name: str, layouts: dict[str, Layout], sources: set[str]) -> list[Layout]:
    """Return the tables of a source, or one table by name; a source without layouts gets the wide layout.

    Raises:
        UnknownName: there is no such source or table; the message lists similar names.
    """
    own = [layout for layout in layouts.values() if layout.source == name]
    if own:
        return own
    if name in sources:
        return [
            layouts[WIDE].model_copy(update={"source": name, "name": name, "title": f"All rows of {name}"})
        ]
    if name in layouts:
        return [layouts[name]]
    raise UnknownName(f"no source or table is named {name!r}: {did_you_mean(name, {*layouts, *sources})}")
