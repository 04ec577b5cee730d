"""A large JSON list read piece by piece: the records are those of the whole text, or an error is raised."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from detection_zoo.zoo.data.fields import json_records

RECORDS = [
    {"image_id": row, "bbox": [0.1 * row, 2, 3.5, 1e-7], "score": 1 / (row + 1), "extra": {"size": [row, 2]}}
    for row in range(700)
]


def read(path: Path, text: str | bytes, piece_bytes: int) -> list[object]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [record for piece in json_records(path, piece_bytes) for record in piece]


@pytest.mark.parametrize("piece_bytes", [200, 1000, 2**18])
@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":"), (" ,\n\t", " : ")])
def test_pieces_are_the_whole(tmp_path: Path, piece_bytes: int, separators: tuple[str, str]) -> None:
    for count in (0, 1, 2, 7, 700):
        text = json.dumps(RECORDS[:count], separators=separators)
        assert read(tmp_path / "a.json", f" \n{text}\r\n ", piece_bytes) == RECORDS[:count]


def test_a_large_file_comes_in_many_pieces(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(RECORDS))
    assert len(list(json_records(path, 2000))) > 20


def test_texts_and_lists_that_look_like_the_place_between_records(tmp_path: Path) -> None:
    """Cut there, a piece is no JSON; nothing is ever read that the whole text does not say."""
    random, parts = Random(0), ["},{", "}, {", "[", "]", "{", "}", '\\"', ",", "a" * 60]
    refused = 0
    for _ in range(300):
        records: list[object] = []
        for _ in range(random.randint(1, 12)):
            inner = "".join(random.choices(parts, k=random.randint(0, 9))).replace('\\"', '"')
            records.append({"a": inner, "b": [{"c": 1}, {"d": inner}][: random.randint(0, 2)]})
        try:
            assert read(tmp_path / "a.json", json.dumps(records), random.choice((40, 150, 400))) == records
        except ValueError:
            refused += 1
    assert 0 < refused < 300


@pytest.mark.parametrize(
    "text",
    ["", " ", "{}", "[", "]", "][", '[{"a": 1}', '{"a": 1}]', '[{"a": 1}, ]', '[{"a": 1} {"a": 1}]']
    + ["[1,,2]", "[]]"]
    + ['[{"a": 1}]x', "[{]}", b"\xef\xbb\xbf[]", b"\xff\xfe[\x00]\x00", b'[{"a": "\xff"}]'],
)  # fmt: skip
@pytest.mark.parametrize("piece_bytes", [4, 2**18])
def test_what_is_no_list_of_records_raises(tmp_path: Path, text: str | bytes, piece_bytes: int) -> None:
    with pytest.raises(ValueError):
        read(tmp_path / "a.json", text, piece_bytes)


def test_a_record_that_is_much_longer_than_a_piece_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="longer than"):
        read(tmp_path / "a.json", json.dumps([{"a": "b" * 5000}]), 100)
    with pytest.raises(FileNotFoundError):
        list(json_records(tmp_path / "none.json"))
