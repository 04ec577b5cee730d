"""The HTML page: one file with its style, script and data; it makes no network requests. Does not import
torch."""

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
    """Return the page; the same records give the same bytes."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    style, script = (PAGE_FOLDER / "style.css").read_text(encoding="utf-8"), _script()
    data = page_data(view)
    # autoescape covers the whole template; only our style and script, and JSON that cannot close its element,
    # are inserted unescaped
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
    """Return the script: all files in one function scope."""
    inside = "\n".join((PAGE_FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return f'"use strict";\n(() => {{\n{inside}}})();\n'


def _policy(style: str, script: str) -> str:
    """Return a content security policy that forbids requests and allows only this style and script."""
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{_sha256(style)}'; script-src"
        f" 'sha256-{_sha256(script)}'; base-uri 'none'; form-action 'none'"
    )


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _embedded(value: object) -> str:
    """Return JSON for a script element, without '<', so that no record can close the element."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
