"""What tests share lives in modules of its own."""

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
