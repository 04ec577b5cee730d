"""Commands stopped at random moments; `python tests/killed_commands.py` kills each 25 times."""

from __future__ import annotations

import os

import pytest
from killed_commands import kill_command

KILLS = int(os.environ.get("DETECTION_ZOO_TEST_COMMAND_KILLS", "2"))


@pytest.mark.parametrize("name", ["run", "compare", "report", "get"])
def test_a_stopped_command_leaves_nothing_half_written_and_nothing_running(name: str) -> None:
    tally = kill_command(name, KILLS)
    print(tally.line(name))
    assert tally.kills == KILLS and not tally.faults
