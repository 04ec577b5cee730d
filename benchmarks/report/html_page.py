"""The page: one HTML file that holds its style, its program and its data, and asks no network for anything.
No torch."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

from detection_zoo.benchmarks.report.page_data import page_data
from detection_zoo.benchmarks.report.wide import Overview
from detection_zoo.benchmarks.spec import digest_of

PAGE_FOLDER = Path(__file__).resolve().parent / "page"
SCRIPTS = (
    *("state.js", "table.js", "plot.js", "details.js"),
    *("comparisons.js", "kernels.js", "export.js", "main.js"),
)
TITLE = "detection-zoo: results"


def html_page(view: Overview) -> str:
    """The page of these lines and records; the same records give the same bytes."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    style, script = (PAGE_FOLDER / "style.css").read_text(encoding="utf-8"), _script()
    data = page_data(view)
    # autoescape covers the whole template; what is marked is ours (style, script) or JSON that cannot end its
    # element
    templates = Environment(
        loader=FileSystemLoader(PAGE_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    inside = {"policy": _policy(style, script), "style": style, "script": script, "data": _embedded(data)}
    return templates.get_template("page.html").render(
        title=TITLE, digest=digest_of(data), **{name: Markup(text) for name, text in inside.items()}
    )


def _script() -> str:
    """The program: its files in one scope of their own."""
    inside = "\n".join((PAGE_FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return f'"use strict";\n(() => {{\n{inside}}})();\n'


def _policy(style: str, script: str) -> str:
    """A content security policy under which nothing is fetched and only this style and this program run."""
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{_sha256(style)}'; script-src"
        f" 'sha256-{_sha256(script)}'; base-uri 'none'; form-action 'none'"
    )


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _embedded(value: object) -> str:
    """JSON for the inside of a script element: no '<', so that nothing in a record can end it."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
