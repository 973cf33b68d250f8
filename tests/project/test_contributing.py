"""CONTRIBUTING says what a change touches; what it names is there, and what it says of metrics and steps holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from tokenloom.configs.schema import Metric
from tokenloom.tasks import modalities
from tokenloom.tasks.evaluation.gate import measured_by_all
from tokenloom.tasks.evaluation.report import meaning
from tokenloom.tasks.steps import table

ROOT = Path(__file__).resolve().parents[2]


def test_every_file_that_is_named_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`((?:tasks|flows|models|configs|tests|docs)/[\w/.]*[\w/])`", text))
    assert len(named) > 8
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_metric_of_a_run_file_is_entered_everywhere() -> None:
    measured = measured_by_all()
    assert set(get_args(Metric)) == set(measured) - {""}
    numbers = [number for made in measured.values() for number in made]
    assert [number for number in numbers if not (meaning(number)[1] or meaning(f"{number}_")[1])] == []
    hidden = {"copies", "text_accuracy"}  # beside the number that says more
    columns = [column.rstrip("_") for modality in modalities.kinds().values() for column in modality.comparison.columns]
    assert [n for n in numbers if not any(n.startswith(column) for column in columns) and n not in hidden] == []


def test_every_step_stands_in_a_file_of_its_room() -> None:
    files = {path.stem for path in (ROOT / "tasks" / "steps").glob("*.py")} - {"__init__", "base", "table"}
    modules = {step.run.__module__.rpartition(".")[2] for step in table.TABLE} | {"train_stage"}
    assert modules == files
    text = (ROOT / "tasks" / "steps" / "table.py").read_text()
    for layer in ("flows", "flows/cli"):
        for path in (ROOT / layer).glob("*.py"):
            imported = re.findall(r"tasks\.steps\.(\w+) import", path.read_text())
            assert set(imported) <= {"base", "table"}, f"{path} knows a step by name"
    assert all(step.name.upper() in text for step in table.TABLE)
