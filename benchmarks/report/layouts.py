"""Table layouts: manifests/tables/<source>.toml says which rows and columns that source's own tables have. No
torch."""

from __future__ import annotations

import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from detection_zoo.zoo.errors import ManifestError, UnknownName, first_problem
from detection_zoo.zoo.manifest import MANIFEST_FOLDER, MetricSource, ModelEntry, Strict, read_toml
from detection_zoo.zoo.registry import did_you_mean

LAYOUT_FOLDER = MANIFEST_FOLDER / "tables"
WIDE = "wide"  # the layout of sources that have none of their own


class Number(Strict):
    """One number of a cell: the metric that a source publishes; metrics.toml says what is measured for it."""

    metric: str = Field(description="metric of the published values")
    measured: list[MetricSource] = Field(
        default_factory=list, description="metrics of records, in place of those that metrics.toml names"
    )
    digits: int | None = Field(None, ge=0, description="digits of the cell; none: the metric's own")
    optional: bool = Field(False, description="where it is absent the cell goes without it")


class Column(Strict):
    """One column: text of the row, numbers, or the link to its weights."""

    title: str
    text: str | None = Field(
        None,
        description=(
            "a cell of the row's own `table`, or one of: row, title, backbone, neck, detector, dataset,"
            " schedule, licence, data (splits), scale (pixels), roi (how features are cut)"
        ),
    )
    own: Literal["hardware", "schedule"] | None = Field(
        None,
        description=(
            "what the text is of: measured lines show the hardware that they were measured on; the schedule"
            " only where the published weights were measured"
        ),
    )
    numbers: list[Number] = Field(default_factory=list, description="printed with `separator` between them")
    separator: str = "/"
    setting: bool = Field(
        False, description="a setting of the source, such as its learning rate; measured lines have a dash"
    )
    ratio: bool = Field(
        False, description="the first number's ratio to the reference row in brackets behind it"
    )
    weights: bool = Field(
        False, description="the link to the weights; for measured lines, which weights those were"
    )


class Layout(Strict):
    """One table of a source."""

    name: str = Field(description="unique among all tables")
    title: str
    source: str = Field(description="manifest whose rows are listed; filled in on reading (the file's name)")
    rows: list[str] = Field(
        default_factory=lambda: ["*"],
        description="shell patterns of row names, in the table's order; !PATTERN leaves rows out again",
    )
    task: Literal["detection", "classification", "proposals"] | None = None
    reference: list[str] = Field(
        default_factory=list,
        description="rows that ratios are relative to: the one with the same detector is taken",
    )
    columns: list[Column]
    overview: bool = Field(
        False, description="a column for each overview metric of metrics.toml, in front of the last one"
    )
    note: str | None = None

    def select(self, entries: dict[str, ModelEntry]) -> list[ModelEntry]:
        """The rows of this table, in its order; the wide one has those of every source."""
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
    """Read and validate every layout file of a folder, by name of the table; raises ManifestError that names
    file, table and field."""
    layouts: dict[str, Layout] = {}
    for path in sorted(folder.glob("*.toml")):
        document = read_toml(path)
        if set(document) != {"table"}:
            raise ManifestError(
                f"{path}: only [[table]] belongs here, but there is"
                f" {', '.join(sorted(document)) or 'nothing'}"
            )
        for number, table in enumerate(document["table"], start=1):
            layout = _layout(table, path, number)
            if layout.name in layouts:
                raise ManifestError(
                    f"{path}: table {number}: the name {layout.name!r} is taken by a table of"
                    f" {layouts[layout.name].source}; names are unique"
                )
            layouts[layout.name] = layout
    return layouts


def _layout(table: dict[str, Any], path: Path, number: int) -> Layout:
    try:
        return Layout.model_validate({**table, "source": path.stem})
    except ValidationError as error:
        raise ManifestError(
            f"{path}: table {number} ({table.get('name', 'without a name')}): {first_problem(error)}"
        ) from None


@cache
def load_layouts() -> dict[str, Layout]:
    """The project's own layouts, read once a process."""
    return read_layouts(LAYOUT_FOLDER)


def layouts_of(name: str, layouts: dict[str, Layout], sources: set[str]) -> list[Layout]:
    """The tables of a source, or the one table of that name; a source without its own gets the wide one.

    Raises:
        UnknownName: neither a source nor a table has that name; reports similar names.
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
