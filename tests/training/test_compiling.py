"""``execution.compile: auto``: decided once by the length of the run, stored, and obeyed by whoever goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenloom.models.core.settings import ExecutionSettings
from tokenloom.tasks.store.storage import Storage
from tokenloom.tasks.training import compiling
from tokenloom.tasks.training.compiling import COST, SAVED, TIMED, WARM, Compiling
from tokenloom.tasks.training.parallel import Group

CPU = torch.device("cpu")


def eager() -> str:
    return "eager"


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda losses: lambda: f"compiled {losses()}")
    monkeypatch.setenv("CXX", "a compiler")


def started(folder: Path, asked: Any = "auto") -> Compiling:
    return Compiling(asked, eager, Storage(str(folder)), "artifact", Group(0, 1), CPU)


def run(one: Compiling, seconds: float, steps: int, upto: int = WARM + TIMED) -> Any:
    decisions = [one.timed(step, steps, 100.0 if step <= WARM else seconds, 1) for step in range(1, upto + 1)]
    assert all(decision is None for decision in decisions[:-1])
    return decisions[-1]


def test_a_long_run_is_compiled_from_one_step_on_and_stays_so(tmp_path: Path) -> None:
    """Steps that warm up are not timed; the length at which it pays is where a quarter of the rest is what compiling costs."""
    steps = int(COST / SAVED) + WARM + TIMED + 1
    one = started(tmp_path)
    assert run(one, 1.0, steps).compile
    at = WARM + TIMED
    assert (one.losses(at - 1)(), one.losses(at)()) == ("eager", "compiled eager")
    again = started(tmp_path)  # another process, from a checkpoint before that step, and on a machine that is faster
    assert (again.losses(at - 1)(), again.losses(at)()) == ("eager", "compiled eager")
    assert run(again, 0.0, steps) is None
    assert again.numbers(steps) == {"compiled_steps": steps - at}


def test_a_short_run_is_not(tmp_path: Path) -> None:
    steps = int(COST / SAVED) + WARM + TIMED
    one = started(tmp_path)
    decided = run(one, 1.0, steps)
    assert not decided.compile
    assert "does not pay" in decided.why
    assert one.losses(steps)() == "eager"
    assert started(tmp_path).decision == decided
    assert one.numbers(steps) == {}
    assert json.loads((tmp_path / "artifact" / "compile.json").read_text())["compile"] is False


def test_where_there_is_no_compiler_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    decided = run(started(tmp_path), 1.0, 10**6)
    assert not decided.compile
    assert "no C++ compiler" in decided.why


def test_what_is_asked_for_is_done(tmp_path: Path) -> None:
    assert started(tmp_path, True).losses(0)() == "compiled eager"
    assert started(tmp_path, False).losses(10**6)() == "eager"
    assert not (tmp_path / "artifact").exists()
    assert ExecutionSettings(compile="auto").compile == "auto"
