"""One step of the pipeline as a value: its name, what it makes, what it needs, how it is planned and how it is run.

A run is a chain of steps (``tasks/steps/table.py``). Each step makes one artifact under a *role*, the name by which later steps
need it: ``dataset``, ``tokenizer``, ``tokens``, ``features``, ``generator``, ``evaluation``, ``registration``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tokenloom.configs.schema import ClusterConfig, RunConfig
from tokenloom.tasks.runtime.progress import Report, silent
from tokenloom.tasks.store.artifacts import Artifact, Outcome, StepSpec, Store

if TYPE_CHECKING:
    from tokenloom.tasks.tracking.tracker import Tracker

#: Input name of a step to its artifact.
Inputs = Mapping[str, Artifact]


@dataclass(frozen=True)
class Context:
    """A run and where it is made.

    ``registry`` is the address of the model registry, where it may be queried; ``tracker`` is there while steps run.
    """

    config: RunConfig
    store: Store
    registry: str | None = None
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracker: Tracker | None = None
    report: Report = silent


@dataclass(frozen=True)
class Given:
    """A plan that uses an artifact of the store as it is; ``reason`` names the field that says so."""

    artifact: Artifact
    reason: str


@dataclass(frozen=True)
class Later:
    """A plan that is certain to run, and whose fingerprint only its run will tell."""

    reason: str


@dataclass(frozen=True)
class Planned:
    """What is known of one step before it runs: ``artifact`` if it is complete, ``spec`` if all that shapes it is known."""

    name: str
    status: Literal["cached", "run", "unknown"]
    reason: str
    artifact: Artifact | None = None
    spec: StepSpec | None = None

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of what the step makes, where it is known."""
        return self.artifact.fingerprint if self.artifact else self.spec.fingerprint if self.spec else None

    def row(self) -> dict[str, Any]:
        """Plain form, for ``tokenloom plan --json``."""
        uri = self.artifact.uri if self.artifact else None
        return {"name": self.name, "status": self.status, "fingerprint": self.fingerprint, "reason": self.reason, "uri": uri}


def _nothing_to_check(_context: Context, _planned: Mapping[str, Planned]) -> None:
    """A step that any run can carry out."""


def _never_lost(_context: Context, _artifact: Artifact) -> str | None:
    """A step whose artifact is all that it leaves."""
    return None


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: as tables, ``--only`` and Prefect show it.
        makes: role of its artifact.
        summary: one sentence for people.
        needs: input name to the role that fills it, for a run; None where the run has no such step.
        plan: what it would make from these inputs, without making it.
        run: make it from these inputs, or find it.
        check: refuse, before any step of the run works, what this step could not do. Given what is planned, by role.
            Raises ``ConfigError`` naming the field, the value and what to do.
        lost: why a step has to run although its artifact is complete (the registry has lost the model); None where it need not.
    """

    name: str
    makes: str
    summary: str
    needs: Callable[[RunConfig, Store], Mapping[str, str] | None]
    plan: Callable[[Context, Inputs], StepSpec | Given | Later]
    run: Callable[[Context, Inputs], Outcome]
    check: Callable[[Context, Mapping[str, Planned]], None] = _nothing_to_check
    lost: Callable[[Context, Artifact], str | None] = _never_lost


def roles(*names: str) -> dict[str, str]:
    """Needs whose input names are the roles themselves."""
    return {name: name for name in names}


def used(context: Context, given: Given) -> Outcome:
    """The outcome of a step that uses an artifact as it is."""
    return Outcome(given.artifact, "cached", 0.0, context.store.record(given.artifact).metrics)
