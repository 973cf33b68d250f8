"""The table of mutations holds: each row names code and a test that are there, and the test fails where the row's change is made."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutations import ROOT, TABLE, UNNAMED, Mutation, copied, fails

from tokenloom.models.core import registry

NAMES = [f"{row.method}: {row.mechanism}" for row in TABLE]


@pytest.mark.parametrize("row", TABLE, ids=NAMES)
def test_a_row_names_what_is_there(row: Mutation) -> None:
    assert row.method in registry.names()
    assert (ROOT / row.file).read_text().count(row.before) == 1, "the code has changed: write the row anew"
    file, _, function = row.node.partition("::")
    assert f"def {function.partition('[')[0]}(" in (ROOT / file).read_text()


def test_the_list_of_generators_without_a_row_is_true() -> None:
    named = {row.method for row in TABLE}
    assert not set(UNNAMED) & named, "these have a row by now: take them off the list"
    assert set(UNNAMED) <= set(registry.names("generator"))


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mutated")
    copied(folder)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("row", TABLE, ids=NAMES)
def test_the_change_of_a_row_makes_its_test_fail(row: Mutation, copy: Path) -> None:
    red, said = fails(row, copy)
    assert red, said
