"""Tests are in rooms, and what they share lives in modules of its own."""

from __future__ import annotations

import re
from pathlib import Path


def test_no_test_file_is_imported() -> None:
    """Not at the top, not in a function, and not in the text of a script that a test starts."""
    importing = re.compile(
        r"^\s*(?:from\s+(?:tests\.)?((?:test_\w+|conftest))\s+import|import\s+(?:tests\.)?((?:test_\w+|conftest))\b)", re.M
    )
    found = {path.name: importing.findall(path.read_text()) for path in Path(__file__).parents[1].rglob("*.py")}
    assert not {name: modules for name, modules in found.items() if modules}


def test_each_test_file_is_in_a_room() -> None:
    """A room holds what a reader can look over at once; what tests share is in ``support``."""
    tests = Path(__file__).parents[1]
    assert [path.name for path in tests.glob("*.py")] == ["conftest.py"]
    assert not [path.name for path in (tests / "support").glob("test_*.py")]
    rooms = [room for room in tests.iterdir() if room.is_dir() and room.name != "support"]
    assert not {room.name: count for room in rooms if (count := len(list(room.glob("test_*.py")))) > 24}
