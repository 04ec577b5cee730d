"""Blocks of README: what stands between markers is renewed, the rest stays; broken markers are refused."""

from __future__ import annotations

import pytest

from detection_zoo.benchmarks.report.blocks import block_names, renew_blocks
from detection_zoo.zoo.errors import ZooError

TEXT = (
    "# Title\n\n<!-- table: vovnet -->\nold\n<!-- end -->\n\nwords\n<!-- table: demo -->\n<!-- end"
    " -->\nlast\n"
)


def test_only_the_insides_change() -> None:
    renewed = renew_blocks(TEXT, lambda name: f"table of {name}\n", "README.md")
    assert (
        renewed
        == "# Title\n\n<!-- table: vovnet -->\ntable of vovnet\n<!-- end -->\n\nwords\n<!-- table: demo"
        " -->\ntable of demo\n<!-- end -->\nlast\n"
    )
    assert renew_blocks(renewed, lambda name: f"table of {name}\n", "README.md") == renewed
    assert block_names(TEXT) == ["vovnet", "demo"]


def test_backslashes_of_a_table_are_kept() -> None:
    assert "a \\1 \\| b" in renew_blocks(TEXT, lambda name: "a \\1 \\| b\n", "README.md")


@pytest.mark.parametrize(
    ("broken", "lines"),
    [
        ("<!-- table: vovnet -->\nold\n", "1"),  # never ends
        ("old\n<!-- end -->\n", "2"),  # never starts
        ("<!-- table: a -->\n<!-- table: b -->\nold\n<!-- end -->\n", "1, 2, 4"),  # one inside another
        ("<!-- table: a -->\nold\n<!-- end -->\n\n<!-- end -->\n", "1, 3, 5"),
        ("<!--table: a-->\nold\n<!-- end -->\n", "1, 3"),  # written otherwise
        ("  <!-- table: a -->\nold\n<!-- end -->\n", "1, 3"),
    ],
)
def test_broken_markers_are_refused_with_their_lines(broken: str, lines: str) -> None:
    with pytest.raises(ZooError, match=f"README.md: the markers in lines {lines} are not pairs"):
        renew_blocks(broken, lambda name: "", "README.md")


def test_a_text_without_blocks_stays() -> None:
    assert renew_blocks("plain\n", lambda name: "", "README.md") == "plain\n"
