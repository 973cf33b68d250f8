"""Step ``register``: a version in the model registry; it becomes champion if the gate holds."""

from __future__ import annotations

from collections.abc import Mapping

from tokenloom.configs.schema import DENSITY_METRICS, RunConfig
from tokenloom.tasks.evaluation.gate import check_names
from tokenloom.tasks.steps import train_stage
from tokenloom.tasks.steps.base import Context, Inputs, Planned, Step, roles
from tokenloom.tasks.store.artifacts import Artifact, Outcome, StepSpec, Store
from tokenloom.tasks.tracking import register as registering


def needs(config: RunConfig, _store: Store) -> dict[str, str] | None:
    """What was judged, and the judgement."""
    if config.density is not None:
        return roles("evaluation", "density")
    return None if config.generator is None else {**roles("evaluation", "tokenizer"), "generator": train_stage.last(config)}


def plan(context: Context, inputs: Inputs) -> StepSpec:
    """A version in the model registry, and the gate of its alias."""
    config = context.config
    models = {role: artifact for role, artifact in inputs.items() if role != "evaluation"}
    return registering.plan_register(config.name, config.register_, inputs["evaluation"], models)


def run(context: Context, inputs: Inputs) -> Outcome:
    """Register the model, or find that it is."""
    assert context.tracker is not None, "registration needs a tracking server"
    return registering.register(plan(context, inputs), context.store, context.tracker, context.report)


def check(context: Context, _planned: Mapping[str, Planned]) -> None:
    """Refuse floors and gates on what is not measured."""
    config = context.config
    measured = config.evaluate.metrics
    if config.density is not None:
        measured = [name for name in measured if name in DENSITY_METRICS]
    check_names(config.register_.floor, config.register_.gate, measured)


def lost(context: Context, artifact: Artifact) -> str | None:
    """A registration counts only while the registry has it."""
    if context.registry is None or not registering.lost(context.store, artifact, context.registry):
        return None
    return "the model registry does not have this version: it is filled again"


REGISTER = Step(
    "register", "registration", "Put the model into the registry; it becomes champion if the gate holds.", needs, plan, run, check, lost
)
