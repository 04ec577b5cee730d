"""Reading manifests: what a good folder gives, and one clear error for each way a bad one is bad."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from manifest_schema import SCHEMA, json_schema

from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.manifest_files import MANIFEST_FOLDER, SHARED_FILES, read_manifests

CONVENTIONS = """
[plain]
[plain.image]
channel_order = "rgb"
value_range = "0..1"
mean = [0.0, 0.0, 0.0]
std = [1.0, 1.0, 1.0]
resize = "none"
[padded]
extends = "plain"
image = { size_divisor = 32 }
"""
SCHEDULES = """
[short]
images_per_batch = 16
lr = 0.02
iterations = 90000
[long]
extends = "short"
iterations = 180000
"""
DATASETS = """
[pets]
layout = "coco"
title = "Pets"
classes = ["cat", "dog"]
splits = { train = 100, val = 20 }
[birds]
layout = "coco"
title = "Birds"
splits = { test = 5 }
"""
METRICS = (
    'box_ap = { title = "Box AP", unit = "%", better = "higher", digits = 1 }\nfps = { title = "Speed", unit'
    ' = "fps", better = "higher", digits = 1 }\n'
)
ROW = """
[[model]]
name = "faster_rcnn_small.ours"
title = "Small"
source_config = "configs/small.yaml"
backbone = { name = "resnet50", norm = "frozen" }
detector = { name = "faster_rcnn" }
classes = 2
dataset = "pets"
train_split = "train"
test_split = "val"
schedule = "long"
conventions = "padded"
[[model.weights]]
urls = ["https://example.org/small.pth"]
format = "maskrcnn_benchmark_pth"
holds = "detector"
[[model.published]]
source = "README.md"
split = "val"
values = { box_ap = 41.0, fps = 20 }
"""
START = """
[[model]]
name = "start.ours"
title = "Start"
task = "classification"
backbone = { name = "resnet50" }
classes = 2
dataset = "pets"
[[model.weights]]
urls = ["https://example.org/start.pth"]
format = "torchvision_resnet_pth"
holds = "imagenet"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one good row; tests spoil it."""
    for name, text in (
        ("conventions", CONVENTIONS),
        ("schedules", SCHEDULES),
        ("datasets", DATASETS),
        ("metrics", METRICS),
        ("protocols", ""),
        ("ours", ROW),
    ):
        (tmp_path / f"{name}.toml").write_text(text)
    return tmp_path


def spoil(folder: Path, old: str, new: str, file: str = "ours.toml") -> None:
    text = (folder / file).read_text()
    assert text.count(old) >= 1, f"{old!r} is not in {file}"
    (folder / file).write_text(text.replace(old, new, 1))


def complaint(folder: Path) -> str:
    with pytest.raises(ManifestError) as caught:
        read_manifests(folder)
    return str(caught.value)


def test_a_good_row_reads_whole(folder: Path) -> None:
    entry = read_manifests(folder).entry("faster_rcnn_small.ours")
    assert entry.source == "ours" and entry.conventions_name == "padded"
    assert entry.backbone.name == "resnet50" and entry.backbone.arguments == {"norm": "frozen"}
    assert (
        entry.conventions is not None
        and entry.conventions.image.size_divisor == 32
        and entry.conventions.image.channel_order == "rgb"
    )
    assert entry.published[0].values == {"box_ap": 41.0, "fps": 20}


@pytest.mark.parametrize(
    "text", ["", "# nothing but this\n", "model = 3\n", "[model]\nname = 'alone'\n", "model = []\n"]
)
def test_a_manifest_without_rows_is_told(folder: Path, text: str) -> None:
    (folder / "ours.toml").write_text(text)
    assert "ours.toml: contains no list of [[model]] tables; is the file empty or cut short?" in complaint(
        folder
    )


def test_a_table_that_extends_another_holds_what_differs(folder: Path) -> None:
    schedules = read_manifests(folder).schedules
    assert (schedules["long"].iterations, schedules["long"].lr, schedules["long"].images_per_batch) == (
        180000,
        0.02,
        16,
    )
    assert schedules["short"].iterations == 90000


def test_a_row_adjusts_its_conventions_and_nothing_else(folder: Path) -> None:
    spoil(
        folder,
        'conventions = "padded"',
        'conventions = "padded"\nadjust = { image = { value_range = "0..255" } }',
    )
    read = read_manifests(folder)
    own, bundle = read.entry("faster_rcnn_small.ours").conventions, read.conventions["padded"]
    assert own is not None and (own.image.value_range, own.image.size_divisor) == ("0..255", 32)
    assert bundle.image.value_range == "0..1"


# what is spoilt: (text that stands there, what replaces it), and what the message must say
FAULTS = {
    "unknown field": (
        ("classes = 2", "classes = 2\nclasess = 3"),
        ["row 1 (faster_rcnn_small.ours)", "field clasess", "not a field here", "README"],
    ),
    "unknown field of weights": (
        ('holds = "detector"', 'holds = "detector"\nsize = 3'),
        ["field weights.0.size", "not a field here"],
    ),
    "wrong type": (("classes = 2", 'classes = "two"'), ["field classes", "integer", "'two'"]),
    "number as text": (("box_ap = 41.0", 'box_ap = "41.0"'), ["field published.0.values.box_ap", "'41.0'"]),
    "outside the allowed values": (
        ('holds = "detector"', 'holds = "everything"'),
        ["weights.0.holds", "'detector', 'imagenet' or 'results'", "'everything'"],
    ),
    "required field missing": (('title = "Small"\n', ""), ["field title", "required and missing"]),
    "no classes": (("classes = 2", "classes = 0"), ["field classes", "greater than 0", "but it is 0"]),
    "name with a slash": (
        ('"faster_rcnn_small.ours"', '"faster/small.ours"'),
        ["field name", "'faster/small.ours'"],
    ),
    "unknown dataset": (
        ('dataset = "pets"', 'dataset = "pest"'),
        ["field dataset", "unknown 'pest'", "did you mean 'pets'?"],
    ),
    "unknown split": (
        ('test_split = "val"', 'test_split = "vol"'),
        ["field test_split", "unknown 'vol'", "did you mean 'val'?"],
    ),
    "unknown split of a number": (
        ('split = "val"\nvalues', 'split = "vla"\nvalues'),
        ["field published.0.split", "'vla'", "did you mean 'val'?"],
    ),
    "split of another dataset": (
        ('split = "val"\nvalues', 'dataset = "birds"\nsplit = "val"\nvalues'),
        ["field published.0.split", "known: test"],
    ),
    "unknown schedule": (
        ('schedule = "long"', 'schedule = "lang"'),
        ["field schedule", "unknown 'lang'", "did you mean 'long'?"],
    ),
    "unknown conventions": (
        ('conventions = "padded"', 'conventions = "paded"'),
        ["field conventions", "'paded'", "did you mean 'padded'?"],
    ),
    "conventions that are no name": (
        ('conventions = "padded"', "conventions = 3"),
        ["field conventions", "name of a bundle", "but it is 3"],
    ),
    "adjustment of no bundle": (
        ('conventions = "padded"', "adjust = { image = { size = 3 } }"),
        ["field conventions", "name of a bundle"],
    ),
    "adjustment that is none": (
        ('conventions = "padded"', 'conventions = "padded"\nadjust = { image = { sice = 3 } }'),
        ["field image.sice", "not a field here"],
    ),
    "unknown metric": (
        ("fps = 20", "fsp = 20"),
        ["field published.0.values", "unknown 'fsp'", "did you mean 'fps'?"],
    ),
    "unknown initial row": (
        ('schedule = "long"', 'schedule = "long"\ninitial = "start.ours"'),
        ["field initial", "unknown 'start.ours'"],
    ),
    "weights from nowhere": (
        ('urls = ["https://example.org/small.pth"]\n', ""),
        ["field weights.0", "needs urls, or manual"],
    ),
    "number that is none": (("box_ap = 41.0", "box_ap = nan"), ["field published.0.values.box_ap", "finite"]),
    "hash that is none": (
        ('holds = "detector"', 'holds = "detector"\nsha256 = "abc"'),
        ["field weights.0.sha256", "'abc'"],
    ),
    "other tables": (
        ("[[model]]", "[other]\n[[model]]"),
        ["only [[model]] tables, [defaults]", "are allowed here, not other"],
    ),
    "a key without end": (
        ("classes = 2", f"a{'.a' * 100_000} = 1\nclasses = 2"),
        ["more than 500 dots", "line "],
    ),
    "cut short": (
        ("values = { box_ap = 41.0, fps = 20 }", "values = { box_ap = 41.0, f"),
        ["not valid TOML", "line 21", "cut short?"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_gets_one_line_with_file_row_field_value_and_what_is_allowed(
    folder: Path, fault: str
) -> None:
    (old, new), words = FAULTS[fault]
    spoil(folder, old, new)
    said = complaint(folder)
    assert "ours.toml" in said and "\n" not in said
    for word in words:
        assert word in said, said


def test_several_faults_of_a_row_are_told_at_once(folder: Path) -> None:
    spoil(folder, "classes = 2", 'classes = "two"')
    spoil(folder, 'title = "Small"\n', "")
    lines = complaint(folder).splitlines()
    assert len(lines) == 2 and "field title" in lines[0] and "field classes" in lines[1]


def test_a_name_is_taken_once_in_a_file_and_once_over_all(folder: Path) -> None:
    (folder / "ours.toml").write_text(ROW + ROW)
    assert "row 2: name 'faster_rcnn_small.ours' is taken by a row of ours.toml" in complaint(folder)
    (folder / "ours.toml").write_text(ROW)
    (folder / "theirs.toml").write_text(ROW)
    said = complaint(folder)
    assert "theirs.toml: row 1" in said and "taken by a row of ours.toml" in said


def test_two_rows_may_claim_one_address_only_where_they_say_why(folder: Path) -> None:
    again = ROW.replace("faster_rcnn_small", "mask_rcnn_small")
    (folder / "ours.toml").write_text(ROW + again)
    said = complaint(folder)
    assert (
        "row mask_rcnn_small.ours" in said
        and "https://example.org/small.pth is also used by row faster_rcnn_small.ours" in said
    )
    assert "'shared' or 'wrong'" in said
    for reason in ('shared = "one file for both"', 'wrong = "the link of another model"'):
        (folder / "ours.toml").write_text(
            ROW + again.replace('holds = "detector"', f'holds = "detector"\n{reason}')
        )
        assert len(read_manifests(folder).entries) == 2


@pytest.mark.parametrize("name", SHARED_FILES)
def test_shared_files_must_be_there_and_right(folder: Path, name: str) -> None:
    text = (folder / name).read_text()
    (folder / name).unlink()
    said = complaint(folder)
    assert name in said and "no such manifest" in said and "restore it" in said
    (folder / name).write_text(text + "\n[stray]\nnothing = 1\n")
    said = complaint(folder)
    assert f"{name}: stray: field nothing" in said and "not a field here" in said
    (folder / name).write_text("stray = 1\n" + text)
    assert f"{name}: field stray: expected a table [stray], but it is 1" in complaint(folder)
    (folder / name).write_bytes(b"\xff\xfe" + text.encode())
    assert f"{name}: not UTF-8 text" in complaint(folder)


def test_a_base_must_exist_and_no_table_extends_itself(folder: Path) -> None:
    spoil(folder, 'extends = "short"', 'extends = "shrot"', "schedules.toml")
    assert (
        "schedules.toml: long: field extends: nothing is named 'shrot': did you mean 'short'?"
        in complaint(folder)
    )
    spoil(folder, 'extends = "shrot"', 'extends = "long"', "schedules.toml")
    assert "'long' extends itself: long -> long" in complaint(folder)


def test_rows_are_found_by_name_pattern_and_configuration(folder: Path) -> None:
    (folder / "ours.toml").write_text(ROW + START)
    read = read_manifests(folder)
    assert [e.name for e in read.find("small")] == ["faster_rcnn_small.ours"]
    assert (
        [e.name for e in read.find("*.ours")]
        == ["faster_rcnn_small.ours", "start.ours"]
        == [e.name for e in read.find("ours")]
    )
    assert read.find("nothing like it") == []
    assert (
        read.by_config("configs/small.yaml").name == read.by_config("small").name == "faster_rcnn_small.ours"
    )
    with pytest.raises(ManifestError, match=r"did you mean 'configs/small.yaml'\?"):
        read.by_config("configs/smal.yaml")
    with pytest.raises(
        ManifestError,
        match=(
            r"no row is named 'faster_rcnn_smal.ours' in the manifests: did you mean 'faster_rcnn_small.ours'"
        ),
    ):
        read.entry("faster_rcnn_smal.ours")


def test_a_configuration_of_several_rows_is_no_row(folder: Path) -> None:
    other = (
        ROW.replace("faster_rcnn_small", "other")
        .replace("example.org/small", "example.org/other")
        .replace("configs/", "more/")
    )
    (folder / "ours.toml").write_text(ROW + other)
    with pytest.raises(
        ManifestError,
        match=r"'small' fits several rows: faster_rcnn_small.ours, other.ours; give one of them by name",
    ):
        read_manifests(folder).by_config("small")


def test_initial_weights_are_the_rows_own_then_those_of_the_row_it_names(folder: Path) -> None:
    own = (
        '[[model.weights]]\nurls = ["https://example.org/own.pth"]\nformat = "vovnet_imagenet_pth"\nholds ='
        ' "imagenet"\nrole = "initial"\n'
    )
    row = ROW.replace('schedule = "long"', 'schedule = "long"\ninitial = "start.ours"').replace(
        "[[model.published]]", own + "[[model.published]]"
    )
    (folder / "ours.toml").write_text(row + START)
    read = read_manifests(folder)
    specs = read.initial_weights(read.entry("faster_rcnn_small.ours"))
    assert [spec.urls[0].rsplit("/", 1)[1] for spec in specs] == ["own.pth", "start.pth"]


def test_an_unknown_backbone_and_argument_are_told_when_the_row_is_built(folder: Path) -> None:
    from detection_zoo.zoo.build import assemble

    for old, new, words in (
        (
            'name = "resnet50"',
            'name = "resnet55"',
            ["field backbone.name", "'resnet55'", "did you mean 'resnet50'"],
        ),
        (
            'name = "faster_rcnn"',
            'name = "faster_rcn"',
            ["field detector.name", "'faster_rcn'", "did you mean"],
        ),
        ('norm = "frozen"', 'norm = "frosty"', ["backbone resnet50", "frosty"]),
        ('norm = "frozen"', "depth = 3", ["backbone resnet50", "depth"]),
    ):
        (folder / "ours.toml").write_text(ROW)
        spoil(folder, old, new)
        with pytest.raises(ManifestError) as caught:
            assemble(read_manifests(folder).entry("faster_rcnn_small.ours"))
        said = str(caught.value)
        assert "manifests/ours.toml: row faster_rcnn_small.ours" in said and "\n" not in said
        for word in words:
            assert word in said, said


def test_the_schema_file_is_current() -> None:
    assert json.loads(SCHEMA.read_text()) == json_schema(), "run tests/manifest_schema.py"


def test_the_schema_knows_every_key_that_files_use() -> None:
    """The schema is for editors; what it forbids must not stand in the files."""
    import tomllib

    schema = json_schema()
    row = schema["properties"]["model"]["items"]
    for path in sorted(MANIFEST_FOLDER.glob("*.toml")):
        document = tomllib.loads(path.read_text())
        if "model" not in document:
            continue
        assert set(document) <= set(schema["properties"]), path.name
        for table in [document.get("defaults", {}), *document.get("template", {}).values()]:
            assert set(table) <= set(schema["properties"]["defaults"]["properties"]), path.name
        for model in document["model"]:
            assert set(model) <= set(row["properties"]), path.name
            assert set(row["required"]) <= set(model), path.name
            for part, kind in (("weights", "WeightSpec"), ("published", "Published")):
                assert all(
                    set(item) <= set(schema["$defs"][kind]["properties"]) for item in model.get(part, [])
                )


def test_the_readme_names_every_field() -> None:
    readme = (MANIFEST_FOLDER / "README.md").read_text()
    from detection_zoo.zoo.manifest import DatasetSpec, MetricSpec, Schedule

    schema = json_schema()
    fields = {
        *schema["properties"]["model"]["items"]["properties"],
        *(f for kind in schema["$defs"].values() for f in kind["properties"]),
        *(f for kind in (Schedule, DatasetSpec, MetricSpec) for f in kind.model_fields),
    }
    missing = sorted(f for f in fields if not re.search(rf"`{f}`", readme))
    assert not missing, f"manifests/README.md does not explain {missing}"


SHARED = """
mirrors = ["https://one.example/", "https://two.example/"]

[defaults]
classes = 3
dataset = "pets"
weights = { format = "vovnet_imagenet_pth", holds = "detector" }

[template.fpn]
neck = { name = "fpn", channels = 64 }
detector = { name = "faster_rcnn" }
conventions = "plain"
source_config = "configs/{title}.yaml"

[template.wide]
extends = "fpn"
source_config = "configs/{row}.yaml"

[[model]]
name = "one.shared"
title = "One"
extends = "wide"
backbone = { name = "resnet50" }
weights = [{ path = "one.pth", md5_url = "{url}.md5" }, { urls = ["https://x.example/y.pth"], holds = "imagenet" }]

[[model]]
name = "two.shared"
title = "Two"
classes = 5
extends = ["fpn"]
neck = { name = "fpn" }
backbone = { name = "resnet50" }
"""


def test_rows_take_what_their_file_shares(folder: Path) -> None:
    text = (folder / "ours.toml").read_text()
    (folder / "shared.toml").write_text(SHARED.replace('conventions = "plain"\n', ""))
    (folder / "ours.toml").write_text(text)
    read = read_manifests(folder)
    one, two = read.entry("one.shared"), read.entry("two.shared")
    assert (one.classes, two.classes) == (3, 5) and one.source_config == "configs/one.yaml"
    assert two.source_config == "configs/Two.yaml"
    assert one.neck.arguments == {"channels": 64} and two.neck.arguments == {}, "a field is replaced whole"
    assert one.weights[0].urls == ["https://one.example/one.pth", "https://two.example/one.pth"]
    assert one.weights[0].md5_url == "https://one.example/one.pth.md5"
    assert [spec.holds for spec in one.weights] == ["detector", "imagenet"] and two.weights == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('extends = "wide"', 'extends = "widr"', "row 1: field extends: unknown 'widr': did you mean 'wide'"),
        ('mirrors = ["https://one.example/", "https://two.example/"]', "", "weights.path: needs `mirrors`"),
        ("[template.fpn]", "[templates.fpn]", "only [[model]] tables"),
        ("[template.fpn]", '[template.fpn]\nextends = "wide"', "'wide' extends itself: wide -> fpn -> wide"),
    ],
)
def test_shared_fields_that_cannot_be_meant(folder: Path, old: str, new: str, said: str) -> None:
    (folder / "shared.toml").write_text(SHARED.replace('conventions = "plain"\n', "").replace(old, new))
    with pytest.raises(ManifestError, match=re.escape(said)):
        read_manifests(folder)
