"""Sweeps: what is a range, trials that are stopped early or were killed, and what is said at the end; runs are stood in for."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tokenloom.flows import sweep
from tokenloom.flows.axes import Axis, Goal, axes_of, axis_of
from tokenloom.flows.sweep import Sweep
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.runtime.errors import StepError


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a.lr=1e-4..1e-2:log", Axis("a.lr", 1e-4, 1e-2, log=True)),
        ("a.depth=2..6", Axis("a.depth", 2, 6, whole=True)),
        ("a.drop=0..0.5", Axis("a.drop", 0, 0.5)),
        ("a.recipe=var | raster", Axis("a.recipe", choices=("var", "raster"))),
        ("a.steps=100", None),
        ("data.source=folder:../images", None),
    ],
)
def test_ranges_and_choices_are_told_from_edits(text: str, found: Axis | None) -> None:
    assert axis_of(text) == found


@pytest.mark.parametrize("text", ["a=3..1", "a=0..1:log", "a=2..2"])
def test_a_range_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"a range is LOW\.\.HIGH with LOW < HIGH"):
        axis_of(text)
    with pytest.raises(ConfigError, match="nothing to try out"):
        axes_of(["a=1"])
    with pytest.raises(ConfigError, match="stands twice"):
        axes_of(["a=1..2", "a=2..3"])


def test_the_first_metric_that_is_there_counts() -> None:
    goal = Goal(("fid", "fd_"), higher=False)
    assert goal.value({"fid_low": 1.0, "fd_classifier": 3.0}) == ("fd_classifier", 3.0)
    assert goal.value({"recognition": 1.0}) is None


#: What stands in for a run: a metric that is best at a rate of 1e-3, told as `tokenloom run --json` does; slow where it is asked to be.
RUN = """
import json, math, pathlib, signal, sys, time, yaml
config = yaml.safe_load(open(sys.argv[1]))
lr = config["generator"]["train"]["optimizer"]["lr"]
if lr > float(sys.argv[2]):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    pathlib.Path(sys.argv[1]).with_suffix(".going").touch()
    time.sleep(60)
if sys.argv[3] == "fail":
    sys.exit("no")
steps = [{"name": "train_tokenizer", "status": "cached"}, {"name": "train_generator", "status": "ran"}]
print(json.dumps({"metrics": {"fd_classifier": 1 + abs(math.log10(lr) + 3)}, "steps": steps}))
"""
SETS = ["generator.train.optimizer.lr=1e-5..1e-1:log"]


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    pytest.importorskip("optuna")
    monkeypatch.setattr(sweep, "LOOK", 0.05)
    made = sweep.opened("smoke_raster", SETS, None, str(tmp_path), None, None, True)
    made.say = lambda _: None
    return made


def stand_in(monkeypatch: pytest.MonkeyPatch, slow: float = math.inf, end: str = "") -> list[list[str]]:
    """Start the stand-in instead of runs; the commands that were asked for."""
    asked: list[list[str]] = []
    start = subprocess.Popen

    def popen(command: Sequence[str], **options: Any) -> Any:
        asked.append(list(command))
        return start([sys.executable, "-c", RUN, command[4], str(slow), end], **options)

    monkeypatch.setattr(sweep.subprocess, "Popen", popen)
    return asked


def test_a_sweep_ends_in_a_table_a_plot_and_the_run_file_of_the_best(opened: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = stand_in(monkeypatch)
    document = opened.carry_out(6, jobs=3)
    assert all(command[5:9] == ["--until", "evaluate", "--no-prefect", "--json"] for command in asked)
    assert [row["state"] for row in document["trials"]] == ["complete"] * 6
    best = document["best"]
    assert best["value"] == min(row["value"] for row in document["trials"])
    rate = yaml.safe_load(Path(best["run"]).read_text())["generator"]["train"]["optimizer"]["lr"]
    assert 1 + abs(math.log10(rate) + 3) == pytest.approx(best["value"])
    assert document["importance"] == {"generator.train.optimizer.lr": pytest.approx(1.0)}
    assert Path(document["picture"]).read_bytes().startswith(b"\x89PNG")
    assert opened.carry_out(6) == document, "what is done is not done again"
    assert len(asked) == 6
    assert len(opened.carry_out(7)["trials"]) == 7


def test_a_trial_behind_the_median_is_stopped_and_a_killed_one_is_tried_again(opened: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    import optuna

    stand_in(monkeypatch, slow=1e-2)
    monkeypatch.setattr(sweep, "FIRST", 1)

    def validated(_: Sweep, one: Any) -> list[tuple[int, float]]:
        if one.config.generator.train.optimizer.lr <= 1e-2:
            return [(10, 1.0), (20, 1.0)]
        return [(10, 5.0), (20, 9.0)] if one.out.with_suffix(".going").exists() else []

    monkeypatch.setattr(Sweep, "_validated", validated)
    opened.folder.mkdir(parents=True)
    study = opened._study(0)
    for rate in (1e-3, 1e-3, 5e-2):
        study.enqueue_trial({"generator.train.optimizer.lr": rate})
    asked = study.ask()
    assert asked.suggest_float("generator.train.optimizer.lr", 1e-5, 1e-1, log=True) == 1e-3  # killed in the midst of it
    asked.set_user_attr("name", "cut off")
    document = opened.carry_out(3)
    assert "cut off" not in {row["name"] for row in document["trials"]}, "it went on as another trial"
    states = {row["state"] for row in document["trials"]}
    assert "pruned" in states
    again = [row for row in document["trials"] if row["sets"] == ["generator.train.optimizer.lr=0.001"]]
    assert len({row["name"] for row in again}) == 1, "the same settings have one name, under which they go on"
    assert optuna.trial.TrialState.RUNNING not in {trial.state for trial in opened._study(0).trials}


def test_trials_that_fail_one_after_another_end_the_sweep(opened: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, end="fail")
    with pytest.raises(StepError, match=r"3 trials have failed one after another; the last one's messages: .*\.log") as error:
        opened.carry_out(5)
    log = re.search(r"messages: (.*\.log)", str(error.value))
    assert log is not None
    assert "no" in Path(log[1]).read_text()
    assert not (opened.folder / "sweep.json").exists()


def test_ends_of_a_range_and_the_metric_are_checked_before_any_work(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    for sets, metric, said in (
        (["generator.args.colour=1..3"], None, "colour"),
        (["generator.train.batch=-1..3"], None, "batch"),
        (SETS, "beauty", "--metric beauty"),
    ):
        with pytest.raises(ConfigError, match=said):
            sweep.opened("smoke_raster", sets, metric, str(tmp_path), None, None, True)
    assert not list(tmp_path.rglob("*.log"))
