"""The JSON schema of manifest files, for editors.

python tests/manifest_schema.py        (from the root, with PYTHONPATH=.) writes manifests/schema.json
"""

from __future__ import annotations

import json
from typing import Any

from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.manifest_files import MANIFEST_FOLDER

SCHEMA = MANIFEST_FOLDER / "schema.json"


def json_schema() -> dict[str, Any]:
    """JSON Schema of a manifest file."""
    row = ModelEntry.model_json_schema()
    found = row.pop("$defs")
    definitions = {name: found[name] for name in ("Component", "WeightSpec", "Published", "OwnTraining")}
    row["properties"]["conventions"] = {"type": "string", "description": "bundle of conventions.toml"}
    row["properties"]["adjust"] = {"type": "object", "description": "changes to that bundle, by section"}
    for filled_in in ("source", "conventions_name"):
        row["properties"].pop(filled_in)
    names = {"type": ["string", "array"], "description": "templates of this file; a row's own fields win"}
    row["properties"]["extends"] = names
    path = {"type": "string", "description": "of the file below each address of mirrors, in place of urls"}
    definitions["WeightSpec"]["properties"]["path"] = path
    shared = {
        field: row["properties"][field] for field in row["properties"] if field not in ("name", "title")
    }
    for field, kind in (("weights", "WeightSpec"), ("published", "Published")):
        shared[field] = {"$ref": f"#/$defs/{kind}", "description": f"fields of every item of {field}"}
    template = {"type": "object", "properties": shared, "additionalProperties": False}
    # required fields may be in a template
    row["required"] = ["name", "title"]
    for model in ("WeightSpec", "Published"):
        definitions[model].pop("required", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Models of one source",
        "type": "object",
        "properties": {
            "mirrors": {"type": "array", "items": {"type": "string"}},
            "defaults": template,
            "template": {"type": "object", "additionalProperties": template},
            "model": {"type": "array", "items": row},
        },
        "additionalProperties": False,
        "$defs": definitions,
    }


if __name__ == "__main__":
    SCHEMA.write_text(json.dumps(json_schema(), indent=1) + "\n")
    print(f"wrote {SCHEMA}")
