"""Sweeps: settings of a run tried out, each trial a normal run of its own process, so that what trials share is made once.

Optuna proposes and is told (ask and tell).  A trial's name is a hash of its settings: the same trial, met again after a kill, goes on from
its checkpoints.  Which trial comes next, and which is not worth its end, is all that this module decides.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tokenloom.configs.load import edited, load_cluster, load_run
from tokenloom.configs.schema import RunConfig, identity
from tokenloom.flows import planning
from tokenloom.flows.axes import Axis, Goal, axes_of, goal_of
from tokenloom.flows.workspace import Workspace
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.evaluation.plots import importance as importance_plot
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.store.artifacts import canonical_json, sha256_of
from tokenloom.tasks.store.leases import file_lock
from tokenloom.tasks.training.curves import read_curves

#: Trials that must end before one is stopped early, seconds between two looks, and failures in a row that end a sweep.
FIRST, LOOK, FAILURES = 4, 2.0, 3


@dataclass
class _Active:
    """A trial that works now."""

    trial: Any
    name: str
    config: RunConfig
    process: subprocess.Popen[bytes]
    out: Path
    began: float = field(default_factory=time.monotonic)
    seen: int = 0
    stopped: bool = False


@dataclass
class Sweep:
    """A sweep of one run.

    Args:
        run: name or path of the run file.
        fixed: plain edits of it.
        axes: what is tried out.
        goal: what is looked for.
        work: where it works.
        cluster: name or path of the cluster file.
        early: whether trials that fall behind the median are stopped early.
        say: told a line for people.
    """

    run: str
    fixed: Sequence[str]
    axes: Sequence[Axis]
    goal: Goal
    work: Workspace
    cluster: str | None = None
    early: bool = True
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        self.base = load_run(self.run, self.fixed)
        what = [identity(self.base), [vars(axis) for axis in self.axes], vars(self.goal)]
        self.name = f"{self.base.name[:40]}-{sha256_of(canonical_json(json.loads(json.dumps(what, default=str))))[:8]}"
        self.folder = self.work.root / "sweeps" / self.name
        # A loss compares only between models of the same tokens.
        self._prunes = self.early and not (self.base.generator and any(a.path.startswith(("tokenizer", "data")) for a in self.axes))

    def carry_out(self, trials: int, jobs: int = 1, seed: int = 0) -> dict[str, Any]:
        """Try so many, ``jobs`` at once, going on where an earlier call ended; the document of ``--json``.

        Raises:
            StepError: trials fail one after another.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with file_lock(self.work.root / "locks" / f"sweep-{self.name}.lock", f"the sweep {self.name}"):
            study, active, failed = self._study(seed), list[_Active](), 0
            try:
                while active or len(_ended(study)) < trials:
                    while len(active) < jobs and len(_ended(study)) + len(active) < trials:
                        active.append(self._begin(study.ask()))
                    time.sleep(LOOK)
                    for one in list(active):
                        if one.process.poll() is None:
                            self._look(one)
                            continue
                        active.remove(one)
                        failed = 0 if self._end(study, one) else failed + 1
                        if failed >= FAILURES:
                            raise StepError(
                                f"{failed} trials have failed one after another; the last one's messages: {one.out.with_suffix('.log')}"
                            )
            finally:
                _stop(active)
            return self._results(study)

    def _study(self, seed: int) -> Any:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = JournalStorage(JournalFileBackend(str(self.folder / "journal.log")))
        study = optuna.create_study(
            study_name=self.name, storage=storage, load_if_exists=True, direction="maximize" if self.goal.higher else "minimize"
        )
        study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials), n_startup_trials=FIRST, constant_liar=True)
        study.pruner = optuna.pruners.MedianPruner(n_startup_trials=FIRST, n_warmup_steps=1) if self._prunes else optuna.pruners.NopPruner()
        for trial in study.trials:  # of a sweep that was killed: the same settings again, which go on from their checkpoints
            if trial.state == optuna.trial.TrialState.RUNNING:
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
                study.enqueue_trial(trial.params)
        return study

    def _begin(self, trial: Any) -> _Active:
        sets = [f"{axis.path}={axis.ask(trial)}" for axis in self.axes]
        name = f"{self.base.name[:40]}-{sha256_of(canonical_json(sets))[:8]}"
        trial.set_user_attr("name", name)
        trial.set_user_attr("sets", sets)
        file, out = self.folder / f"{name}.yaml", self.folder / f"{name}.json"
        file.write_text(yaml.safe_dump(edited(self.run, [*self.fixed, *sets, f"name={name}"]), sort_keys=False))
        config = load_run(str(file))
        place = ["--root", str(self.work.root), "--store", self.work.store_uri, *(["--cluster", self.cluster] if self.cluster else [])]
        place += [part for text in self.fixed if text.startswith("cluster.") for part in ("--set", text)]
        run = ["run", str(file), "--until", "evaluate", "--no-prefect", "--json"]
        command = [sys.executable, "-m", "tokenloom.flows.cli.main", *run, *place]
        self.say(f"trial {trial.number}: {'  '.join(sets)}  ({name})")
        with open(out, "wb") as result, open(out.with_suffix(".log"), "ab") as log:
            process = subprocess.Popen(command, stdout=result, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        return _Active(trial, name, config, process, out)

    def _look(self, one: _Active) -> None:
        """Tell how a trial's training goes, and stop one that falls behind."""
        if not self._prunes or one.stopped:
            return
        for step, loss in self._told(one):
            if one.trial.should_prune():
                one.stopped = True
                one.process.send_signal(signal.SIGTERM)
                self.say(f"trial {one.trial.number}: stopped at step {step:,}, validation loss {loss:.4g} is behind the median")
                return

    def _told(self, one: _Active) -> Iterator[tuple[int, float]]:
        """Validation losses of a trial that Optuna has not been told yet; it is told each before it comes out."""
        for step, loss in self._validated(one)[one.seen :]:
            one.trial.report(-loss if self.goal.higher else loss, step)
            one.seen += 1
            yield step, loss

    def _validated(self, one: _Active) -> list[tuple[int, float]]:
        """Steps and validation losses so far of the last model that a trial trains."""
        try:
            planned = planning.roles(one.config, self.work.store, planning.plan(one.config, self.work.store))
        except (ConfigError, StepError, OSError):  # while another process writes there
            return []
        trained = [p.spec for p in planned.values() if p.spec is not None and p.spec.step.startswith("train_")]
        last = trained[-1] if trained else None
        if last is None or (self.base.generator is not None and last.kind != "generator"):
            return []
        rows = read_curves(self.work.store.storage, last.folder)
        return [(row["step"], row["validation_loss"]) for row in rows if "validation_loss" in row]

    def _end(self, study: Any, one: _Active) -> bool:
        """Tell how a trial ended; False for a failure."""
        from optuna.trial import TrialState

        one.trial.set_user_attr("seconds", time.monotonic() - one.began)
        if one.stopped and one.process.returncode:
            study.tell(one.trial, state=TrialState.PRUNED)
            return True
        document = dict[str, Any]()
        with contextlib.suppress(ValueError):
            document = json.loads(one.out.read_text())
        found = self.goal.value(document.get("metrics", {}))
        if self._prunes:
            list(self._told(one))  # the last ones, by which later trials are judged
        one.trial.set_user_attr("steps", {step["name"]: step["status"] for step in document.get("steps", [])})
        if one.process.returncode or found is None:
            reason = (
                document.get("error") or f"exit code {one.process.returncode}" if one.process.returncode else f"no {self.goal.names[0]}"
            )
            one.trial.set_user_attr("error", reason)
            study.tell(one.trial, state=TrialState.FAIL)
            self.say(f"trial {one.trial.number}: failed: {reason}; see {one.out.with_suffix('.log')}")
            return False
        one.trial.set_user_attr("metric", found[0])
        study.tell(one.trial, found[1])
        self.say(f"trial {one.trial.number}: {found[0]} {found[1]:.5g}")
        return True

    def _results(self, study: Any) -> dict[str, Any]:
        # One that was cut off has no time: it went on, or will, as another trial of the same settings.
        rows = [_row(trial) for trial in study.trials if trial.state.is_finished() and "seconds" in trial.user_attrs]
        complete = [row for row in rows if row["state"] == "complete"]
        document: dict[str, Any] = {"sweep": self.name, "folder": str(self.folder), "trials": rows, "best": None, "importance": {}}
        if complete:
            best = (max if self.goal.higher else min)(complete, key=lambda row: row["value"])
            file = self.folder / "best.yaml"
            file.write_text(yaml.safe_dump(edited(self.run, [*self.fixed, *best["sets"]]), sort_keys=False))
            document["best"] = best | {"run": str(file)}
            document["importance"] = _importance(study)
        if document["importance"]:
            (self.folder / "importance.png").write_bytes(importance_plot(document["importance"], complete[0]["metric"]))
            document["picture"] = str(self.folder / "importance.png")
        (self.folder / "sweep.json").write_text(json.dumps(document, indent=1))
        return document


def opened(
    run: str, sets: Sequence[str], metric: str | None, root: str | None, store: str | None, cluster: str | None, early: bool
) -> Sweep:
    """The sweep of a run file; each end of its ranges is checked before anything works.

    Raises:
        ConfigError: a range that is none, a value that the run file does not take, an unknown metric, or Optuna is not installed.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ConfigError("sweep needs Optuna: pip install 'tokenloom[sweep]'") from error
    fixed, axes = axes_of(sets)
    config = load_run(run, fixed)
    goal = goal_of(config, metric)
    work = Workspace.open(config.name, root, store, load_cluster(cluster, sets))
    planning.check(config, work.store, planning.plan(config, work.store))
    for axis in axes:
        ends = axis.choices or tuple(str(int(end)) if axis.whole else str(end) for end in (axis.low, axis.high))
        for end in ends:
            tried = load_run(run, [*fixed, f"{axis.path}={end}"])
            planning.check(tried, work.store, planning.plan(tried, work.store))
    return Sweep(run, fixed, axes, goal, work, cluster, early)


def _ended(study: Any) -> list[Any]:
    """Trials that have told something: complete, or stopped early."""
    return [trial for trial in study.trials if trial.state.name in ("COMPLETE", "PRUNED")]


def _row(trial: Any) -> dict[str, Any]:
    noted = trial.user_attrs
    row = {"number": trial.number, "state": trial.state.name.lower(), "value": trial.value if trial.state.name == "COMPLETE" else None}
    return row | {key: noted.get(key) for key in ("metric", "name", "sets", "seconds", "steps", "error")}


def _importance(study: Any) -> dict[str, float]:
    """The share of each setting in how the metric varies (fANOVA); empty where too few trials tell."""
    import optuna

    judge = optuna.importance.FanovaImportanceEvaluator(seed=0)
    try:
        return {name: float(share) for name, share in optuna.importance.get_param_importances(study, evaluator=judge).items()}
    except (ValueError, RuntimeError, ImportError):
        return {}


def _stop(active: Sequence[_Active]) -> None:
    """End the trials that work, their states saved."""
    for one in active:
        one.process.send_signal(signal.SIGTERM)
    for one in active:
        try:
            one.process.wait(120)
        except subprocess.TimeoutExpired:
            one.process.kill()
